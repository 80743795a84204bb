"""Publish a trained model: ONNX graph, card and Triton configuration in a model repository.

The files are ``exported/<name>/<version>/model.onnx`` and ``model.json``, and
``exported/<name>/config.pbtxt``. A version is built in a hidden folder beside its place, compared
with PyTorch on real images, and appears by one rename or not at all.
"""

from __future__ import annotations

import copy
import errno
import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trainer.errors import ConfigError, ExportError
from trainer.export.card import finished_card, triton_config
from trainer.export.golden import write_golden
from trainer.export.onnx_graph import to_onnx, to_onnx_with_half
from trainer.export.parity import Images, Parity, batches_of, checked, compare, open_graph
from trainer.nets.pixel_graph import PixelGraph

if TYPE_CHECKING:
    import onnx

GRAPH, HALF_GRAPH = "model.onnx", "model.fp16.onnx"
FIELDS = ("classes", "palette", "input", "thresholds", "supervision", "source", "metrics")


@dataclass(frozen=True)
class ExportReport:
    """The place and size of a version, and how far its graphs are from PyTorch."""

    path: Path
    name: str
    version: int
    kind: str
    megabytes: float
    seconds: float
    parity: Parity
    half_parity: Parity | None = None


def export_model(
    graph_module: PixelGraph,
    card_fields: Mapping[str, Any],
    repository: Path,
    name: str,
    images: Images,
    version: int | None = None,
    half: bool = False,
) -> ExportReport:
    """Publish a graph under ``repository/name/version``, once it agrees with PyTorch on ``images``.

    Args:
        graph_module: not changed; a copy runs in PyTorch on the CPU in float32.
        card_fields: the fields ``FIELDS`` of the card; see ``card_from_manifest``.
        repository: the folder of models; created if it is missing.
        name: model name: letters, digits, ``_`` and ``-``, as Triton requires.
        images: real images, ``uint8 [H,W,3]`` RGB, of any sizes.
        version: an integer from 1; by default the next one. A version is never overwritten.
        half: also write the graph with its network in float16, as ``model.fp16.onnx``.

    Raises:
        ConfigError: impossible name, version, images or card.
        ExportError: the network cannot be exported, the graph differs from PyTorch, or the disk
            is full or read-only. Nothing is published then.
    """
    start = time.monotonic()
    check_request(graph_module, card_fields, name, images)
    version = free_version(repository / name, version)
    graph = copy.deepcopy(graph_module).cpu().float().eval()
    protos = to_onnx_with_half(graph) if half else (to_onnx(graph),)
    check_classes(protos[0], len(card_fields["classes"]))
    models = {file: proto.SerializeToString() for file, proto in zip((GRAPH, HALF_GRAPH), protos)}
    with writing(repository), staging(repository, name) as folder:
        place = folder / str(version)
        parities = write_graphs(place, graph, models, name, images)
        write_card(place, graph, card_fields, name, parities)
        publish(folder, repository / name, version)
    path, megabytes = repository / name / str(version), len(models[GRAPH]) / 1e6
    seconds = time.monotonic() - start
    return ExportReport(path, name, version, graph.kind, megabytes, seconds, *parities.values())


def write_graphs(
    place: Path, graph: PixelGraph, models: Mapping[str, bytes], name: str, images: Images
) -> dict[str, Parity]:
    """Write the graph files of a version, and return the parity of each.

    Raises:
        ExportError: one of them differs from PyTorch.
    """
    place.mkdir()
    for file, model in models.items():
        (place / file).write_bytes(model)
    batches = batches_of(images)
    return {
        file: checked(compare(graph, place / file, batches), name, half=file == HALF_GRAPH)
        for file in models
    }


def write_card(
    place: Path,
    graph: PixelGraph,
    fields: Mapping[str, Any],
    name: str,
    parities: Mapping[str, Parity],
) -> None:
    """Write golden image and ``model.json`` beside the graphs, and ``config.pbtxt`` above them."""
    golden = write_golden(place, graph, open_graph(place / GRAPH), fields["input"])
    digests = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(place.iterdir())
    }
    figures = {file: asdict(parity) for file, parity in parities.items()}
    card = finished_card(graph, fields, name, int(place.name), digests, figures, golden)
    # Class names stay readable in any script.
    text = json.dumps(card, indent=1, ensure_ascii=False) + "\n"
    (place / "model.json").write_text(text, encoding="utf-8")
    config = triton_config(graph, name, len(fields["classes"]))
    (place.parent / "config.pbtxt").write_text(config, encoding="utf-8")


