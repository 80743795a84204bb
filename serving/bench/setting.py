"""The setting of an experiment: a model, its requests, and servers under load."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from serving.bench import load, target
from serving.bench.load import Load, Request
from serving.bench.target import Raw, Running, Target
from serving.client.connection import open_channel
from serving.config import EngineConfig
from serving.engines import Engine
from serving.errors import BenchError

WARM_SECONDS = 1.0


@dataclass(frozen=True)
class BenchConfig:
    """What to measure and for how long.

    Attributes:
        model: name; empty is the only one.
        images: folder of JPEGs; None sends synthetic ones.
        tensors: send tensors by the Open Inference Protocol to models that take images, too.
        side: length of the free axes of such tensors.
        engine: of the loop without a server, and of started servers.
        address: of a running server; empty starts servers on this machine.
        callers: at once.
        rounds: of each experiment; figures are their medians.
        seconds: of each load in a round.
        count: maximum of requests per load.
        only: keys of the figures to measure; empty is all.
    """

    repository: Path = Path("exported")
    model: str = ""
    images: Path | None = None
    tensors: bool = False
    side: int = 256
    address: str = ""
    callers: int = 4
    rounds: int = 4
    seconds: float = 3.0
    count: int = 20_000
    only: tuple[str, ...] = ()
    engine: EngineConfig = field(default_factory=EngineConfig)


@dataclass(frozen=True)
class Setting:
    """What experiments run on.

    Attributes:
        engine: for the loop without a server.
        step: called after every load.
    """

    config: BenchConfig
    target: Target
    engine: Engine
    step: Callable[[], None]

    def server(self, *settings: str) -> AbstractContextManager[Running]:
        """The running server, or a new one with these settings."""
        if self.config.address:
            return nullcontext(Running(self.config.address))
        return target.server(
            self.config.repository, f"engine.name={self.config.engine.name}", *settings
        )

    def raw(self) -> Raw:
        """A loop without a server."""
        raw = target.raw_loop(self.target, self.engine, self.config.seconds)
        self.step()
        return raw

    def closed(
        self, running: Running, callers: int, request: Request | None = None, seconds: float = 0.0
    ) -> Load:
        """Callers who wait for their answers.

        Raises:
            BenchError: a call failed.
        """
        request, seconds = request or self.target.request(), seconds or self.config.seconds
        result = load.closed(running.address, request, callers, seconds, self.config.count)
        if set(result.codes) != {"OK"}:
            raise BenchError(f"{callers} callers got {dict(result.codes)}", "OK only")
        self.step()
        return result

    def poisson(self, running: Running, rate: float, seed: int) -> Load:
        """Requests at random times."""
        config = self.config
        result = load.poisson(
            running.address, self.target.request(), rate, config.seconds, config.count, seed
        )
        self.step()
        return result

    def warm(self, running: Running) -> None:
        """Send every request once, compare the answers, then warm up under load.

        Raises:
            BenchError: a call failed, or the server's answer differs from the engine's.
        """
        request, work = self.target.request(), self.target.work(self.engine)
        with open_channel(running.address) as channel:
            call = channel.unary_unary(request.method)
            for number, message in enumerate(request.messages):
                try:
                    reply = call(message, timeout=load.TIMEOUT)
                except grpc.RpcError as error:
                    raise BenchError(
                        f"{running.address} answered {error.code().name}: {error.details()}"
                    ) from error
                if self.target.answer(reply) != work(number):
                    raise BenchError(
                        f"server and engine disagree on request {number}", "equal bytes"
                    )
        self.closed(running, 4 * self.config.callers, seconds=WARM_SECONDS)
