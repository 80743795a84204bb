"""Doubtful images that callers send, kept in a folder for ``wsss-trainer ask``. Off by default.

The folder has one folder for each model, with two files for each image: the image as it was sent,
named by its hash, and the reply as JSON. Both appear whole or not at all. A thread of its own
writes them; a request only puts its image into a short queue, and never waits.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import queue
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.card import EXPORT, Card
from serving.config import Limits, ServerConfig
from serving.errors import RequestError, StartError
from serving.files import remove_temporaries, write_atomic
from serving.images import encodings, masks
from serving.images.options import Options
from serving.images.rgb import Pixels
from serving.outputs import check_folder
from serving.repository.served import Served
from serving.scheduling.memory import Memory
from serving.telemetry.metrics import Telemetry

log = logging.getLogger(__name__)

# Says that the folder is ours. Writers hold a lock on it, one at a time.
MARK = ".wsss-capture"
FORMAT = 1
SUFFIXES = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "BMP": ".bmp", "TIFF": ".tiff"}
# Images that wait to be written, and their bytes.
QUEUE = 8
QUEUE_BYTES = 64 * 1024 * 1024
# Bytes of the disk that are left to others, such as the server's own log.
RESERVE = 256 * 1024 * 1024
MINUTE = 60.0
MEGABYTE = 1024 * 1024
# How long the end of the server waits for the images in the queue.
END_SECONDS = 2.0


@dataclass(frozen=True)
class Candidate:
    """A doubtful image with its reply.

    Attributes:
        content: the file as it was sent, or the pixels of a raw image.
        kind: see :attr:`serving.images.decoding.Picture.format`.
        labels, scores, doubt: see :class:`serving.images.pipeline.Segmented`.
    """

    content: bytes
    kind: str
    labels: Pixels
    scores: npt.NDArray[np.float32]
    doubt: float
    card: Card
    options: Options

    @property
    def size(self) -> int:
        """Bytes of memory."""
        return len(self.content) + self.labels.nbytes

    def file(self) -> tuple[str, bytes]:
        """Name and bytes of the image file. Raw pixels become a PNG."""
        content, suffix = self.content, SUFFIXES.get(self.kind)
        if suffix is None:
            pixels = np.frombuffer(content, np.uint8).reshape(*self.labels.shape, 3)
            content, suffix = masks.encode_rgb(pixels), ".png"
        return f"{hashlib.sha256(content).hexdigest()[:16]}{suffix}", content

    def reply(self, image: str) -> bytes:
        """The reply as JSON, for the image file of this name."""
        card, size = self.card, list(self.labels.shape)
        names = dict(enumerate(card.labels)) | {masks.UNDECIDED: "undecided"}
        content = {
            "format": FORMAT,
            "image": image,
            "size": size,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "model": card.name,
            "version": card.version,
            "model_sha256": card.graph_sha256,
            "run": str(card.source.get("run") or ""),
            "doubt": round(self.doubt, 6),
            "scores": {n: round(float(s), 6) for n, s in zip(card.classes, self.scores)},
            "tags": [card.classes[k] for k in self.options.tags],
            "mask": {
                names[label]: {"size": size, "counts": counts.decode("ascii")}
                for label, counts in encodings.coco_counts(self.labels).items()
            },
        }
        return (json.dumps(content, ensure_ascii=False) + "\n").encode()


def opened(config: ServerConfig, telemetry: Telemetry) -> Capture | None:
    """The capture of a server; None unless its settings name a folder. Raises as the class does."""
    folder = config.capture.folder
    return Capture(folder, config, telemetry) if folder else None


class Capture:
    """Keeps doubtful images. Thread-safe; several processes may share the folder.

    Args:
        folder: new, empty, or an earlier one.

    Raises:
        StartError: the folder cannot be written.
        TargetError: it holds something else, or is, holds or lies in the repository.
    """

    def __init__(self, folder: Path, server: ServerConfig, telemetry: Telemetry) -> None:
        config = server.capture
        self.folder, self._config = folder, config
        self._outcomes, self._bytes = telemetry.captures, telemetry.capture_bytes
        self._memory = Memory(Limits(max_decoded_bytes=QUEUE_BYTES))
        self._queue: queue.Queue[tuple[Candidate, ExitStack] | None] = queue.Queue(QUEUE)
        self._times: deque[float] = deque(maxlen=config.per_minute)
        self._sizes: dict[str, tuple[int, int]] = {}
        self._warnings: set[str] = set()
        self._open(server.repository)
        self._thread = threading.Thread(target=self._work, name="capture", daemon=True)
        self._thread.start()

    def tell(self, models: Iterable[Served]) -> None:
        """Say in the log what will be kept of these models."""
        cards = [model.card for model in models]
        for card in (card for card in cards if card.gives_doubt):
            usual = (card.doubt.get("held_out") or {}).get("doubt")
            average = "" if usual is None else f"; its average at the export was {usual:.3g}"
            log.info(
                "images for %s with a doubt above %g are kept in %s%s",
                *(card.name, self._config.doubt, self.folder / card.name, average),
            )
        if not any(card.gives_doubt for card in cards):
            log.warning(
                "no image will be kept in %s: no model gives its doubt; export a segmenter: %s",
                *(self.folder, EXPORT),
            )

    def offer(self, doubt: float | None, candidate: Callable[[], Candidate]) -> None:
        """Put an image above the limit into the queue. Never waits, and raises nothing."""
        if doubt is None or not doubt > self._config.doubt:
            return
        try:
            outcome = self._queued(candidate)
        # The caller's reply is complete, and does not depend on this.
        except Exception:
            log.exception("an image was not kept")
            outcome = "failed"
        if outcome:
            self._outcomes.labels(outcome).inc()

    def close(self) -> None:
        """Write what is in the queue, within ``END_SECONDS``, and end."""
        with suppress(queue.Full):
            self._queue.put(None, timeout=END_SECONDS)
        self._thread.join(END_SECONDS)

    def _open(self, repository: Path) -> None:
        """Make the folder, or clean up an earlier one."""
        check_folder(
            self.folder, lambda folder: (folder / MARK).is_file(), [repository], "--capture"
        )
        try:
            # Callers' images are nobody else's business. A folder that is there keeps its mode.
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with suppress(BlockingIOError), self._held(wait=False):
                remove_temporaries(self.folder)
                self._bytes.set(self._size())
        except OSError as error:
            raise StartError(
                f"--capture {self.folder}: {error.strerror}", "a folder that the server may write"
            ) from error

    def _queued(self, candidate: Callable[[], Candidate]) -> str:
        """Why an image is dropped; empty if it waits in the queue."""
        if not self._has_turn():
            return "rate"
        if self._queue.full():
            return "queue"
        entry, hold = candidate(), ExitStack()
        try:
            hold.enter_context(self._memory.reserve(entry.size))
            self._queue.put_nowait((entry, hold))
        except (RequestError, queue.Full):
            hold.close()
            return "queue"
        return ""

    def _has_turn(self) -> bool:
        """Whether fewer than ``per_minute`` images were kept in the last minute."""
        times = self._times
        return len(times) < self._config.per_minute or time.monotonic() - times[0] >= MINUTE

    def _work(self) -> None:
        while (entry := self._queue.get()) is not None:
            candidate, hold = entry
            with hold:
                try:
                    outcome, reason = self._write(candidate), ""
                except OSError as error:
                    outcome, reason = "failed", error.strerror or str(error)
                except Exception as error:
                    outcome, reason = "failed", repr(error)
            self._outcomes.labels(outcome).inc()
            self._warn(outcome, reason)

    def _write(self, candidate: Candidate) -> str:
        """Write an image and its reply; returns what became of them."""
        name, content = candidate.file()
        folder = self.folder / candidate.card.name
        image = folder / name
        reply = candidate.reply(name)
        size = len(content) + len(reply)
        with self._held():
            if image.exists():
                return "known"
            if not self._has_turn():
                return "rate"
            total = self._size()
            self._bytes.set(total)
            if total + size > self._config.max_mb * MEGABYTE:
                return "full"
            if shutil.disk_usage(self.folder).free < RESERVE + size:
                return "disk"
            # The image last: whoever sees it finds its reply.
            write_atomic(image.with_suffix(".json"), reply)
            try:
                write_atomic(image, content)
            except BaseException:
                image.with_suffix(".json").unlink(missing_ok=True)
                raise
            self._bytes.set(total + size)
            self._sizes[folder.name] = (
                folder.stat().st_mtime_ns,
                self._sizes.get(folder.name, (0, 0))[1] + size,
            )
        self._times.append(time.monotonic())
        return "kept"

    @contextmanager
    def _held(self, wait: bool = True) -> Iterator[None]:
        """The only writer of the folder. The kernel ends this however the process ends."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self.folder / MARK).open("a") as mark:
            fcntl.flock(mark, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            yield

    def _size(self) -> int:
        """Bytes of all files, of other processes too."""
        total = 0
        for folder in os.scandir(self.folder):
            if not folder.is_dir(follow_symlinks=False):
                continue
            stamp, size = self._sizes.get(folder.name, (0, 0))
            # People may remove files and folders at any time, also in the middle of this.
            with suppress(FileNotFoundError):
                # Adding and removing a file changes the time of its folder.
                if stamp != folder.stat().st_mtime_ns:
                    stamp, size = folder.stat().st_mtime_ns, _bytes_in(folder)
                    self._sizes[folder.name] = stamp, size
                total += size
        return total

    def _warn(self, outcome: str, reason: str) -> None:
        """Say once, until an image is kept again, why images are dropped."""
        if outcome == "kept":
            self._warnings.clear()
        texts: dict[str, Any] = {
            "full": f"its {self._config.max_mb} MB are used; remove images, or raise --capture-mb",
            "disk": "the disk is almost full",
            "failed": reason,
        }
        if outcome in texts and outcome not in self._warnings:
            self._warnings.add(outcome)
            log.warning("doubtful images are dropped: %s: %s", self.folder, texts[outcome])


def _bytes_in(folder: os.DirEntry[str]) -> int:
    total = 0
    for entry in os.scandir(folder):
        with suppress(FileNotFoundError):
            total += entry.stat().st_size
    return total
