"""The model repository: ``<root>/<name>/<version>/model.json`` beside the graph that it describes."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, cast

from serving.errors import ConfigError, FieldError, ModelNotFound, RepositoryError, WrongModelKind, nearest

CARD = "model.json"
FORMAT = 1
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
HINT = "export the model again with: wsss-trainer export RUN --name NAME --repository exported/"

NO_SIZE = {"min_side": 0, "max_side": 0, "max_pixels": 0}
Kind = Literal["segmenter", "cam", "tensor"]
KINDS: tuple[Kind, ...] = ("segmenter", "cam", "tensor")
# Type and axes of what a graph of each kind must return, at least.
OUTPUTS: dict[Kind, dict[str, tuple[str, int]]] = {
    "segmenter": {"mask": ("uint8", 3), "scores": ("float32", 2), "confidence": ("uint8", 3)},
    "cam": {"cam": ("float32", 4), "scores": ("float32", 2)},
    "tensor": {},
}


@dataclass(frozen=True)
class Card:
    """What an exported model says of itself.

    A model of kind ``tensor`` is any graph whose first axis is the batch: its inputs and outputs are those of the graph,
    and everything here about classes, colours, sizes and thresholds is empty or 0.

    Attributes:
        labels: K+1 names, the background first; ``classes`` are the other K.
        palette: one RGB triple a label.
        min_side, max_side, max_pixels: sizes that the graph takes; others are scaled into them.
        score_threshold: image-level score from which a class counts as present.
        background_threshold: activation below which a cell is background, where the graph uses one.
    """

    folder: Path
    name: str
    version: int
    kind: Kind
    graph: str
    sha256: dict[str, str]
    classes: tuple[str, ...]
    labels: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    min_side: int
    max_side: int
    max_pixels: int
    score_threshold: float
    background_threshold: float | None
    scales: tuple[float, ...]
    flip: bool
    protocol: str
    supervision: str
    source: dict[str, Any]
    metrics: dict[str, Any]
    created: datetime | None

    @property
    def graph_path(self) -> Path:
        """The graph file."""
        return self.folder / self.graph

    @property
    def graph_sha256(self) -> str:
        """What the graph file must hash to; names the model's exact contents."""
        return self.sha256[self.graph]


Cards = dict[str, dict[int, Card]]


def read_repository(root: Path) -> Cards:
    """Every version of every model below ``root``, names sorted, versions rising. Files are not hashed yet.

    Folders whose name starts with a dot, and those of a model whose name is no whole number, are not looked at.

    Raises:
        RepositoryError: no such folder, no model in it, a model without version, or a bad card.
    """
    if not root.is_dir():
        raise RepositoryError(f"no folder {root}", "a model repository: NAME/VERSION/model.json", "--repository FOLDER")
    cards: Cards = {}
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")):
        versions = sorted(int(path.name) for path in folder.iterdir() if path.is_dir() and path.name.isdecimal())
        if not versions:
            raise RepositoryError(f"{folder} has no version", "a folder named 1, 2, ... with a model.json", HINT)
        cards[folder.name] = {version: read_card(folder / str(version)) for version in versions}
    if not cards:
        raise RepositoryError(f"{root} holds no model", "NAME/VERSION/model.json and its graph", HINT)
    return cards


def read_card(folder: Path) -> Card:
    """The card of one version folder.

    Raises:
        RepositoryError: no card, not JSON, a field missing or of the wrong type, or a name or version that differs
            from the folder's.
    """
    path = folder / CARD
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RepositoryError(f"no {CARD} in {folder}", "a card beside the graph", HINT) from None
    except (OSError, ValueError) as error:
        raise RepositoryError(f"{path} cannot be read: {error}", "a JSON object", HINT) from error
    try:
        card = _card(raw, folder)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        fault = f"no field {error}" if isinstance(error, KeyError) else str(error)
        raise RepositoryError(f"{path}: {fault}", f"a card of format {FORMAT}", HINT) from error
    if (card.name, str(card.version)) != (folder.parent.name, folder.name):
        raise RepositoryError(
            f"{path} says {card.name} version {card.version}",
            f"{folder.parent.name} version {folder.name}, as its folder",
        )
    return card


def verify(card: Card) -> None:
    """Hash every file that the card lists.

    Raises:
        RepositoryError: a file is missing, lies outside of the version folder, or has another SHA-256.
    """
    for name, expected in card.sha256.items():
        path = card.folder / name
        if path.resolve().parent != card.folder.resolve():
            raise RepositoryError(f"{path} lies outside of its version folder", "a plain file beside the card", HINT)
        if not path.is_file():
            raise RepositoryError(f"no {name} in {card.folder}", "every file that the card lists", HINT)
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != expected:
            raise RepositoryError(
                f"{path} has SHA-256 {found}",
                f"{expected}, as its card says: the file is damaged or was exchanged",
                HINT,
            )


