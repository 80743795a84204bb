"""What is made of files, made again when they change."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from serving.errors import StartError

log = logging.getLogger(__name__)
T = TypeVar("T")


class Watched(Generic[T]):
    """What ``read`` makes of some files, made again when one of them changed; a bad change is
    logged and not taken.

    Raises:
        StartError: from the constructor, as ``read`` does.
    """

    def __init__(self, paths: Sequence[Path], read: Callable[[], T]) -> None:
        self._paths = paths
        self._read = read
        self._lock = threading.Lock()
        self._stamp = self._now()
        self._value = read()

    @property
    def value(self) -> T:
        """The newest sound value."""
        with self._lock:
            stamp = self._now()
            if stamp != self._stamp:
                self._stamp = stamp
                try:
                    self._value = self._read()
                    log.info("read again: %s", ", ".join(path.name for path in self._paths))
                except StartError as error:
                    log.error("a change is not taken: %s", error)
            return self._value

    def _now(self) -> list[tuple[int, int, int] | None]:
        return [_stamp(path) for path in self._paths]


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
