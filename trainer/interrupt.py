"""Signals to stop, apart from the loop, so that the command line can use them without torch."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class Interrupted(BaseException):
    """SIGTERM or Ctrl-C arrived, and nothing is lost. The command exits with 75, which schedulers
    take as "requeue".
    """

    # No ``Exception``, so that it is not taken for the failure of the image at hand.

    exit_code = 75


class terminated:
    """Raises ``Interrupted`` on SIGTERM, outside of training."""

    # Files of single images are whole or absent, so there is nothing to save.

    def __enter__(self) -> None:
        self.old = signal.signal(signal.SIGTERM, self._stop)

    def __exit__(self, *exception: object) -> None:
        signal.signal(signal.SIGTERM, self.old)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        raise Interrupted("stopped; run the same command to go on")


@contextlib.contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """An event that SIGTERM and Ctrl-C set, so that the step in progress ends; the second signal
    interrupts.
    """
    stop = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    # Only the main thread may set handlers.
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    old = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
