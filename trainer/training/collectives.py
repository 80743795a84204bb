"""What the processes of torchrun tell each other. With one process, each function returns at once.

Every process must call the same functions in the same order: a process that calls one alone waits
for ever.
"""

from __future__ import annotations

from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from trainer.errors import RunError
from trainer.ranks import world_size

T = TypeVar("T")


def is_joined() -> bool:
    """Whether this process has joined others."""
    return dist.is_available() and dist.is_initialized() and world_size() > 1


def wait_for_all() -> None:
    """Wait until every process is here: the next step reads files of all of them."""
    # No barrier(), which occupies a GPU while it waits, and others may work for hours.
    agreed(False)


def agreed(*wishes: bool) -> tuple[bool, ...]:
    """For each wish, whether any process has it."""
    if not is_joined():
        return wishes
    flags = torch.tensor(wishes, dtype=torch.uint8)
    dist.all_reduce(flags, dist.ReduceOp.MAX)
    return tuple(bool(flag) for flag in flags)


def process_mean(x: Tensor) -> Tensor:
    """The mean over all processes of a tensor of one shape, without gradient.

    DDP averages the gradients of the processes. A loss that divides its sum by the mean of their
    counts therefore trains as it would with the whole batch in one process. Divided by its own
    count, the images of a process with few labelled pixels would weigh more.
    """
    if not is_joined():
        return x
    total = x.detach().float().clone()
    dist.all_reduce(total)
    return total / world_size()


def gathered(items: list[T]) -> list[T]:
    """The items of all processes, those of the first one first."""
    if not is_joined():
        return items
    parts: list[list[T]] = [[] for _ in range(world_size())]
    dist.all_gather_object(parts, items)
    return list(chain.from_iterable(parts))


def of_first(value: T) -> T:
    """The value that the first process has."""
    if not is_joined():
        return value
    values: list[Any] = [value]
    dist.broadcast_object_list(values)
    first: T = values[0]
    return first


def check_same(value: object, found: str, expected: str, hint: str) -> None:
    """Refuse to go on with processes that have different values.

    Raises:
        RunError: ``found``, in every process.
    """
    first, *others = gathered([value])
    if any(other != first for other in others):
        raise RunError(found, expected, hint)
