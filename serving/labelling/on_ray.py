"""Label on the machines of a Ray cluster.

This process lists the images, finds out which still need a mask, and writes every file. The cluster
only computes: an actor on each processor holds the model, takes a block of names, reads those
images and returns their masks. So a node that dies takes no file with it. Ray hands its blocks to
other nodes, and each block comes back once.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from serving.card import CARD
from serving.errors import LabelError, ServingError
from serving.labelling.labeller import LabelConfig, Labeller, Model, Result
from serving.labelling.sources import open_source
from serving.labelling.store import State, Store
from serving.repository.versions import choose, read_repository, verify

log = logging.getLogger(__name__)

INSTALL = "pip install 'wsss[serve,ray]' on every node"
START = "ray start --head --disable-usage-stats, or --ray HOST:6379"
ANSWER_SECONDS, BUSY_SECONDS = 5.0, 30.0
WATCH = "import sys; sys.stdin.read() or sys.exit(sys.argv[1])"
ENDED = """error: this process was ended, as when its machine leaves the Ray cluster
expected: a cluster that stays; masks written before are kept
try: run the same command again"""
# Larger blocks cost Ray less, and smaller ones keep every node busy until the end.
LARGEST_BLOCK, BLOCKS_PER_ACTOR = 32, 8
# Engines that never use a GPU.
ON_PROCESSORS = ("onnxruntime", "openvino")


@dataclass(frozen=True)
class Job:
    """What the nodes get to know.

    Attributes:
        files: contents of the model's version folder, by name.
        processors: of an actor.
    """

    config: LabelConfig
    name: str
    version: int
    files: dict[str, bytes]
    processors: int


@contextmanager
def connected(config: LabelConfig) -> Iterator[Cluster]:
    """The cluster of ``config.ray``, with the model on it.

    Raises:
        LabelError: Ray is not installed, no cluster answers, or a node cannot label.
        RepositoryError, ModelNotFound, WrongModelKind, FieldError: see :class:`Labeller`.
    """
    if not importlib.util.find_spec("ray"):
        raise LabelError("--ray needs Ray, which is not installed", hint=INSTALL)
    import ray

    # A program that uses Ray already keeps its own connection.
    if ray.is_initialized():
        yield Cluster(config)
        return
    _connect(config.ray)
    try:
        with _watched():
            yield Cluster(config)
    finally:
        ray.shutdown()


class Cluster:
    """The actors of a cluster, all with one model.

    Attributes:
        model: as the nodes load it, which may have other engines than this machine.
    """

    def __init__(self, config: LabelConfig) -> None:
        import ray

        source = config.source
        # Processes of Ray have working directories of their own.
        config = replace(config, source=source.absolute() if isinstance(source, Path) else source)
        cards = read_repository(config.repository, config.model)
        card = choose(cards, config.model, config.version, ("segmenter", "cam"))
        verify(card)
        files = {name: (card.folder / name).read_bytes() for name in (CARD, *card.sha256)}
        self._actors, self._resources = _actors(config)
        processors = self._resources["num_cpus"]
        # Into Ray's memory once, from where every node fetches it once.
        self._job = ray.put(Job(config, card.name, card.version, files, processors))
        with _our_errors():
            model = ray.remote(**self._resources)(_describe).remote(self._job)
            if not ray.wait([model], timeout=BUSY_SECONDS)[0]:
                log.warning("every processor of the Ray cluster is busy: waiting for one")
            self.model: Model = ray.get(model)

    def states(self, images: Sequence[Path], store: Store) -> Iterator[State]:
        """Outcomes of the images, each recorded before it is returned.

        Raises:
            LabelError: a node cannot label, or the cluster failed.
            OSError: no mask can be written.
        """
        rest = []
        for image in images:
            if store.is_current(image):
                yield "skipped"
            else:
                rest.append(image)
        if rest:
            for result in self._results(rest):
                yield store.record(result)

    def _results(self, images: Sequence[Path]) -> Iterator[Result]:
        import ray.data

        size = min(LARGEST_BLOCK, max(1, len(images) // (BLOCKS_PER_ACTOR * self._actors)))
        blocks = -(-len(images) // size)
        # Blocks hold names, not contents: reading tasks would need processors, and the actors hold
        # all of them. Bytes, because a name need not be UTF-8.
        names = ray.data.from_items(list(map(os.fsencode, images)), override_num_blocks=blocks)
        rows = names.map_batches(
            Worker,
            fn_constructor_args=(self._job, self.model),
            batch_size=None,
            # A dead actor's blocks wait for its restart, so it holds few: one, and the next.
            compute=ray.data.ActorPoolStrategy(size=self._actors, max_tasks_in_flight_per_actor=2),
            **self._resources,
        )
        with _our_errors():
            for row in rows.iter_rows():
                yield pickle.loads(row["result"])


class Worker:
    """An actor: the model on one processor or GPU of a node."""

    def __init__(self, job: Any, model: Model) -> None:
        self._job, self._model = job, model
        self._labeller: Labeller | None = None

    def __call__(self, block: dict[str, Iterable[bytes]]) -> Iterator[dict[str, list[bytes]]]:
        """Label the images of a block; one row an image, so that few wait in memory."""
        # Not in the constructor: Ray starts an actor whose constructor fails again and again.
        self._labeller = self._labeller or self._open()
        images = [Path(os.fsdecode(name)) for name in block["item"]]
        with ThreadPoolExecutor(self._labeller.workers) as threads:
            for result in threads.map(self._labeller.label, images):
                yield {"result": [pickle.dumps(result)]}

    def _open(self) -> Labeller:
        import ray

        labeller = _open(ray.get(self._job))
        engine, other = (model.settings["engine"] for model in (labeller.model, self._model))
        if labeller.model.settings != self._model.settings:
            raise LabelError(
                f"{socket.gethostname()} would label with {engine}, another node with {other}",
                "one engine on all nodes, because their masks differ",
                "--engine onnxruntime",
            )
        return labeller


def _describe(job: Job) -> Model:
    return _open(job).model


def _open(job: Job) -> Labeller:
    """The model on this node; its files are removed as soon as it is loaded."""
    if not open_source(job.config.source).is_there():
        raise LabelError(
            f"{socket.gethostname()} sees no folder {job.config.source}",
            "a folder that every node has under the same path",
            "mount it there, or use an address such as s3://bucket/photos",
        )
    with TemporaryDirectory(prefix="wsss-") as root:
        folder = Path(root, job.name, str(job.version))
        folder.mkdir(parents=True)
        for name, content in job.files.items():
            (folder / name).write_bytes(content)
        config = replace(
            job.config,
            repository=Path(root),
            model=job.name,
            version=job.version,
            workers=job.processors,
        )
        return Labeller(config, job.processors)


def _actors(config: LabelConfig) -> tuple[int, dict[str, Any]]:
    """How many actors there are, and what each takes: a GPU with its share of the processors, or a
    processor where there is none.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = [node for node in nodes if node.get("GPU", 0) >= 1]
    if gpus and config.engine.name not in ON_PROCESSORS:
        share = min(int(node.get("CPU", 1) // node["GPU"]) for node in gpus)
        count = sum(int(node["GPU"]) for node in gpus)
        resources = {"num_gpus": 1, "num_cpus": max(1, share)}
    else:
        count = sum(int(node.get("CPU", 0)) for node in nodes)
        resources = {"num_cpus": 1}
    if not count:
        raise LabelError(
            "the Ray cluster has no processors", "a node with --num-cpus of at least 1"
        )
    return config.workers or count, resources


def _connect(address: str) -> None:
    """Join a cluster as a driver that prints nothing and reports nothing.

    Raises:
        LabelError: it does not answer, or has another version of Ray.
    """
    if address.startswith("ray://"):
        raise LabelError(
            f"--ray {address}: Ray Client cannot stream results",
            "auto or HOST:PORT on a machine of the cluster",
            "run the command there, for example with ray job submit",
        )
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Level of Ray's C++ part, which writes to standard error past Python.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import ray
    import ray.data
    from ray._private import services, worker

    # Ray prints deaths of nodes on standard output, which --json needs; no public setting ends it.
    worker.print_to_stdstream = lambda *args, **kwargs: None
    on_end = signal.getsignal(signal.SIGTERM)
    try:
        bootstrap = services.canonicalize_bootstrap_address_or_die(address)
        _check_answer(bootstrap)
        with _silent():
            ray.init(address=bootstrap, log_to_driver=False, logging_level=logging.ERROR)
        # Ray's own handler aborts. Other threads than the main one may set none.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_end)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise LabelError(f"--ray {address}: {error}", "a running Ray cluster", START) from error
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)


@contextmanager
def _watched() -> Iterator[None]:
    """Let another process say it if this one ends in the middle: Ray ends a driver without a word
    when the node that it is on leaves the cluster.
    """
    command = [sys.executable, "-ISc", WATCH, ENDED]
    # A session of its own, which Ctrl-C does not reach.
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as watcher:
        try:
            yield
        finally:
            watcher.communicate(b"over")


@contextmanager
def _silent() -> Iterator[None]:
    """Drop what is written to standard error, also past Python."""
    stderr = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def _check_answer(address: str) -> None:
    """Ask for a gRPC connection first: Ray itself tries for more than a minute.

    Raises:
        ConnectionError: there is none.
    """
    import grpc

    # Connections with Ray's own certificates are left to Ray.
    if os.environ.get("RAY_USE_TLS", "0") != "0":
        return
    with grpc.insecure_channel(address) as channel:
        try:
            grpc.channel_ready_future(channel).result(ANSWER_SECONDS)
        except grpc.FutureTimeoutError as error:
            raise ConnectionError(f"no cluster answers at {address}") from error


@contextmanager
def _our_errors() -> Iterator[None]:
    """Turn what Ray raises into errors that say what to do."""
    from ray.exceptions import RayError

    try:
        yield
    except RayError as error:
        causes = list(_causes(error))
        for cause in causes:
            if isinstance(cause, ServingError):
                raise cause from None
        reason = str(causes[-1]).strip().splitlines() or [type(causes[-1]).__name__]
        missing = any(isinstance(cause, ModuleNotFoundError) for cause in causes)
        raise LabelError(
            f"the Ray cluster failed: {reason[-1]}; masks written before are kept",
            "nodes with the same Python, wsss and Ray as this machine",
            INSTALL if missing else "run the same command again",
        ) from error


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what caused it, also on a node."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = getattr(cause, "cause", None) or cause.__cause__