def select(versions: Mapping[int, Card], policy: str) -> list[Card]:
    """The versions that ``policy`` names, the newest first: ``latest``, ``latest:N``, ``all``, or numbers as ``1,3``.

    Raises:
        ConfigError: no such policy.
    """
    falling = [versions[version] for version in sorted(versions, reverse=True)]
    if policy == "all":
        return falling
    if found := re.fullmatch(r"latest(?::([1-9]\d*))?", policy):
        return falling[: int(found[1] or 1)]
    if re.fullmatch(r"\d+(,\d+)*", policy):
        return [card for card in falling if card.version in map(int, policy.split(","))]
    raise ConfigError(f"models.versions is {policy!r}", "latest, latest:N, all, or numbers as in 1,3")


def choose(
    cards: Mapping[str, Mapping[int, Card]], name: str, version: int, kind: Kind | tuple[Kind, ...] | None
) -> Card:
    """The card that a request means, of ``kind`` or of one of several.

    Version 0 is the newest. An empty name is the only model of its kind; of several kinds, of the first that is served.

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
        meant = usable if kind is None else [other for other in usable if found[other] == kinds[first]]
        if len(meant) != 1:
            raise FieldError("no model named", nearest("", meant), "name one of them", field="model")
        name = meant[0]
    if name not in cards:
        known = ",".join(cards)
        raise ModelNotFound(f"no model {name!r}", nearest(name, cards), field="model", metadata={"known": known})
    versions = cards[name]
    version = version or max(versions)
    if version not in versions:
        listed = ",".join(map(str, versions))
        raise ModelNotFound(
            f"no version {version} of model {name!r}", f"one of: {listed}", field="version", metadata={"known": listed}
        )
    card = versions[version]
    if card.kind not in kinds:
        raise WrongModelKind(
            f"model {name!r} is a {card.kind}, and this needs a {' or '.join(kinds)}",
            f"one of: {', '.join(usable) or 'none is served'}",
            f"a graph of another kind comes from: wsss-trainer export RUN --name NAME --kind {kinds[0]}",
            field="model",
            metadata={"usable": ",".join(usable)},
        )
    return card


def _card(raw: dict[str, Any], folder: Path) -> Card:
    if raw["format"] != FORMAT:
        raise ValueError(f"format is {raw['format']!r}")
    kind = cast(Kind, raw["kind"])
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}, none of {', '.join(KINDS)}")
    pixels = kind != "tensor"
    size, thresholds = (raw["input"], raw["thresholds"]) if pixels else (NO_SIZE, {"score": 0})
    background = thresholds.get("background")
    card = Card(
        folder=folder,
        name=_text(raw, "name"),
        version=int(raw["version"]),
        kind=kind,
        graph=_text(raw, "graph"),
        sha256={str(name): str(digest).lower() for name, digest in raw["sha256"].items()},
        classes=tuple(map(str, raw["classes"])) if pixels else (),
        labels=tuple(map(str, raw["labels"])) if pixels else (),
        palette=tuple((int(red), int(green), int(blue)) for red, green, blue in raw["palette"]) if pixels else (),
        min_side=int(size["min_side"]),
        max_side=int(size["max_side"]),
        max_pixels=int(size["max_pixels"]),
        score_threshold=float(thresholds["score"]),
        background_threshold=None if background is None else float(background),
        scales=tuple(map(float, raw.get("scales") or (1.0,))),
        flip=bool(raw.get("flip", False)),
        protocol=str(raw.get("protocol", "")),
        supervision=str(raw.get("supervision", "")),
        source=dict(raw.get("source") or {}),
        metrics=dict(raw.get("metrics") or {}),
        created=datetime.fromisoformat(raw["created"]) if raw.get("created") else None,
    )
    _refuse(
        {
            f"name is {card.name!r}": not NAME.fullmatch(card.name),
            f"version is {card.version}": card.version < 1,
            "sha256 does not list the graph": card.graph not in card.sha256,
            "a file name has a folder in it": any(Path(name).name != name for name in (card.graph, *card.sha256)),
        }
    )
    if pixels:
        _check_pixels(card, raw)
    return card


def _check_pixels(card: Card, raw: dict[str, Any]) -> None:
    """What the card of an image model must say besides."""
    names = len(set(card.labels)) == len(card.labels) == len(card.classes) + 1
    outputs = {output["name"]: output["dtype"] for output in raw["outputs"]}
    wanted = {name: dtype for name, (dtype, _) in OUTPUTS[card.kind].items()}
    _refuse(
        {
            "labels are not the background and the classes": not names or card.labels[1:] != card.classes,
            f"{len(card.classes)} classes": not 1 <= len(card.classes) <= 254,
            "palette is not one colour of 0 to 255 a label": len(card.palette) != len(card.labels)
            or any(not 0 <= value <= 255 for colour in card.palette for value in colour),
            "input sides": not 1 <= card.min_side <= card.max_side or card.max_pixels < card.min_side**2,
            "input is not uint8 NHWC RGB named 'image'": any(
                raw["input"].get(key) != value
                for key, value in {"name": "image", "dtype": "uint8", "layout": "NHWC", "color": "RGB"}.items()
            ),
            f"outputs are {outputs}, without {wanted}": not wanted.items() <= outputs.items(),
        }
    )


def _refuse(faults: Mapping[str, bool]) -> None:
    for text, wrong in faults.items():
        if wrong:
            raise ValueError(text)


def _text(raw: dict[str, Any], key: str) -> str:
    value = raw[key]
    if not isinstance(value, str) or not value:
        raise ValueError(f"{key} is {value!r}")
    return value
