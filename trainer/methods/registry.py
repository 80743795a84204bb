"""The methods by name: a method is one file, found by its name; no list of them stands here."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from trainer import config as knobs
from trainer.errors import ConfigError, nearest
from trainer.methods.base import Method
from trainer.nets import build_backbone
from trainer.training.model_file import knobs_of, read_model

SHARED = {
    "base",
    "clustering",
    "correlation",
    "mixing",
    "pooling",
    "preparation",
    "recipes",
    "registry",
    "regularizers",
    "samples",
    "subcategories",
}
"""Modules of this package that are no methods."""


def method_names() -> list[str]:
    """Every method: the modules of this package less the shared ones."""
    package = importlib.import_module("trainer.methods")
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if m.name not in SHARED)


def method_module(name: str) -> ModuleType:
    """The method's file: its class and ``Config``, and where it has them ``PROTOCOL``, ``PRESETS``
    and ``TRAINING``.

    Raises:
        ConfigError: no such method.
    """
    if name not in method_names():
        raise ConfigError(
            f"there is no method {name!r}", nearest(name, method_names()), "wsss-trainer methods"
        )
    return importlib.import_module(f"trainer.methods.{name}")


def method_classes(name: str) -> tuple[type[Method], type[Any]]:
    """The method's module class and its ``Config``. See ``method_module`` for errors."""
    module = method_module(name)
    found = [
        c
        for c in vars(module).values()
        if inspect.isclass(c) and issubclass(c, Method) and c.__module__ == module.__name__
    ]
    return found[0], module.Config


def build_method(
    method: str, method_config: Any, backbone: str, options: dict[str, Any], num_classes: int
) -> Method:
    """A method on a fresh backbone."""
    made: Callable[..., Method] = method_classes(method)[0]
    return made(method_config, build_backbone(backbone, **options), num_classes)


def load_method(path: Path, expected: dict[str, Any]) -> Method:
    """The trained method of ``classify/model.pt``, in evaluation mode. See ``read_model`` for
    errors.
    """
    identity, state = read_model(path, expected)
    _, config_class = method_classes(identity["method"])
    config = knobs.replace(config_class(), knobs_of(identity["method_config"]), "method")
    module = build_method(
        identity["method"],
        config,
        identity["backbone"],
        identity["backbone_knobs"],
        len(identity["classes"]),
    )
    module.load_state_dict(state)
    return module.eval()
