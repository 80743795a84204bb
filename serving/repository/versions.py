"""The model repository: ``<root>/<name>/<version>/model.json`` beside the graph that it
describes.
"""

from __future__ import annotations

import hashlib
import re
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

from serving.errors import (
    ConfigError,
    FieldError,
    ModelNotFound,
    RepositoryError,
    WrongModelKind,
    nearest,
)
from serving.repository.card import CARD, HINT, KINDS, Card, Kind, read_card

Cards = dict[str, dict[int, Card]]


def find_versions(root: Path) -> dict[str, dict[int, Path]]:
    """The version folders of every model below ``root``, names sorted, versions rising. Nothing is
    read.

    Folders whose name starts with a dot, and those of a model whose name is no whole number, are
    not looked at.

    Raises:
        RepositoryError: no such folder.
    """
    if not root.is_dir():
        raise RepositoryError(
            f"no folder {root}",
            "a model repository: NAME/VERSION/model.json",
            "--repository FOLDER",
        )
    found: dict[str, dict[int, Path]] = {}
    for folder in sorted(
        path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")
    ):
        versions = sorted(
            int(path.name) for path in _entries(folder) if path.name.isdecimal() and path.is_dir()
        )
        found[folder.name] = {version: folder / str(version) for version in versions}
    return found


def read_repository(root: Path, only: str = "") -> Cards:
    """Every version of every model below ``root``, names sorted, versions rising. Files are not
    hashed yet.

    Args:
        root: the repository.
        only: a model; if it is there, the others are not looked at.

    Raises:
        RepositoryError: no such folder, no model in it, a model without version, or a bad card.
    """
    found = find_versions(root)
    cards: Cards = {}
    for name, versions in ({only: found[only]} if only in found else found).items():
        if not versions:
            raise RepositoryError(
                f"{root / name} has no version", "a folder named 1, 2, ... with a model.json", HINT
            )
        cards[name] = {version: read_card(folder) for version, folder in versions.items()}
    if not cards:
        raise RepositoryError(
            f"{root} holds no model", "NAME/VERSION/model.json and its graph", HINT
        )
    return cards


def verify(card: Card) -> None:
    """See that the version folder holds the files that the card lists, these alone, and with these
    hashes.

    Files whose name starts with a dot are not looked at: nothing reads them.

    Raises:
        RepositoryError: a file is missing, is not listed, is no plain file, or has another SHA-256;
            or the folder is a link.
    """
    for folder in (card.folder, card.folder.parent):
        if folder.is_symlink():
            raise RepositoryError(f"{folder} is a link", "a folder of its own", HINT)
    there = {path.name for path in _entries(card.folder) if not path.name.startswith(".")} - {CARD}
    if unlisted := sorted(there - set(card.sha256)):
        raise RepositoryError(
            f"{card.folder} holds {unlisted[0]!r}, which the card does not list",
            "listed files alone",
        )
    for name, expected in card.sha256.items():
        path = card.folder / name
        try:
            if not stat.S_ISREG(path.lstat().st_mode):
                raise RepositoryError(
                    f"{path} is a link or no file", "a plain file beside the card", HINT
                )
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise RepositoryError(
                f"{path}: {error.strerror}", "every file that the card lists", HINT
            ) from error
        if found != expected:
            raise RepositoryError(
                f"{path} has SHA-256 {found}",
                f"{expected}, as its card says: the file is damaged or was exchanged",
                HINT,
            )


def wanted_versions(policy: str, versions: Iterable[int]) -> tuple[list[int], int]:
    """The versions that may be served, the newest first, and how many of them are to be.

    Args:
        policy: ``latest``, ``latest:N``, ``all``, or numbers as in ``1,3``.
        versions: that are there.

    Raises:
        ConfigError: no such policy.
    """
    falling = sorted(versions, reverse=True)
    if policy == "all":
        return falling, len(falling)
    if found := re.fullmatch(r"latest(?::([1-9]\d*))?", policy):
        return falling, int(found[1] or 1)
    if re.fullmatch(r"\d+(,\d+)*", policy):
        listed = [version for version in falling if version in map(int, policy.split(","))]
        return listed, len(listed)
    raise ConfigError(
        f"models.versions is {policy!r}", "latest, latest:N, all, or numbers as in 1,3"
    )


def choose(
    cards: Mapping[str, Mapping[int, Card]],
    name: str,
    version: int,
    kind: Kind | tuple[Kind, ...] | None,
) -> Card:
    """The card that a request means, of ``kind`` or of one of several.

    Version 0 is the newest. An empty name is the only model of its kind; of several kinds, of the
    first that is served.

    Raises:
        FieldError: no name, and not exactly one model to mean.
        ModelNotFound: no such name or version.
        WrongModelKind: the model is of another kind.
    """
    kinds = KINDS if kind is None else (kind,) if isinstance(kind, str) else kind
    found = {other: versions[max(versions)].kind for other, versions in cards.items()}
    usable = [other for other in found if found[other] in kinds]
    if not name:
        first = min((kinds.index(found[other]) for other in usable), default=0)
        meant = (
            usable if kind is None else [other for other in usable if found[other] == kinds[first]]
        )
        if len(meant) != 1:
            raise FieldError(
                "no model named", nearest("", meant), "name one of them", field="model"
            )
        name = meant[0]
    if name not in cards:
        known = ",".join(cards)
        raise ModelNotFound(
            f"no model {name!r}", nearest(name, cards), field="model", metadata={"known": known}
        )
    versions = cards[name]
    version = version or max(versions)
    if version not in versions:
        listed = ",".join(map(str, versions))
        raise ModelNotFound(
            f"no version {version} of model {name!r}",
            f"one of: {listed}",
            field="version",
            metadata={"known": listed},
        )
    card = versions[version]
    if card.kind not in kinds:
        raise WrongModelKind(
            f"model {name!r} is a {card.kind}, and this needs a {' or '.join(kinds)}",
            f"one of: {', '.join(usable) or 'none is served'}",
            "a graph of another kind comes from: wsss-trainer export RUN --name NAME --kind"
            f" {kinds[0]}",
            field="model",
            metadata={"usable": ",".join(usable)},
        )
    return card


def _entries(folder: Path) -> list[Path]:
    """What is in a folder; nothing if it vanished meanwhile."""
    try:
        return list(folder.iterdir())
    except OSError:
        return []
