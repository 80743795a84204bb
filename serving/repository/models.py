"""The models that are served now: tried, loaded, swapped and unloaded without failing a request."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from serving.card import Kind
from serving.config import ServerConfig
from serving.engines import Stop
from serving.errors import ModelNotFound, RepositoryError, ServerUnavailable, nearest
from serving.repository.refusals import Refusals
from serving.repository.served import ModelState, Served, State, build
from serving.repository.soundness import read_size
from serving.repository.trial import try_model
from serving.repository.versions import (
    Cards,
    choose,
    find_versions,
    others,
    read_repository,
    unreadable,
    wanted_versions,
)
from serving.repository.watch import Signature, Watch, signature
from serving.scheduling.cpus import available_cpus

log = logging.getLogger(__name__)

RETRY_SECONDS = 1.0
GONE = "the repository cannot be read, the server keeps its models: %s"


class Models:
    """The models of a repository. Call every method on one event loop; slow work runs in threads.

    Raises:
        ConfigError: ``models.versions`` or ``schedule.warm`` is malformed.
    """

    def __init__(self, config: ServerConfig) -> None:
        wanted_versions(config.models.versions, ())
        for schedule in (config.schedule, *map(config.schedule.for_model, config.schedule.models)):
            for size in schedule.warm:
                read_size(size)
        self._config = config
        self._cards: Cards = {}
        self._live: dict[tuple[str, int], Served] = {}
        self._signatures: dict[tuple[str, int], Signature] = {}
        self._refused = Refusals(config.repository)
        self._states: dict[tuple[str, int], ModelState] = {}
        self._leases: Counter[Served] = Counter()
        self._idle: dict[Served, asyncio.Event] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        # More trials at once than processors would only slow each other, and take memory.
        self._loaders = asyncio.Semaphore(available_cpus())
        self._tasks: set[asyncio.Task[None]] = set()
        self._callbacks: list[Callable[[ModelState], None]] = []

    async def start(self) -> None:
        """Load the configured models, and follow the repository if configured.

        A model that is not sound is left out with its reason, and its newest sound version is
        served.

        Raises:
            RepositoryError: no model is sound, or one is not and ``models.strict`` is set. An empty
                repository is fine where models may come later.
        """
        if self._config.models.strict:
            await asyncio.to_thread(read_repository, self._config.repository)
        watch = await asyncio.to_thread(Watch, self._config.repository)
        if names := await asyncio.to_thread(others, self._config.repository):
            log.info("ignored, because they hold no version folder: %s", ", ".join(names))
        await asyncio.gather(*(self._refresh(name) for name in watch.models))
        error = self._refused.error()
        if error and (self._config.models.strict or not self._live):
            raise error
        if not self._live and self._config.models.control == "none":
            await asyncio.to_thread(read_repository, self._config.repository)
        if self._config.models.control == "poll":
            self._spawn(self._poll(watch))

    async def close(self) -> None:
        """Free everything."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        closing = [asyncio.to_thread(model.batcher.close) for model in self.served()]
        await asyncio.gather(*closing)
        for model in self.served():
            model.engine.close()

    def find(self, name: str, version: int, kind: Kind | tuple[Kind, ...] | None) -> Served:
        """The model that a request means: an empty name is the only model of ``kind``, version 0
        the newest.

        Raises:
            FieldError, ModelNotFound, WrongModelKind: see
                :func:`serving.repository.versions.choose`.
            ServerUnavailable: the model is being loaded.
        """
        if name not in self._cards if name else not self._cards:
            self._check_known(name)
        card = choose(self._cards, name, version, kind)
        return self._live[card.name, card.version]

    @contextmanager
    def lease(self, model: Served) -> Iterator[None]:
        """Keep a model loaded for a request. Enter it in the same step of the event loop as
        ``find``.
        """
        self._leases[model] += 1
        try:
            yield
        finally:
            self._leases[model] -= 1
            if not self._leases[model]:
                del self._leases[model]
                if model in self._idle:
                    self._idle[model].set()

    def served(self) -> list[Served]:
        """The models that are ready, by name and version."""
        return [self._live[key] for key in sorted(self._live)]

    def versions(self, name: str) -> list[int]:
        """The versions of a model that are ready, ascending."""
        return [version for model, version in sorted(self._live) if model == name]

    def index(self) -> list[ModelState]:
        """The state of every configured version, ready or not."""
        return [self._states[key] for key in sorted(self._states)]

    def subscribe(self, callback: Callable[[ModelState], None]) -> None:
        """Have ``callback`` called on the event loop with every change of a state."""
        self._callbacks.append(callback)

    async def load(self, name: str) -> None:
        """Load a model or its new versions. The old version answers until the new one is ready.

        Raises:
            ModelNotFound: the repository has no such model.
            RepositoryError: a version is not sound; the server keeps what it serves.
        """
        folders = await asyncio.to_thread(find_versions, self._config.repository)
        if not folders.get(name):
            raise ModelNotFound(
                f"no model {name!r} in the repository", nearest(name, folders), field="model"
            )
        self._refused.forget(name)
        await self._refresh(name)
        if error := self._refused.error(name):
            raise error

    async def unload(self, name: str) -> None:
        """Take a model out of service, then free it once its requests are answered.

        Raises:
            ModelNotFound: no such model is served.
        """
        async with self._lock(name):
            if name not in self._cards:
                raise ModelNotFound(
                    f"no model {name!r} is served", nearest(name, self._cards), field="model"
                )
            former = self._swap(name, [])
        await asyncio.gather(*former)

    def _lock(self, name: str) -> asyncio.Lock:
        return self._locks.setdefault(name, asyncio.Lock())

    def _check_known(self, name: str) -> None:
        """Raise a better error than "not found" for a model that is loading or was refused."""
        states = [state for _, state in sorted(self._states.items()) if name in ("", state.name)]
        if any(state.state == State.LOADING for state in states):
            raise ServerUnavailable(
                f"model {name!r} is loading", hint="again soon", retry_after=RETRY_SECONDS
            )
        if name and states and states[-1].reason:
            raise ModelNotFound(
                f"model {name!r} is not served: {states[-1].reason}",
                nearest(name, self._cards),
                field="model",
                metadata={"known": ",".join(self._cards)},
            )

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        # The event loop holds only weak references to tasks.
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _tell(self, key: tuple[str, int], state: State, reason: str = "") -> None:
        change = ModelState(*key, state, reason)
        if self._states.get(key) == change:
            return
        self._states[key] = change
        note = ", still with its previous files" if state == State.READY else f", {reason}"
        log.info("model %s version %s: %s%s", *key, state, note if reason else "")
        for callback in self._callbacks:
            callback(change)

    async def _refresh(self, name: str) -> None:
        """Serve the newest sound versions in a model's folder, and no others."""
        async with self._lock(name):
            try:
                models = await asyncio.to_thread(find_versions, self._config.repository)
            except (RepositoryError, OSError) as error:
                log.warning(GONE, error)
                return
            folders = models.get(name, {})
            if name in models and not folders:
                log.warning("%s", unreadable(self._config.repository / name).found)
                return
            candidates, count = wanted_versions(self._config.models.versions, folders)
            chosen: list[Served] = []
            for version in candidates:
                model = await self._sound(name, version, folders[version])
                if model:
                    chosen.append(model)
                if len(chosen) == count:
                    break
            self._swap(name, chosen)
            for key in [key for key in self._refused if key[0] == name and key[1] not in folders]:
                del self._refused[key], self._states[key]

    async def _sound(self, name: str, version: int, folder: Path) -> Served | None:
        """The model of this version's files, loaded if they changed; if they are not sound, the one
        that is served.
        """
        key = (name, version)
        now = await asyncio.to_thread(signature, folder)
        model = self._live.get(key)
        if model and self._signatures[key] == now:
            return model
        if key in self._refused and self._refused[key].signature == now:
            return model
        if not model:
            self._tell(key, State.LOADING)
        try:
            fresh = await self._load(folder)
        # A hostile or vanishing folder can make a library raise anything, which must not end the
        # server.
        except Exception as error:
            fault = RepositoryError(f"{folder} fails: {error}")
            why = error if isinstance(error, RepositoryError) else fault
            log.warning("model %s version %s is refused: %s", *key, why, exc_info=why is fault)
            self._refused.note(key, now, why)
            self._tell(key, State.READY if model else State.UNAVAILABLE, self._refused.reason(key))
            return model
        self._refused.pop(key, None)
        self._signatures[key] = now
        return fresh

    async def _load(self, folder: Path) -> Served:
        async with self._loaders:
            if self._config.models.trial:
                await try_model(folder, self._config)
            stop = Stop()
            try:
                return await asyncio.to_thread(build, folder, self._config, stop)
            finally:
                # The server may be ending while an engine is built.
                stop.request()

    def _swap(self, name: str, chosen: list[Served]) -> list[asyncio.Task[None]]:
        """Replace the served versions of a model in one step; returns the tasks that free the old
        ones.
        """
        old = [model for (other, _), model in self._live.items() if other == name]
        for model in old:
            del self._live[name, model.card.version]
        self._live |= {(name, model.card.version): model for model in chosen}
        self._cards.pop(name, None)
        if chosen:
            cards = {model.card.version: model.card for model in sorted(chosen, key=_version)}
            self._cards = dict(sorted({**self._cards, name: cards}.items()))
        for model in chosen:
            key = (name, model.card.version)
            self._tell(key, State.READY, self._refused.reason(key))
        former = [model for model in old if model not in chosen]
        for model in former:
            if (name, model.card.version) not in self._live:
                self._tell((name, model.card.version), State.UNLOADING)
        return [self._spawn(self._retire(model)) for model in former]

    async def _retire(self, model: Served) -> None:
        key = (model.card.name, model.card.version)
        if self._leases[model]:
            self._idle[model] = asyncio.Event()
            await self._idle[model].wait()
            del self._idle[model]
        await asyncio.to_thread(model.batcher.close)
        model.engine.close()
        if key not in self._live:
            self._tell(key, State.UNAVAILABLE, "unloaded")
            if not model.card.folder.is_dir():
                del self._states[key]

    async def _poll(self, watch: Watch) -> None:
        """Watch the repository and refresh what changed."""
        while True:
            await asyncio.sleep(self._config.models.poll_seconds)
            try:
                names = await asyncio.to_thread(watch.look)
            except (RepositoryError, OSError) as error:
                log.warning(GONE, error)
                continue
            for name in names:
                self._spawn(self._refresh(name))


def _version(model: Served) -> int:
    return model.card.version
