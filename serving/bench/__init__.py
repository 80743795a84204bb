"""``wsss-serving bench``: a server against the bare engine, both sides measured in turns on one
machine.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

from serving.bench import experiments, target
from serving.bench.experiments import Round
from serving.bench.setting import BenchConfig, Setting
from serving.bench.target import Target
from serving.engines import Plan
from serving.errors import BenchError, nearest
from serving.repository.loading import open_engine
from serving.repository.versions import choose, read_repository
from serving.scheduling.cpus import available_cpus

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Figure:
    """What a figure is, and its aim: ``least``, or ``most``, or none. A ratio has no ``unit``."""

    text: str
    least: float | None = None
    most: float | None = None
    unit: str = ""

    @property
    def aim(self) -> str:
        """In words."""
        limit, sign = (self.least, "≥") if self.most is None else (self.most, "≤")
        return "" if limit is None else f"{sign} {limit:g}{self.unit}"

    def met(self, value: float) -> bool | None:
        """Whether a value reaches the aim."""
        if self.least is None:
            return None if self.most is None else value <= self.most
        return value >= self.least


FIGURES = {
    "C1": Figure("one caller: requests a second / of one thread without server"),
    "R2": Figure("all callers: requests a second / of one thread without server", least=1.2),
    "R5": Figure("all callers: p99 / p50 of their waits", most=2.0),
    "R6": Figure("70 % of capacity, at random times: p99 of waits / one run", most=5.0),
    "R7": Figure("300 % of capacity: answers a second / capacity", least=0.9),
    "R7w": Figure("300 % of capacity: p99 of waits / (a full queue + two runs)", most=1.0),
    "R8": Figure("longest wait for a batch, beyond its delay and one run", most=20.0, unit=" ms"),
    "R11": Figure(
        "images of several sizes: requests a second rounded up and batched / as they are", least=1.0
    ),
    "R13": Figure(
        "labelling a folder: images a second / of a bare loop on each processor", least=0.9
    ),
    "R14": Figure("p99 of /readyz while messages of 48 MB flow", most=50.0, unit=" ms"),
}
# Of the fp32 tensor call: the loop has no codec that the server could do beside a run.
TENSOR_AIMS = {"C1": 0.6, "R2": 1.0}


@dataclass(frozen=True)
class Experiment:
    """What gives some figures.

    Attributes:
        loads: before the first round, and in each one.
        images: whether it needs images.
        own: whether it needs servers of its own.
    """

    run: Callable[[Setting], Iterator[Round]]
    figures: tuple[str, ...]
    loads: tuple[int, int]
    images: bool = False
    own: bool = True


EXPERIMENTS = (
    Experiment(experiments.served, ("C1", "R2", "R5", "R6", "R7", "R7w"), (1, 6), own=False),
    Experiment(experiments.waiting, ("R8",), (2, 0)),
    Experiment(experiments.buckets, ("R11",), (2, 2), images=True),
    Experiment(experiments.labelling, ("R13",), (1, 2), images=True),
    Experiment(experiments.probes, ("R14",), (0, 1)),
)


def bench(config: BenchConfig, progress: Progress = lambda done, total: None) -> dict[str, Any]:
    """Measure; ``progress`` is told of every load.

    Returns:
        ``model``, ``engine``, ``cpus``, ``callers``, ``rounds``, ``seconds``; ``figures`` by key,
        each with ``text``, ``value`` (the median), ``low`` and ``high`` of its rounds, ``aim`` and
        ``met``; ``measured``, medians of what they come from.

    Raises:
        BenchError: no such figure, nothing to measure, a server that does not start or that answers
            wrongly.
        RepositoryError, ModelNotFound, FieldError: of the model.
    """
    card = choose(read_repository(config.repository), config.model, 0, None)
    engine = open_engine(card, Plan(), config.engine)
    tensors = config.tensors or card.kind == "tensor"
    if tensors:
        asked = Target(card, inputs=target.random_inputs(engine, config.side))
    else:
        asked = Target(card, target.read_images(config.images))
    chosen = _chosen(config, tensors)
    total = sum(
        first + config.rounds * each for first, each in (experiment.loads for experiment in chosen)
    )
    done = iter(range(1, total + 1))
    setting = Setting(config, asked, engine, lambda: progress(next(done), total))
    found = [list(experiment.run(setting)) for experiment in chosen]
    engine.close()
    return {
        "model": card.name,
        "engine": engine.description,
        "cpus": available_cpus(),
        "callers": config.callers,
        "rounds": config.rounds,
        "seconds": config.seconds,
        "figures": _figures(found, config.only, tensors),
        "measured": {
            name: round(statistics.median(each[name] for each in rounds), 3)
            for rounds in found
            for name in rounds[0]
            if name not in FIGURES
        },
    }


def _chosen(config: BenchConfig, tensors: bool) -> list[Experiment]:
    for key in config.only:
        if key not in FIGURES:
            raise BenchError(f"no figure {key!r}", nearest(key, FIGURES), "--only R2,R6")
    chosen = [
        experiment
        for experiment in EXPERIMENTS
        if (not config.only or set(config.only) & set(experiment.figures))
        and not (experiment.images and tensors)
        and not (experiment.own and config.address)
    ]
    if not chosen:
        raise BenchError(
            f"{', '.join(config.only)} cannot be measured so",
            "images, and servers that are started for it",
        )
    return chosen


def _figures(found: list[list[Round]], only: Collection[str], tensors: bool) -> dict[str, Any]:
    figures = {}
    for rounds in found:
        for key in rounds[0]:
            if key not in FIGURES or (only and key not in only):
                continue
            figure = FIGURES[key]
            if tensors and key in TENSOR_AIMS:
                figure = replace(figure, least=TENSOR_AIMS[key])
            values = [each[key] for each in rounds]
            value = statistics.median(values)
            figures[key] = {
                "text": figure.text,
                "value": round(value, 3),
                "low": round(min(values), 3),
                "high": round(max(values), 3),
                "aim": figure.aim,
                "met": figure.met(value),
            }
    return figures
