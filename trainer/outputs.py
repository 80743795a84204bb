"""The places where a command may write: a folder of its own, a new file, or a file of its own.

Places are compared by what they are on the disk, not by their spelling: links, ``..``, upper and
lower case on a disk that knows no difference, and two mounts of one folder are the same place.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from trainer.errors import TargetError

MARK = "made by wsss-trainer, which may write over it"
"""Stands near the beginning of every single file that a command may write again."""
HEAD = 4096
LONGEST = 200
"""Bytes of a name: file systems hold 255, and suffixes come to it."""
# Names of devices on Windows, with any suffix.
RESERVED = {
    "con",
    "prn",
    "aux",
    "nul",
    *(f"{port}{n}" for port in ("com", "lpt") for n in range(10)),
}


def is_marked(file: Path) -> bool:
    """Whether a file bears ``MARK`` near its beginning; not if it cannot be read."""
    try:
        with open(file, "rb") as stream:
            return MARK.encode() in stream.read(HEAD)
    except OSError:
        return False


def check_folder(
    folder: Path,
    is_ours: Callable[[Path], bool],
    inputs: Iterable[Path] = (),
    option: str = "",
    hint: str = "",
) -> None:
    """Check that an output folder touches nothing that is not ours.

    Args:
        folder: need not be there.
        is_ours: whether a folder that holds something is an earlier output of the same kind.
        inputs: files and folders that are read, or hold what is read. The output is none of them,
            holds none and lies in none, and no link inside of it leads to one.
        option: what the user typed before the folder, for the message.
        hint: what to type instead.

    Raises:
        TargetError: it does; or a file is in the way, or the folder cannot be opened.
    """
    said, inputs = f"{option} {folder}".strip(), list(inputs)
    hint = hint or "another folder"
    _check_relation(said, folder, inputs, hint)
    _check_way(said, folder, "a folder", hint)
    folder = _real(folder)
    try:
        # Hidden files do not count: a run's own ``.lock``, or what file managers leave.
        entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    except FileNotFoundError:
        return
    except OSError as error:
        raise TargetError(f"{said}: {error.strerror}", "a folder that you may write to") from error
    if entries and not is_ours(folder):
        raise TargetError(
            f"{said} holds other things (such as {min(entries).name})",
            "a new or empty folder, or an earlier output of this command",
            hint,
        )
    for link in _links(folder):
        _check_relation(
            f"{said} holds the link {link.name}, which", link, inputs, "remove the link"
        )


def check_file(
    file: Path,
    inputs: Iterable[Path] = (),
    is_ours: Callable[[Path], bool] = is_marked,
    option: str = "",
    hint: str = "another name, or remove it yourself",
) -> None:
    """Check that an output file is no input, and is new, empty or ours.

    Args:
        file: need not be there.
        inputs: files that are read.
        is_ours: whether a file that is there may be written over; by default, whether it bears
            ``MARK``.
        option: what the user typed before the file, for the message.
        hint: what to type instead.

    Raises:
        TargetError: it is not; or a folder, device or broken link is in the way.
    """
    said = f"{option} {file}".strip()
    there = _identity(file)
    for entry in inputs:
        if there is not None and there == _identity(entry):
            raise TargetError(
                f"{said} is the file {entry}, which is read", "a new file", "another name"
            )
    _check_way(said, file.parent, "a file in a folder", "another name")
    if file.is_symlink() and not os.path.exists(file):
        raise TargetError(f"{said} is a link to nowhere", "a new file", "another name")
    file = _real(file)
    if not file.exists():
        return
    if not file.is_file():
        what = "a folder" if file.is_dir() else "no regular file"
        raise TargetError(f"{said} is {what}", "a new file", "another name")
    # An empty file holds nothing that could be lost.
    if file.stat().st_size and not is_ours(file):
        raise TargetError(
            f"{said} is there already, and this command did not make it",
            "a new file",
            hint,
        )


def is_inner(place: str) -> bool:
    """Whether a name from inside of a file is a place below the folder that it is put in.

    It is not where it is absolute, has ``..``, an empty or too long part, or a character that no
    file name can hold.
    """
    return "\0" not in place and all(
        part not in ("", ".", "..") and len(os.fsencode(part)) <= LONGEST
        for part in place.split("/")
    )


def is_portable(name: str) -> bool:
    """Whether a name can be that of one file or folder on Linux, macOS and Windows."""
    return (
        0 < len(os.fsencode(name)) <= LONGEST
        and not any(ord(c) < 32 or c in '/\\:*?"<>|\x7f' for c in name)
        and name[0] not in ". "
        and name[-1] not in ". "
        and name.split(".")[0].rstrip().lower() not in RESERVED
    )


def folds_case(file: Path) -> bool:
    """Whether the disk of a file that is there takes ``a`` and ``A`` for one name."""
    return file.with_name(file.name.swapcase()).exists()


def _real(path: Path) -> Path:
    """The absolute path without links, also of a path that does not exist."""
    return Path(os.path.realpath(path))


def _identity(path: Path) -> tuple[int, int] | None:
    """Equal for two names of one file or folder; None if it does not exist."""
    try:
        status = os.stat(_real(path))
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def _above(path: Path) -> Iterator[tuple[int, int]]:
    """Identities of the folders around a path, innermost first; the path need not exist."""
    for parent in _real(path).parents:
        if (place := _identity(parent)) is not None:
            yield place


def _check_relation(said: str, output: Path, inputs: Iterable[Path], hint: str) -> None:
    there, around = _identity(output), set(_above(output))
    for entry in inputs:
        if (source := _identity(entry)) is None:
            continue
        relation = "is" if source == there else "lies in" if source in around else ""
        if not relation and there is not None and there in _above(entry):
            relation = "holds"
        if relation:
            raise TargetError(
                f"{said} {relation} {entry}, which is read",
                "an output apart from what is read",
                hint,
            )


def _check_way(said: str, folder: Path, expected: str, hint: str) -> None:
    """Check that the nearest existing place above an output is a folder."""
    for place in (folder, *folder.absolute().parents):
        if os.path.lexists(place):
            if not os.path.isdir(place):
                raise TargetError(f"{said}: {place} is no folder", expected, hint)
            return


def _links(folder: Path) -> Iterator[Path]:
    """Links to folders, at any depth."""
    for here, names, _ in os.walk(folder):
        yield from (Path(here, name) for name in names if os.path.islink(os.path.join(here, name)))
