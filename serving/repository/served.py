"""One model in service, and the state of each version."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from serving.card import Card, read_card
from serving.config import ServerConfig
from serving.engines import Engine, Stop
from serving.repository.choice import limited
from serving.repository.loading import open_warm_engine, plan_for
from serving.scheduling.batcher import Batcher


class State(StrEnum):
    """The state of a version, in the words of the Open Inference Protocol."""

    LOADING = "LOADING"
    READY = "READY"
    UNLOADING = "UNLOADING"
    UNAVAILABLE = "UNAVAILABLE"


@dataclass(frozen=True)
class ModelState:
    """One version of a model; ``reason`` says why it is not ready, or why its new files are not
    served.
    """

    name: str
    version: int
    state: State
    reason: str = ""


@dataclass(frozen=True, eq=False)
class Served:
    """A model in service; the sides of its images are rounded up to a multiple of ``bucket``."""

    card: Card
    engine: Engine
    batcher: Batcher
    bucket: int = 1


def build(folder: Path, config: ServerConfig, stop: Stop) -> Served:
    """Load and warm up the model of a version folder.

    Raises:
        RepositoryError: it is not sound.
        Stopped: ``stop`` was requested.
    """
    card = limited(read_card(folder), config.engine)
    schedule = config.schedule.for_model(card.name)
    plan = plan_for(card, schedule, config.engine)
    engine = open_warm_engine(card, schedule, config.engine, stop)
    batcher = Batcher(
        engine, plan.workers, schedule.queue, plan.max_batch, schedule.max_delay_ms / 1000
    )
    return Served(card, engine, batcher, schedule.bucket)
