"""Compare this server with Triton and MLServer on the same graphs, in turns on one machine.

Every server runs ONNX Runtime with one thread per run and no spinning, listens on this machine
only, and is loaded by the same client, which sends bytes made before and does not decode replies;
``--perf-analyzer`` adds NVIDIA's own client. Before anything is timed, the answers are compared.
The two servers of a ratio take turns, and the medians of the rounds count.

Prints the rates of each round, their medians, and three ratios with their aims:

from photograph to mask against Triton   one caller: a JPEG of 512x512 in and its PNG mask out here
                                         / the normalised float32 tensor in and logits out there
float32 tensor against Triton            four callers: float32 [1,3,256,256] in and the mask out, by
                                         the Open Inference Protocol
float32 tensor against MLServer          the same call

``cpu_ms`` is the processor time of a call in the server, which other work on the machine hardly
affects. Triton is the real 2.51.0; the wheel that it comes in has no C++ backend for ONNX Runtime,
so the graphs run under its Python backend (``triton_backend/model.py``). A server that is not set
up is left out, and a line says so.

    bench/peers/setup.sh /somewhere/peers
    python bench/peers /somewhere/peers
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import servers
from servers import PeerError

from serving.bench import load, target
from serving.bench.load import Request
from serving.bench.target import Running, Target
from serving.config import EngineConfig
from serving.engines import Engine, Plan
from serving.repository.loading import open_engine
from serving.repository.versions import read_repository

sys.path.append(str(Path(__file__).resolve().parents[1]))

import command_line
import models

# The server, its request, and the number of callers.
Side = tuple[Running, Request, int]

PHOTO = "from photograph to mask against Triton, closed loop, one caller"
TENSOR = "float32 tensor against Triton, closed loop, four callers"
BY_PERF_ANALYZER = f"{TENSOR}, by perf_analyzer"
OTHER = "float32 tensor against MLServer, closed loop, four callers"
AIMS = {PHOTO: 4.5, TENSOR: 1.1, BY_PERF_ANALYZER: 1.1, OTHER: 2.5}
IMAGES = 8
# What the peers run.
ENGINE = EngineConfig(name="onnxruntime")


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory() as made, ExitStack() as stack:
        repository = Path(made)
        for write in (models.write_segmenter, models.write_mask, models.write_logits):
            write(repository)
        ours = stack.enter_context(target.server(repository, f"engine.name={ENGINE.name}"))
        peers: dict[str, Running] = {}
        starts: dict[str, Callable[[], AbstractContextManager[Running]]] = {
            "triton": lambda: servers.triton(options.peers, repository, "mask"),
            "mlserver": lambda: servers.mlserver(
                options.peers, repository / "mask" / "1" / "model.onnx", "mask"
            ),
        }
        for name, start in starts.items():
            try:
                peers[name] = stack.enter_context(start())
            except PeerError as error:
                print(f"left out: {error}", file=sys.stderr)
        measure(repository, ours, peers, options)


def measure(
    repository: Path, ours: Running, peers: dict[str, Running], options: argparse.Namespace
) -> None:
    targets = {
        name: Target(card=versions[1]) for name, versions in read_repository(repository).items()
    }
    photo = replace(
        targets["segmenter"],
        images=tuple(target.made_image(512, 512, seed) for seed in range(IMAGES)),
    )
    engines = {
        name: open_engine(targets[name].card, Plan(), ENGINE)
        for name in ("segmenter", "mask", "logits")
    }
    tensor, logits = (
        replace(targets[n], inputs=target.random_inputs(engines[n], 0)) for n in ("mask", "logits")
    )
    check(ours, photo, engines["segmenter"])
    sides: dict[str, Side] = {
        "ours_mask": (ours, tensor.request(), 4),
        "ours_photo": (ours, photo.request(), 1),
    }
    check(ours, tensor, engines["mask"])
    for name, peer in peers.items():
        check(peer, tensor, engines["mask"])
        sides[f"{name}_mask"] = (peer, tensor.request(), 4)
    if "triton" in peers:
        check(peers["triton"], logits, engines["logits"])
        sides["triton_logits"] = (peers["triton"], logits.request(), 1)
    rounds = []
    for number in range(options.rounds + 1):
        rates = {"raw_mask": target.raw_loop(tensor, engines["mask"], options.seconds).rate}
        for name, side in sides.items():
            rates[name], rates[f"{name}_cpu_ms"] = loaded(*side, options.seconds)
        if options.perf_analyzer:
            rates |= by_perf_analyzer(ours, peers, options)
        # The first round warms all of them up.
        if number:
            rounds.append(rates | ratios(rates))
            print(
                json.dumps({key: round(value, 2) for key, value in rounds[-1].items()}), flush=True
            )
    medians = {
        key: round(float(np.nanmedian([each[key] for each in rounds])), 2) for key in rounds[0]
    }
    print(
        json.dumps({"median": medians, "aims": {key: AIMS[key] for key in AIMS if key in medians}})
    )


def loaded(server: Running, request: Request, callers: int, seconds: float) -> tuple[float, float]:
    """Requests a second, and milliseconds of processor time that the server spent on each."""
    pid = server.process.pid if server.process else 0
    before = servers.cpu_seconds(pid)
    replies = load.closed(server.address, request, callers, seconds, 100_000)
    return replies.rate, 1e3 * (servers.cpu_seconds(pid) - before) / len(replies.waits)


def ratios(rates: dict[str, float]) -> dict[str, float]:
    pairs = {
        PHOTO: ("ours_photo", "triton_logits"),
        TENSOR: ("ours_mask", "triton_mask"),
        BY_PERF_ANALYZER: ("ours_perf_analyzer", "triton_perf_analyzer"),
        OTHER: ("ours_mask", "mlserver_mask"),
    }
    return {
        key: rates[ours] / rates[other]
        for key, (ours, other) in pairs.items()
        if ours in rates and other in rates
    }


def by_perf_analyzer(
    ours: Running, peers: dict[str, Running], options: argparse.Namespace
) -> dict[str, float]:
    loads = {"ours": ours} | {name: peers[name] for name in ("triton",) if name in peers}
    return {
        f"{name}_perf_analyzer": servers.perf_analyzer(
            options.peers, server.address, "mask", ["--concurrency-range=4"], options.seconds
        )
        for name, server in loads.items()
    }


def check(server: Running, load_target: Target, engine: Engine) -> None:
    """Stop unless the server answers what the bare engine does, to the last bit."""
    request, work = load_target.request(), load_target.work(engine)
    with grpc.insecure_channel(server.address, options=load.OPTIONS) as channel:
        for number, message in enumerate(request.messages):
            reply = channel.unary_unary(request.method)(message, timeout=60)
            if load_target.answer(reply) != work(number):
                raise SystemExit(
                    f"{server.address} and the engine answer {load_target.card.name} differently"
                )


def arguments() -> argparse.Namespace:
    parser = command_line.parser(__doc__)
    parser.add_argument("peers", type=Path, help="folder that setup.sh filled")
    parser.add_argument("--rounds", type=int, default=6, help="rounds; medians count")
    parser.add_argument(
        "--seconds", type=float, default=4.0, help="length of the load of each server in each round"
    )
    parser.add_argument(
        "--perf-analyzer", action="store_true", help="also load ours and Triton with it"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
