"""Where a command may write: a folder of its own, or a file that is new or its own.

Paths are compared by identity on the disk, not by spelling: links, ``..``, case on a disk that
ignores it, and two mounts of one folder are the same place.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from serving.errors import TargetError


def check_folder(
    folder: Path,
    is_ours: Callable[[Path], bool],
    inputs: Iterable[Path] = (),
    option: str = "",
    hint: str = "",
    may_lie_in: bool = False,
) -> None:
    """Refuse an output folder that would touch something that is not ours.

    Args:
        is_ours: whether a non-empty folder is an earlier output of the same kind.
        inputs: what is read. The output must not be, contain or lie in one, nor link to one.
        option, hint: what the user typed before the folder, and what to type instead.
        may_lie_in: the output may lie in an input, whose reader skips it.

    Raises:
        TargetError: it would, or a file is in the way, or it cannot be opened.
    """
    said, inputs = f"{option} {folder}".strip(), list(inputs)
    hint = hint or "another folder"
    _check_relation(said, folder, inputs, hint, may_lie_in)
    _check_way(said, folder, "a folder", hint)
    folder = _real(folder)
    try:
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
    is_ours: Callable[[Path], bool] = lambda file: False,
    option: str = "",
    hint: str = "another name, or remove it yourself",
) -> None:
    """Refuse an output file that is an input, or that exists, is not empty and is not ours.

    Args:
        is_ours: whether an existing file may be overwritten.
        option, hint: what the user typed before the file, and what to type instead.

    Raises:
        TargetError: it is; or a folder, device or broken link is in the way.
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
    if file.stat().st_size and not is_ours(file):
        raise TargetError(
            f"{said} is there already, and this command did not make it", "a new file", hint
        )


def folds_case(file: Path) -> bool:
    """Whether the disk of an existing file takes ``a`` and ``A`` for one name."""
    return file.with_name(file.name.swapcase()).exists()


def _real(path: Path) -> Path:
    """Where a path leads, also for ``..`` after a folder that does not exist yet."""
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
        if (identity := _identity(parent)) is not None:
            yield identity


def _check_relation(
    said: str, output: Path, inputs: Iterable[Path], hint: str, may_lie_in: bool = False
) -> None:
    there, around = _identity(output), set(_above(output))
    for entry in inputs:
        if (source := _identity(entry)) is None:
            continue
        relation = "is" if source == there else ""
        if source in around and not may_lie_in:
            relation = "lies in"
        if not relation and there is not None and there in _above(entry):
            relation = "holds"
        if relation:
            raise TargetError(
                f"{said} {relation} {entry}, which is read",
                "an output apart from what is read",
                hint,
            )


def _check_way(said: str, folder: Path, expected: str, hint: str) -> None:
    """Check that the folder, or its nearest existing ancestor, is a folder."""
    for place in (folder, *folder.absolute().parents):
        if os.path.lexists(place):
            if not os.path.isdir(place):
                raise TargetError(f"{said}: {place} is no folder", expected, hint)
            return


def _links(folder: Path) -> Iterator[Path]:
    """Links to folders, at any depth."""
    for here, names, _ in os.walk(folder):
        yield from (Path(here, name) for name in names if os.path.islink(os.path.join(here, name)))
