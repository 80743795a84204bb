"""Which requests run next: decisions over what waits, without threads and without a clock of its
own.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar


@dataclass(eq=False, kw_only=True)
class Waiting:
    """One request in a queue. Times are of one clock that never goes back.

    Attributes:
        bucket: requests may share a run if this is equal.
        size: its share of a batch.
        arrived: when it came.
        due: when it is run even if its batch is not full.
        deadline: from when it is not run any more; infinity if never.
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
        """Smaller goes first: by priority, then earliest deadline, then arrival."""
        return -self.priority, self.deadline, self.arrived


W = TypeVar("W", bound=Waiting)


class Queue(Generic[W]):
    """What waits for one engine, grouped by bucket.

    A group may run when it fills a batch, or when one of its requests is due. Of the groups that
    may, the one with the request that goes first runs, filled up from the same group in order.

    Args:
        max_batch: a run takes no more than this, except for a single request that is larger.
    """

    def __init__(self, max_batch: int) -> None:
        self._max_batch = max_batch
        self._groups: dict[Hashable, list[W]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._groups.values()))

    def add(self, request: W) -> None:
        """Let a request wait; of those that are equal in order, the earlier added goes first."""
        bisect.insort_right(
            self._groups.setdefault(request.bucket, []), request, key=lambda other: other.order
        )

    def discard(self, request: W) -> bool:
        """Take a request out; whether it was waiting."""
        group = self._groups.get(request.bucket, [])
        if request not in group:
            return False
        group.remove(request)
        if not group:
            del self._groups[request.bucket]
        return True

    def expire(self, now: float) -> list[W]:
        """Take out every request whose deadline has come."""
        late = [
            request
            for group in self._groups.values()
            for request in group
            if request.deadline <= now
        ]
        for request in late:
            self.discard(request)
        return late

    def take(self, now: float) -> list[W]:
        """Take out what runs next: requests of one bucket, none if nothing may run yet."""
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
        """When something is due if nothing arrives before; infinity if nothing waits."""
        return min(map(_due, self._groups.values()), default=math.inf)

    def _full(self, group: list[W]) -> bool:
        return sum(request.size for request in group) >= self._max_batch


def _due(group: Sequence[Waiting]) -> float:
    return min(request.due for request in group)
