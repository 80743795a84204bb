"""What a method's file declares: its class, its knobs, and what was published about its training.

The file ends with ``METHOD = Declaration(...)``. A name or a type that does not belong there fails
when the file is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.config import Knobs
from trainer.errors import ConfigError
from trainer.methods.base import Method
from trainer.methods.preparation import Preparation, Prepared

Changes = Mapping[str, Any]
"""Knob -> value."""


@dataclass(frozen=True)
class Lesson:
    """What the training of a method is going to be.

    Attributes:
        cells: along a side of the map of a training view.
        updates: of one training; a method with preparations may train several times.
    """

    cells: float
    updates: int


def no_advice(config: Any, lesson: Lesson) -> Iterable[tuple[Changes, str]]:
    """The defaults of most methods hold for maps and trainings of any size."""
    return ()


def no_preparations(config: Any) -> Sequence[Preparation]:
    """Most methods start with the training of the classifier."""
    return ()


def unprepared(config: Any, run: Path) -> Prepared:
    """The config itself, no further inputs, and initial weights."""
    return Prepared(config)


@dataclass(frozen=True)
class Declaration:
    """A method's file.

    Attributes:
        method: the class.
        config: its knobs, a frozen dataclass.
        presets: name of ``--preset`` -> changes, each of ``method.<knob>``, ``classify.<knob>`` or
            ``cams.<knob>``. ``<recipe>.<knob>`` changes ``classify`` under that recipe only:
            published rates belong to the networks that they were published with.
        training: recipe -> changes of its ``classify`` knobs: the published training.
        small: changes of the method's knobs under the recipes ``small`` and ``scratch``.
        advice: (config, what the training is going to be) -> changes of the method's knobs that
            small maps or short trainings ask for, each with a sentence that ``fit`` prints. For the
            recipes ``small`` and ``scratch``; knobs that were typed or that a preset sets stay.
        protocol: how maps are made unless ``cams.protocol`` says so; None for the usual protocol
            of the backbone.
        preparations: config -> the stages before ``classify``, in order.
        prepared: (config, folder of the run) -> what the stages left for ``classify``.
    """

    method: type[Method]
    config: type[Knobs]
    presets: Mapping[str, Changes] = field(default_factory=dict)
    training: Mapping[str, Changes] = field(default_factory=dict)
    small: Changes = field(default_factory=dict)
    advice: Callable[[Any, Lesson], Iterable[tuple[Changes, str]]] = no_advice
    protocol: str | None = None
    preparations: Callable[[Any], Sequence[Preparation]] = no_preparations
    prepared: Callable[[Any, Path], Prepared] = unprepared

    def __post_init__(self) -> None:
        tables = {**self.presets, **self.training}.values()
        expectations = {
            "method": (_is_subclass(self.method, Method), "a subclass of Method"),
            "config": (_is_subclass(self.config, Knobs), "a dataclass that extends Knobs"),
            "presets or training": (
                all(isinstance(changes, Mapping) for changes in tables),
                "a mapping of knobs to values under each name",
            ),
            "small": (isinstance(self.small, Mapping), "a mapping of knobs to values"),
            "advice": (callable(self.advice), "a function of the config and the training"),
            "protocol": (isinstance(self.protocol, str | None), "a name or None"),
            "preparations": (callable(self.preparations), "a function of the config"),
            "prepared": (callable(self.prepared), "a function of the config and the run's folder"),
        }
        for member, (holds, kind) in expectations.items():
            if not holds:
                raise ConfigError(f"a method declares a {member} of another type", kind)


def _is_subclass(value: Any, base: type) -> bool:
    return isinstance(value, type) and issubclass(value, base)
