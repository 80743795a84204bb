"""How many things may be open at once, in total and per caller."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from serving.errors import CallerBusy, RetryLater


class Places:
    """Places of one sort. Use it on one event loop.

    Args:
        noun: what takes a place, in the plural.
        total: number of places.
        each: of them for one caller.
        full: the error when none is left.

    Attributes:
        taken: places taken now.
    """

    def __init__(self, noun: str, total: int, each: int, full: type[RetryLater]) -> None:
        self._noun, self._total, self._each, self._full = noun, total, each, full
        self._callers: Counter[str] = Counter()
        self.taken = 0

    def has_room(self, caller: str) -> bool:
        """Whether a place is left for this caller."""
        return self.taken < self._total and self._callers[caller] < self._each

    @contextmanager
    def hold(self, caller: str) -> Iterator[None]:
        """Take a place.

        Raises:
            CallerBusy: the caller has its share already.
            RetryLater: of the class ``full``: none is left.
        """
        if self._callers[caller] >= self._each:
            raise CallerBusy(
                f"{self._each} {self._noun} of this caller are open already",
                f"at most {self._each}",
            )
        if self.taken >= self._total:
            raise self._full(
                f"{self.taken} {self._noun} are open already", f"at most {self._total}"
            )
        self.taken += 1
        self._callers[caller] += 1
        try:
            yield
        finally:
            self.taken -= 1
            self._callers[caller] -= 1
            # Callers are named by themselves: an entry for each that ever called would grow for
            # ever.
            if not self._callers[caller]:
                del self._callers[caller]
