"""From a version folder to an engine that is known to work."""

from __future__ import annotations

from serving.card import Card
from serving.config import ScheduleConfig
from serving.cpus import available_cpus
from serving.engines import Engine, plan_threads
from serving.graph_file import check_graph
from serving.repository import verify
from serving.soundness import check_promise, warm_up


def open_engine(card: Card, threads: int = 1) -> Engine:
    """Verify and load a model, and see that it keeps its card's promise.

    Raises:
        RepositoryError: it is not sound.
    """
    from serving.engines.onnxruntime import OnnxRuntimeEngine

    verify(card)
    check_graph(card)
    engine = OnnxRuntimeEngine(card, threads)
    check_promise(card, engine)
    return engine


def open_warm_engine(card: Card, schedule: ScheduleConfig) -> Engine:
    """Open a model for a server, and run every size and batch to warm up.

    Raises:
        RepositoryError: it is not sound.
        ConfigError: see :func:`serving.soundness.warm_up`.
    """
    engine = open_engine(card, schedule.threads or plan_threads(available_cpus())[1])
    warm_up(card, engine, schedule.warm, schedule.bucket, schedule.max_batch or 1)
    return engine
