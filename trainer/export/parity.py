"""How far an exported graph is from PyTorch: onnxruntime and the module on the same images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from trainer.errors import ExportError
from trainer.nets.graphs import CamGraph, SegmenterGraph
from trainer.nets.pixel_graph import PixelGraph

# Smallest share of equal pixels, and largest difference of a score or CAM value, of the graph and
# of its half-precision form.
# Near-ties of two labels may fall to either side by rounding, so not every pixel must agree.
EXACT = (0.999, 1e-3)
# float16 has 11 significant bits, so more pixels lie within rounding of a tie.
HALF = (0.995, 2e-2)
CAM_NOISE_PEAK = 1e-2
Images = Sequence[npt.NDArray[np.uint8]]
Outputs = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Parity:
    """How far the graph is from PyTorch in float32, worst over all images.

    Attributes:
        images: number of images; the batch of two counts as two.
        max_abs_cam: largest difference of a CAM value; None for a segmenter. Where the sum of a map
            over the views peaks below 0.01, the difference counts in proportion, because
            normalisation amplifies its rounding noise.
        equal_pixels: smallest share of equal label pixels in an image; None for a CAM graph.
        max_abs_scores: largest difference of an image score.
        close_confidence: smallest share of pixels whose confidence is at most 1 of 255 apart; None
            for a CAM graph.
        max_abs_doubt: largest difference of the doubt of an image; None for a graph without it.
    """

    images: int
    max_abs_cam: float | None
    equal_pixels: float | None
    max_abs_scores: float
    close_confidence: float | None
    max_abs_doubt: float | None = None

    def failures(self, limits: tuple[float, float] = EXACT) -> list[str]:
        """The figures beyond the limits, in words; a NaN fails."""
        min_equal, max_difference = limits
        texts = []
        # Written as "not within", which a NaN is.
        for name, value in (
            ("CAM", self.max_abs_cam),
            ("score", self.max_abs_scores),
            ("doubt", self.max_abs_doubt),
        ):
            if value is not None and not value <= max_difference:
                texts.append(f"largest {name} difference {value:.2g} (limit {max_difference:g})")
        for name, value in (
            ("label pixels equal", self.equal_pixels),
            ("confidence pixels close", self.close_confidence),
        ):
            if value is not None and not value >= min_equal:
                texts.append(f"{value:.3%} of {name} (limit {min_equal:.1%})")
        return texts


def checked(parity: Parity, name: str, half: bool) -> Parity:
    """``parity``, if it is within the limits of the graph or of its half-precision form.

    Raises:
        ExportError: it is not.
    """
    if failures := parity.failures(HALF if half else EXACT):
        hint = "a network with randomness or data-dependent branches cannot be exported"
        if half:
            hint = "leave --precision out: the network is too inexact in float16"
        raise ExportError(
            f"the {'float16 ' if half else ''}graph of {name!r} differs from PyTorch:"
            f" {'; '.join(failures)}",
            "the same result from both, up to rounding",
            hint,
        )
    return parity


def batches_of(images: Images) -> list[npt.NDArray[np.uint8]]:
    """Every image as a batch of one, and one batch of two.

    The two are the first ones of equal size, or else an image and its mirror image.
    """
    by_size: dict[tuple[int, ...], npt.NDArray[np.uint8]] = {}
    # Two different images: a graph that gave the first result to both would be noticed.
    pair = np.stack([images[0], images[0][:, ::-1]])
    for image in images:
        if image.shape in by_size:
            pair = np.stack([by_size[image.shape], image])
            break
        by_size[image.shape] = image
    return [*(image[None] for image in images), pair]


def open_graph(path: Path) -> Any:
    """An onnxruntime CPU session without log messages."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # Only fatal messages: its errors are raised as well.
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def compare(graph: PixelGraph, path: Path, batches: Sequence[npt.NDArray[np.uint8]]) -> Parity:
    """Run the file in onnxruntime and the module in PyTorch on the same batches.

    Raises:
        ExportError: the file does not load, or fails on a batch.
    """
    differences: dict[str, list[float]] = {
        key: [] for key in ("cam", "scores", "mask", "confidence", "doubt")
    }
    try:
        session = open_graph(path)
        for batch in batches:
            results = session.run(list(graph.outputs), {"image": batch})
            for key, values in difference(graph, batch, dict(zip(graph.outputs, results))).items():
                differences[key] += values
    # The errors of onnxruntime have no other base class.
    except Exception as error:
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
        max_abs_doubt=float(np.max(differences["doubt"])) if differences["doubt"] else None,
    )


def difference(
    graph: PixelGraph, batch: npt.NDArray[np.uint8], outputs: Outputs
) -> dict[str, list[float]]:
    """One figure per output and image.

    It is the largest difference of CAM values, scores and doubt, and the share of equal (mask) or
    close (confidence) pixels.
    """
    image = torch.from_numpy(batch)
    with torch.inference_mode():
        results = [graph.run(view) for view in graph.views(image)]
        tensors = graph.after(image, results)
        if isinstance(graph, SegmenterGraph):
            # By the file's own scores: a score that rounding moves over its threshold changes the
            # whole mask, and is an error of the score only.
            scores, logits = torch.from_numpy(outputs["scores"]), [result[0] for result in results]
            mask, _, *others = graph.finished(image, logits, scores)
            tensors = mask, tensors[1], *others
        truth = {k: v.numpy() for k, v in zip(graph.outputs, tensors)}
        gaps = {k: np.abs(outputs[k].astype(np.float64) - truth[k]) for k in truth}
        if isinstance(graph, CamGraph):
            peak = graph.merged(image, results).amax((2, 3), keepdim=True).numpy()
            gaps["cam"] *= np.minimum(1, peak / CAM_NOISE_PEAK)
    figures = {}
    for key, gap in gaps.items():
        if key in ("cam", "scores", "doubt"):
            figures[key] = [float(np.max(part)) for part in gap]
        else:
            limit = {"mask": 0, "confidence": 1}[key]
            figures[key] = [float(np.mean(part <= limit)) for part in gap]
    return figures
