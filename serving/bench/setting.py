"""The setting of an experiment: a model, requests, servers to load, and for how long."""

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
        repository: of the model.
        model: name; empty is the only one there.
        images: folder of JPEGs; None sends made ones.
        tensors: send tensors by the Open Inference Protocol, for models that take images too.
        side: of free axes of such tensors.
        engine: of the loop without a server, and of the servers that are started.
        address: of a server that runs already; empty starts servers on this machine.
        callers: at once.
        rounds: of each experiment; the medians count.
        seconds: of each load in a round.
        count: requests of one load at most.
        only: keys of the figures wanted; empty measures all of them.
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
        config: how long and how often.
        target: model and requests.
        engine: of the model, for the loop without a server.
        step: called after every load.
    """

    config: BenchConfig
    target: Target
    engine: Engine
    step: Callable[[], None]

    def server(self, *settings: str) -> AbstractContextManager[Running]:
        """The server that runs already, or a new one with these settings."""
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
            raise BenchError(f"{callers} callers were answered {dict(result.codes)}", "OK alone")
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
        """Let the server meet every request, and compare what it says.

        Raises:
            BenchError: a call failed, or the server says something else than the engine without it.
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
                        f"the server's answer to request {number} is not the engine's",
                        "the same bytes",
                    )
        self.closed(running, 4 * self.config.callers, seconds=WARM_SECONDS)
