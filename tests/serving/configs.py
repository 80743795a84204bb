"""Configurations for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from serving.config import ServerConfig, set_value


def configured(repository: Path, **settings: Any) -> ServerConfig:
    """A configuration on a free port; settings by dotted name with ``__`` for the dot."""
    config = set_value(ServerConfig(repository), "network.port", 0)
    for name, value in settings.items():
        config = set_value(config, name.replace("__", "."), value)
    return config
