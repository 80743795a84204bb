"""Settings from TOML files, with the sections of :mod:`serving.config` as tables, and from text."""

from __future__ import annotations

import dataclasses
import math
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from serving.config import ServerConfig
from serving.errors import ConfigError, nearest

T = TypeVar("T")
# Type of a setting that overrides its own section for single models.
SECTIONS = Mapping[str, Mapping[str, Any]]


def read_config(path: Path) -> ServerConfig:
    """The settings of a TOML file; missing ones keep their default. Paths are relative to its
    folder.

    Raises:
        ConfigError: the file is missing or not TOML, or a setting is unknown, of the wrong type or
            out of range.
    """
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror}", "a TOML file of settings"
        ) from error
    except ValueError as error:
        raise ConfigError(
            f"{path} is not TOML: {error}", "lines such as port = 8500 below [network]"
        ) from error
    return changed(ServerConfig(), tree, folder=path.parent)


def changed(config: T, tree: Mapping[str, Any], where: str = "", folder: Path = Path()) -> T:
    """A copy of ``config`` with the values of ``tree``, whose tables are sections.

    Args:
        tree: as ``tomllib`` returns it.
        where: dotted name of ``config``, for errors.
        folder: base of relative paths.

    Raises:
        ConfigError: see :func:`read_config`.
    """
    hints = typing.get_type_hints(type(config))
    fields = {f.name: f for f in dataclasses.fields(config)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{where}.{key}" if where else key
        if key not in fields:
            raise ConfigError(f"no setting {name!r}", nearest(key, fields))
        old = getattr(config, key)
        if dataclasses.is_dataclass(old):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{name} is {value!r}", f"a table: [{name}]")
            values[key] = changed(old, value, name, folder)
        elif hints[key] == SECTIONS:
            values[key] = _sections(config, key, value, name, folder)
        else:
            values[key] = _typed(value, hints[key], name, folder)
            if isinstance(old, Mapping):
                values[key] = {**old, **values[key]}
            _check_range(values[key], fields[key].metadata, name)
    return dataclasses.replace(config, **values)  # type: ignore[type-var]


def set_values(config: ServerConfig, texts: Sequence[str]) -> ServerConfig:
    """A copy with ``section.key=value`` texts applied. Values are TOML; text needs no quotes.

    Raises:
        ConfigError: another form, or see :func:`read_config`.
    """
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(
                f"--set {text!r} is no setting", "section.key=value", "--set schedule.queue=128"
            )
        try:
            result = tomllib.loads(f"value = {value}")["value"]
        except ValueError:
            result = value.strip()
        config = set_value(config, name.strip(), result)
    return config


def set_value(config: ServerConfig, name: str, value: Any) -> ServerConfig:
    """A copy with the setting of this dotted name changed.

    Raises:
        ConfigError: see :func:`read_config`.
    """
    for key in reversed(name.split(".")):
        value = {key: value}
    return changed(config, value)


def _sections(
    config: Any, key: str, value: Any, name: str, folder: Path
) -> dict[str, dict[str, Any]]:
    """Tables by name, each of settings of ``config`` other than ``key``; existing ones are kept."""
    sections = {entry: dict(settings) for entry, settings in getattr(config, key).items()}
    for entry, table in _typed(value, Mapping[str, Any], name, folder).items():
        where = f"{name}.{entry}"
        if not isinstance(table, Mapping):
            raise ConfigError(f"{where} is {table!r}", f"a table: [{where}]")
        if key in table:
            raise ConfigError(
                f"no setting '{where}.{key}'", f"the other settings of [{name.rpartition('.')[0]}]"
            )
        section = changed(config, table, where, folder)
        sections.setdefault(entry, {}).update(
            {setting: getattr(section, setting) for setting in table}
        )
    return sections


def _typed(value: Any, hint: Any, name: str, folder: Path) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        # TOML has no null: an optional setting is omitted, or given as its other type.
        return _typed(value, next(a for a in arguments if a is not type(None)), name, folder)
    if origin is Literal:
        if value in arguments:
            return value
        raise ConfigError(f"{name} is {value!r}", nearest(str(value), map(str, arguments)))
    if origin is Mapping:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{name} is {value!r}", f"a table: [{name}]")
        return {
            key: _typed(entry, arguments[1], f"{name}.{key}", folder)
            for key, entry in value.items()
        }
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{name} is {value!r}", "a list in [ ]")
        return tuple(_typed(entry, arguments[0], name, folder) for entry in value)
    if hint is Any:
        return value
    if hint is Path and isinstance(value, str | Path):
        return folder / value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    # bool is a subclass of int, but true is not a number here.
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigError(f"{name} is {value!r}", f"a value of type {hint.__name__}")
    return value


def _check_range(value: Any, metadata: Mapping[str, Any], name: str) -> None:
    low, high = metadata.get("low", -math.inf), metadata.get("high", math.inf)
    # A NaN fails this comparison, too.
    if metadata and not low <= value <= high:
        raise ConfigError(
            f"{name} is {value}", f"{low} to {high}" if high < math.inf else f"{low} or more"
        )
