"""A data set whose masks are drawn from COCO annotations when they are read."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from trainer.data.coco.outlines import Shape
from trainer.data.dataset import Dataset, Record
from trainer.data.pixels import image_size
from trainer.errors import DataError

SAME_SIZE = "a JSON whose width and height are those of the image after its EXIF rotation"


@dataclass(frozen=True)
class CocoDataset(Dataset):
    """A data set of COCO annotations.

    Attributes:
        shapes: by id, what the mask is painted from.
        empty: by list, how many images of the JSON have no annotation.
    """

    shapes: dict[str, Shape] = field(default_factory=dict, repr=False)
    empty: dict[str, int] = field(default_factory=dict)

    def has_mask(self, record: Record) -> bool:
        """Whether every object of the image has an outline; without objects it is background."""
        return record.id in self.shapes

    def is_blank(self, record: Record) -> bool:
        """Never: an image without any object is drawn, and a crowd without an outline gives its
        image no tag.
        """
        return False

    def mask_size(self, record: Record) -> tuple[int, int] | None:
        """Height and width of the image in the JSON; None where it has none."""
        shape = self.shapes.get(record.id)
        return shape.size if shape else None

    def mask_source(self, record: Record) -> bytes:
        """The outlines that the mask is painted from; empty without one."""
        shape = self.shapes.get(record.id)
        return repr(shape).encode() if shape else b""

    def read_mask(self, record: Record) -> npt.NDArray[np.uint8]:
        """Label map ``uint8 [H,W]``: annotations in file order, later ones on top.

        Raises:
            DataError: an object without an outline, an outline that cannot be drawn, an unreadable
                image, or one of another size than the JSON says.
        """
        if record.id not in self.shapes:
            raise DataError(
                f"image {record.id!r} has objects without an outline",
                "a segmentation for every annotation",
            )
        shape, (height, width) = self.shapes[record.id], image_size(record.image)
        # Outlines are in pixels of the stated size. On an image of another size they would lie
        # elsewhere.
        if shape.size is not None and shape.size != (height, width):
            text = "x".join(map(str, reversed(shape.size)))
            raise DataError(
                f"{record.image} has {width}x{height} pixels, its JSON says {text}",
                SAME_SIZE,
                "correct width, height and outlines in the JSON, or bring the image that they"
                " belong to",
            )
        try:
            return shape.draw(height, width)
        except ValueError as error:
            raise DataError(
                f"the outlines of image {record.id!r} cannot be drawn: {error}",
                "COCO polygons or run lengths",
            ) from error
