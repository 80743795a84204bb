"""When a call that failed is worth another try, and when it is made."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field

from serving.errors import RequestError, RetryLater

FIRST_SECONDS = 0.1


@dataclass
class Retries:
    """The tries of one call. Calls of this protocol change nothing on the server, so each may be
    made again.

    Args:
        more: tries after the first.
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
        """Seconds to wait before the next try: what the server said, or twice as long each time;
        and up to half more, so that callers who were refused together do not come back together.

        Raises:
            RequestError: ``error``, if another try would not help or there is no time for it.
        """
        if not isinstance(error, RetryLater) or self.failures >= self.more:
            raise error
        wait = max(error.retry_after, FIRST_SECONDS * 2.0**self.failures) * random.uniform(1.0, 1.5)
        if wait >= self.remaining:
            raise error
        self.failures += 1
        return wait
