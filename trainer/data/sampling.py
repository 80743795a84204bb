"""Which images an epoch of a training draws: of those without a tag a share, rare classes more
often.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from trainer.data.dataset import Record

Indices = npt.NDArray[np.int64]
MOST_REPEATS = 8.0
"""An image of a rare class is drawn so often in an epoch at most: more would learn it by heart."""


class Order:
    """The images of each epoch, a pure function of (seed, epoch).

    Every image with a tag is drawn at least once an epoch. Images without come from a deck that is
    shuffled when it is used up, so that all of them are seen over the epochs. They are negatives,
    and images with unknown classes alone: most of these show nothing either, and many of them
    would crowd out the images with tags.

    Args:
        records: training images.
        negatives: largest share of images without a tag, 0 to 1.
        balance: draw images of rare classes so often that every class comes up equally often.
        seed: of the shuffling.
    """

    def __init__(
        self, records: Sequence[Record], negatives: float, balance: bool, seed: int
    ) -> None:
        has_tags = np.array([bool(record.tags) for record in records], bool)
        self.positives, self.deck = np.flatnonzero(has_tags), np.flatnonzero(~has_tags)
        self.seed = seed
        self.repeats = _repeats([records[int(i)] for i in self.positives], balance)
        draws = round(float(self.repeats.sum()))
        limit = len(self.deck)
        if negatives < 1 and draws:
            limit = int(draws * negatives / (1 - negatives))
        self.draws, self.others = draws, min(len(self.deck), limit)

    def __len__(self) -> int:
        """Images of an epoch."""
        return self.draws + self.others

    def __call__(self, epoch: int) -> Indices:
        """Positions of the images of an epoch, in the order of their use."""
        rng = np.random.default_rng((self.seed, epoch))
        positives = rng.permutation(self._draw(rng))
        # Evenly spread, so that no batch holds more images without a tag than their share.
        ends = np.arange(1, len(self) + 1) * self.others // max(1, len(self))
        is_other = np.diff(ends, prepend=0).astype(bool)
        order = np.empty(len(self), np.int64)
        order[~is_other] = positives
        order[is_other] = rng.permutation(self._deal(epoch))
        return order

    def _draw(self, rng: np.random.Generator) -> Indices:
        """Each image as often as the whole part of its repeats, and some of them once more."""
        whole = np.floor(self.repeats)
        rest = self.repeats - whole
        count = self.draws - int(whole.sum())
        extra = np.empty(0, np.int64)
        if count:
            # Systematic sampling: always the same number of draws, each in proportion to its rest.
            marks = (np.arange(count) + rng.random()) * rest.sum() / count
            extra = np.searchsorted(np.cumsum(rest), marks, side="right").clip(0, len(rest) - 1)
        return np.concatenate([self.positives.repeat(whole.astype(int)), self.positives[extra]])

    def _deal(self, epoch: int) -> Indices:
        """The images without a tag of an epoch: the next ones of the deck."""
        return _deal(self.deck, epoch, self.others, (self.seed, 1))


class MixedOrder(Order):
    """An order whose every second image is one of a few, for example those with a true mask.

    It is as long as the order without them. Two epochs draw the images of one such order, and the
    few come from a deck that is shuffled when it is used up.

    Args:
        records: training images.
        few: how many images stand after ``records``.
        negatives: see ``Order``; of ``records``.
        balance: see ``Order``; of ``records``.
        seed: of the shuffling.
    """

    def __init__(
        self, records: Sequence[Record], few: int, negatives: float, balance: bool, seed: int
    ) -> None:
        super().__init__(records, negatives, balance, seed)
        self.few = np.arange(len(records), len(records) + few)

    def __call__(self, epoch: int) -> Indices:
        """See ``Order``."""
        length = len(self)
        half = (length + 1) // 2
        start = (epoch % 2) * (length - half)
        order = np.empty(length, np.int64)
        order[::2] = super().__call__(epoch // 2)[start : start + half]
        order[1::2] = _deal(self.few, epoch, length - half, (self.seed, 2))
        return order


def _deal(deck: Indices, epoch: int, count: int, seed: tuple[int, int]) -> Indices:
    """The next ``count`` of a deck that is shuffled when it is used up."""
    places = np.arange(epoch * count, (epoch + 1) * count)
    rounds = places // max(1, len(deck))
    decks = {
        int(n): np.random.default_rng((*seed, int(n))).permutation(deck) for n in np.unique(rounds)
    }
    return np.array([decks[int(n)][p % len(deck)] for p, n in zip(places, rounds)], int)


def make_order(
    records: Sequence[Record], negatives: float, balance: bool, seed: int
) -> Order | None:
    """The order of a training; None where every image is drawn once an epoch."""
    order = Order(records, negatives, balance, seed)
    return None if len(order) == len(records) and not balance else order


def epoch_length(records: Sequence[Record], negatives: float, balance: bool) -> int:
    """How many images an epoch draws."""
    order = make_order(records, negatives, balance, seed=0)
    return len(records) if order is None else len(order)


def _repeats(records: Sequence[Record], balance: bool) -> npt.NDArray[np.float64]:
    """How often each image is drawn in an epoch, from 1."""
    if not balance or not records:
        return np.ones(len(records))
    counts = Counter(k for record in records for k in record.tags)
    most = max(counts.values())
    # As the rarest class of the image needs (Gupta et al., "LVIS", CVPR 2019, without the root).
    return np.array([min(MOST_REPEATS, max(most / counts[k] for k in r.tags)) for r in records])
