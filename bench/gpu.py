"""Measure what a GPU does for training, maps and serving: one command, at most ten minutes.

train    a step of the training loop against plain PyTorch, ResNet-50: ratio at float32 and at the
         loop's own precision
maps     maps over scales and mirror images, batched, against one view at a time; largest difference
parity   share of equal pixels in the masks of each engine and of ONNX Runtime on the processors;
         at least 0.995 is wanted
serve    images a second of eight callers, JPEG to PNG mask, through a server, against one thread
         without a server and against the bare engine; 0.85 of the bare engine is wanted

Everything is made here; networks have random weights. What this machine or environment lacks is
named and left out: train and maps need `wsss[train]`, the engines `wsss[serve-gpu]` and
`wsss[serve,tensorrt]`, which need not be in one environment. Prints JSON objects, and ends with 1
if nothing could be measured. `--device cpu` tries the program itself where no GPU is.

    python bench/gpu.py
    python bench/gpu.py --only parity,serve --engines tensorrt
    python bench/gpu.py --device cpu --quick
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import command_line

if TYPE_CHECKING:
    from serving.config import EngineName

Row = dict[str, Any]
ENGINES: dict[str, tuple[EngineName, ...]] = {
    "cuda": ("onnxruntime-cuda", "tensorrt"),
    "cpu": ("onnxruntime",),
}
PACKAGES = ("torch", "onnxruntime", "onnxruntime-gpu", "tensorrt", "cuda-bindings")
MINUTES = 10
CALLERS, SIDE = 8, 512


def main() -> None:
    options = arguments()
    parts: dict[str, Callable[[argparse.Namespace, Path], Iterator[Row]]] = {
        "train": train,
        "maps": maps,
        "parity": parity,
        "serve": serve,
    }
    if unknown := set(options.only) - set(parts):
        raise SystemExit(f"--only {', '.join(sorted(unknown))}: choose of {', '.join(parts)}")
    # Parts print their progress, which goes to stderr.
    out = sys.stdout
    print(json.dumps(facts(options.device)), file=out, flush=True)
    measured, ends = 0, time.monotonic() + 60 * MINUTES
    with tempfile.TemporaryDirectory() as folder:
        for name in options.only or parts:
            if time.monotonic() > ends:
                missing = f"{MINUTES} minutes are over"
                print(json.dumps({"part": name, "missing": missing}), file=out)
                continue
            place = Path(folder) / name
            place.mkdir()
            for row in rows(parts[name], options, place):
                measured += "missing" not in row
                print(json.dumps({"part": name} | rounded(row)), file=out, flush=True)
    sys.exit(0 if measured else 1)


def rows(part: Callable[..., Iterator[Row]], options: argparse.Namespace, folder: Path) -> Any:
    """The rows of a part, or one that says why it ended. No part ends the others."""
    began = time.monotonic()
    try:
        with contextlib.redirect_stdout(sys.stderr):
            for row in part(options, folder):
                yield row | {"seconds": time.monotonic() - began}
    # Of whatever kind: libraries of GPUs fail in their own ways.
    except Exception as error:
        yield {"missing": f"{type(error).__name__}: {error}"}


def rounded(row: Row) -> Row:
    return {key: round(v, 5) if isinstance(v, float) else v for key, v in row.items()}


def facts(device: str) -> Row:
    """Versions and devices."""
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    row: Row = {"part": "machine", "device": device, **versions}
    with contextlib.suppress(ImportError):
        import torch

        if torch.cuda.is_available():
            row["gpu"], row["cuda"] = torch.cuda.get_device_name(), torch.version.cuda
    with contextlib.suppress(ImportError):
        import onnxruntime

        row["providers"] = onnxruntime.get_available_providers()
    return row


def training_words(options: argparse.Namespace) -> list[str]:
    """The options that ``train_step.py`` and ``cams.py`` share.

    Raises:
        RuntimeError: torch finds no GPU.
    """
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        built = torch.version.cuda
        raise RuntimeError(
            f"torch {torch.__version__} finds no GPU; it is built for CUDA {built}"
            if built
            else f"torch {torch.__version__} is built without CUDA"
        )
    backbone = "mobilenet_v2" if options.quick else "resnet50"
    return ["--backbone", backbone, "--device", options.device]


def train(options: argparse.Namespace, folder: Path) -> Iterator[Row]:
    """Steps of training."""
    import train_step

    quick = "--batch 2 --size 64 --rounds 3 --warmup 1"
    full = "--batch 32 --size 321 --rounds 32 --warmup 8"
    words = training_words(options) + (quick if options.quick else full).split()
    args = train_step.arguments(words)
    for side, figures in train_step.compare(args, folder).items():
        yield {"side": side, "images_per_second": 1000 * args.batch / figures["ms"], **figures}


def maps(options: argparse.Namespace, folder: Path) -> Iterator[Row]:
    """Maps of images."""
    import cams

    quick = "--images 2 --width 96 --height 64 --rounds 1"
    full = "--images 32 --width 500 --height 375 --rounds 3"
    words = [*training_words(options), "--batch", "8", "--workers", "0"]
    args = cams.arguments(words + (quick if options.quick else full).split())
    for side, figures in cams.compare(args, folder).items():
        yield {"side": side, **figures}


def engines(options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, Any, Any]]:
    """Name, card and loaded engine of each engine that can be had, or in its place why not."""
    import models

    from serving.card import read_card
    from serving.config import EngineConfig
    from serving.engines import Plan
    from serving.repository.choice import choose_engine, limited

    models.write_resnet(folder / "models", 16 if options.quick else 64)
    card = read_card(folder / "models" / "resnet" / "1")
    names: Sequence[EngineName] = options.engines or ENGINES[options.device]
    for name in names:
        # The server finds here what TensorRT built for the bare engine.
        config = EngineConfig(name, max_side=SIDE, cache=folder / "built")
        own = limited(card, config)
        try:
            engine = choose_engine(own, Plan(workers=2, max_batch=CALLERS), config)
        except Exception as error:
            yield name, own, error
            continue
        try:
            yield name, own, engine
        finally:
            engine.close()


def parity(options: argparse.Namespace, folder: Path) -> Iterator[Row]:
    """Masks of each engine against those of ONNX Runtime on the processors."""
    from serving.engines import Plan
    from serving.engines.onnxruntime import OnnxRuntimeEngine
    from serving.repository.agreement import agreement

    for name, card, engine in engines(options, folder):
        if isinstance(engine, Exception):
            yield {"engine": name, "missing": str(engine)}
            continue
        exact = OnnxRuntimeEngine(card, Plan().threads)
        share = agreement(card, engine, exact)
        exact.close()
        yield {"engine": name, "description": engine.description, "equal_pixels": share}


def serve(options: argparse.Namespace, folder: Path) -> Iterator[Row]:
    """A server, a thread without one, and the bare engine, on the same JPEGs."""
    from serving.bench import load, target

    seconds = 2.0 if options.quick else 8.0
    images = tuple(target.made_image(SIDE, SIDE, seed) for seed in range(CALLERS))
    for name, card, engine in engines(options, folder):
        if isinstance(engine, Exception):
            yield {"engine": name, "missing": str(engine)}
            continue
        photos = target.Target(card, images)
        settings: tuple[str, ...] = (f"engine.name={name}", f"engine.max_side={SIDE}")
        settings += (f"engine.cache={folder / 'built'}",)
        with target.server(folder / "models", *settings) as running:
            request = photos.request()
            load.closed(running.address, request, CALLERS, seconds / 2, 1_000_000)
            served = load.closed(running.address, request, CALLERS, seconds, 1_000_000)
        target.raw_loop(photos, engine, seconds / 4)
        thread, bare = target.raw_loop(photos, engine, seconds), bare_rate(engine, seconds)
        yield {
            "engine": name,
            "codes": dict(served.codes),
            "per_second": served.rate,
            "p99_ms": 1e3 * served.wait(0.99),
            "run_ms": 1e3 * thread.run,
            "to_one_thread": served.rate / thread.rate,
            "to_bare_engine": served.rate / bare,
        }


def bare_rate(engine: Any, seconds: float) -> float:
    """Images a second of the engine alone, in batches of as many as there are callers."""
    from serving.bench import target

    inputs = target.random_inputs(engine, SIDE)
    (name, pixels), *_ = inputs.items()
    batch = {name: pixels.repeat(CALLERS, 0)}
    engine.run(batch)
    times: list[float] = []
    ends = time.monotonic() + seconds
    while not times or time.monotonic() < ends:
        began = time.perf_counter()
        engine.run(batch)
        times.append(time.perf_counter() - began)
    return CALLERS / statistics.median(times)


def words(text: str) -> list[str]:
    return text.split(",")


def arguments() -> argparse.Namespace:
    parser = command_line.parser(__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="of every part")
    parser.add_argument("--only", type=words, default=[], help="some of the parts")
    parser.add_argument("--engines", type=words, default=[], help="instead of those of the device")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to try the program")
    return parser.parse_args()


if __name__ == "__main__":
    main()
