"""Other servers and this one on the same graphs, measured in turns on one machine.

Every server runs ONNX Runtime with one thread a run and no spinning, listens on the machine itself,
and is loaded by the same client, which sends bytes made before and does not decode replies;
``--perf-analyzer`` adds NVIDIA's own. Before anything is timed, their answers are compared. Two
servers of a ratio take turns; the medians of the rounds count. ``cpu_ms`` is the processor time of
a call in the server, which other work on the machine hardly touches.

photo to mask / Triton   one caller: ours, a JPEG of 512x512 in and its PNG mask out / Triton, the
                         normalised float32 tensor in and logits out
tensor / Triton          four callers: ours / Triton, float32 [1,3,256,256] in and the mask out, by
                         the Open Inference Protocol
tensor / MLServer        ours / MLServer, the same call

Triton is the real 2.51.0; the wheel that it comes in has no C++ backend for ONNX Runtime, so the
graphs run below its Python backend (``triton_backend/model.py``). A peer that is not set up is left
out, and said to be.

    bench/peers/setup.sh /somewhere/peers
    python bench/peers /somewhere/peers
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from contextlib import ExitStack
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

import models

# What is loaded, with what, and by how many callers.
Side = tuple[Running, Request, int]

PHOTO, TENSOR, OTHER = "photo to mask / Triton", "tensor / Triton", "tensor / MLServer"
BY_PERF_ANALYZER = f"{TENSOR}, by perf_analyzer"
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
        for name, start in {
            "triton": lambda: servers.triton(options.peers, repository, "mask"),
            "mlserver": lambda: servers.mlserver(
                options.peers, repository / "mask" / "1" / "model.onnx", "mask"
            ),
        }.items():
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
        found = {"raw_mask": target.raw_loop(tensor, engines["mask"], options.seconds).rate}
        for name, side in sides.items():
            found[name], found[f"{name}_cpu_ms"] = loaded(*side, options.seconds)
        if options.perf_analyzer:
            found |= by_perf_analyzer(ours, peers, options)
        # The first round warms all of them up.
        if number:
            rounds.append(found | ratios(found))
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
    found = load.closed(server.address, request, callers, seconds, 100_000)
    return found.rate, 1e3 * (servers.cpu_seconds(pid) - before) / len(found.waits)


def ratios(found: dict[str, float]) -> dict[str, float]:
    pairs = {
        PHOTO: ("ours_photo", "triton_logits"),
        TENSOR: ("ours_mask", "triton_mask"),
        BY_PERF_ANALYZER: ("ours_perf_analyzer", "triton_perf_analyzer"),
        OTHER: ("ours_mask", "mlserver_mask"),
    }
    return {
        key: found[ours] / found[other]
        for key, (ours, other) in pairs.items()
        if ours in found and other in found
    }


def by_perf_analyzer(
    ours: Running, peers: dict[str, Running], options: argparse.Namespace
) -> dict[str, float]:
    asked = {"ours": ours} | {name: peers[name] for name in ("triton",) if name in peers}
    return {
        f"{name}_perf_analyzer": servers.perf_analyzer(
            options.peers, server.address, "mask", ["--concurrency-range=4"], options.seconds
        )
        for name, server in asked.items()
    }


def check(server: Running, asked: Target, engine: Engine) -> None:
    """What a server answers is what the bare engine says, to the last bit."""
    request, work = asked.request(), asked.work(engine)
    with grpc.insecure_channel(server.address, options=load.OPTIONS) as channel:
        for number, message in enumerate(request.messages):
            reply = channel.unary_unary(request.method)(message, timeout=60)
            if asked.answer(reply) != work(number):
                raise SystemExit(
                    f"{server.address} answers {asked.card.name} otherwise than the engine"
                )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("peers", type=Path, help="folder that setup.sh filled")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each server in each round")
    parser.add_argument(
        "--perf-analyzer", action="store_true", help="load ours and Triton with it too"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
