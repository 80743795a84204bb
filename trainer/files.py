"""Files that are either whole or absent."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from trainer.errors import DataError, RunError

How = Literal["copy", "hardlink", "symlink", "none"]
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        RunError: no space left, or the folder cannot be written.
    """
    # Renaming is atomic: no reader and no killed run ever sees half a file. The process id keeps
    # two writers of one file apart.
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(data)
        os.replace(part, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        if error.errno in NO_SPACE:
            raise RunError(
                f"no space left while writing {path}",
                "room on that disk",
                "free some space and run the same command again: what is there is kept",
            ) from error
        raise RunError(
            f"{path} cannot be written: {error.strerror or error}", "a folder that you may write to"
        ) from error


def is_whole(check: Callable[..., object], *arguments: object) -> bool:
    """Whether a file of an earlier, perhaps killed, run can stay: ``check(*arguments)`` reads it,
    raises no ``DataError``, and does not return False.
    """
    try:
        return check(*arguments) is not False
    except DataError:
        return False


def place_image(source: Path, target: Path, how: How) -> None:
    """Copy or link one image, whole or not at all.

    Raises:
        RunError: no space, or a link that cannot be made there.
    """
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part.unlink(missing_ok=True)
        if how == "copy":
            shutil.copyfile(source, part)
        elif how == "hardlink":
            os.link(source.resolve(), part)
        else:
            part.symlink_to(source.resolve())
        os.replace(part, target)
        # Where target is the same file already, renaming does nothing.
        part.unlink(missing_ok=True)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        problem = f"{target} cannot be made from {source}: {error.strerror}"
        if error.errno in NO_SPACE:
            raise RunError(
                problem, "room on that disk", "--images hardlink or symlink needs none"
            ) from error
        raise RunError(
            problem, f"a folder where a {how} can be made", "--images copy, or another folder"
        ) from error


def check_space(folder: Path, size: int, what: str) -> None:
    """Compare an estimate in bytes with what is free, before hours are spent.

    Raises:
        RunError: there is too little.
    """
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if size > free:
        raise RunError(
            f"{what} need about {size / 1e9:.1f} GB in {folder}, and {free / 1e9:.1f} GB are free",
            "room on that disk",
            "free some space, or choose another folder, and run the same command again",
        )


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
