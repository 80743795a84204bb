"""Changes in a repository, found by polling."""

from __future__ import annotations

import os
from pathlib import Path

from serving.repository.versions import find_versions

# Name, size, modification time and inode of every file: a different signature is a different model.
Signature = tuple[tuple[str, int, int, int], ...]
Snapshot = dict[int, Signature]


class Watch:
    """Looks at a repository again and again; its present state counts as known.

    Raises:
        RepositoryError: no such folder.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._seen = snapshot(root)
        self._known: dict[str, Snapshot | None] = dict(self._seen)

    @property
    def models(self) -> list[str]:
        """The models at the last look."""
        return list(self._seen)

    def look(self) -> list[str]:
        """The models that changed and then stayed the same since the last look; they are known from
        now on.

        Raises:
            RepositoryError: no such folder.
        """
        # A change is reported only once two looks agree: until then somebody is still copying
        # files.
        now = snapshot(self._root)
        names = sorted(now.keys() | self._known.keys())
        stable = [
            name
            for name in names
            if now.get(name) != self._known.get(name) and now.get(name) == self._seen.get(name)
        ]
        self._known |= {name: now.get(name) for name in stable}
        self._seen = now
        return stable


def snapshot(root: Path) -> dict[str, Snapshot]:
    """The signature of every version of every model.

    Raises:
        RepositoryError: no such folder.
    """
    folders = find_versions(root)
    return {
        name: {version: signature(folder) for version, folder in folders[name].items()}
        for name in folders
    }


def signature(folder: Path) -> Signature:
    """Changes when a file of the folder does; empty for a folder that does not exist."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        stats = [(entry.name, entry.stat(follow_symlinks=False)) for entry in entries]
    except OSError:
        return ()
    return tuple((name, stat.st_size, stat.st_mtime_ns, stat.st_ino) for name, stat in stats)
