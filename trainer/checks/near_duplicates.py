"""Images that look nearly the same: exposures of one part, frames of one film, smaller copies.

A perceptual hash keeps the signs of the lowest frequencies of a grey thumbnail, so that brightness,
contrast, size and compression change few bits (Zauner, "Implementation and benchmarking of
perceptual image hash functions", 2010).
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.fft import dctn
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from trainer.data.dataset import Dataset, Record
from trainer.data.pixels import read_image
from trainer.pool import each_image

SIDE, FREQUENCIES = 32, 8
# Of 64 bits. At 6, no pair among 2,900 photographs of animals, and half of the pairs of exposures
# of one magnetic tile.
NEAR = 6
# Standard deviation of the thumbnail in levels of 255; below it, noise decides the signs.
FLAT = 2.0
POOL_FROM = 300
_BLOCK = 4_000_000


def perceptual_hash(image_HW3: npt.NDArray[np.uint8]) -> int | None:
    """64 bits that are alike for images that look alike; None for an image of one colour."""
    grey = Image.fromarray(image_HW3).convert("L")
    thumbnail = np.asarray(grey.resize((SIDE, SIDE), Image.Resampling.BILINEAR), np.float32)
    if thumbnail.std() < FLAT:
        return None
    waves = dctn(thumbnail, norm="ortho")[:FREQUENCIES, :FREQUENCIES].reshape(-1)
    # The first coefficient is the brightness: its bit would be the same for all images.
    bits = waves > np.median(waves[1:])
    bits[0] = False
    return int.from_bytes(np.packbits(bits).tobytes())


def near_pairs(
    first: npt.NDArray[np.uint64], second: npt.NDArray[np.uint64]
) -> list[tuple[int, int]]:
    """Positions in ``first`` and ``second`` of the hashes that differ in ``NEAR`` bits at most, the
    most alike first.
    """
    pairs = []
    step = max(1, _BLOCK // max(1, len(second)))
    for start in range(0, len(first), step):
        differences = np.bitwise_count(first[start : start + step, None] ^ second[None])
        for row, column in np.argwhere(differences <= NEAR).tolist():
            pairs.append((int(differences[row, column]), start + row, column))
    return [(row, column) for _, row, column in sorted(pairs)]


def with_groups_of_looks(dataset: Dataset, progress: bool = False) -> Dataset:
    """The data set with images that look nearly the same in one group, beside the groups that it
    has. Chains join: a group may hold images that differ, with others between them.

    Args:
        dataset: the data set.
        progress: show a bar on stderr.

    Raises:
        DataError: images that cannot be read.
    """
    records = list(dataset.records.values())
    workers = None if len(records) >= POOL_FROM else 0
    failure, title = "images cannot be compared", "comparing"
    hashes = each_image(_likeness, records, failure, workers, title, progress, lambda r: r.id)
    visible = [n for n, likeness in enumerate(hashes) if likeness is not None]
    compact = np.array([hashes[n] for n in visible], np.uint64)
    links = [(visible[a], visible[b]) for a, b in near_pairs(compact, compact)]
    first: dict[tuple[str, str], int] = {}
    links += [(first.setdefault(record.unit, n), n) for n, record in enumerate(records)]
    rows, columns = np.array(links).T
    graph = coo_array((np.ones(len(links)), (rows, columns)), (len(records), len(records)))
    _, numbers = connected_components(graph, directed=False)
    names: dict[int, str] = {}
    for number, record in zip(numbers.tolist(), records, strict=True):
        names.setdefault(number, record.group or record.id)
    sizes = np.bincount(numbers)
    groups = {
        record.id: dataclasses.replace(record, group=names[number]) if sizes[number] > 1 else record
        for number, record in zip(numbers.tolist(), records, strict=True)
    }
    return dataclasses.replace(dataset, records=groups)


def _likeness(record: Record) -> int | None:
    return perceptual_hash(read_image(record.image))
