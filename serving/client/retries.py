"""Whether and when a failed call is tried again."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field

from serving.errors import RequestError, RetryLater

FIRST_SECONDS = 0.1


@dataclass
class Retries:
    """The attempts of one call. Calls change nothing on the server, so each may be repeated.

    Args:
        more: attempts after the first.
        timeout: seconds for all of them.
    """

    more: int
    timeout: float
    began: float = field(default_factory=time.monotonic)
    failures: int = 0

    @property
    def remaining(self) -> float:
        """Seconds left."""
        return max(0.0, self.began + self.timeout - time.monotonic())

    def delay(self, error: RequestError) -> float:
        """Seconds to wait before the next attempt: what the server said, or twice as long each
        time.

        Raises:
            RequestError: ``error``, if another attempt is useless or too late.
        """
        if not isinstance(error, RetryLater) or self.failures >= self.more:
            raise error
        # Up to half more at random: callers who were refused together must not return together.
        wait = max(error.retry_after, FIRST_SECONDS * 2.0**self.failures) * random.uniform(1.0, 1.5)
        if wait >= self.remaining:
            raise error
        self.failures += 1
        return wait
