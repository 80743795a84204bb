"""Memory of the requests in progress, counted before it is allocated."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from serving.config import Limits
from serving.errors import ImageTooLarge, MemoryFull
from serving.scheduling.cpus import available_memory

# Divisor of the available memory; the rest is for models, their runs, and Python.
SHARE = 2


class Memory:
    """A memory budget that all requests of a server share. Thread-safe.

    Attributes:
        limit: bytes that may be taken.
        taken: bytes that are taken now.
    """

    def __init__(self, limits: Limits) -> None:
        self.limit = limits.max_decoded_bytes or available_memory() // SHARE
        self.taken = 0
        self._lock = threading.Lock()

    def has_room(self, size: int) -> bool:
        """Whether ``size`` bytes are left now."""
        return self.taken + size <= self.limit

    @contextmanager
    def reserve(self, size: int) -> Iterator[None]:
        """Take ``size`` bytes for the duration of the block.

        Raises:
            ImageTooLarge: the whole budget is smaller.
            MemoryFull: they are not left now.
        """
        with self._lock:
            if size > self.limit:
                raise ImageTooLarge(
                    f"the image takes {size:,} bytes of memory to decode",
                    f"at most {self.limit:,}",
                    "scale it down",
                    field="image",
                    metadata={"max_decoded_bytes": str(self.limit)},
                )
            if not self.has_room(size):
                raise MemoryFull(
                    f"requests in progress take {self.taken:,} bytes, this one {size:,} more",
                    f"at most {self.limit:,}",
                    "again in a second",
                )
            self.taken += size
        try:
            yield
        finally:
            self._free(size)

    @contextmanager
    def count(self, size: int) -> Iterator[None]:
        """Take ``size`` bytes that finish a request in progress, even beyond the limit."""
        with self._lock:
            self.taken += size
        try:
            yield
        finally:
            self._free(size)

    def _free(self, size: int) -> None:
        with self._lock:
            self.taken -= size
