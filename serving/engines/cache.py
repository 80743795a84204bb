"""A file cache for engines that take minutes to build. Each file says what it was built from.

A TensorRT plan is executable code, so the folder must be as trusted as the models. It is created
for its owner only.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from serving.card import Card
from serving.config import EngineConfig
from serving.engines.cuda import Device
from serving.engines.profiles import Profile
from serving.files import write_atomic

log = logging.getLogger(__name__)

Key = dict[str, Any]


def cache_folder(config: EngineConfig) -> Path:
    """The folder of built engines, created if needed."""
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = config.cache or user / "wsss" / "engines"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def engine_key(
    card: Card, graph: str, library: str, device: Device, profiles: list[Profile], options: Key
) -> Key:
    """Everything that a built engine depends on.

    Args:
        graph: the graph file of the model that it is built from.
        library: name and version.
        options: all other settings of the build.
    """
    return {
        "graph": card.sha256[graph],
        "library": library,
        **asdict(device),
        "profiles": [asdict(profile) for profile in profiles],
        "options": options,
    }


def digest(key: Key) -> str:
    """A short file name for a key."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]


def load(path: Path, key: Key) -> bytes | None:
    """The data of a key; None, with a warning, if the file is damaged or has another key."""
    try:
        head, _, data = path.read_bytes().partition(b"\n")
        header = json.loads(head)
        # JSON turns tuples into lists.
        same_key = header["key"] == json.loads(json.dumps(key))
        whole = same_key and header["sha256"] == hashlib.sha256(data).hexdigest()
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        log.warning("%s is damaged or was built from something else; building it again", path)
        return None
    return data


def store(path: Path, key: Key, data: bytes) -> None:
    """Store ``data`` under a key. A full or read-only disk only costs the next start its build
    time.
    """
    head = json.dumps(
        {"key": key, "sha256": hashlib.sha256(data).hexdigest()}, sort_keys=True
    ).encode()
    try:
        write_atomic(path, head + b"\n" + data)
    except OSError as error:
        log.warning(
            "%s cannot be written (%s); the next start builds it again", path, error.strerror
        )
