"""Publish a trained model: ONNX graph, card and Triton configuration in one model repository
(design 6).

``exported/<name>/<version>/model.onnx`` and ``model.json``, ``exported/<name>/config.pbtxt``. A
version is made in a hidden folder beside its place, compared with PyTorch on real images, and
appears by one rename or not at all.
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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from trainer.errors import ConfigError, ExportError
from trainer.export.card import finished_card, triton_config
from trainer.export.golden import write_golden
from trainer.export.onnx_graph import to_onnx, to_onnx_with_half
from trainer.nets.graphs import CamGraph, PixelGraph

if TYPE_CHECKING:
    import onnx

# Least share of equal pixels, and largest difference of a score or CAM value.
EXACT = (0.999, 1e-3)
HALF = (0.995, 2e-2)
GRAPH, HALF_GRAPH = "model.onnx", "model.fp16.onnx"
CAM_NOISE_PEAK = 1e-2
GIVEN = ("classes", "palette", "input", "thresholds", "supervision", "source", "metrics")
Images = Sequence[npt.NDArray[np.uint8]]
Outputs = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Parity:
    """How far the graph is from PyTorch in float32, worst over all images.

    Attributes:
        images: images compared, the batch of two counted as two.
        max_abs_cam: largest difference of a CAM value; None for a segmenter. A map whose sum over
            the views peaks below 0.01 before its division counts in proportion: normalising blows
            its rounding noise up.
        equal_pixels: smallest share of equal label pixels in an image; None for a CAM graph.
        max_abs_scores: largest difference of an image score.
        close_confidence: smallest share of pixels whose confidence is at most 1 of 255 apart; None
        for a CAM graph.
    """

    images: int
    max_abs_cam: float | None
    equal_pixels: float | None
    max_abs_scores: float
    close_confidence: float | None

    def failures(self, limits: tuple[float, float] = EXACT) -> list[str]:
        """The figures above the limits, in words; a NaN fails."""
        min_equal, max_difference = limits
        failed = []
        for name, value in (("CAM", self.max_abs_cam), ("score", self.max_abs_scores)):
            if value is not None and not value <= max_difference:
                failed.append(f"largest {name} difference {value:.2g} (limit {max_difference:g})")
        for name, value in (
            ("label pixels equal", self.equal_pixels),
            ("confidence pixels close", self.close_confidence),
        ):
            if value is not None and not value >= min_equal:
                failed.append(f"{value:.3%} of {name} (limit {min_equal:.1%})")
        return failed


@dataclass(frozen=True)
class ExportReport:
    """What was published, where, and how close it, and its half-precision graph, are to the model
    it was made from.
    """

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
    """Publish a graph under ``repository/name/version``, after comparing it with PyTorch on
    ``images``.

    Args:
        graph_module: ``CamGraph`` or ``SegmenterGraph``; left unchanged, compared on CPU in
            float32.
        card_fields: classes, palette, input (limits), thresholds, supervision, source and metrics
            of the card; see ``card_from_manifest``.
        repository: the folder of models, made if need be.
        name: model name: letters, digits, ``_`` and ``-``, as Triton wants.
        images: real images, ``uint8 [H,W,3]`` RGB, compared each at its own size and once as a
            batch of two.
        version: an integer from 1; by default the next one. A published version is never
            overwritten.
        half: also write the graph with its network in float16, as ``model.fp16.onnx``.

    Raises:
        ConfigError: impossible name, version, images or card.
        ExportError: the network cannot be exported, the graph differs from PyTorch, or the disk
            refuses. Nothing is published then.
    """
    started = time.monotonic()
    check_request(graph_module, card_fields, name, images)
    version = free_version(repository / name, version)
    graph = copy.deepcopy(graph_module).cpu().float().eval()
    traced = to_onnx_with_half(graph) if half else (to_onnx(graph),)
    check_classes(traced[0], len(card_fields["classes"]))
    models = {file: model.SerializeToString() for file, model in zip((GRAPH, HALF_GRAPH), traced)}
    with writing(repository), staging(repository, name) as folder:
        place = folder / str(version)
        place.mkdir(parents=True)
        for file, model in models.items():
            (place / file).write_bytes(model)
        batches = batches_of(images)
        parities = {
            file: checked(compare(graph, place / file, batches), name, half=file == HALF_GRAPH)
            for file in models
        }
        golden = write_golden(place, graph, open_graph(place / GRAPH), card_fields["input"])
        digests = {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(place.iterdir())
        }
        figures = {file: asdict(parity) for file, parity in parities.items()}
        card = finished_card(graph, card_fields, name, version, digests, figures, golden)
        (place / "model.json").write_text(
            json.dumps(card, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        (folder / "config.pbtxt").write_text(
            triton_config(graph, name, len(card["classes"])), encoding="utf-8"
        )
        publish(folder, repository / name, version)
    path, seconds = repository / name / str(version), time.monotonic() - started
    return ExportReport(
        path, name, version, graph.kind, len(models[GRAPH]) / 1e6, seconds, *parities.values()
    )


def checked(parity: Parity, name: str, half: bool) -> Parity:
    """The figures, if they keep the limits of the graph or of its half-precision form.

    Raises:
        ExportError: they do not.
    """
    if failures := parity.failures(HALF if half else EXACT):
        raise ExportError(
            f"the {'float16 ' if half else ''}graph of {name!r} differs from PyTorch:"
            f" {'; '.join(failures)}",
            "the same result from both, up to rounding",
            (
                "leave --precision out: this network does not bear float16"
                if half
                else "a network with randomness or data-dependent branches cannot be exported"
            ),
        )
    return parity


def check_request(
    graph: PixelGraph, card_fields: Mapping[str, Any], name: str, images: Images
) -> None:
    """Refuse what cannot be exported before minutes are spent on it."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}", name):
        raise ConfigError(
            f"model name {name!r} is not allowed",
            "letters, digits, _ and -, starting with a letter or digit",
        )
    if missing := [field for field in GIVEN if field not in card_fields]:
        raise ConfigError(f"the card lacks {', '.join(missing)}", f"the fields {', '.join(GIVEN)}")
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
    """Refuse a card whose class table is not the network's."""
    (found,) = (
        o.type.tensor_type.shape.dim[1].dim_value for o in model.graph.output if o.name == "scores"
    )
    if found != classes:
        raise ConfigError(
            f"a card of {classes} classes for a network of {found}", "the classes it was trained on"
        )


