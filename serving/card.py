"""The card of an exported model, ``model.json``: what the model says about itself."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, cast

from serving.errors import RepositoryError

CARD = "model.json"
FORMAT = 1
LARGEST_CARD = 16 * 1024 * 1024
# The largest value of the protocol's version fields.
LARGEST_VERSION = 2**31 - 1
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
EXPORT = "wsss-trainer export RUN --name NAME --repository exported/"
HINT = f"export the model again with: {EXPORT}"

INPUT = {"name": "image", "dtype": "uint8", "layout": "NHWC", "color": "RGB"}
Kind = Literal["segmenter", "cam", "tensor"]
KINDS: tuple[Kind, ...] = ("segmenter", "cam", "tensor")
# Type and axes of what a graph of each kind must return, at least.
OUTPUTS: dict[Kind, dict[str, tuple[str, int]]] = {
    "segmenter": {"mask": ("uint8", 3), "scores": ("float32", 2), "confidence": ("uint8", 3)},
    "cam": {"cam": ("float32", 4), "scores": ("float32", 2)},
    "tensor": {},
}
# The estimated share of wrong pixels, which segmenters of earlier exports do not give.
DOUBT = {"doubt": ("float32", 2)}


@dataclass(frozen=True)
class Golden:
    """The answer of a graph to one image, recorded at export.

    Attributes:
        image: name of an RGB PNG in a size that the model takes.
        output: name of a grey PNG: the mask [H,W] of a segmenter; of a CAM model its maps as 0 to
            255, one class below the other, [K*h,w].
        scores: one per class.
        doubt: of a segmenter that gives it.
    """

    image: str
    output: str
    scores: tuple[float, ...]
    doubt: float | None = None


@dataclass(frozen=True)
class Card:
    """What an exported model says about itself.

    A model of kind ``tensor`` is any graph whose first axis is the batch. Its graph defines inputs
    and outputs; classes, colours, sizes and thresholds are empty or 0 here.

    Attributes:
        labels: K+1 names, the background first; ``classes`` are the other K.
        palette: one RGB triple per label.
        min_side, max_side, max_pixels: sizes that the graph takes; other images are scaled.
        side: longer side to which every image is scaled, as in the training; 0: none.
        score_thresholds: of each class, the image-level score from which it counts as present.
        background_threshold: activation below which a cell is background, where the graph uses one.
        gives_doubt: whether the graph estimates the share of wrong pixels of its masks.
        doubt: what its card says of that estimate: what masks it was calibrated on, and how well.
        half_graph: file of the same graph with the network in float16, if there is one.
        warm: input shapes, without the batch axis, to run before the first request.
    """

    folder: Path
    name: str
    version: int
    kind: Kind
    graph: str
    sha256: dict[str, str]
    classes: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    palette: tuple[tuple[int, int, int], ...] = ()
    min_side: int = 0
    max_side: int = 0
    max_pixels: int = 0
    side: int = 0
    score_thresholds: tuple[float, ...] = ()
    background_threshold: float | None = None
    gives_doubt: bool = False
    doubt: dict[str, Any] = field(default_factory=dict)
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    protocol: str = ""
    supervision: str = ""
    source: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    created: datetime | None = None
    golden: Golden | None = None
    half_graph: str | None = None
    warm: tuple[Mapping[str, tuple[int, ...]], ...] = ()

    @property
    def score_threshold(self) -> float:
        """The smallest of the score thresholds; 0 without classes."""
        return min(self.score_thresholds, default=0.0)

    @property
    def outputs(self) -> dict[str, tuple[str, int]]:
        """Type and axes of what the graph must return, at least; of a tensor model nothing."""
        return OUTPUTS[self.kind] | (DOUBT if self.gives_doubt else {})

    @property
    def graph_path(self) -> Path:
        """The graph file."""
        return self.folder / self.graph

    @property
    def graph_sha256(self) -> str:
        """Checksum of the graph file; it names the exact contents of the model."""
        return self.sha256[self.graph]


def read_card(folder: Path) -> Card:
    """The card of one version folder.

    Raises:
        RepositoryError: the card is missing or not JSON, a field is missing or has the wrong type,
            or its name and version differ from the folder's.
    """
    path = folder / CARD
    try:
        check_file(path)
        _check_alone(folder)
        if path.stat().st_size > LARGEST_CARD:
            raise RepositoryError(f"{path} is larger than {LARGEST_CARD:,} bytes", "a card", HINT)
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RepositoryError(f"no {CARD} in {folder}", "a card beside the graph", HINT) from None
    except (OSError, ValueError, RecursionError) as error:
        raise RepositoryError(f"{path} cannot be read: {error}", "a JSON object", HINT) from error
    try:
        card = _card(raw, folder)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        fault = f"no field {error}" if isinstance(error, KeyError) else str(error)
        raise RepositoryError(f"{path}: {fault}", f"a card of format {FORMAT}", HINT) from error
    if (card.name, card.version) != (folder.parent.name, version_number(folder.name)):
        raise RepositoryError(
            f"{path} describes {card.name} version {card.version}",
            f"{folder.parent.name} version {folder.name}, as the folder says",
            "rename the folder, or export the model again",
        )
    return card


def _check_alone(folder: Path) -> None:
    """Refuse a second folder of the same version, such as 1 beside 01."""
    version = version_number(folder.name)
    names = sorted(entry.name for entry in folder.parent.iterdir())
    same = [name for name in names if version is not None and version_number(name) == version]
    if len(same) > 1:
        raise RepositoryError(
            f"{folder.parent} holds version {version} twice: {', '.join(same)}",
            "one folder per version",
            "rename or remove the wrong one",
        )


def version_number(name: str) -> int | None:
    """The version of a folder name, where ``01`` is 1; None if the name is not a number."""
    return int(name) if name.isascii() and name.isdecimal() else None


def check_file(path: Path) -> None:
    """Check that a file of a version folder is regular and inside the repository.

    A link may lead elsewhere in the repository, as in a Kubernetes ConfigMap, but not out of it.

    Raises:
        RepositoryError: it is something else.
        OSError: it is missing or cannot be examined.
    """
    root = Path(os.path.realpath(path.absolute().parents[2]))
    if not Path(os.path.realpath(path)).is_relative_to(root):
        raise RepositoryError(f"{path} is a link out of the repository", "a file inside it", HINT)
    # Reading a pipe would block for ever.
    if not stat.S_ISREG(path.stat().st_mode):
        raise RepositoryError(f"{path} is not a regular file", "a file beside the card", HINT)


def _card(raw: dict[str, Any], folder: Path) -> Card:
    if raw["format"] != FORMAT:
        raise ValueError(f"format is {raw['format']!r}")
    kind = cast(Kind, raw["kind"])
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}, none of {', '.join(KINDS)}")
    card = Card(
        folder=folder,
        name=_text(raw, "name"),
        version=int(raw["version"]),
        kind=kind,
        graph=_text(raw, "graph"),
        sha256={str(name): str(digest).lower() for name, digest in raw["sha256"].items()},
        scales=tuple(map(float, raw.get("scales") or (1.0,))),
        flip=bool(raw.get("flip", False)),
        protocol=str(raw.get("protocol", "")),
        supervision=str(raw.get("supervision", "")),
        source=dict(raw.get("source") or {}),
        metrics=dict(raw.get("metrics") or {}),
        created=datetime.fromisoformat(raw["created"]) if raw.get("created") else None,
        half_graph=_text(raw, "half_graph") if raw.get("half_graph") else None,
        warm=tuple(
            {str(name): tuple(map(int, shape)) for name, shape in one.items()}
            for one in raw.get("warm") or ()
        ),
        **({} if kind == "tensor" else _image_fields(raw)),
    )
    for fault in (*_faults(card), *(() if kind == "tensor" else _image_faults(card, raw))):
        raise ValueError(fault)
    return card


def _image_fields(raw: dict[str, Any]) -> dict[str, Any]:
    """What only the cards of segmenters and CAM models have."""
    golden, background = raw.get("golden"), raw["thresholds"].get("background")
    return {
        "classes": tuple(map(str, raw["classes"])),
        "labels": tuple(map(str, raw["labels"])),
        "palette": tuple((int(red), int(green), int(blue)) for red, green, blue in raw["palette"]),
        **{key: int(raw["input"][key]) for key in ("min_side", "max_side", "max_pixels")},
        "side": int(raw["input"].get("side", 0)),
        "score_thresholds": _score_thresholds(raw["thresholds"], len(raw["classes"])),
        "background_threshold": None if background is None else float(background),
        "gives_doubt": any(output["name"] == "doubt" for output in raw["outputs"]),
        "doubt": dict(raw.get("doubt") or {}),
        "golden": _golden(golden) if golden else None,
    }


def _golden(raw: dict[str, Any]) -> Golden:
    return Golden(
        _text(raw, "image"),
        _text(raw, "output"),
        tuple(map(float, raw["scores"])),
        None if raw.get("doubt") is None else float(raw["doubt"]),
    )


def _score_thresholds(raw: dict[str, Any], count: int) -> tuple[float, ...]:
    """Cards of earlier exports have one number for all classes; later ones keep it beside a
    list.
    """
    everywhere = float(raw["score"])
    return tuple(map(float, raw.get("scores") or [everywhere] * count))


def _faults(card: Card) -> Iterator[str]:
    if not NAME.fullmatch(card.name):
        yield f"name is {card.name!r}"
    if not 1 <= card.version <= LARGEST_VERSION:
        yield f"version is {card.version}"
    if card.graph not in card.sha256:
        yield "sha256 does not list the graph"
    if card.half_graph not in (None, *card.sha256):
        yield "sha256 does not list the half-precision graph"
    if any(Path(name).name != name for name in (card.graph, *card.sha256)):
        yield "a file name has a folder in it"


def _image_faults(card: Card, raw: dict[str, Any]) -> Iterator[str]:
    count = len(card.classes)
    if card.labels[1:] != card.classes or len(set(card.labels)) != count + 1:
        yield "labels are not the background and the classes"
    if not 1 <= count <= 254:
        yield f"{count} classes"
    values = [value for colour in card.palette for value in colour]
    if len(card.palette) != len(card.labels) or not all(0 <= value <= 255 for value in values):
        yield "palette is not one colour of 0 to 255 per label"
    for threshold in card.score_thresholds:
        if not 0 <= threshold <= 1:
            yield f"a score threshold is {threshold}"
    if len(card.score_thresholds) != count:
        yield f"{len(card.score_thresholds)} score thresholds for {count} classes"
    if not isinstance(card.source.get("seed") or 0, int):
        yield f"the seed is {card.source.get('seed')!r}"
    if not 1 <= card.min_side <= card.max_side or card.max_pixels < card.min_side**2:
        yield "input sides contradict each other"
    if card.side and not card.min_side <= card.side <= card.max_side:
        yield f"input side {card.side} is outside of {card.min_side} to {card.max_side}"
    if not INPUT.items() <= raw["input"].items():
        yield "input is not uint8 NHWC RGB named 'image'"
    outputs = {output["name"]: output["dtype"] for output in raw["outputs"]}
    promise = {name: dtype for name, (dtype, _) in card.outputs.items()}
    if not promise.items() <= outputs.items():
        yield f"outputs are {outputs}, without {promise}"
    golden = card.golden
    if golden and not {golden.image, golden.output} <= card.sha256.keys():
        yield "golden names a file that sha256 does not list"
    if golden and len(golden.scores) != count:
        yield "golden does not have one score per class"


def _text(raw: dict[str, Any], key: str) -> str:
    value = raw[key]
    if not isinstance(value, str) or not value:
        raise ValueError(f"{key} is {value!r}")
    return value
