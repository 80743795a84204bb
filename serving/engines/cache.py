"""What takes minutes to build, kept in files: each says what it was built from, and is used for
exactly that.

A plan of TensorRT is code. The folder must be as trusted as the models; it is made for its owner
alone.
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
    """Where built engines are kept, made if need be."""
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = config.cache or user / "wsss" / "engines"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def engine_key(
    card: Card, graph: str, library: str, device: Device, profiles: list[Profile], options: Key
) -> Key:
    """All that a built engine depends on.

    Args:
        card: of the model.
        graph: the file of it that is built from.
        library: name and version.
        device: that it is built on and for.
        profiles: shapes that it takes.
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
    """A short name for a key."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]


def load(path: Path, key: Key) -> bytes | None:
    """What was stored under this key; nothing, and a line in the log, if the file is another's or
    damaged.
    """
    try:
        head, _, data = path.read_bytes().partition(b"\n")
        header = json.loads(head)
        # Tuples come back as lists.
        same_key = header["key"] == json.loads(json.dumps(key))
        whole = same_key and header["sha256"] == hashlib.sha256(data).hexdigest()
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        log.warning("%s is damaged, or was built from something else: it is built again", path)
        return None
    return data


def store(path: Path, key: Key, data: bytes) -> None:
    """Keep ``data`` under a key. A disk that is full or read-only costs the next start its time,
    and nothing else.
    """
    head = json.dumps(
        {"key": key, "sha256": hashlib.sha256(data).hexdigest()}, sort_keys=True
    ).encode()
    try:
        write_atomic(path, head + b"\n" + data)
    except OSError as error:
        log.warning(
            "%s cannot be written (%s): the engine is built again next time", path, error.strerror
        )
