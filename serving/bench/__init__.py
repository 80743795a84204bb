"""``wsss-serving bench``: a server compared with the bare engine, in turns on one machine."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from serving.bench import target
from serving.bench.setting import BenchConfig, Setting
from serving.bench.target import Target
from serving.config import ScheduleConfig
from serving.engines import Plan
from serving.errors import BenchError, nearest
from serving.repository.loading import open_engine
from serving.repository.versions import choose, read_repository
from serving.scheduling.cpus import available_cpus

Progress = Callable[[int, int], None]
# Figures and the quantities behind them, by key.
Round = dict[str, float]


@dataclass(frozen=True)
class Figure:
    """Name and aim of a figure; ratios have no ``unit``."""

    text: str
    least: float | None = None
    most: float | None = None
    unit: str = ""

    @property
    def aim(self) -> str:
        """The aim in words."""
        limit, sign = (self.least, "≥") if self.most is None else (self.most, "≤")
        return "" if limit is None else f"{sign} {limit:g}{self.unit}"

    def met(self, value: float) -> bool | None:
        """Whether a value reaches the aim; None without one."""
        if self.least is None:
            return None if self.most is None else value <= self.most
        return value >= self.least


@dataclass(frozen=True)
class Experiment:
    """A measurement that gives several figures.

    Attributes:
        run: yields one round at a time.
        figures: by key.
        loads: number of loads before the first round, and in each round.
    """

    run: Callable[[Setting], Iterator[Round]]
    figures: dict[str, Figure]
    loads: tuple[int, int]


# Minimum of the tensor call. Its loop has no decoding that a server could do beside a run.
TENSOR_AIMS = {"one-caller": 0.6, "all-callers": 1.0}


def served(setting: Setting) -> Iterator[Round]:
    """One server against one thread without it, then at 70 % and at 300 % of its capacity."""
    callers, queue = setting.config.callers, ScheduleConfig().queue
    with setting.server() as running:
        setting.warm(running)
        for number in range(setting.config.rounds):
            # Both sides of a ratio are measured within one round, so that other work on the machine
            # affects both.
            raw = setting.raw()
            alone, together, more = (
                setting.closed(running, count) for count in (1, callers, 4 * callers)
            )
            capacity = max(together.rate, more.rate)
            steady = setting.poisson(running, 0.7 * capacity, number)
            flood = setting.poisson(running, 3 * capacity, number)
            refusals = flood.codes["RESOURCE_EXHAUSTED"]
            yield {
                "one-caller": alone.rate / raw.rate,
                "all-callers": together.rate / raw.rate,
                "tail": together.wait(0.99) / together.wait(0.5),
                "steady-wait": steady.wait(0.99) / raw.run,
                "flood-answers": flood.rate / capacity,
                "flood-wait": flood.wait(0.99) / (queue / capacity + 2 * raw.run),
                "loop_per_second": raw.rate,
                "run_ms": 1e3 * raw.run,
                "one_caller_per_second": alone.rate,
                "callers_per_second": together.rate,
                "callers_p50_ms": 1e3 * together.wait(0.5),
                "callers_p99_ms": 1e3 * together.wait(0.99),
                "capacity_per_second": capacity,
                "steady_p99_ms": 1e3 * steady.wait(0.99),
                "flood_p99_ms": 1e3 * flood.wait(0.99),
                "flood_refused": refusals,
                "flood_failed": flood.codes.total() - refusals - flood.codes["OK"],
            }


SERVED = Experiment(
    served,
    {
        "one-caller": Figure("one caller: requests a second / of one thread without server"),
        "all-callers": Figure(
            "all callers: requests a second / of one thread without server", least=1.2
        ),
        "tail": Figure("all callers: p99 / p50 of their waits", most=2.0),
        "steady-wait": Figure(
            "70 % of capacity, at random times: p99 of waits / one run", most=5.0
        ),
        "flood-answers": Figure("300 % of capacity: answers a second / capacity", least=0.9),
        "flood-wait": Figure(
            "300 % of capacity: p99 of waits / (a full queue + two runs)", most=1.0
        ),
    },
    (1, 6),
)


def bench(
    config: BenchConfig,
    progress: Progress = lambda count, total: None,
    experiments: Sequence[Experiment] = (SERVED,),
) -> dict[str, Any]:
    """Measure; ``progress`` is called after every load.

    Returns:
        The setting; ``figures`` by key with ``text``, ``value`` (a median), ``low``, ``high``,
            ``aim``
        and ``met``; ``measured``, medians of the quantities behind them.

    Raises:
        BenchError: an unknown figure, nothing to measure, or a server that fails.
    """
    experiments = _choose(experiments, config.only)
    card = choose(read_repository(config.repository), config.model, 0, None)
    engine = open_engine(card, Plan(), config.engine)
    tensors = config.tensors or card.kind == "tensor"
    inputs = target.random_inputs(engine, config.side) if tensors else None
    requests = Target(card, () if tensors else target.read_images(config.images), inputs)
    total = sum(first + config.rounds * each for first, each in (e.loads for e in experiments))
    count = iter(range(1, total + 1))
    setting = Setting(config, requests, engine, lambda: progress(next(count), total))
    figures: dict[str, Any] = {}
    quantities: dict[str, float] = {}
    for experiment in experiments:
        rounds = list(experiment.run(setting))
        figures |= _figures(experiment, rounds, config.only, tensors)
        for name in (name for name in rounds[0] if name not in experiment.figures):
            quantities[name] = round(statistics.median(each[name] for each in rounds), 3)
    engine.close()
    return {
        "model": card.name,
        "engine": engine.description,
        "cpus": available_cpus(),
        "callers": config.callers,
        "rounds": config.rounds,
        "seconds": config.seconds,
        "figures": figures,
        "measured": quantities,
    }


def _choose(experiments: Sequence[Experiment], only: Collection[str]) -> list[Experiment]:
    keys = [key for experiment in experiments for key in experiment.figures]
    for key in only:
        if key not in keys:
            raise BenchError(
                f"no figure {key!r}", nearest(key, keys), "--only all-callers,steady-wait"
            )
    return [each for each in experiments if not only or each.figures.keys() & set(only)]


def _figures(
    experiment: Experiment, rounds: list[Round], only: Collection[str], tensors: bool
) -> dict[str, Any]:
    figures = {}
    for key, figure in experiment.figures.items():
        if only and key not in only:
            continue
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
