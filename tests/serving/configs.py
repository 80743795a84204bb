"""Configurations for tests: a free port, and no trial process where the test is not about it, which
takes a second.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from serving.config import EngineConfig, ServerConfig
from serving.settings import set_value

EXACT = EngineConfig("onnxruntime")


def configured(repository: Path, **settings: Any) -> ServerConfig:
    """A configuration; settings by dotted name with ``__`` for the dot."""
    config = ServerConfig(repository, engine=EXACT)
    for name, value in ({"network__port": 0, "models__trial": False} | settings).items():
        config = set_value(config, name.replace("__", "."), value)
    return config
