"""Images of a folder, files that appear whole or not at all, and the manifest that says how each
came to be.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from serving.images.decoding import EXTENSIONS

Entry = dict[str, Any]


def images_below(root: Path, without: Path | None = None) -> list[Path]:
    """The image files of a folder, searched in depth: paths relative to it, sorted; hidden ones are
    left out.

    Args:
        root: the folder.
        without: a folder that is not looked into.
    """
    skipped = without.resolve() if without else None
    found = []
    for folder, names, files in os.walk(root):
        here = Path(folder)
        names[:] = [
            name
            for name in names
            if not name.startswith(".") and (here / name).resolve() != skipped
        ]
        found += [
            here / file
            for file in files
            if file.lower().endswith(EXTENSIONS) and not file.startswith(".")
        ]
    return sorted(path.relative_to(root) for path in found)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to, which becomes ``path`` at the end of the block; if that fails nothing is
    left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
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


def read_manifest(path: Path) -> dict[str, Entry]:
    """Lines by image; a line that a stop cut in two is left out."""
    entries: dict[str, Entry] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return entries
    for line in lines:
        try:
            entry = json.loads(line)
            entries[entry["image"]] = entry
        except (ValueError, KeyError, TypeError):
            continue
    return entries


def write_manifest(path: Path, entries: dict[str, Entry]) -> None:
    """All lines, sorted by image."""
    write_atomic(path, "".join(_line(entries[image]) for image in sorted(entries)).encode())


def append(file: TextIO, entry: Entry) -> None:
    """One more line, at once."""
    file.write(_line(entry))
    file.flush()


def _line(entry: Entry) -> str:
    return json.dumps(entry, ensure_ascii=False) + "\n"
