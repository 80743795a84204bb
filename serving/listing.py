"""The image files below a folder, and other entries that a user may miss."""

from __future__ import annotations

import os
import re
import stat
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from serving.images.decoding import EXTENSIONS
from serving.images.kinds import HEAD_BYTES, SAVE, Unreadable, kind_of

# Endings of pictures of unsupported kinds.
OTHER_KINDS = re.compile(
    r"\.(hei[cf]|hif|avif|gif|jp2|jpx|jpf|j2k|jxl|psd|svg|tga|pcx|p[bgnp]m|exr|hdr|ico|dcm|dng"
    r"|cr[23]|nef|arw|orf|rw2|raf|raw)",
    re.IGNORECASE,
)
# Folders with thumbnails, previews and deleted files that systems put beside photographs.
SYSTEM_FOLDERS = re.compile(
    r"@(eadir|tmp|recycle)|#(recycle|snapshot)|\$recycle\.bin|recycle[dr]|lost\+found|__macosx"
    r"|system volume information",
    re.IGNORECASE,
)


@dataclass
class Listing:
    """The contents of a folder; paths are relative to it.

    Attributes:
        images: files with an image's ending, sorted; a broken link is one of them.
        unread: pictures of other kinds and folders that cannot be opened, with the reason.
        left_out: what is not a picture or is handled elsewhere, with the reason.
    """

    images: list[Path] = field(default_factory=list)
    unread: dict[Path, str] = field(default_factory=dict)
    left_out: dict[Path, str] = field(default_factory=dict)


def list_images(root: Path, left_out: Callable[[Path], str] = lambda folder: "") -> Listing:
    """Search a folder recursively; hidden entries are skipped.

    Links are followed last. Each folder is read once, so circular links end. A link to a folder
    around ``root`` is not followed.

    Args:
        left_out: why a folder below is skipped; empty if it is not.
    """
    listing = Listing()
    around = {_identity(parent) for parent in root.resolve().parents}
    seen: set[tuple[int, int]] = set()
    # Links wait in a queue of their own, so that a folder is listed under its real path.
    folders, links = deque([root]), deque[Path]()
    while folders or links:
        folder = folders.popleft() if folders else links.popleft()
        place = folder.relative_to(root)
        try:
            identity, entries = _identity(folder), sorted(os.listdir(folder))
        except OSError as error:
            listing.unread[place] = f"the folder cannot be opened: {error.strerror}"
            continue
        if identity in seen or identity in around:
            listing.left_out[place] = (
                "a link to a folder that is listed already, or around this one"
            )
            continue
        seen.add(identity)
        if folder != root and (reason := left_out(folder)):
            listing.left_out[place] = reason
            continue
        for path in (folder / name for name in entries if not name.startswith(".")):
            if not path.is_dir():
                _file(path, path.relative_to(root), listing)
            elif SYSTEM_FOLDERS.fullmatch(path.name):
                listing.left_out[path.relative_to(root)] = "a folder of the system or of a program"
            else:
                (links if path.is_symlink() else folders).append(path)
    listing.images.sort()
    return listing


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _file(path: Path, place: Path, listing: Listing) -> None:
    try:
        is_regular = stat.S_ISREG(path.stat().st_mode)
    except OSError:
        is_regular = True

    def head() -> bytes:
        with path.open("rb") as file:
            return file.read(HEAD_BYTES)

    sort_in(place, listing, head, is_regular)


def sort_in(
    place: Path, listing: Listing, head: Callable[[], bytes], is_regular: bool = True
) -> None:
    """Add an entry that is no folder to where it belongs.

    Args:
        place: path relative to the root.
        head: reads the first ``HEAD_BYTES`` of the file.
    """
    is_image = place.name.lower().endswith(EXTENSIONS)
    is_other = OTHER_KINDS.fullmatch(place.suffix)
    if not is_regular:
        if is_image or is_other:
            listing.left_out[place] = "a pipe, socket or device with the name of an image"
    elif is_image:
        listing.images.append(place)
    elif is_other or not place.suffix:
        try:
            kind = kind_of(head())
            listing.unread[place] = f"a {kind} whose name does not end like one: rename it"
        except Unreadable as error:
            if is_other or error.hint == SAVE:
                listing.unread[place] = f"{error.found}: {error.hint}"
        except OSError as error:
            if is_other:
                listing.unread[place] = str(error.strerror)
