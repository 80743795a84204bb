"""Which models are served now: loading, swapping and unloading them without failing a request."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum

from serving.batcher import Batcher
from serving.config import ServerConfig
from serving.cpus import available_cpus
from serving.engines import Engine, plan_threads
from serving.engines.onnxruntime import OnnxRuntimeEngine
from serving.errors import ModelNotFound, RepositoryError, ServerUnavailable, nearest
from serving.repository import Card, Cards, Kind, choose, read_repository, select, verify

log = logging.getLogger(__name__)

RETRY_SECONDS = 1.0


class State(StrEnum):
    """What a version of a model is, in the words of the Open Inference Protocol."""

    LOADING = "LOADING"
    READY = "READY"
    UNLOADING = "UNLOADING"
    UNAVAILABLE = "UNAVAILABLE"


@dataclass(frozen=True)
class ModelState:
    """One version of one model. ``reason`` says why it is not ready, without paths."""

    name: str
    version: int
    state: State
    reason: str = ""


@dataclass(frozen=True, eq=False)
class Served:
    """A model in service, and the multiple to which the sides of its images are rounded up."""

    card: Card
    engine: Engine
    batcher: Batcher
    bucket: int = 1


class Models:
    """The models of a repository. Every method is called on one event loop; what takes long runs in threads.

    Args:
        config: says where they are, which versions are served and how.
    """

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._cards: Cards = {}
        self._served: dict[tuple[str, int], Served] = {}
        self._states: dict[tuple[str, int], ModelState] = {}
        self._leases: Counter[Served] = Counter()
        self._locks: dict[str, asyncio.Lock] = {}
        self._callbacks: list[Callable[[ModelState], None]] = []

    async def start(self) -> None:
        """Load what the configuration says.

        Raises:
            RepositoryError: the first model that is not sound.
        """
        for name in await asyncio.to_thread(read_repository, self._config.repository):
            await self.load(name)

    async def close(self) -> None:
        """Free everything once it is idle."""
        for served in self.served():
            served.batcher.close()
            served.engine.close()

    def find(self, name: str, version: int, kind: Kind | tuple[Kind, ...] | None) -> Served:
        """The model that a request means: an empty name is the only model of ``kind``, version 0 the newest.

        Raises:
            FieldError, ModelNotFound, WrongModelKind: see :func:`serving.repository.choose`.
            ServerUnavailable: the model is being loaded.
        """
        if name not in self._cards and self._loads(name):
            raise ServerUnavailable(f"model {name!r} is loading", hint="again soon", retry_after=RETRY_SECONDS)
        card = choose(self._cards, name, version, kind)
        return self._served[card.name, card.version]

    @contextmanager
    def lease(self, served: Served) -> Iterator[None]:
        """Keep a model loaded while a request uses it."""
        self._leases[served] += 1
        try:
            yield
        finally:
            self._leases[served] -= 1
            if not self._leases[served]:
                del self._leases[served]

    def served(self) -> list[Served]:
        """What is ready now, by name and version."""
        return [self._served[key] for key in sorted(self._served)]

    def index(self) -> list[ModelState]:
        """Every version known, those that are not ready included."""
        return [self._states[key] for key in sorted(self._states)]

    def subscribe(self, callback: Callable[[ModelState], None]) -> None:
        """Have ``callback`` called on the event loop with every change of a state."""
        self._callbacks.append(callback)

    async def load(self, name: str) -> None:
        """Load a model, or load it again if it changed; requests go to the old version until the new one is ready.

        Raises:
            ModelNotFound: the repository has no such model.
            RepositoryError: it is not sound; what was served is served still.
        """
        async with self._locks.setdefault(name, asyncio.Lock()):
            repository = await asyncio.to_thread(read_repository, self._config.repository)
            if name not in repository:
                raise ModelNotFound(f"no model {name!r} in the repository", nearest(name, repository), field="model")
            cards = select(repository[name], self._config.models.versions)
            loaded = [await self._load(card) for card in cards]
            await self._swap(name, loaded)

    async def unload(self, name: str) -> None:
        """Take a model out of service, then free it once its requests are answered.

        Raises:
            ModelNotFound: no such model is served.
        """
        async with self._locks.setdefault(name, asyncio.Lock()):
            if name not in self._cards:
                raise ModelNotFound(f"no model {name!r} is served", nearest(name, self._cards), field="model")
            await self._swap(name, [])

    def _loads(self, name: str) -> bool:
        return any(state.name == name and state.state == State.LOADING for state in self._states.values())

    def _tell(self, card: Card, state: State, reason: str = "") -> None:
        change = ModelState(card.name, card.version, state, reason)
        self._states[card.name, card.version] = change
        for callback in self._callbacks:
            callback(change)

    async def _load(self, card: Card) -> Served:
        self._tell(card, State.LOADING)
        try:
            return await asyncio.to_thread(build, card, self._config)
        except RepositoryError:
            self._tell(card, State.UNAVAILABLE, "refused; the log says why")
            raise

    async def _swap(self, name: str, loaded: list[Served]) -> None:
        old = [served for key, served in self._served.items() if key[0] == name]
        for served in old:
            del self._served[name, served.card.version]
        self._served |= {(name, served.card.version): served for served in loaded}
        self._cards.pop(name, None)
        if loaded:
            self._cards[name] = {served.card.version: served.card for served in loaded}
        for served in loaded:
            self._tell(served.card, State.READY)
        for served in old:
            await self._retire(served)

    async def _retire(self, served: Served) -> None:
        key = (served.card.name, served.card.version)
        if key not in self._served:
            self._tell(served.card, State.UNLOADING)
        while self._leases[served]:
            await asyncio.sleep(0.05)
        await asyncio.to_thread(served.batcher.close)
        served.engine.close()
        if key not in self._served:
            self._tell(served.card, State.UNAVAILABLE, "unloaded")


def build(card: Card, config: ServerConfig) -> Served:
    """Verify and load one model.

    Raises:
        RepositoryError: it is not sound.
    """
    workers, threads = plan_threads(available_cpus())
    schedule = config.schedule
    verify(card)
    engine = OnnxRuntimeEngine(card, schedule.threads or threads)
    batcher = Batcher(
        engine, schedule.workers or workers, schedule.queue, schedule.max_batch or 1, schedule.max_delay_ms / 1000
    )
    return Served(card, engine, batcher, schedule.bucket)
