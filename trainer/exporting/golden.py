"""One made image and what the exported graph says of it, published beside the graph.

A server runs the image before it serves the model: a graph that is damaged, or an engine that computes something else, is
found then. The image is made, not one of the data set, which may not be passed on.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from trainer.exporting.graphs import PixelGraph

IMAGE, OUTPUT = "golden_image.png", "golden_output.png"
SIZE = (96, 128)


def golden_image(limits: Mapping[str, int]) -> npt.NDArray[np.uint8]:
    """uint8 [H,W,3]: blobs of several sizes, the same every time, of 96x128 or what the model's limits leave of it."""
    low, high = limits["min_side"], limits["max_side"]
    height, width = (min(max(side, low), high) for side in SIZE)
    if height * width > limits["max_pixels"]:
        height = width = low
    rng = np.random.default_rng(0)
    layers = [rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8) for cells in (3, 6, 24)]
    resized = [np.asarray(Image.fromarray(layer).resize((width, height), Image.Resampling.BICUBIC)) for layer in layers]
    image: npt.NDArray[np.uint8] = np.mean(resized, axis=0).round().astype(np.uint8)
    return image


def write_golden(folder: Path, graph: PixelGraph, session: Any, limits: Mapping[str, int]) -> dict[str, Any]:
    """Run the image and write it and its output as PNG files.

    Args:
        folder: of the version.
        graph: of the file.
        session: the file in onnxruntime.
        limits: ``min_side``, ``max_side`` and ``max_pixels`` of the card.

    Returns:
        The card's ``golden``: names of both files, and the scores. The output of a segmenter is its mask, grey [H,W]; that
        of a CAM model its maps as 0 to 255, the classes one below the other, grey [K*h,w].
    """
    image = golden_image(limits)
    got = dict(zip(graph.outputs, session.run(list(graph.outputs), {"image": image[None]})))
    if graph.kind == "segmenter":
        output = got["mask"][0]
    else:
        output = np.rint(255 * np.clip(got["cam"][0], 0, 1)).astype(np.uint8).reshape(-1, got["cam"].shape[3])
    Image.fromarray(image).save(folder / IMAGE)
    Image.fromarray(output).save(folder / OUTPUT)
    return {"image": IMAGE, "output": OUTPUT, "scores": [round(float(score), 6) for score in got["scores"][0]]}
