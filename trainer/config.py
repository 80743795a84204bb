"""Knobs: frozen dataclasses, and how ``section.key=value`` texts become their values."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, TypeVar

from trainer.errors import ConfigError, nearest

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Range:
    """The range of a numeric knob, or of each value of a tuple. NaN is outside every range.

    It stands beside the type of the field: ``epochs: Annotated[int, Range(1, 10_000)]``.

    Attributes:
        low: the smallest value.
        high: the largest value.
        above: ``low`` itself is too small.
        below: ``high`` itself is too large.
        least: smallest number of values in a tuple.
        most: largest number of values in a tuple.
    """

    low: float
    high: float
    above: bool = False
    below: bool = False
    least: int = 0
    most: int = 16

    def holds(self, value: float) -> bool:
        """Whether one value is within."""
        low = value > self.low if self.above else value >= self.low
        return low and (value < self.high if self.below else value <= self.high)

    def __str__(self) -> str:
        low = f"above {_number(self.low)}" if self.above else _number(self.low)
        high = f"below {_number(self.high)}" if self.below else _number(self.high)
        return f"{low} to {high}"


class Knobs:
    """Base of every config dataclass. A value outside the range of its field is refused.

    Attributes:
        section: name in ``--set section.key=value``.
        later: knobs that earlier versions lacked, each with the value that changes nothing. With
            this value they have no part in the keys of stages, so runs of earlier versions stay.
    """

    section: ClassVar[str] = "method"
    later: ClassVar[Mapping[str, Any]] = {}

    def __post_init__(self) -> None:
        for name, limits in ranges(type(self)).items():
            value = getattr(self, name)
            values = value if isinstance(value, tuple) else (value,)
            # Words such as "auto" have no range.
            wrong = [v for v in values if not isinstance(v, str) and not limits.holds(v)]
            few = isinstance(value, tuple) and not limits.least <= len(value) <= limits.most
            if wrong or few:
                text = ",".join(map(str, values)) or "(nothing)"
                count = f"{max(limits.least, 1)} to {limits.most} numbers, each " if few else ""
                raise ConfigError(f"{self.section}.{name}={text}", f"{count}{limits}")


def ranges(config: type) -> dict[str, Range]:
    """The range of every numeric knob of a config dataclass."""
    hints = typing.get_type_hints(config, include_extras=True)
    return {
        name: extra
        for name, hint in hints.items()
        for extra in getattr(hint, "__metadata__", ())
        if isinstance(extra, Range)
    }


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def parse_settings(texts: Sequence[str], sections: Sequence[str]) -> dict[str, dict[str, str]]:
    """Group ``section.key=value`` texts by section.

    Raises:
        ConfigError: a text without ``=`` or without a section, or an unknown section.
    """
    settings: dict[str, dict[str, str]] = {section: {} for section in sections}
    for text in texts:
        name, equals, value = text.partition("=")
        section, dot, key = name.strip().partition(".")
        if not equals or not dot:
            raise ConfigError(
                f"--set {text!r} is not a setting", "section.key=value", "--set classify.epochs=5"
            )
        if section not in settings:
            raise ConfigError(
                f"--set {text!r} names the unknown section {section!r}", nearest(section, sections)
            )
        settings[section][key] = value
    return settings


def replace(config: T, changes: Mapping[str, Any], section: str) -> T:
    """A copy of a config dataclass with ``changes``. Text becomes a value of the field's type.

    Raises:
        ConfigError: an unknown knob (the error shows the nearest), or a value of another type or
            outside its range.
    """
    hints = typing.get_type_hints(type(config))
    names = [f.name for f in dataclasses.fields(config)]  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for key, value in changes.items():
        if key not in names:
            raise ConfigError(f"{section} has no knob {key!r}", nearest(key, names))
        values[key] = (
            _read(value, hints[key], f"{section}.{key}") if isinstance(value, str) else value
        )
    return dataclasses.replace(config, **values)  # type: ignore[type-var]


def as_dict(config: Any) -> dict[str, Any]:
    """The config as plain JSON values."""
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in dataclasses.asdict(config).items()
    }


def _read(text: str, hint: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _read_union(text, arguments, where)
    if origin is Literal:
        if text in arguments:
            return text
        raise ConfigError(f"{where}={text}", nearest(text, [str(a) for a in arguments]))
    if origin is tuple:
        parts = [p for p in text.strip("()[] ").split(",") if p.strip()]
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(_read(p.strip(), arguments[0], where) for p in parts)
        if len(parts) != len(arguments):
            raise ConfigError(f"{where}={text}", f"{len(arguments)} values separated by commas")
        return tuple(_read(p.strip(), a, where) for p, a in zip(parts, arguments))
    if hint is bool:
        if text.lower() in ("1", "true", "yes", "on"):
            return True
        if text.lower() in ("0", "false", "no", "off"):
            return False
        raise ConfigError(f"{where}={text}", "on or off")
    if hint is str:
        return text
    try:
        return hint(text)
    except ValueError as error:
        raise ConfigError(f"{where}={text}", f"a value of type {hint.__name__}") from error


def _read_union(text: str, options: Sequence[Any], where: str) -> Any:
    if type(None) in options and text.lower() in ("none", ""):
        return None
    failures: list[ConfigError] = []
    # Text comes last: it would accept a number that another type can read.
    for option in sorted((o for o in options if o is not type(None)), key=lambda o: o is str):
        try:
            return _read(text, option, where)
        except ConfigError as error:
            failures.append(error)
    raise ConfigError(f"{where}={text}", " or ".join(f.expected for f in failures))
