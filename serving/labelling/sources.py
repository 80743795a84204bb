"""Where the images of a labelled folder come from: a folder of this machine, or one of a file
system that pyarrow reads, such as S3.
"""

from __future__ import annotations

import importlib.util
import json
import re
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from serving.errors import LabelError
from serving.images.kinds import HEAD_BYTES
from serving.labelling.ledger import holds_labels
from serving.listing import SYSTEM_FOLDERS, Listing, list_images, sort_in

OUT = "the output folder"
ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
ADDRESSES = "a folder, or an address such as s3://bucket/photos, gs://, abfs://, hdfs:// or file://"


class Source(Protocol):
    """A folder of images; paths are relative to it.

    Attributes:
        name: for people.
    """

    name: str

    def listing(self, target: Path) -> Listing:
        """What lies in it, without ``target``.

        Raises:
            LabelError: it cannot be listed, or is an output of ours.
        """
        ...

    def facts(self, image: Path) -> tuple[int, int]:
        """Bytes of a file, and the time of its last change in nanoseconds.

        Raises:
            OSError: there is no such file.
        """
        ...

    def read(self, image: Path) -> bytes:
        """The contents of a file.

        Raises:
            OSError: as reading does.
        """
        ...

    def where(self, image: Path) -> str:
        """The place of a file, for people and other programs."""
        ...

    def is_there(self) -> bool:
        """Whether this machine sees the folder."""
        ...


class LocalFolder:
    """A folder of this machine."""

    def __init__(self, root: Path) -> None:
        self.root, self.name = root, str(root)

    def listing(self, target: Path) -> Listing:
        """See :class:`Source`."""
        root = self.root
        if not root.is_dir():
            problem = f"{root} is not a folder" if root.exists() else f"no folder {root}"
            raise LabelError(problem, "a folder of images")
        if reason := _output_of_ours(root):
            raise LabelError(f"{root} is {reason}", "a folder of photographs")
        output = target.resolve()
        listing = list_images(
            root, lambda folder: OUT if folder.resolve() == output else _output_of_ours(folder)
        )
        listing.left_out = {path: why for path, why in listing.left_out.items() if why != OUT}
        return listing

    def facts(self, image: Path) -> tuple[int, int]:
        """See :class:`Source`."""
        status = (self.root / image).stat()
        return status.st_size, status.st_mtime_ns

    def read(self, image: Path) -> bytes:
        """See :class:`Source`."""
        return (self.root / image).read_bytes()

    def where(self, image: Path) -> str:
        """See :class:`Source`."""
        return str((self.root / image).resolve())

    def is_there(self) -> bool:
        """See :class:`Source`."""
        return self.root.is_dir()


class RemoteFolder:
    """A folder of a file system that pyarrow reads.

    Args:
        address: as in ``s3://bucket/photos``; keys and region come from it or the environment.

    Raises:
        LabelError: no such file system, or pyarrow is not installed.
    """

    def __init__(self, address: str) -> None:
        self.name = _public(address)
        if not importlib.util.find_spec("pyarrow"):
            raise LabelError(
                f"{self.name} needs pyarrow, which is not installed",
                hint="pip install 'wsss[ray]'",
            )
        from pyarrow.fs import FileSystem

        self._facts: dict[str, tuple[int, int]] = {}
        self._system: Any
        try:
            self._system, self._root = FileSystem.from_uri(address)
        except (OSError, ValueError) as error:
            # pyarrow repeats the address, which may hold keys.
            raise self._unlisted(str(error).replace(address, self.name)) from None

    def listing(self, target: Path) -> Listing:
        """See :class:`Source`. Facts of the images are kept for :meth:`facts`."""
        from pyarrow.fs import FileSelector, FileType

        listing = Listing()
        try:
            infos = self._system.get_file_info(FileSelector(self._root, recursive=True))
        except OSError as error:
            raise self._unlisted(str(error)) from error
        for info in infos:
            place = Path(PurePosixPath(info.path).relative_to(self._root))
            if any(part.startswith(".") for part in place.parts) or info.type != FileType.File:
                continue
            if any(SYSTEM_FOLDERS.fullmatch(part) for part in place.parts[:-1]):
                listing.left_out[place] = "in a folder of the system or of a program"
                continue
            self._facts[place.as_posix()] = info.size, info.mtime_ns or 0
            sort_in(place, listing, partial(self._read, place, HEAD_BYTES))
        listing.images.sort()
        return listing

    def facts(self, image: Path) -> tuple[int, int]:
        """See :class:`Source`. Those of a listing are not asked for again."""
        if facts := self._facts.get(image.as_posix()):
            return facts
        info = self._system.get_file_info(self._path(image))
        if info.size is None:
            raise FileNotFoundError(f"{self.where(image)} is not there any more")
        return info.size, info.mtime_ns or 0

    def read(self, image: Path) -> bytes:
        """See :class:`Source`."""
        return self._read(image)

    def where(self, image: Path) -> str:
        """See :class:`Source`."""
        return f"{self.name}/{image.as_posix()}"

    def is_there(self) -> bool:
        """See :class:`Source`. A store of objects has no folders that could be missing."""
        return True

    def _read(self, image: Path, size: int | None = None) -> bytes:
        with self._system.open_input_stream(self._path(image)) as file:
            return bytes(file.read(size))

    def _path(self, image: Path) -> str:
        return f"{self._root}/{image.as_posix()}"

    def _unlisted(self, reason: str) -> LabelError:
        return LabelError(f"{self.name} cannot be listed: {reason}", ADDRESSES)


def parse_source(text: str) -> Path | str:
    """What ``IN`` is: a path, or an address that no path could hold."""
    return text if ADDRESS.match(text) else Path(text)


def open_source(source: Path | str) -> Source:
    """The folder of images behind a path or an address.

    Raises:
        LabelError: see :class:`RemoteFolder`.
    """
    return LocalFolder(source) if isinstance(source, Path) else RemoteFolder(source)


def _public(address: str) -> str:
    """An address without keys: it is shown, and written into reviews."""
    return re.sub(r"//[^/@]*@", "//", address).partition("?")[0].rstrip("/")


def _output_of_ours(folder: Path) -> str:
    """What kind of output of ours a folder is; empty for others."""
    if holds_labels(folder):
        return "an output of wsss-serving label"
    if (folder / "model.json").is_file():
        return "a version of a model"
    try:
        run = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        return "a run of wsss-trainer" if "stages" in run and "format" in run else ""
    except (OSError, ValueError, TypeError):
        return ""
