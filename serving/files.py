"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TEMPORARY = ".wsss-{}.tmp"
"""Short for any file name: names may be as long as the disk allows."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to, which becomes ``path`` at the end of the block; if that fails nothing is
    left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(TEMPORARY.format(secrets.token_hex(8)))
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_atomic(path: Path, data: bytes) -> None:
    """Write so that ``path`` is never seen half written.

    Raises:
        OSError: as writing does; nothing is left behind.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def remove_temporaries(folder: Path) -> None:
    """Remove what killed processes left half written, at any depth."""
    for here, _, names in os.walk(folder):
        for name in names:
            if Path(name).match(TEMPORARY.format("*")):
                Path(here, name).unlink(missing_ok=True)
