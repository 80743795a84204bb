"""Check SIGTERM under load: accepted requests finish, and later calls get UNAVAILABLE.

Eight callers wait for slow answers of one worker when the signal comes. From then on others call
every 5 ms, on the same connection and on new ones, until the process has ended. Calls before the
first that is not answered OK were let in by the port, which was still open; ``later`` counts the
calls from that first one on.

Prints the counts of each round and, in the end, the share of accepted requests that finished and of
later calls that got UNAVAILABLE. Both should be 1. Health and its order are noted too.

    python bench/drain.py
    python bench/drain.py --rounds 10 --lame-duck 0.5
"""

from __future__ import annotations

import asyncio
import json
import signal
import tempfile
import time
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import command_line
import grpc
import models
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serving.bench import target
from serving.bench.target import Running
from wsss.v1 import segmentation_pb2 as pb

CALLERS = 8
LATER_SECONDS = 0.005
FLIPPED = "NOT_SERVING"


def main() -> None:
    parser = command_line.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=4, help="servers to end, one after the other")
    parser.add_argument(
        "--lame-duck", type=float, default=0.0, help="the server's shutdown.lame_duck, in seconds"
    )
    options = parser.parse_args()
    image = target.made_image(1000, 750, 0)
    message = pb.SegmentRequest(image=pb.Image(encoded=image)).SerializeToString()
    totals: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        models.write_resnet(Path(folder), width=32)
        for _ in range(options.rounds):
            settings = ("schedule.workers=1", f"shutdown.lame_duck={options.lame_duck}")
            with target.server(Path(folder), *settings) as running:
                counts = asyncio.run(end(running, message))
            print(json.dumps(counts), flush=True)
            totals.update({key: value for key, value in counts.items() if isinstance(value, int)})
    print(
        json.dumps(
            {
                "in_flight_finished": totals["finished"] / totals["in_flight"],
                "later_unavailable": totals["later_unavailable"] / max(1, totals["later"]),
                "rounds": options.rounds,
                "in_flight": totals["in_flight"],
                "later": totals["later"],
                "aim": 1.0,
            }
        )
    )


async def end(running: Running, message: bytes) -> dict[str, Any]:
    process = running.process
    assert process
    events: list[tuple[float, str]] = []
    async with grpc.aio.insecure_channel(running.address) as channel:
        await channel.unary_unary(target.SEGMENT)(message)
        watch = asyncio.ensure_future(watched(channel, events))
        accepted = [asyncio.ensure_future(code(channel, message)) for _ in range(CALLERS)]
        while in_flight(running) < CALLERS:
            await asyncio.sleep(0.002)
        process.send_signal(signal.SIGTERM)
        later = asyncio.ensure_future(callers(running, channel, message, events))
        codes = await asyncio.gather(*accepted)
        finished = time.monotonic()
        later_codes = await later
        watch.cancel()
    first = next(
        (number for number, name in enumerate(later_codes) if name != "OK"), len(later_codes)
    )
    refused = [moment for moment, name in events if name not in ("OK", FLIPPED)]
    flipped = [moment for moment, name in events if name == FLIPPED]
    return {
        "in_flight": CALLERS,
        "finished": codes.count("OK"),
        "let_in_after_the_signal": first,
        "later": len(later_codes) - first,
        "later_unavailable": later_codes[first:].count("UNAVAILABLE"),
        "later_codes": dict(Counter(later_codes[first:])),
        "health_first": bool(flipped and refused and flipped[0] <= refused[0]),
        "refused_before_the_last_was_finished": bool(refused and refused[0] < finished),
        "exit_code": process.wait(30),
    }


def in_flight(running: Running) -> int:
    """Requests that hold a place in the server's queue at this moment."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(f"http://127.0.0.1:{running.http_port}/metrics") as page:
        (line,) = (
            line for line in page.read().decode().splitlines() if line.startswith("wsss_in_flight{")
        )
    return int(float(line.split()[-1]))


async def callers(
    running: Running, channel: grpc.aio.Channel, message: bytes, events: list[tuple[float, str]]
) -> list[str]:
    """Codes of all calls until the process has ended, in the order of the calls."""
    calls = []
    assert running.process
    while running.process.poll() is None:
        calls.append(asyncio.ensure_future(noted(code(channel, message), events)))
        calls.append(asyncio.ensure_future(noted(anew(running.address, message), events)))
        await asyncio.sleep(LATER_SECONDS)
    return list(await asyncio.gather(*calls))


async def noted(call: Any, events: list[tuple[float, str]]) -> str:
    name: str = await call
    events.append((time.monotonic(), name))
    return name


async def anew(address: str, message: bytes) -> str:
    """A call on its own new connection."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        return await code(channel, message)


async def code(channel: grpc.aio.Channel, message: bytes) -> str:
    try:
        await channel.unary_unary(target.SEGMENT)(message, timeout=60)
    except grpc.aio.AioRpcError as error:
        return str(error.code().name)
    return "OK"


async def watched(channel: grpc.aio.Channel, events: list[tuple[float, str]]) -> None:
    """Note when the health service reports that the server no longer serves."""
    call = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
    try:
        async for reply in call:
            if reply.status == health_pb2.HealthCheckResponse.NOT_SERVING:
                events.append((time.monotonic(), FLIPPED))
                return
    except grpc.aio.AioRpcError:
        return


if __name__ == "__main__":
    main()
