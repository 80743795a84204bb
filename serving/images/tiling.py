"""Images larger than a model's limits, cut into overlapping tiles and blended without seams.

Tiles have one size and start at multiples of ``ALIGN``, so that the grid of a strided network lies
as on the whole image. The last row and column may extend beyond the image, whose edge is repeated
there. A tile's weight falls from 1 to 0 towards its inner borders, over the middle half of the
overlap. The outermost quarter is discarded, because the network lacks context there. A network that
looks no further than that quarter gives the same answer as on the whole image.

Masks are blended by votes: each tile votes for its label with weight times confidence. The winner's
confidence is the weighted mean over all tiles, with 0 for those that voted otherwise.

Activation maps are blended by weighted mean. A graph divides each map by its own maximum, which
would make the noise of a tile without the object as bright as the object itself. So the maps of a
class are scaled by the ratio of the tile's score to the best tile's. Without tags, a tile below the
score threshold does not count. The score of an image is that of its best tile.

Memory holds two rows of tiles at most and the final mask; of the coarse maps, all that count.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serving.errors import ImageTooLarge
from serving.images.buckets import pad

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

# The largest stride of common networks.
ALIGN = 32
# Values of all tiles and classes together: a quarter of a gigabyte.
MAX_ACTIVATIONS = 64_000_000


@dataclass(frozen=True)
class Tiling:
    """Where the tiles of an image lie.

    Attributes:
        image, tile: height and width of the image, and of each tile.
        tops, lefts: starts of the rows and columns of tiles.
    """

    image: tuple[int, int]
    tile: tuple[int, int]
    tops: tuple[int, ...] = (0,)
    lefts: tuple[int, ...] = (0,)

    def __len__(self) -> int:
        return len(self.tops) * len(self.lefts)

    def rows(self, pixels: Pixels) -> Iterator[list[Pixels]]:
        """The tiles of uint8 [H,W,3], row by row, each uint8 [1,h,w,3]."""
        tall, wide = self.tile
        for top in self.tops:
            cuts = (
                pad(pixels[top : top + tall, left : left + wide], tall, wide) for left in self.lefts
            )
            yield [np.ascontiguousarray(cut)[None] for cut in cuts]


def plan(
    height: int, width: int, max_side: int, max_pixels: int, overlap: float, max_tiles: int
) -> Tiling:
    """How to cut an image of this size; a single tile if the limits allow.

    Args:
        max_side, max_pixels: of a tile.
        overlap: minimum share of a tile that overlaps the next one, 0 to 0.5.
        max_tiles: of an image.

    Raises:
        ImageTooLarge: it takes more tiles.
    """
    tall = _side(height, min(max_side, max(math.isqrt(max_pixels), max_pixels // width)))
    wide = _side(width, min(max_side, max_pixels // tall))
    tiling = Tiling(
        (height, width), (tall, wide), _starts(height, tall, overlap), _starts(width, wide, overlap)
    )
    if len(tiling) > max_tiles:
        raise ImageTooLarge(
            f"an image of {height}x{width} takes {len(tiling)} tiles of {tall}x{wide}",
            f"at most {max_tiles} tiles",
            "scale the image down, or have the server do it",
            field="image",
            metadata={"max_tiles": str(max_tiles)},
        )
    return tiling


def _side(length: int, limit: int) -> int:
    return length if length <= limit else limit // ALIGN * ALIGN or limit


def _starts(length: int, side: int, overlap: float) -> tuple[int, ...]:
    """Starts of as few evenly spread tiles as overlap enough."""
    if side == length:
        return (0,)
    align = math.gcd(side, ALIGN)
    while align > max(1, side * (1 - overlap)):
        align //= 2
    step = max(align, int(side * (1 - overlap)) // align * align)
    last = -(-(length - side) // align) * align
    count = -(-last // step) + 1
    return tuple(last * index // (count - 1) // align * align for index in range(count))


class _Axis:
    """Tiles along one axis.

    Attributes:
        intervals: begin, end and tiles of each part of the image that the same tiles cover.
    """

    def __init__(self, starts: Sequence[int], side: int, length: int) -> None:
        self._starts, self._side = starts, side
        self._overlap = min(
            (before + side - after for before, after in itertools.pairwise(starts)), default=0
        )
        cuts = sorted(
            {0, length, *(cut for start in starts for cut in (start, start + side) if cut < length)}
        )
        self.intervals = [
            (
                begin,
                end,
                [tile for tile, start in enumerate(starts) if start <= begin < start + side],
            )
            for begin, end in itertools.pairwise(cuts)
        ]

    def inside(self, tile: int, begin: int, end: int) -> slice:
        """This part of the image within a tile."""
        return slice(begin - self._starts[tile], end - self._starts[tile])

    def weights(self, tile: int, cells: int) -> Floats:
        """Weight 0 to 1 at the centres of the ``cells`` of a tile."""
        position = (np.arange(cells, dtype=np.float32) + 0.5) * (self._side / cells)
        margin = self._overlap // 4
        ramp = max(self._overlap - 2 * margin, 1)
        weight = np.ones(cells, np.float32)
        if tile > 0:
            weight = np.minimum(weight, (position - margin) / ramp)
        if tile < len(self._starts) - 1:
            weight = np.minimum(weight, (self._side - position - margin) / ramp)
        clipped_weight: Floats = np.maximum(weight, np.float32(0))
        return clipped_weight


class MaskStitcher:
    """Label and confidence maps of tiles, blended into those of the image.

    Attributes:
        labels, confidence: uint8 [H,W], complete after the last row.
    """

    def __init__(self, tiling: Tiling) -> None:
        self._whole = len(tiling) == 1
        self.labels, self.confidence = (
            np.empty((0, 0) if self._whole else tiling.image, np.uint8) for _ in range(2)
        )
        self._down, self._across = _axes(tiling)
        self._heights, self._widths = (
            [axis.weights(tile, side) for tile in range(len(starts))]
            for axis, side, starts in zip(
                (self._down, self._across), tiling.tile, (tiling.tops, tiling.lefts)
            )
        )
        self._rows: dict[int, Sequence[tuple[Pixels, Pixels]]] = {}
        self._added = 0

    def add(self, row: Sequence[tuple[Pixels, Pixels]]) -> None:
        """Take the next row of tiles: label map and confidence of each, uint8 [h,w]."""
        if self._whole:
            ((self.labels, self.confidence),) = row
            return
        self._rows[self._added] = row
        for top, bottom, tiles in self._down.intervals:
            if tiles[-1] == self._added:
                for left, right, columns in self._across.intervals:
                    part = (slice(top, bottom), slice(left, right))
                    self.labels[part], self.confidence[part] = _vote(
                        [
                            self._ballot(y, x, top, bottom, left, right)
                            for y in tiles
                            for x in columns
                        ]
                    )
        self._added += 1
        # A part of the image is complete once no later row overlaps it. Rows that only complete
        # parts need are dropped, which bounds the memory.
        first = min(
            (tiles[0] for _, _, tiles in self._down.intervals if tiles[-1] >= self._added),
            default=self._added,
        )
        self._rows = {index: tiles for index, tiles in self._rows.items() if index >= first}

    def _ballot(
        self, y: int, x: int, top: int, bottom: int, left: int, right: int
    ) -> tuple[Pixels, Pixels, Floats]:
        """Labels, confidence and weight of tile (y, x) for a part of the image."""
        rows, columns = self._down.inside(y, top, bottom), self._across.inside(x, left, right)
        labels, confidence = self._rows[y][x]
        weight = self._heights[y][rows, None] * self._widths[x][columns]
        return labels[rows, columns], confidence[rows, columns], weight


def _vote(ballots: Sequence[tuple[Pixels, Pixels, Floats]]) -> tuple[Pixels, Pixels]:
    """The label with the most weight times confidence, the first of equals, and its confidence."""
    if len(ballots) == 1:
        return ballots[0][:2]
    # Plus one, so that a label of confidence 0 beats no label.
    strengths = [weight * (confidence + np.float32(1)) for _, confidence, weight in ballots]
    best, winner = np.full(ballots[0][0].shape, -1, np.float32), ballots[0][0]
    for labels, _, _ in ballots:
        total = np.sum(
            [strength * (other == labels) for strength, (other, _, _) in zip(strengths, ballots)],
            axis=0,
        )
        winner, best = np.where(total > best, labels, winner), np.maximum(total, best)
    support = np.sum(
        [weight * confidence * (labels == winner) for labels, confidence, weight in ballots], axis=0
    )
    total = np.sum([weight for _, _, weight in ballots], axis=0)
    return winner, np.rint(support / total).astype(np.uint8)


@dataclass(frozen=True)
class TileMaps:
    """Activation maps of a tile.

    Attributes:
        classes: that count, ascending.
        maps: float32 [k,h,w], theirs.
        scores: float32 [K] of all classes.
    """

    classes: tuple[int, ...]
    maps: Floats
    scores: Floats


class MapStitcher:
    """Activation maps of tiles, blended into those of the image."""

    def __init__(self, tiling: Tiling) -> None:
        self._tiling = tiling
        self._tiles: list[TileMaps] = []

    def add(self, row: Sequence[TileMaps]) -> None:
        """Take the next row of tiles.

        Raises:
            ImageTooLarge: all maps until now have more than ``MAX_ACTIVATIONS`` values.
        """
        self._tiles += row
        if sum(tile.maps.size for tile in self._tiles) > MAX_ACTIVATIONS:
            raise ImageTooLarge(
                f"the activation maps of {len(self._tiles)} of {len(self._tiling)} tiles are too"
                " many to keep",
                f"at most {MAX_ACTIVATIONS:,} activations",
                "fewer tags, a higher score threshold, or an image that is scaled",
                field="image",
                metadata={"max_activations": str(MAX_ACTIVATIONS)},
            )

    def finish(self) -> tuple[tuple[int, ...], Floats]:
        """The classes that count in any tile, ascending, and their maps of the image, float32
        [k,h',w'].
        """
        if len(self._tiles) == 1:
            return self._tiles[0].classes, self._tiles[0].maps
        classes = sorted({k for tile in self._tiles for k in tile.classes})
        best = {
            k: max(tile.scores[k] for tile in self._tiles if k in tile.classes) for k in classes
        }
        total, weight = self._grid(len(classes))
        for tile, place, share in self._placed(weight.shape):
            tall, wide = share.shape
            weight[place] += share
            for k, map_ in zip(tile.classes, tile.maps):
                ratio = np.float32(tile.scores[k] / best[k] if best[k] else 1)
                total[classes.index(k)][place] += share * map_[:tall, :wide] * ratio
        return tuple(classes), np.divide(total, weight, out=np.zeros_like(total), where=weight > 0)

    def _grid(self, count: int) -> tuple[Floats, Floats]:
        """Zeros [count,h',w'] and [h',w']: along a single row or column as many cells as a tile
        has.
        """
        starts = (self._tiling.tops, self._tiling.lefts)
        sides = zip(self._tiles[0].maps.shape[1:], starts, self._tiling.image, self._tiling.tile)
        height, width = (
            cells if len(first) == 1 else math.ceil(length * cells / side - 1e-6)
            for cells, first, length, side in sides
        )
        return np.zeros((count, height, width), np.float32), np.zeros((height, width), np.float32)

    def _placed(
        self, shape: tuple[int, ...]
    ) -> Iterator[tuple[TileMaps, tuple[slice, slice], Floats]]:
        """Each tile with its place and weight in a grid of ``shape``."""
        starts, cells = (self._tiling.tops, self._tiling.lefts), self._tiles[0].maps.shape[1:]
        down, across = (
            [
                (slice(at, min(at + count, limit)), axis.weights(index, count)[: limit - at])
                for index, at in enumerate(round(start * count / side) for start in first)
            ]
            for axis, first, count, side, limit in zip(
                _axes(self._tiling), starts, cells, self._tiling.tile, shape
            )
        )
        for tile, ((rows, tall), (columns, wide)) in zip(
            self._tiles, itertools.product(down, across)
        ):
            yield tile, (rows, columns), tall[:, None] * wide


def _axes(tiling: Tiling) -> tuple[_Axis, _Axis]:
    tall, wide = tiling.tile
    return _Axis(tiling.tops, tall, tiling.image[0]), _Axis(tiling.lefts, wide, tiling.image[1])
