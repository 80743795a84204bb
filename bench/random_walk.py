"""Time the random walks: Chebyshev polynomials on the sparse matrix, against squaring the dense
matrix 8 times as the released code does.

Each side runs in its own process, so that its peak memory can be measured. Both start from the same
affinities, computed by our functions. The dense side is float32 with denormals flushed, without
which IRNet's takes 20 times longer, and it skips the padded matrix that the released code builds
first. Ours is float64 and the best of ``--rounds``; the dense side runs once.

Prints the seconds and the peak memory of each side, the ratio without and with the affinities, and
the agreement of the walked maps.

    OMP_NUM_THREADS=2 python bench/random_walk.py --only psa
    OMP_NUM_THREADS=2 python bench/random_walk.py --only irn   # dense side: 1 to 3 minutes, 2 GB
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import children
import command_line
import memory
import numpy as np
import torch

from trainer.refine.pairs import half_plane
from trainer.refine.random_walk import boundary_affinity, feature_affinity, transition, walk

BETA = {"psa": 8, "irn": 10}
STEPS = 256


def scene(case: str, width: int, height: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Maps ``[K,h,w]`` of two round objects, psa's with the background first, and their 448
    features (psa) or edges (irn).
    """
    h, w = (
        (-(-height // 8), -(-width // 8))
        if case == "psa"
        else ((height - 1) // 4 + 1, (width - 1) // 4 + 1)
    )
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.linspace(0, 1, h), torch.linspace(0, 1, w), indexing="ij")
    radii = torch.stack(
        [torch.hypot(y - 0.35, x - 0.3) / 0.25, torch.hypot(y - 0.65, x - 0.7) / 0.3]
    )
    cams = torch.exp(-3 * (radii + 0.1 * torch.rand(radii.shape, generator=generator) - 0.2) ** 2)
    if case == "irn":
        rim = (radii - 1).abs().amin(0) + 0.05 * torch.rand(h, w, generator=generator)
        return (cams / cams.amax((1, 2), keepdim=True)).double(), torch.sigmoid(
            2 - 25 * rim
        ).double()
    kinds = torch.stack([torch.ones(h, w), *torch.sigmoid(12 * (1 - radii))])
    mixed = torch.einsum("ck,khw->chw", torch.randn(448, 3, generator=generator), kinds)
    features = torch.nn.functional.elu(mixed + 0.3 * torch.randn(448, h, w, generator=generator))
    return torch.cat([(1 - cams.amax(0, keepdim=True)).clamp(0) ** 16, cams]), features


def dense_walk(maps_Khw: torch.Tensor, affinity_Phw: torch.Tensor, beta: float) -> torch.Tensor:
    _, h, w = maps_Khw.shape
    cells = torch.arange(h * w)
    a = torch.eye(h * w)
    for values, (dy, dx) in zip(affinity_Phw.float().flatten(1), half_plane(5)):
        source = cells[values != 0]
        a[source, source + dy * w + dx] = values[source]
        a[source + dy * w + dx, source] = values[source]
    a.pow_(beta)
    a /= a.sum(0, keepdim=True)
    for _ in range(8):
        a = a @ a
    return (maps_Khw.float().flatten(1) @ a).view_as(maps_Khw)


def side(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    maps, inputs = scene(args.only, *args.size)
    if args.only == "irn":
        maps = maps * (1 - inputs)
    affinity_of = feature_affinity if args.only == "psa" else boundary_affinity
    seconds: dict[str, list[float]] = {"affinity": [], "walk": []}
    affinity_of(inputs)
    before = memory.peak()
    if args.side == "dense":
        torch.set_flush_denormal(True)
    for _ in range(args.rounds if args.side == "ours" else 1):
        start = time.perf_counter()
        affinity = affinity_of(inputs)
        middle = time.perf_counter()
        if args.side == "ours":
            walked = walk(maps, transition(affinity, beta=BETA[args.only]), STEPS)
        else:
            walked = dense_walk(maps, affinity, BETA[args.only])
        seconds["affinity"].append(middle - start)
        seconds["walk"].append(time.perf_counter() - middle)
    np.save(args.out, walked.double().numpy())
    print(
        json.dumps(
            {name: min(values) for name, values in seconds.items()}
            | {"peak": memory.peak() / 2**20, "before": before / 2**20}
        )
    )


def labels(case: str, walked_Khw: np.ndarray) -> np.ndarray:
    """Labels by the papers' rules: IRN divides the maps by their maximum and adds a background of
    0.25."""
    if case == "psa":
        return np.asarray(walked_Khw.argmax(0))
    scores = [np.full_like(walked_Khw[:1], 0.25), walked_Khw / walked_Khw.max()]
    return np.asarray(np.concatenate(scores).argmax(0))


def compare(args: argparse.Namespace, case: str, folder: Path) -> None:
    figures, walked = {}, {}
    for name in ("ours", "dense"):
        out = folder / f"{case}_{name}.npy"
        size = "x".join(str(n) for n in args.size)
        words = ["--only", case, "--side", name, "--size", size, "--out", out]
        words += ["--rounds", args.rounds, "--threads", args.threads]
        figures[name] = json.loads(children.output(__file__, *words))
        walked[name] = np.load(out)
    ours, dense = figures["ours"], figures["dense"]
    maps, h, w = walked["ours"].shape
    print(
        f"{case} {args.size[0]}x{args.size[1]}: {maps} maps of {h}x{w}, {STEPS} steps,"
        f" {args.threads} threads"
    )
    for name, f in figures.items():
        grown = f"{f['peak']:.0f} MB, {f['peak'] - f['before']:.0f} MB of it for matrix and walk"
        print(f"  {name:6s}{f['walk']:10.4f} s   peak {grown}")
    print(f"  affinities before it, the same on both sides: {ours['affinity']:.4f} s")
    both = (dense["walk"] + ours["affinity"]) / (ours["walk"] + ours["affinity"])
    print(f"  ratio {dense['walk'] / ours['walk']:.0f}, with the affinities {both:.0f}")
    agree = (labels(case, walked["ours"]) == labels(case, walked["dense"])).mean()
    difference = np.abs(walked["ours"] - walked["dense"]).max()
    print(f"  same arg-max {agree:.5f}   largest difference {difference:.1e}")
    if agree < 0.999:
        raise SystemExit("results differ")


def main() -> None:
    parser = command_line.parser(__doc__)
    parser.add_argument("--only", choices=BETA, help="one of the two walks")
    parser.add_argument(
        "--size", type=lambda text: tuple(map(int, text.split("x"))), default=(500, 375), help="WxH"
    )
    parser.add_argument(
        "--rounds", type=int, default=10, help="rounds of our side; the dense side runs once"
    )
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="threads of both sides"
    )
    parser.add_argument("--side", choices=("ours", "dense"), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        side(args)
        return
    with tempfile.TemporaryDirectory() as folder:
        for case in [args.only] if args.only else BETA:
            compare(args, case, Path(folder))


if __name__ == "__main__":
    main()
