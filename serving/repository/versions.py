"""The model repository: ``<root>/<name>/<version>/model.json`` beside the graph that it
describes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from serving.card import (
    CARD,
    HINT,
    KINDS,
    NAME,
    Card,
    Kind,
    check_file,
    read_card,
    version_number,
)
from serving.errors import (
    ConfigError,
    FieldError,
    ModelNotFound,
    RepositoryError,
    WrongModelKind,
    nearest,
    short,
)
from serving.listing import SYSTEM_FOLDERS

Cards = dict[str, dict[int, Card]]


def find_versions(root: Path) -> dict[str, dict[int, Path]]:
    """The version folders of every model below ``root``, names sorted, versions rising. Nothing is
    read.

    A folder without a version is no model: :func:`others` names those. One that cannot be looked
    into may be a model, and has no versions here.

    Raises:
        RepositoryError: no such folder.
    """
    return {name: versions for name, versions in _look(root).items() if versions is not None}


def others(root: Path) -> list[str]:
    """The names of folders below ``root`` that are no models.

    Raises:
        RepositoryError: as :func:`find_versions` does.
    """
    return [name for name, versions in _look(root).items() if versions is None]


def read_repository(root: Path, only: str = "") -> Cards:
    """Every version of every model below ``root``, names sorted, versions rising. Files are not
    hashed yet.

    Args:
        root: the repository.
        only: a model; if it is there, the others are not looked at.

    Raises:
        RepositoryError: no such folder, no model in it, one that cannot be looked into, or a bad
            card.
    """
    folders = find_versions(root)
    cards: Cards = {}
    for name, versions in ({only: folders[only]} if only in folders else folders).items():
        if not versions:
            raise unreadable(root / name)
        cards[name] = {version: read_card(folder) for version, folder in versions.items()}
    if not cards:
        raise no_model(root)
    return cards


def no_model(root: Path) -> RepositoryError:
    """For a repository without any model."""
    names = others(root)
    beside = f"; without a version: {short(', '.join(names))}" if names else ""
    return RepositoryError(
        f"{root} holds no model{beside}", "NAME/VERSION/model.json and its graph", HINT
    )


def unreadable(folder: Path) -> RepositoryError:
    """For a folder that cannot be looked into."""
    try:
        list(folder.iterdir())
        reason = "it changed just now"
    except OSError as error:
        reason = str(error.strerror)
    return RepositoryError(
        f"{folder} cannot be looked into: {reason}", "a folder of versions, or one without a model"
    )


def _look(root: Path) -> dict[str, dict[int, Path] | None]:
    """Every folder that is not hidden by name, with its versions; None for what is no model."""
    if not root.is_dir():
        raise RepositoryError(
            f"no folder {root}",
            "a model repository: NAME/VERSION/model.json",
            "--repository FOLDER",
        )
    folders: dict[str, dict[int, Path] | None] = {}
    for folder in sorted(path for path in root.iterdir() if not path.name.startswith(".")):
        if not folder.is_dir():
            continue
        # A name that is not printable text cannot be a model's.
        if folder.name.isprintable():
            folders[folder.name] = _versions(folder)
        else:
            folders[ascii(folder.name)] = None
    return folders


def _versions(folder: Path) -> dict[int, Path] | None:
    try:
        entries = sorted(folder.iterdir())
    except FileNotFoundError:
        return None
    except OSError:
        return {} if NAME.fullmatch(folder.name) else None
    versions = {
        version: path
        for path in entries
        if (version := version_number(path.name)) is not None and path.is_dir()
    }
    return dict(sorted(versions.items())) or None


def verify(card: Card) -> None:
    """See that the version folder holds the files that the card lists, these alone, and with these
    hashes.

    Files whose name starts with a dot, and folders that systems make, are not looked at: nothing
    reads them.

    Raises:
        RepositoryError: a file is missing, is not listed, is no plain file, leads out of the
            repository, or has another SHA-256.
    """
    there = {path.name for path in _entries(card.folder) if not _is_beside(path)} - {CARD}
    if strays := sorted(there - set(card.sha256)):
        raise RepositoryError(
            f"{card.folder} holds {strays[0]!r}, which the card does not list",
            "listed files alone",
        )
    for name, checksum in card.sha256.items():
        path = card.folder / name
        try:
            check_file(path)
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise RepositoryError(
                f"{path}: {error.strerror}", "every file that the card lists", HINT
            ) from error
        if digest != checksum:
            raise RepositoryError(
                f"{path} has SHA-256 {digest}",
                f"{checksum}, as its card says: the file is damaged or was exchanged",
                HINT,
            )


def _is_beside(path: Path) -> bool:
    return path.name.startswith(".") or bool(SYSTEM_FOLDERS.fullmatch(path.name) and path.is_dir())


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
    if match := re.fullmatch(r"latest(?::([1-9]\d*))?", policy):
        return falling, int(match[1] or 1)
    if re.fullmatch(r"\d+(,\d+)*", policy):
        picks = [version for version in falling if version in map(int, policy.split(","))]
        return picks, len(picks)
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
    newest = {model: versions[max(versions)].kind for model, versions in cards.items()}
    usable = [model for model in newest if newest[model] in kinds]
    if not name:
        first = min((kinds.index(newest[model]) for model in usable), default=0)
        name = _only(
            usable if kind is None else [each for each in usable if newest[each] == kinds[first]]
        )
    card = _version(cards, name, version)
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


def _only(models: list[str]) -> str:
    """The one model of a list."""
    if len(models) != 1:
        raise FieldError("no model named", nearest("", models), "name one of them", field="model")
    return models[0]


def _version(cards: Mapping[str, Mapping[int, Card]], name: str, version: int) -> Card:
    """The card of one version of a model, 0 for the newest."""
    if name not in cards:
        names = ",".join(cards)
        raise ModelNotFound(
            f"no model {name!r}", nearest(name, cards), field="model", metadata={"known": names}
        )
    versions = cards[name]
    version = version or max(versions)
    if version not in versions:
        numbers = ",".join(map(str, versions))
        raise ModelNotFound(
            f"no version {version} of model {name!r}",
            f"one of: {numbers}",
            field="version",
            metadata={"known": numbers},
        )
    return versions[version]


def _entries(folder: Path) -> list[Path]:
    """What is in a folder; nothing if it vanished meanwhile."""
    try:
        return list(folder.iterdir())
    except OSError:
        return []