def check_request(
    graph: PixelGraph, card_fields: Mapping[str, Any], name: str, images: Images
) -> None:
    """Check name, card and images before the export, which takes minutes.

    Raises:
        ConfigError: one of them is impossible.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}", name):
        raise ConfigError(
            f"model name {name!r} is not allowed",
            "letters, digits, _ and -, starting with a letter or digit",
        )
    if missing := [field for field in FIELDS if field not in card_fields]:
        raise ConfigError(f"the card lacks {', '.join(missing)}", f"the fields {', '.join(FIELDS)}")
    if len(card_fields["palette"]) != len(card_fields["classes"]) + 1:
        raise ConfigError(
            f"{len(card_fields['palette'])} colours", "one a class and one for the background"
        )
    if card_fields.get("kind", graph.kind) != graph.kind:
        raise ConfigError(
            f"a card of kind {card_fields['kind']!r} for a {graph.kind} graph",
            f"kind {graph.kind!r}",
        )
    if not images:
        raise ConfigError("no image to compare the graph on", "at least one real image")
    for image in images:
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ConfigError(f"an image of {image.dtype} {list(image.shape)}", "uint8 [H,W,3]")


def check_classes(model: onnx.ModelProto, classes: int) -> None:
    """Raises ConfigError: a card whose class table is not the network's."""
    (count,) = (
        o.type.tensor_type.shape.dim[1].dim_value for o in model.graph.output if o.name == "scores"
    )
    if count != classes:
        raise ConfigError(
            f"a card of {classes} classes for a network of {count}", "the classes it was trained on"
        )


def holds_model(folder: Path) -> bool:
    """Whether a folder holds a published version."""
    return any(path.parent.name.isdecimal() for path in folder.glob("*/model.json"))


def free_version(model: Path, version: int | None) -> int:
    """``version`` if it is free, by default one above the highest there is.

    Raises:
        ConfigError: an impossible version, or a published one.
    """
    versions = {int(p.name) for p in model.glob("*") if re.fullmatch(r"0*[1-9][0-9]*", p.name)}
    if version is None:
        return max(versions, default=0) + 1
    if version < 1:
        raise ConfigError(f"version {version}", "an integer from 1")
    if version in versions:
        raise ConfigError(
            f"{model}/{version} is published already", "a new version", "leave --version out"
        )
    return version


@contextmanager
def writing(repository: Path) -> Iterator[None]:
    """Create the repository, and turn errors of the disk into ones that say what to do."""
    try:
        repository.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ExportError(
                f"no space left in {repository}", "room for the model", "free some and export again"
            ) from error
        raise ExportError(
            f"{repository} cannot be written: {error}", "a folder that you may write to"
        ) from error


@contextmanager
def staging(repository: Path, name: str) -> Iterator[Path]:
    """A hidden folder on the repository's disk that vanishes in the end, even after Ctrl-C."""
    # Beside its place, because a rename is atomic within one file system only.
    with tempfile.TemporaryDirectory(
        dir=repository, prefix=f".{name}-", ignore_cleanup_errors=True
    ) as hidden:
        folder = Path(hidden) / name
        folder.mkdir()
        yield folder


def publish(folder: Path, model: Path, version: int) -> None:
    """Move a finished model into place.

    Raises:
        ExportError: another export published the same version in the meantime.
    """
    try:
        # A new model appears by one rename; else its version does, and then config.pbtxt, which
        # holds no version and so suits both.
        if model.exists():
            os.rename(folder / str(version), model / str(version))
            os.replace(folder / "config.pbtxt", model / "config.pbtxt")
        else:
            os.rename(folder, model)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise ExportError(
                f"another export has published {model}/{version} in the meantime",
                "a free version",
                "export again",
            ) from error
        raise
