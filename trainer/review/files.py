"""The files of a review as a tool gives them back: a folder, a zip, or a single file."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from trainer.data.headers import Header, opened
from trainer.data.image_files import passed_over
from trainer.data.kinds import Unreadable
from trainer.data.pixels import BOUNDS
from trainer.errors import DataError
from trainer.outputs import is_inner

MOST_FILES = 200_000
MOST_BYTES = 2_000_000_000
"""Of one file. A file of Label Studio may hold thirty photographs."""
MOST_TOTAL = 20_000_000_000


class Files:
    """Files below a place, by their relative names with ``/``. Hidden files are passed over.

    Args:
        place: a folder, a zip, or a single file.

    Raises:
        DataError: not there, a damaged zip, or one with names that lead out of it or that would
            fill the disk.
    """

    def __init__(self, place: Path) -> None:
        self.place = place
        self.zip: zipfile.ZipFile | None = None
        self._members: dict[str, zipfile.ZipInfo] = {}
        if place.is_dir():
            names = [*_names(place)]
        elif not place.is_file():
            raise DataError(
                f"{place} is not there", "the folder of a review, or what the tool exports"
            )
        elif place.suffix.lower() == ".zip" or zipfile.is_zipfile(place):
            self.zip, self._members = _opened_zip(place)
            names = [*self._members]
        else:
            names = [place.name]
        visible = (n for n in names if all(passed_over(p) is None for p in n.split("/")))
        self.names = sorted(visible)

    def read(self, name: str) -> bytes:
        """The content of a file.

        Raises:
            DataError: it cannot be read.
        """
        try:
            if self.zip:
                return self.zip.read(self._members[name])
            path = self.place / name if self.place.is_dir() else self.place
            if path.stat().st_size > MOST_BYTES:
                raise DataError(f"{path} is too large", f"at most {MOST_BYTES:,} bytes")
            return path.read_bytes()
        # A damaged member raises one of many errors, depending on the damage.
        except (OSError, ValueError, RuntimeError, zipfile.BadZipFile, EOFError) as error:
            raise DataError(
                f"{self.where(name)} cannot be read: {error}", "a whole file", "export it again"
            ) from error

    def where(self, name: str) -> str:
        """A file as messages name it."""
        return str(self.place) if self.place.name == name else f"{self.place}/{name}"

    def below(self, folder: str, suffixes: Collection[str]) -> list[tuple[str, str]]:
        """Files with one of the suffixes, in lower case, whose path has a folder of that name: the
        path behind it, without the suffix, and the whole name. Several files may share the first.
        """
        entries = []
        for name in self.names:
            path = PurePosixPath(name)
            if folder in path.parts[:-1] and path.suffix.lower() in suffixes:
                inside = path.parts[path.parts.index(folder) + 1 :]
                entries.append((str(PurePosixPath(*inside).with_suffix("")), name))
        return entries

    def find(self, file: str) -> str | None:
        """The name of the first file that is called ``file``, the one nearest to the top."""
        alike = [name for name in self.names if PurePosixPath(name).name.lower() == file]
        return min(alike, key=lambda name: (name.count("/"), name), default=None)

    @contextmanager
    def image(self, name: str) -> Iterator[Header]:
        """An image whose pixels are not decoded yet.

        Raises:
            DataError: no image, damaged, or too large.
        """
        where = self.where(name)
        try:
            with opened(io.BytesIO(self.read(name)), BOUNDS) as header:
                yield header
        except Unreadable as error:
            raise DataError(
                f"{where} cannot be read: {error}", error.expected, error.hint or "export it again"
            ) from error


def _names(folder: Path) -> Iterator[str]:
    """Relative names of the files below a folder. Links are followed: the masks of a review may
    lie on another disk.
    """
    seen = set[str]()
    for here, folders, names in os.walk(folder, followlinks=True):
        # A link to a folder around it would never end.
        if (place := os.path.realpath(here)) in seen:
            folders.clear()
            continue
        seen.add(place)
        for path in (Path(here, name) for name in names):
            if path.is_file():
                yield path.relative_to(folder).as_posix()


def _opened_zip(place: Path) -> tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]:
    """A zip and its files by name, all of them checked before anything is unpacked."""
    try:
        archive = zipfile.ZipFile(place)
        members = [member for member in archive.infolist() if not member.is_dir()]
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{place} cannot be read: {error}", "a whole zip", "export it again"
        ) from error
    files: dict[str, zipfile.ZipInfo] = {}
    for member in members:
        # Some programs on Windows write backslashes, against the format.
        name = member.filename.replace("\\", "/")
        if not is_inner(name):
            fault = f"the name {member.filename!a}, which leads out of the zip"
        elif member.flag_bits & 1:
            fault = f"{member.filename!a}, which needs a password"
        elif member.file_size > MOST_BYTES:
            fault = f"{member.filename!a} of {member.file_size:,} bytes"
        elif files.setdefault(name, member) is not member:
            fault = f"two files {name!a}"
        else:
            continue
        raise DataError(
            f"{place} holds {fault}",
            f"different relative names, and at most {MOST_BYTES:,} bytes a file",
            "take the zip that the tool exports; nothing was unpacked",
        )
    total = sum(member.file_size for member in members)
    if total > MOST_TOTAL or len(members) > MOST_FILES:
        raise DataError(
            f"{place} would unpack to {len(members):,} files and {total:,} bytes",
            f"at most {MOST_FILES:,} files and {MOST_TOTAL:,} bytes",
            "export fewer images at a time; nothing was unpacked",
        )
    return archive, files
