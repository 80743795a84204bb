"""Label Studio's run lengths of brush strokes, which are not COCO's.

The bytes are a stream of bits, most significant bit first. A header holds the number of values in
32 bits, the bits of a value less one in 5, and four sizes of a length, each less one, in 4. Then
come blocks: one bit that says whether a value repeats, two bits that choose the size of the length,
the length less one, and the value. The values are the pixels of the image row by row, each as red,
green, blue and opacity.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from serving.images.encodings import label_runs

# Bits of a length; Label Studio itself writes these.
SIZES = (3, 4, 8, 16)
VALUE_BITS = 8
CHANNELS = 4
LONGEST = 1 << SIZES[-1]


def brush_runs(region: npt.NDArray[np.bool_]) -> list[int]:
    """The bytes of a bool [H,W] region: opaque white inside, transparent outside."""
    runs = label_runs(region.view(np.uint8))
    parts = [f"{region.size * CHANNELS:032b}{VALUE_BITS - 1:05b}"]
    parts += [f"{size - 1:04b}" for size in SIZES]
    for inside, length in zip(runs.labels.tolist(), (runs.lengths * CHANNELS).tolist()):
        value = str(inside) * VALUE_BITS
        parts += [f"{_repeat(part)}{value}" for part in _parts(length)]
    bits = np.frombuffer("".join(parts).encode(), np.uint8) - ord("0")
    data: list[int] = np.packbits(bits).tolist()
    return data


def _parts(length: int) -> list[int]:
    whole, rest = divmod(length, LONGEST)
    return [LONGEST] * whole + [rest] * bool(rest)


def _repeat(length: int) -> str:
    """The head of a block: a value repeats ``length`` times."""
    number = next(n for n, size in enumerate(SIZES) if length <= 1 << size)
    return f"1{number:02b}{length - 1:0{SIZES[number]}b}"
