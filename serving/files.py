"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Not made from the target's name, which may already be as long as the disk allows.
TEMPORARY = ".wsss-{}.tmp"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to, which replaces ``path`` after the block. A failure leaves nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(TEMPORARY.format(secrets.token_hex(8)))
    try:
        yield temporary
        # In the same folder, so the rename is atomic: readers see the old file or the new one.
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_atomic(path: Path, data: bytes) -> None:
    """Write so that readers see all of the data or none of it.

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
