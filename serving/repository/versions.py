"""The model repository: ``<root>/<name>/<version>/model.json`` beside the graph it describes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from serving.card import (
    CARD,
    EXPORT,
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
    """The version folders of every model, names sorted, versions ascending. No file is read.

    A folder without versions is not a model; see :func:`others`. One that cannot be opened may be a
    model, and has no versions here.

    Raises:
        RepositoryError: no such folder.
    """
    return {name: versions for name, versions in _look(root).items() if versions is not None}


def others(root: Path) -> list[str]:
    """Folders below ``root`` that are not models, by name; raises like :func:`find_versions`."""
    return [name for name, versions in _look(root).items() if versions is None]


def read_repository(root: Path, only: str = "") -> Cards:
    """Every version of every model, names sorted, versions ascending. Checksums are not verified.

    Args:
        only: a model; if it exists, the others are not read.

    Raises:
        RepositoryError: no such folder, no model in it, a folder that cannot be opened, or a bad
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
    """The error for a repository without models."""
    names = others(root)
    beside = f"; folders without a version: {short(', '.join(names))}" if names else ""
    return RepositoryError(
        f"{root} holds no model{beside}",
        "NAME/VERSION/model.json and its graph",
        f"export a model with: {EXPORT}",
    )


def unreadable(folder: Path) -> RepositoryError:
    """The error for a folder that cannot be opened."""
    try:
        list(folder.iterdir())
        reason = "it changed a moment ago"
    except OSError as error:
        reason = str(error.strerror)
    return RepositoryError(f"{folder} cannot be opened: {reason}", "a folder of versions")


def _look(root: Path) -> dict[str, dict[int, Path] | None]:
    """Every visible folder by name, with its versions; None if it is not a model."""
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
        # Perhaps a model without read permission: it must not count as removed.
        return {} if NAME.fullmatch(folder.name) else None
    versions = {
        version: path
        for path in entries
        if (version := version_number(path.name)) is not None and path.is_dir()
    }
    return dict(sorted(versions.items())) or None


def verify(card: Card) -> None:
    """Check that the version folder holds exactly the files of the card, with these checksums.

    Names that start with a dot, and system folders, are ignored, because nothing reads them.

    Raises:
        RepositoryError: a file is missing, not listed, not regular, outside the repository, or has
            another SHA-256.
    """
    there = {path.name for path in _entries(card.folder) if not _is_beside(path)} - {CARD}
    if strays := sorted(there - set(card.sha256)):
        raise RepositoryError(
            f"{card.folder} holds {strays[0]!r}, which the card does not list",
            "only files that the card lists",
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
                f"{path} is damaged or was replaced: its SHA-256 is {digest}",
                f"{checksum}, as the card says",
                HINT,
            )


def _is_beside(path: Path) -> bool:
    return path.name.startswith(".") or bool(SYSTEM_FOLDERS.fullmatch(path.name) and path.is_dir())


def wanted_versions(policy: str, versions: Iterable[int]) -> tuple[list[int], int]:
    """The versions that may be served, the newest first, and how many of them are.

    Args:
        policy: ``latest``, ``latest:N``, ``all``, or numbers such as ``1,3``.
        versions: that exist.

    Raises:
        ConfigError: an unknown policy.
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
    """The card that a request means, of one of these kinds.

    Version 0 is the newest. An empty name is the only model of its kind; of several kinds, the
    first that is served counts.

    Raises:
        FieldError: no name, and not exactly one candidate.
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
            f"export one: wsss-trainer export RUN --name NAME --kind {kinds[0]}",
            field="model",
            metadata={"usable": ",".join(usable)},
        )
    return card


def _only(models: list[str]) -> str:
    if len(models) != 1:
        raise FieldError("no model named", nearest("", models), "name one of them", field="model")
    return models[0]


def _version(cards: Mapping[str, Mapping[int, Card]], name: str, version: int) -> Card:
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
    """The entries of a folder; none if it has just vanished."""
    try:
        return list(folder.iterdir())
    except OSError:
        return []
