"""This process among those that torchrun started.

Only the environment is read here, so that the command line can ask without torch.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def world_size() -> int:
    """Processes that torchrun started on all machines; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_world_size() -> int:
    """Processes that torchrun started on this machine; 1 without it."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def rank() -> int:
    """This process among those of all machines; 0 without torchrun."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """This process among those of its machine, and so its GPU; 0 without torchrun."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def shard(items: Sequence[T]) -> Sequence[T]:
    """This process's part of a list of images.

    Take the part first and leave out afterwards what is on the disk already: the other processes
    are writing, so two processes would not leave out the same.
    """
    return items[rank() :: world_size()]
