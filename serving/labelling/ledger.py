"""What was done in a folder of labels: a line for each mask, and one for each image without."""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from serving.errors import LabelError
from serving.files import remove_temporaries, write_atomic
from serving.listing import Listing

Entry = dict[str, Any]
MANIFEST, FAILURES, CLASSES = "manifest.jsonl", "failures.jsonl", "classes.txt"

# Is there while a labeller is at work, and after it was killed.
AT_WORK = ".wsss-at-work"


def holds_labels(folder: Path) -> bool:
    """Whether a folder was labelled, or a labeller was stopped in it."""
    if (folder / AT_WORK).is_file():
        return True
    if not (folder / MANIFEST).is_file():
        return False
    return bool(_read(folder / MANIFEST, "mask_sha256") or _read(folder / FAILURES, "error"))


def read_manifest(path: Path) -> dict[str, Entry]:
    """Lines by image; a line that a stop cut in two is left out."""
    return _read(path, "mask_sha256")


def _read(path: Path, field: str) -> dict[str, Entry]:
    """Lines that have this field, by image."""
    entries: dict[str, Entry] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, UnicodeDecodeError):
        return entries
    for line in lines:
        try:
            entry = json.loads(line)
            if field in entry:
                entries[entry["image"]] = entry
        except (ValueError, KeyError, TypeError):
            continue
    return entries


class Ledger:
    """Manifest and failures of a folder that is being labelled. Threads may write to it.

    Attributes:
        known: lines of the manifest by image.
    """

    def __init__(self, target: Path, manifest: TextIO, failures: TextIO) -> None:
        self.target = target
        self.known = read_manifest(target / MANIFEST)
        self._manifest, self._failures, self._lock = manifest, failures, threading.Lock()

    def written(self, entry: Entry) -> None:
        """One more mask, at once."""
        with self._lock:
            self.known[entry["image"]] = entry
            _append(self._manifest, entry)

    def failed(self, entry: Entry, stays: bool = False) -> None:
        """An image without a mask, at once; ``stays``: with one that is not to be touched."""
        with self._lock:
            if not stays:
                self.known.pop(entry["image"], None)
            _append(self._failures, entry)

    def left_out(self, listing: Listing) -> None:
        """What is not even tried, first."""
        for path, reason in listing.unread.items():
            self.failed({"image": _name(path), "error": reason})
        for path, reason in listing.left_out.items():
            self.failed({"image": _name(path), "left_out": reason})

    def sort(self) -> None:
        """Write the manifest anew, a line an image, sorted."""
        lines = (_line(self.known[image]) for image in sorted(self.known))
        write_atomic(self.target / MANIFEST, "".join(lines).encode())


@contextmanager
def open_ledger(target: Path) -> Iterator[Ledger]:
    """Hold a folder for one labeller. What a killed one left half written is removed.

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
        # A line that a stop cut in two would swallow the next one.
        write_atomic(target / MANIFEST, "".join(map(_line, lines.values())).encode())
        with (
            (target / MANIFEST).open("a", encoding="utf-8") as manifest,
            (target / FAILURES).open("w", encoding="utf-8") as failures,
        ):
            yield Ledger(target, manifest, failures)
        (target / AT_WORK).unlink()


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """The kernel lets go of a folder however this process ends."""
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise LabelError(
            f"{folder} is in use by another labeller", "one at a time", "wait, or another OUT"
        ) from error
    finally:
        os.close(lock)


def _name(path: Path) -> str:
    """As JSON can hold it: a name that is no UTF-8 is spelt out."""
    text = path.as_posix()
    return text if text.isprintable() else ascii(text)


def _append(file: TextIO, entry: Entry) -> None:
    file.write(_line(entry))
    file.flush()


def _line(entry: Entry) -> str:
    return json.dumps(entry, ensure_ascii=False) + "\n"
