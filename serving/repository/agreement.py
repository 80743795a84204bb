"""How far two engines agree on a model: the share of pixels with the same label."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from PIL import Image

from serving.card import Card
from serving.engines import Engine
from serving.errors import EngineError
from serving.images import pipeline
from serving.images.decoding import Picture
from serving.images.options import options_for
from serving.repository.soundness import golden_image

# Share of equal pixels from which engines agree; bfloat16 alone changes a few at borders.
MIN_EQUAL = 0.995
SCENES = ((192, 256), (256, 192))
# Background threshold of a CAM model without one of its own.
BACKGROUND = 0.3


def agreement(card: Card, engine: Engine, exact: Engine) -> float:
    """Share of equal pixels in the masks of two engines, over the golden image and synthetic
    pictures.

    Maps of a CAM model, of all classes, become masks by its background threshold. A picture on
    which ``exact`` finds a single label says nothing about agreement and is not counted.

    Raises:
        OutputError: an engine breaks the card's promise, for example by numbers that are not
            finite.
        EngineError: every picture has a single label.
        Exception: whatever an engine raises.
    """
    if card.kind == "cam":
        ground = BACKGROUND if card.background_threshold is None else card.background_threshold
        options = options_for(card, score_threshold=0.0, background_threshold=ground)
    else:
        options = options_for(card)
    equal = total = 0
    for picture in pictures(card):
        canvas = pipeline.prepare(picture, card)
        one, other = (
            pipeline.segment(canvas, card, options, each.run).labels for each in (engine, exact)
        )
        if other.min() < other.max():
            equal += int((one == other).sum())
            total += one.size
    if not total:
        raise EngineError(
            "every comparison picture gets a single label",
            "a golden image with several classes",
            "export the model again: wsss-trainer export",
        )
    return equal / total


def pictures(card: Card) -> Iterator[Picture]:
    """The golden image of the model, if it has one, and the synthetic pictures."""
    if card.golden:
        yield Picture(golden_image(card), "RAW")
    yield from made_pictures()


def made_pictures() -> Iterator[Picture]:
    """Synthetic pictures, the same at every call: smooth patches, edges and grain."""
    for seed, (height, width) in enumerate(SCENES):
        yield Picture(scene(height, width, seed), "RAW")


def scene(height: int, width: int, seed: int) -> npt.NDArray[np.uint8]:
    """uint8 [height,width,3] of patches at three scales, with a darker right half."""
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width, 3), np.float32)
    for cells, weight in ((4, 0.5), (16, 0.3), (64, 0.2)):
        small = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        total += weight * np.asarray(
            small.resize((width, height), Image.Resampling.BICUBIC), np.float32
        )
    total[:, width // 2 :] *= 0.6
    return total.astype(np.uint8)
