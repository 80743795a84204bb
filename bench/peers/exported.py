"""Check an exported repository in real Triton 2.51, unchanged, and NVIDIA's own client on this
server.

Triton reads the ``config.pbtxt`` that ``wsss-trainer export`` wrote, and refuses whatever it does
not state instead of guessing (``--disable-auto-complete-config``). Every model is then called by
the Open Inference Protocol, here and there, with pixels of several sizes and batches: names, types,
shapes and bytes of all outputs must be equal. perf_analyzer, unmodified, loads this server in a
closed and an open loop. (``tests/serving/rpc/test_triton.py`` makes every call of
tritonclient.)

Prints the shapes whose outputs are equal for each model, and the requests a second of each load.

    python bench/peers/exported.py /somewhere/peers --repository exported/
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import grpc
import numpy as np
import servers

from serving.bench import load, target
from serving.bench.target import Running, infer_message
from serving.card import Card
from serving.repository.versions import read_repository
from wsss.inference import open_inference_pb2 as pb

sys.path.append(str(Path(__file__).resolve().parents[1]))

import command_line

ROOT = Path(__file__).resolve().parents[2]
# Batch, height and width.
SHAPES = ((1, 96, 128), (2, 96, 128), (1, 131, 97), (3, 64, 200))


def main() -> None:
    options = arguments()
    newest = {
        name: versions[max(versions)]
        for name, versions in read_repository(options.repository).items()
    }
    pictures = {name: card for name, card in newest.items() if card.kind != "tensor"}
    with (
        target.server(options.repository, "engine.name=onnxruntime") as ours,
        servers.triton(options.peers, options.repository, next(iter(newest))) as triton,
    ):
        for name, card in pictures.items():
            print(
                json.dumps(
                    {
                        "model": name,
                        "equal": [compare(card, shape, ours, triton) for shape in SHAPES],
                    }
                )
            )
        for name in pictures:
            for loop in (
                "--concurrency-range=2",
                "--request-rate-range=10 --request-distribution=poisson",
            ):
                words = [*loop.split(), "--shape", "image:96,128,3"]
                rate = servers.perf_analyzer(
                    options.peers, ours.address, name, words, options.seconds
                )
                print(
                    json.dumps({"model": name, "perf_analyzer": loop, "per_second": rate}),
                    flush=True,
                )


def compare(card: Card, shape: tuple[int, int, int], ours: Running, triton: Running) -> str:
    """Compare every output of one shape; returns the shape as text."""
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    message = infer_message(card.name, {"image": pixels})
    outputs = [tensors(server, message) for server in (ours, triton)]
    assert outputs[0].keys() == outputs[1].keys(), (
        f"outputs {sorted(outputs[0])} here, {sorted(outputs[1])} there"
    )
    for name, (kind, size, values) in outputs[0].items():
        other_kind, other_size, other = outputs[1][name]
        assert (kind, size) == (other_kind, other_size), (
            f"{name} is {kind} {size} here, {other_kind} {other_size} there"
        )
        assert values == other, f"{name} of {shape} differs"
    return "x".join(map(str, shape))


def tensors(server: Running, message: bytes) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Type, shape and bytes of every output."""
    with grpc.insecure_channel(server.address, options=load.OPTIONS) as channel:
        reply = pb.ModelInferResponse.FromString(
            channel.unary_unary(target.INFER)(message, timeout=120)
        )
    return {
        output.name: (output.datatype, tuple(output.shape), raw)
        for output, raw in zip(reply.outputs, reply.raw_output_contents)
    }


def arguments() -> argparse.Namespace:
    parser = command_line.parser(__doc__)
    parser.add_argument("peers", type=Path, help="folder that setup.sh filled")
    parser.add_argument(
        "--repository",
        type=Path,
        default=ROOT / "exported",
        help="repository that wsss-trainer export wrote",
    )
    parser.add_argument("--seconds", type=float, default=6.0, help="length of each load")
    return parser.parse_args()


if __name__ == "__main__":
    main()
