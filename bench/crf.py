"""Dense CRF: a process pool against one image after another, and shared kernels against two separate calls.

python bench/crf.py --images 48 --preset P1
"""

from __future__ import annotations

import argparse
import time
from functools import partial

import numpy as np

from trainer.pool import cores, over_images
from trainer.refine.crf import PRESETS, DenseCrf, dense_crf, unary_from_softmax


def scene(number: int, height: int, width: int, labels: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture of soft regions with noise, and scores that follow it loosely."""
    rng = np.random.RandomState(number)
    y, x = np.mgrid[:height, :width] / 60.0
    base = 120 + 60 * np.sin(x + number) + 50 * np.cos(1.3 * y) + 50 * (np.hypot(x - 2, y - 1.5) < 0.9)
    image = np.clip(base[..., None] * [1, 0.8, 0.6] + rng.normal(0, 6, (height, width, 3)), 0, 255).astype(np.uint8)
    scores = np.stack([np.exp(-((x - 0.9 * k) ** 2 + (y - 0.7 * k) ** 2)) for k in range(labels)]) + 0.02
    return image, (scores / scores.sum(0)).astype(np.float32)


def refine(args: argparse.Namespace, number: int) -> np.ndarray:
    image, scores = scene(number, args.height, args.width, args.labels)
    p = PRESETS[args.preset]
    q = dense_crf(image, unary_from_softmax(scores), p.iterations, p.gaussian, p.bilateral, args.backend)
    return q.argmax(0).astype(np.uint8)


def refine_twice(args: argparse.Namespace, number: int, shared: bool) -> list[np.ndarray]:
    image, scores = scene(number, args.height, args.width, args.labels)
    p = PRESETS[args.preset]
    unaries = [unary_from_softmax(np.concatenate([scores[:1] ** a, scores[1:]])) for a in (0.5, 2)]
    if shared:
        crf = DenseCrf(image, p.gaussian, p.bilateral, args.backend)
        return [crf.infer(u, p.iterations) for u in unaries]
    return [dense_crf(image, u, p.iterations, p.gaussian, p.bilateral, args.backend) for u in unaries]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--height", type=int, default=240)
    parser.add_argument("--width", type=int, default=320)
    parser.add_argument("--labels", type=int, default=3)
    parser.add_argument("--preset", choices=PRESETS, default="P1")
    parser.add_argument("--backend", choices=("pydensecrf", "torch"), default="pydensecrf")
    parser.add_argument("--workers", type=int, default=cores())
    args = parser.parse_args()
    numbers = list(range(args.images))

    start = time.perf_counter()
    alone = [refine(args, n) for n in numbers]
    plain = time.perf_counter() - start

    start = time.perf_counter()
    pooled = [mask for _, mask in over_images(partial(refine, args), numbers, args.workers)]
    pool = time.perf_counter() - start
    equal = all(np.array_equal(a, b) for a, b in zip(alone, pooled, strict=True))

    few = numbers[: max(args.images // 4, 1)]
    start = time.perf_counter()
    separate = [refine_twice(args, n, shared=False) for n in few]
    two = time.perf_counter() - start
    start = time.perf_counter()
    together = [refine_twice(args, n, shared=True) for n in few]
    one = time.perf_counter() - start
    bits = all(np.array_equal(a, b) for s, t in zip(separate, together, strict=True) for a, b in zip(s, t, strict=True))

    print(f"{args.preset} {args.backend}, {args.height}x{args.width}, {args.labels} labels, {args.images} images")
    print(f"one after another   {args.images / plain:8.2f} images/s")
    pooled_line = f"pool of {args.workers:<3d}         {args.images / pool:8.2f} images/s"
    print(f"{pooled_line}   ratio {plain / pool:.2f}  equal {equal}")
    print(f"two unaries, apart  {len(few) / two:8.2f} images/s")
    print(f"two unaries, shared {len(few) / one:8.2f} images/s   ratio {two / one:.2f}  equal bits {bits}")
    if not (equal and bits):
        raise SystemExit("results differ")


if __name__ == "__main__":
    main()
