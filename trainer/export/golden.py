"""A synthetic image and the exported graph's output for it, published beside the graph.

A server runs the image before it serves the model, and so detects a damaged graph or an engine that
computes something else. The image is synthetic because images of the data set may be private. A
trained segmenter takes any synthetic image for background, which would prove nothing, so its pixels
are moved until it sees several classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image

from trainer.nets.graphs import SegmenterGraph
from trainer.nets.pixel_graph import PixelGraph

IMAGE, OUTPUT = "golden_image.png", "golden_output.png"
SIZE = (96, 128)
# Regions of the image, each with a label to see; number of moves of all pixels, and their length in
# levels of 255.
REGIONS = (3, 4)
STEPS, STEP = 60, 2.0


def golden_image(limits: Mapping[str, int]) -> npt.NDArray[np.uint8]:
    """uint8 [H,W,3]: blobs of several sizes, always the same, of 96x128 where the limits allow."""
    low, high = limits["min_side"], limits["max_side"]
    height, width = (min(max(side, low), high) for side in SIZE)
    if height * width > limits["max_pixels"]:
        height = width = low
    # Always the same image, so that only the graph can change the output.
    rng = np.random.default_rng(0)
    layers = [rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8) for cells in (3, 6, 24)]
    views = [
        np.asarray(Image.fromarray(layer).resize((width, height), Image.Resampling.BICUBIC))
        for layer in layers
    ]
    image: npt.NDArray[np.uint8] = np.mean(views, axis=0).round().astype(np.uint8)
    return image


def with_labels(image_HW3: npt.NDArray[np.uint8], graph: SegmenterGraph) -> npt.NDArray[np.uint8]:
    """The image, uint8 [H,W,3], moved until the segmenter sees a label in each of twelve regions.

    Signed gradient descent on the pixels (Goodfellow et al., ICLR 2015, in steps) of the
    cross-entropy to those labels. It need not reach them all.
    """

    def logits(pixels_1HW3: torch.Tensor) -> torch.Tensor:
        # Of the image itself, without its mirror image.
        return graph.run(graph.views(pixels_1HW3)[0])[0][:1]

    pixels_1HW3 = torch.from_numpy(image_HW3[None].astype(np.float32))
    _, count, *size = logits(pixels_1HW3).shape
    labels = np.resize(np.random.default_rng(0).permutation(count), REGIONS).astype(np.float32)
    target_1hw = F.interpolate(torch.from_numpy(labels)[None, None], size=size)[0].long()
    for _ in range(STEPS):
        with torch.enable_grad():
            pixels_1HW3.requires_grad_()
            loss = F.cross_entropy(logits(pixels_1HW3), target_1hw)
            (slope,) = torch.autograd.grad(loss, pixels_1HW3)
        pixels_1HW3 = (pixels_1HW3.detach() - STEP * slope.sign()).clamp(0, 255)
    image: npt.NDArray[np.uint8] = pixels_1HW3[0].round().to(torch.uint8).numpy()
    return image


def write_golden(
    folder: Path, graph: PixelGraph, session: Any, limits: Mapping[str, int]
) -> dict[str, Any]:
    """Run the image, and write it and its output as PNG files.

    Args:
        folder: of the version.
        graph: of the file.
        session: the file in onnxruntime.
        limits: ``min_side``, ``max_side`` and ``max_pixels`` of the card.

    Returns:
        The card's ``golden``: names of both files, the scores and perhaps the doubt. The output of
        a segmenter is its mask, grey [H,W]; that of a CAM model its maps as 0 to 255, the classes
        one below the other, grey [K*h,w].
    """
    image = golden_image(limits)
    if isinstance(graph, SegmenterGraph):
        image = with_labels(image, graph)
    results = dict(zip(graph.outputs, session.run(list(graph.outputs), {"image": image[None]})))
    if graph.kind == "segmenter":
        output = results["mask"][0]
    else:
        levels = np.rint(255 * np.clip(results["cam"][0], 0, 1)).astype(np.uint8)
        output = levels.reshape(-1, levels.shape[2])
    Image.fromarray(image).save(folder / IMAGE)
    Image.fromarray(output).save(folder / OUTPUT)
    doubt = {"doubt": round(float(results["doubt"][0, 0]), 6)} if "doubt" in results else {}
    return {
        "image": IMAGE,
        "output": OUTPUT,
        "scores": [round(float(score), 6) for score in results["scores"][0]],
        **doubt,
    }
