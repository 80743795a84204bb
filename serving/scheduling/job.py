"""A request on its way through the engine, its run, and its share of the result."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass

from serving.engines import Inputs, Outputs, Stop
from serving.scheduling.schedule import Waiting


@dataclass(frozen=True)
class Ran:
    """One request's share of a run.

    Attributes:
        outputs: of this request alone, by name.
        queued, ran: seconds before the run and in it.
        batch: first axes of all requests in the run together.
    """

    outputs: Outputs
    queued: float
    ran: float
    batch: int


class Run:
    """One call of the engine, and how many of its requests still have a caller."""

    def __init__(self, waiting: int) -> None:
        self.stop = Stop()
        self.waiting = waiting


@dataclass(eq=False, kw_only=True)
class Job(Waiting):
    """A request on its way; ``over`` once it is answered, failed or abandoned. Guarded by the
    batcher's lock.
    """

    inputs: Inputs
    answer: asyncio.Future[Ran]
    run: Run | None = None
    over: bool = False

    def finish(self, result: Ran | BaseException) -> None:
        """Hand the result to the waiting task, from any thread."""

        def deliver() -> None:
            # The caller left, or its deadline passed, between the call and the delivery.
            if self.answer.done():
                return
            if isinstance(result, Ran):
                self.answer.set_result(result)
            else:
                self.answer.set_exception(result)

        # A closed loop has no caller left.
        with suppress(RuntimeError):
            self.answer.get_loop().call_soon_threadsafe(deliver)