def holds_model(folder: Path) -> bool:
    """Whether a folder holds a version that was published here."""
    return any(path.parent.name.isdecimal() for path in folder.glob("*/model.json"))


def free_version(model: Path, version: int | None) -> int:
    """``version`` if it is free, by default one above the highest that is there."""
    taken = {int(p.name) for p in model.glob("*") if re.fullmatch(r"0*[1-9][0-9]*", p.name)}
    if version is None:
        return max(taken, default=0) + 1
    if version < 1:
        raise ConfigError(f"version {version}", "an integer from 1")
    if version in taken:
        raise ConfigError(
            f"{model}/{version} is published already", "a new version", "leave --version out"
        )
    return version


@contextmanager
def writing(repository: Path) -> Iterator[None]:
    """Say what the disk refused, and how much room is left."""
    try:
        repository.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ExportError(
                f"no space left in {repository}", "room for the model", "free some and export again"
            ) from error
        raise ExportError(
            f"{repository} cannot be written: {error}", "a folder that may be written"
        ) from error


@contextmanager
def staging(repository: Path, name: str) -> Iterator[Path]:
    """A hidden folder on the repository's disk that vanishes whatever happens, Ctrl-C included."""
    with tempfile.TemporaryDirectory(
        dir=repository, prefix=f".{name}-", ignore_cleanup_errors=True
    ) as hidden:
        folder = Path(hidden) / name
        folder.mkdir()
        yield folder


def publish(folder: Path, model: Path, version: int) -> None:
    """Move a finished model into place: whole by one rename, or its version and then its
    ``config.pbtxt``.
    """
    try:
        if model.exists():
            os.rename(folder / str(version), model / str(version))
            os.replace(folder / "config.pbtxt", model / "config.pbtxt")
        else:
            os.rename(folder, model)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise ExportError(
                f"{model}/{version} was published by someone else meanwhile",
                "a free version",
                "export again",
            ) from error
        raise


def batches_of(images: Images) -> list[npt.NDArray[np.uint8]]:
    """Every image as a batch of one, and a batch of two: the first two of equal size, else one with
    its mirror image.
    """
    by_size: dict[tuple[int, ...], npt.NDArray[np.uint8]] = {}
    pair = np.stack([images[0], images[0][:, ::-1]])
    for image in images:
        if image.shape in by_size:
            pair = np.stack([by_size[image.shape], image])
            break
        by_size[image.shape] = image
    return [*(image[None] for image in images), pair]


def open_graph(path: Path) -> Any:
    """An onnxruntime CPU session that keeps its remarks to itself."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def compare(graph: PixelGraph, path: Path, batches: Sequence[npt.NDArray[np.uint8]]) -> Parity:
    """Run the file in onnxruntime and the module in PyTorch on the same batches.

    Raises:
        ExportError: the file does not load, or fails on a batch.
    """
    differences: dict[str, list[float]] = {"cam": [], "scores": [], "mask": [], "confidence": []}
    try:
        session = open_graph(path)
        for batch in batches:
            got = session.run(list(graph.outputs), {"image": batch})
            for key, values in difference(graph, batch, dict(zip(graph.outputs, got))).items():
                differences[key] += values
    except Exception as error:  # onnxruntime's errors have no base class but this
        raise ExportError(
            f"the exported graph does not run: {error}", "a result for every image"
        ) from error
    # NumPy's extremes, unlike Python's, let a NaN through to the verdict.
    return Parity(
        images=sum(map(len, batches)),
        max_abs_cam=float(np.max(differences["cam"])) if differences["cam"] else None,
        equal_pixels=min(differences["mask"]) if differences["mask"] else None,
        max_abs_scores=float(np.max(differences["scores"])),
        close_confidence=min(differences["confidence"]) if differences["confidence"] else None,
    )


def difference(
    graph: PixelGraph, batch: npt.NDArray[np.uint8], got: Outputs
) -> dict[str, list[float]]:
    """For each output one figure an image: largest difference, or share of equal (mask) or close
    (confidence) pixels.
    """
    image = torch.from_numpy(batch)
    with torch.inference_mode():
        results = [graph.run(view) for view in graph.views(image)]
        true = {k: v.numpy() for k, v in zip(graph.outputs, graph.after(image, results))}
        apart = {k: np.abs(got[k].astype(np.float64) - true[k]) for k in true}
        if isinstance(graph, CamGraph):
            peak = graph.merged(image, results).amax((2, 3), keepdim=True).numpy()
            apart["cam"] *= np.minimum(1, peak / CAM_NOISE_PEAK)
    rows = range(len(batch))
    figures = {
        k: [float(np.max(apart[k][i])) for i in rows] for k in ("cam", "scores") if k in apart
    }
    shares = {"mask": 0, "confidence": 1}
    return figures | {
        k: [float(np.mean(apart[k][i] <= far)) for i in rows]
        for k, far in shares.items()
        if k in apart
    }
