"""The shapes that TensorRT builds for: a profile per frequent size, and one for all other sizes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from serving.card import Card
from serving.engines import Plan, TensorSpec
from serving.errors import EngineError

Shape = tuple[int, ...]
Shapes = dict[str, Shape]
USUAL_SIDE = 512


@dataclass(frozen=True)
class Profile:
    """Smallest, most frequent and largest shape of each input."""

    low: Shapes
    best: Shapes
    high: Shapes

    def takes(self, shapes: Mapping[str, Shape]) -> bool:
        """Whether inputs of these shapes can run with it."""
        return shapes.keys() == self.low.keys() and all(
            len(shape) == len(self.low[name])
            and all(map(_between, self.low[name], shape, self.high[name]))
            for name, shape in shapes.items()
        )


def profiles(card: Card, inputs: Iterable[TensorSpec], plan: Plan) -> list[Profile]:
    """One per size of the plan, then one for everything that the card allows.

    Raises:
        EngineError: a tensor model has free axes besides the batch.
    """
    if card.kind == "tensor":
        return [_tensor_profile(card, tuple(inputs), plan)]
    usual = min(max(USUAL_SIDE, card.min_side), card.max_side)
    sizes = [size for size in plan.sizes if max(size) <= card.max_side]
    best = sizes[0] if sizes else (usual, usual)
    batch = plan.max_batch
    exact = [
        Profile(_image(1, *size), _image(batch, *size), _image(batch, *size))
        for size in dict.fromkeys(sizes)
    ]
    low, high = (card.min_side,) * 2, (card.max_side,) * 2
    return [*exact, Profile(_image(1, *low), _image(batch, *best), _image(batch, *high))]


def choose_profile(profiles: Iterable[Profile], shapes: Mapping[str, Shape]) -> int | None:
    """Index of the first profile that takes these shapes; exact ones come first."""
    return next((index for index, profile in enumerate(profiles) if profile.takes(shapes)), None)


def _tensor_profile(card: Card, inputs: tuple[TensorSpec, ...], plan: Plan) -> Profile:
    free = [spec.name for spec in inputs if -1 in spec.shape[1:]]
    if free:
        raise EngineError(
            f"{card.name} has free axes besides the batch in {', '.join(free)}",
            "fixed sizes, which TensorRT plans for",
            "engine.models in the settings gives this model another engine",
        )
    low, high = (
        {spec.name: (count, *spec.shape[1:]) for spec in inputs} for count in (1, plan.max_batch)
    )
    return Profile(low, high, high)


def _image(batch: int, height: int, width: int) -> Shapes:
    return {"image": (batch, height, width, 3)}


def _between(low: int, value: int, high: int) -> bool:
    return low <= value <= high
