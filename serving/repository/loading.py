"""From a version folder to an engine that works."""

from __future__ import annotations

from serving.card import Card
from serving.config import EngineConfig, ScheduleConfig
from serving.engines import Engine, Plan, Stop, plan_threads
from serving.repository.choice import GPU, choose_engine, resolve
from serving.repository.graph_file import check_graph
from serving.repository.soundness import check_promise, warm_sizes, warm_up
from serving.repository.versions import verify
from serving.scheduling.cpus import available_cpus

# On a GPU one run copies while another computes, and a batch takes hardly longer than one image.
GPU_WORKERS, GPU_BATCH = 2, 8


def open_engine(card: Card, plan: Plan, config: EngineConfig, stop: Stop | None = None) -> Engine:
    """Verify and load a model, and check that it keeps its card's promise.

    Args:
        card: with the limits of :func:`serving.repository.choice.limited`.
        stop: ends a build that takes minutes.

    Raises:
        RepositoryError: the model is not sound, or the configured engine cannot run it.
        Stopped: ``stop`` was requested.
    """
    verify(card)
    check_graph(card)
    engine = choose_engine(card, plan, config, stop)
    try:
        check_promise(card, engine)
    except BaseException:
        engine.close()
        raise
    return engine


def open_warm_engine(
    card: Card, schedule: ScheduleConfig, config: EngineConfig, stop: Stop | None = None
) -> Engine:
    """Open a model for a server and run every planned size and batch once.

    Raises:
        RepositoryError, Stopped: see :func:`open_engine`.
        ConfigError: see :func:`serving.repository.soundness.warm_up`.
    """
    plan = plan_for(card, schedule, config)
    engine = open_engine(card, plan, config, stop)
    try:
        warm_up(card, engine, schedule.warm, schedule.bucket, plan.max_batch)
    except BaseException:
        engine.close()
        raise
    return engine


def plan_for(card: Card, schedule: ScheduleConfig, config: EngineConfig) -> Plan:
    """Runs, threads and batches from the settings, or what suits the engine.

    Raises:
        ConfigError: a malformed size in ``schedule.warm``.
    """
    gpu = resolve(card, config) in GPU
    workers, threads = (GPU_WORKERS, 1) if gpu else plan_threads(available_cpus())
    return Plan(
        workers=schedule.workers or workers,
        threads=schedule.threads or threads,
        max_batch=schedule.max_batch or (GPU_BATCH if gpu else 1),
        sizes=tuple(warm_sizes(card, schedule.warm, schedule.bucket)),
    )
