"""The records of a labelled folder: a line per mask, and a line per image without one."""

from __future__ import annotations

import fcntl
import json
import os
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from serving.errors import LabelError
from serving.files import remove_temporaries, write_atomic
from serving.listing import Listing

Entry = dict[str, Any]
MANIFEST, FAILURES, CLASSES = "manifest.jsonl", "failures.jsonl", "classes.txt"

# Exists while a labeller works, and after it was killed.
AT_WORK = ".wsss-at-work"


def holds_labels(folder: Path) -> bool:
    """Whether a folder was labelled, or a labeller was stopped in it."""
    if (folder / AT_WORK).is_file():
        return True
    if not (folder / MANIFEST).is_file():
        return False
    return bool(_read(folder / MANIFEST, "mask_sha256") or _read(folder / FAILURES, "error"))


def read_manifest(path: Path) -> dict[str, Entry]:
    """Lines by image, without a last line that was cut off."""
    return _read(path, "mask_sha256")


def _read(path: Path, field: str) -> dict[str, Entry]:
    """Lines that have this field, by image."""
    entries: dict[str, Entry] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, UnicodeDecodeError):
        return entries
    last: Entry = {}
    for line in lines:
        try:
            entry = json.loads(line)
            if field in entry:
                last = entries[entry["image"]] = _shared(entry, last)
        except (ValueError, KeyError, TypeError):
            continue
    return entries


class Ledger:
    """Manifest and failures of a folder being labelled. Thread-safe.

    Attributes:
        known: lines of the manifest by image.
    """

    def __init__(self, target: Path, manifest: TextIO, failures: TextIO) -> None:
        self.target = target
        self.known = read_manifest(target / MANIFEST)
        self._manifest, self._failures, self._lock = manifest, failures, threading.Lock()
        self._last: Entry = {}

    def written(self, entry: Entry) -> None:
        """Record a mask."""
        with self._lock:
            self._last = self.known[entry["image"]] = _shared(entry, self._last)
            _append(self._manifest, entry)

    def failed(self, entry: Entry, stays: bool = False) -> None:
        """Record an image without a mask; with ``stays``, one whose old line remains true."""
        with self._lock:
            if not stays:
                self.known.pop(entry["image"], None)
            _append(self._failures, entry)

    def left_out(self, listing: Listing) -> None:
        """Record the entries that are not even tried."""
        for path, reason in listing.unread.items():
            self.failed({"image": _name(path), "error": reason})
        for path, reason in listing.left_out.items():
            self.failed({"image": _name(path), "left_out": reason})

    def finish(self, images: Iterable[Path]) -> list[Entry]:
        """Rewrite the manifest, one line per image, sorted; returns the lines of ``images``."""
        lines = (_line(self.known[image]) for image in sorted(self.known))
        write_atomic(self.target / MANIFEST, "".join(lines).encode())
        entries = (self.known.get(image.as_posix()) for image in images)
        return [entry for entry in entries if entry]


@contextmanager
def open_ledger(target: Path) -> Iterator[Ledger]:
    """Hold a folder for one labeller, and clean up after one that was killed.

    Raises:
        LabelError: another labeller is at work there.
        OSError: the folder cannot be written.
    """
    target.mkdir(parents=True, exist_ok=True)
    with _held(target):
        (target / AT_WORK).touch()
        remove_temporaries(target)
        (target / MANIFEST).touch()
        lines = read_manifest(target / MANIFEST)
        # A line that was cut off would swallow the next one.
        write_atomic(target / MANIFEST, "".join(map(_line, lines.values())).encode())
        with (
            (target / MANIFEST).open("a", encoding="utf-8") as manifest,
            (target / FAILURES).open("w", encoding="utf-8") as failures,
        ):
            yield Ledger(target, manifest, failures)
        (target / AT_WORK).unlink()


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    # The kernel releases the lock however this process ends.
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise LabelError(
            f"another labeller is at work in {folder}", "one at a time", "wait, or another OUT"
        ) from error
    finally:
        os.close(lock)


def _shared(value: Any, other: Any) -> Any:
    """An entry, or a part of one, that holds what it has in common with another one once. From a
    file or another process it comes with copies of its own of every name and setting.
    """
    if not isinstance(value, dict):
        return other if type(value) is type(other) and value == other else value
    others = other if isinstance(other, dict) else {}
    parts = {sys.intern(name): _shared(part, others.get(name)) for name, part in value.items()}
    is_same = list(parts) == list(others) and all(parts[name] is others[name] for name in parts)
    return others if is_same else parts


def _name(path: Path) -> str:
    """A name that JSON can hold; invalid UTF-8 is escaped."""
    text = path.as_posix()
    return text if text.isprintable() else ascii(text)


def _append(file: TextIO, entry: Entry) -> None:
    file.write(_line(entry))
    file.flush()


def _line(entry: Entry) -> str:
    return json.dumps(entry, ensure_ascii=False) + "\n"
