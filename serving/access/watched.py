"""A value made from files, and made again when the files change."""

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
# A bad change may become good without another change: a certificate that starts tomorrow, or a file
# that was half written.
RETRY_SECONDS = 30.0


class Watched(Generic[T]):
    """A value that ``make`` builds from files, built again when one of them changes.

    A change that fails is logged and skipped, and tried again later.

    Args:
        accept: called before a change is read; its StartError rejects the change.

    Raises:
        StartError: from the constructor, as ``make`` raises it.
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
                log.error("a changed file is ignored, the old contents stay in use: %s", error)
            return
        self._retry = math.inf
        log.info("reloaded: %s", ", ".join(path.name for path in self._paths))

    def _now(self) -> list[tuple[int, int, int] | None]:
        return [_stamp(path) for path in self._paths]


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
