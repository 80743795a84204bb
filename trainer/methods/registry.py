"""The methods by name. A method is one file of this package; no list of them stands here."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from types import ModuleType
from typing import Any

from trainer import config as knobs
from trainer.errors import ConfigError, nearest
from trainer.methods.base import Method
from trainer.methods.declaration import Declaration
from trainer.nets import build_backbone
from trainer.training.model_file import knobs_of, read_model

SHARED = {
    "base",
    "clustering",
    "contrast",
    "correlation",
    "declaration",
    "inputs",
    "linear",
    "mixing",
    "pooling",
    "preparation",
    "recipes",
    "registry",
    "regularizers",
    "samples",
    "second_training",
    "subcategories",
    "tag_loss",
}
"""Modules of this package that are no methods."""


def method_names() -> list[str]:
    """Every method: the modules of this package except the shared ones."""
    package = importlib.import_module("trainer.methods")
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if m.name not in SHARED)


def method_module(name: str) -> ModuleType:
    """The method's file.

    Raises:
        ConfigError: no such method, or a file that declares something that no method has.
    """
    if name not in method_names():
        raise ConfigError(
            f"there is no method {name!r}", nearest(name, method_names()), "wsss-trainer methods"
        )
    try:
        return importlib.import_module(f"trainer.methods.{name}")
    except TypeError as error:
        # A misspelled argument of Declaration.
        raise ConfigError(
            f"the file of method {name!r} cannot be loaded: {error}",
            f"METHOD = Declaration(...) with {', '.join(Declaration.__dataclass_fields__)}",
        ) from error


def declaration(name: str) -> Declaration:
    """What the method's file declares.

    Raises:
        ConfigError: see ``method_module``; also a file without a declaration.
    """
    entry = getattr(method_module(name), "METHOD", None)
    if not isinstance(entry, Declaration):
        raise ConfigError(
            f"the file of method {name!r} declares no method",
            "METHOD = Declaration(...) at its end",
        )
    return entry


def method_classes(name: str) -> tuple[type[Method], type[Any]]:
    """The method's class and its ``Config``. See ``declaration`` for errors."""
    entry = declaration(name)
    return entry.method, entry.config


def build_method(
    method: str, method_config: Any, backbone: str, options: dict[str, Any], num_classes: int
) -> Method:
    """A method on a fresh backbone."""
    network = build_backbone(backbone, **options)
    return declaration(method).method(method_config, network, num_classes)


def load_method(path: Path, expected: dict[str, Any]) -> Method:
    """The trained method of a ``model.pt``, in evaluation mode. See ``read_model`` for errors."""
    identity, state = read_model(path, expected)
    config = knobs.replace(
        declaration(identity["method"]).config(), knobs_of(identity["method_config"]), "method"
    )
    module = build_method(
        identity["method"],
        config,
        identity["backbone"],
        identity["backbone_knobs"],
        len(identity["classes"]),
    )
    module.load_state_dict(state)
    return module.eval()
