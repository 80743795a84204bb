"""Whether a loaded model keeps its card's promise: names and types, a run on its golden image, and
runs at every planned size.

Checked in a trial process before a model is served (:mod:`serving.repository.trial`), and again
where it is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import cast

import numpy as np
import numpy.typing as npt

from serving.card import HINT, Card
from serving.config import Limits
from serving.engines import Engine, Inputs, Outputs, check_outputs
from serving.errors import ConfigError, OutputError, RepositoryError, RequestError
from serving.images import buckets, masks
from serving.images.decoding import decode
from serving.images.pipeline import model_size

# Engines round differently, above all in bfloat16, and rounding decides pixels where two classes
# are about equal: some two percent of a golden image. A damaged graph gives an entirely different
# picture.
MIN_EQUAL = 0.9
MAX_SCORE_DIFFERENCE = 0.1
MAX_LEVELS = 3
SLACK = 1e-3


def check_promise(card: Card, engine: Engine) -> None:
    """Check a graph's inputs and outputs, and its answer to the golden image.

    A model without a golden image runs on a grey one of its smallest size, with results that must
    be finite and in range. The values of a tensor model are unknown.

    Raises:
        RepositoryError: the promise is broken, or the run fails.
    """
    where = card.graph_path
    if card.kind == "tensor":
        _check_batch_axes(card, engine)
        return
    inputs = [(spec.name, spec.dtype) for spec in engine.inputs]
    names = sorted(spec.name for spec in engine.outputs)
    if inputs != [("image", "uint8")] or not card.outputs.keys() <= set(names):
        raise RepositoryError(
            f"{where} has the inputs {inputs} and outputs {names}",
            f"the input 'image' of uint8 and the outputs {list(card.outputs)}",
            HINT,
        )
    image = golden_image(card)
    tall, wide = image.shape[:2]
    outputs = _run(card, engine, {"image": image[None]}, f"an image of {tall}x{wide}")
    try:
        check_outputs(card, outputs, 1, tall, wide)
        values, scores = _values(card, outputs)
    except OutputError as error:
        raise RepositoryError(f"{where}: {error.found}", error.expected, HINT) from error
    if card.golden:
        _compare(card, values, scores)


def golden_image(card: Card) -> npt.NDArray[np.uint8]:
    """uint8 [H,W,3] of the golden image, or grey in the smallest size.

    Raises:
        RepositoryError: it cannot be read, or the model does not take its size.
    """
    if not card.golden:
        return np.full((card.min_side, card.min_side, 3), 128, np.uint8)
    path = card.folder / card.golden.image
    try:
        image = decode(path.read_bytes(), Limits()).pixels
    except (OSError, RequestError) as error:
        raise RepositoryError(f"{path} cannot be read: {error}", "an RGB PNG", HINT) from error
    height, width = image.shape[:2]
    # The image goes to the graph as it is: the wanted size is for photographs.
    if model_size(height, width, replace(card, side=0)) != (height, width):
        raise RepositoryError(f"{path} is {height}x{width}", "a size that the model takes", HINT)
    return image


def warm_up(card: Card, engine: Engine, sizes: Iterable[str], bucket: int, max_batch: int) -> None:
    """Run every size with every batch up to ``max_batch``, so that no request is the first of its
    kind.

    Args:
        sizes: as ``HEIGHTxWIDTH``, besides the smallest of the card and those that it lists.

    Raises:
        ConfigError: a malformed size.
        RepositoryError: a run fails.
    """
    for inputs in warm_inputs(card, engine, sizes, bucket):
        for batch in range(1, max_batch + 1):
            stack = {name: values.repeat(batch, axis=0) for name, values in inputs.items()}
            shapes = ", ".join(f"{name} {list(values.shape)}" for name, values in stack.items())
            _run(card, engine, stack, shapes)


def warm_inputs(card: Card, engine: Engine, sizes: Iterable[str], bucket: int) -> Iterator[Inputs]:
    """One request of zeros for each distinct shape."""
    candidates = [dict(shapes) for shapes in card.warm]
    if card.kind == "tensor":
        static = {spec.name: spec.shape[1:] for spec in engine.inputs}
        candidates += [static] if all(-1 not in shape for shape in static.values()) else []
    else:
        smallest = _bucketed(card.min_side, card.min_side, bucket, card)
        sides = (smallest, *warm_sizes(card, sizes, bucket))
        candidates += [{"image": (*side, 3)} for side in sides]
    seen: list[dict[str, tuple[int, ...]]] = []
    for shapes in candidates:
        if shapes not in seen and shapes.keys() == {spec.name for spec in engine.inputs}:
            seen.append(shapes)
            yield {
                spec.name: np.zeros((1, *shapes[spec.name]), spec.dtype) for spec in engine.inputs
            }


def warm_sizes(card: Card, sizes: Iterable[str], bucket: int) -> list[tuple[int, int]]:
    """Heights and widths at which the model sees images of ``sizes``; empty for a tensor model.

    Raises:
        ConfigError: a malformed size.
    """
    if card.kind == "tensor":
        return []
    return [_bucketed(*read_size(size), bucket, card) for size in sizes]


def read_size(text: str) -> tuple[int, int]:
    """Height and width of ``HEIGHTxWIDTH``.

    Raises:
        ConfigError: another form.
    """
    match = re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})", text)
    if not match:
        raise ConfigError(f"schedule.warm has {text!r}", "HEIGHTxWIDTH, as in 375x500")
    return int(match[1]), int(match[2])


def _bucketed(height: int, width: int, bucket: int, card: Card) -> tuple[int, int]:
    try:
        return buckets.bucket_size(*model_size(height, width, card), bucket, card)
    except RequestError as error:
        raise ConfigError(
            f"schedule.warm has {height}x{width}: {error.found}", error.expected
        ) from error


def _run(card: Card, engine: Engine, inputs: Inputs, what: str) -> Outputs:
    try:
        return engine.run(inputs)
    # Each inference library raises exception types of its own.
    except Exception as error:
        raise RepositoryError(
            f"{card.graph_path} fails on {what}: {error}", "a run without error", HINT
        ) from error


def _check_batch_axes(card: Card, engine: Engine) -> None:
    static = [
        spec for spec in (*engine.inputs, *engine.outputs) if not spec.shape or spec.shape[0] != -1
    ]
    if static or not engine.inputs or not engine.outputs:
        names = ", ".join(f"{spec.name} {list(spec.shape)}" for spec in static)
        raise RepositoryError(
            f"{card.graph_path} has tensors without a free batch axis:"
            f" {names or 'it has no input or output'}",
            "inputs and outputs whose first axis is a batch of any size",
            "export the graph with a dynamic first axis",
        )


def _values(card: Card, outputs: Outputs) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """The outputs as a golden file holds them, and the scores, with the doubt as the last one.

    Raises:
        OutputError: not finite, or out of range.
    """
    scores = _in_range(card, "scores", outputs)
    if card.kind == "cam":
        maps = np.rint(255 * np.clip(_in_range(card, "cam", outputs), 0, 1)).astype(np.uint8)
        return maps.reshape(-1, maps.shape[2]), scores
    labels = cast("npt.NDArray[np.uint8]", outputs["mask"])[0]
    if labels.max() > len(card.classes):
        raise OutputError(
            f"a mask of {card.name} has the label {int(labels.max())}", f"0 to {len(card.classes)}"
        )
    if card.gives_doubt:
        scores = np.concatenate([scores, _in_range(card, "doubt", outputs)])
    return labels, scores


def _in_range(card: Card, name: str, outputs: Outputs) -> npt.NDArray[np.float32]:
    values: npt.NDArray[np.float32] = cast("npt.NDArray[np.float32]", outputs[name])[0]
    low, high = float(values.min()), float(values.max())
    # A NaN fails this comparison, too.
    if not (low >= -SLACK and high <= 1 + SLACK):
        raise OutputError(
            f"{name} of {card.name} are {low:.3g} to {high:.3g}", "finite numbers of 0 to 1"
        )
    return values


def _compare(card: Card, values: npt.NDArray[np.uint8], scores: npt.NDArray[np.float32]) -> None:
    assert card.golden
    path = card.folder / card.golden.output
    try:
        golden = masks.read_png(path.read_bytes())
    except (OSError, ValueError) as error:
        raise RepositoryError(f"{path} cannot be read: {error}", "a grey PNG", HINT) from error
    if golden.shape != values.shape:
        raise RepositoryError(
            f"{path} is {list(golden.shape)}", f"{list(values.shape)}, as the graph gives", HINT
        )
    apart = np.abs(golden.astype(np.int16) - values)
    equal = float((apart <= (0 if card.kind == "segmenter" else MAX_LEVELS)).mean())
    golden_scores = card.golden.scores
    if card.golden.doubt is not None:
        golden_scores = (*golden_scores, card.golden.doubt)
    worst = _worst(scores[: len(golden_scores)], golden_scores)
    if equal < MIN_EQUAL or not worst <= MAX_SCORE_DIFFERENCE:
        raise RepositoryError(
            f"{card.graph_path} matches {equal:.1%} of its golden output, and its scores are up to"
            f" {worst:.3f} off",
            f"at least {MIN_EQUAL:.1%}, and scores within {MAX_SCORE_DIFFERENCE}",
            HINT,
        )


def _worst(scores: npt.NDArray[np.float32], golden: Sequence[float]) -> float:
    return float(np.abs(scores - np.asarray(golden)).max())
