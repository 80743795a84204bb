"""What is made of files, made again when they change."""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from serving.errors import StartError

log = logging.getLogger(__name__)
T = TypeVar("T")
# What is no good now may be later: a certificate that begins tomorrow, a file half written.
RETRY_SECONDS = 30.0


class Watched(Generic[T]):
    """What ``read`` makes of some files, made again when one of them changed; a bad change is
    logged, not taken, and looked at again later.

    Args:
        paths: the files.
        read: makes the value.
        accept: is asked before a change is read; what it refuses by a StartError is a bad change.

    Raises:
        StartError: from the constructor, as ``read`` does.
    """

    def __init__(
        self, paths: Sequence[Path], make: Callable[[], T], accept: Callable[[], None] | None = None
    ) -> None:
        self._paths = paths
        self._make = make
        self._accept = accept
        self._lock = threading.Lock()
        self._retry = math.inf
        self._stamp = self._now()
        self._value = make()

    @property
    def value(self) -> T:
        """The newest sound value."""
        with self._lock:
            stamp = self._now()
            if stamp != self._stamp or time.monotonic() >= self._retry:
                self._read_again(is_retry=stamp == self._stamp)
                self._stamp = stamp
            return self._value

    def _read_again(self, is_retry: bool) -> None:
        try:
            if self._accept:
                self._accept()
            self._value = self._make()
        except StartError as error:
            self._retry = time.monotonic() + RETRY_SECONDS
            if not is_retry:
                log.error("a changed file is not used: %s", error)
            return
        self._retry = math.inf
        log.info("read again: %s", ", ".join(path.name for path in self._paths))

    def _now(self) -> list[tuple[int, int, int] | None]:
        return [_stamp(path) for path in self._paths]


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
