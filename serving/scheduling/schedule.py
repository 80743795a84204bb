"""Which requests run next: decisions about a queue, without threads and without a clock."""

from __future__ import annotations

import bisect
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar


@dataclass(eq=False, kw_only=True)
class Waiting:
    """One request in a queue. Times are of one monotonic clock.

    Attributes:
        bucket: requests with equal buckets may share a run.
        size: its share of a batch.
        due: when it runs even if its batch is not full.
        deadline: when it is no longer run; infinity if never.
        priority: a larger one goes first.
    """

    bucket: Hashable
    size: int
    arrived: float
    due: float
    deadline: float = math.inf
    priority: int = 0

    @property
    def order(self) -> tuple[float, float, float]:
        """Sort key: priority, then the earliest deadline, then arrival."""
        return -self.priority, self.deadline, self.arrived


W = TypeVar("W", bound=Waiting)


class Queue(Generic[W]):
    """The requests that wait for one engine, grouped by bucket.

    A group may run when it fills a batch or one of its requests is due. Of these groups, the one
    with the first request runs, filled up from the same group in order.

    Args:
        max_batch: size of a run, except for a single request that is larger.
    """

    def __init__(self, max_batch: int) -> None:
        self._max_batch = max_batch
        self._groups: dict[Hashable, list[W]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._groups.values()))

    def add(self, request: W) -> None:
        """Add a request; among equals, the first added goes first."""
        bisect.insort_right(
            self._groups.setdefault(request.bucket, []), request, key=lambda other: other.order
        )

    def discard(self, request: W) -> bool:
        """Remove a request; returns whether it was there."""
        group = self._groups.get(request.bucket, [])
        if request not in group:
            return False
        group.remove(request)
        if not group:
            del self._groups[request.bucket]
        return True

    def expire(self, now: float) -> list[W]:
        """Remove and return every request whose deadline has passed."""
        requests = (request for group in self._groups.values() for request in group)
        late = [request for request in requests if request.deadline <= now]
        for request in late:
            self.discard(request)
        return late

    def take(self, now: float) -> list[W]:
        """Remove and return what runs next: requests of one bucket, or none yet."""
        ready = [
            group for group in self._groups.values() if self._full(group) or _due(group) <= now
        ]
        if not ready:
            return []
        group = min(ready, key=lambda group: group[0].order)
        count, total = 1, group[0].size
        while count < len(group) and total + group[count].size <= self._max_batch:
            total += group[count].size
            count += 1
        batch, rest = group[:count], group[count:]
        if rest:
            self._groups[batch[0].bucket] = rest
        else:
            del self._groups[batch[0].bucket]
        return batch

    def due(self) -> float:
        """When something is due if nothing else arrives; infinity if nothing waits."""
        return min(map(_due, self._groups.values()), default=math.inf)

    def _full(self, group: list[W]) -> bool:
        return sum(request.size for request in group) >= self._max_batch


def _due(group: Sequence[Waiting]) -> float:
    return min(request.due for request in group)
