"""What the samples of a method carry besides image and tags."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy.typing as npt

from trainer.data.dataset import Record

Array = npt.NDArray[Any]


def unchanged(array: Array) -> Array:
    """The array itself."""
    return array


@dataclass(frozen=True)
class Input:
    """One further entry of a sample. Loader processes read it, so its functions can be pickled.

    Attributes:
        read: record -> its value, any array; ``uint16 [H,W]`` where it follows the image.
        follows_image: the value is resized (nearest neighbour), flipped and cut as the image is,
            and is 0 outside of it.
        finish: value of the sample, after the cut -> what the batch carries.
        make: called with records and ``workers=`` before the training, to write the files that
            ``read`` reads; None where there is nothing to write.
        tagged_only: images without a tag have no value, so that they do not train.
    """

    read: Callable[[Record], Array]
    follows_image: bool = False
    finish: Callable[[Array], Array] = unchanged
    make: Callable[..., None] | None = None
    tagged_only: bool = False


NO_INPUTS: Mapping[str, Input] = MappingProxyType({})
