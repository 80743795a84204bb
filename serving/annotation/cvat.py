"""A function for CVAT's automatic annotation, which asks a running server of ours for the masks.

    cvat-cli task auto-annotate 7 --function-module serving.annotation.cvat -p model=str:photos

``cvat-cli`` and ``cvat-sdk`` are CVAT's own packages. A token for our server is read from the
variable WSSS_TOKEN, since command lines are visible to everybody on a machine.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from serving.annotation.outlines import editable
from serving.client import Client, Segmentation, credentials
from serving.errors import FieldError, nearest
from serving.images.encodings import uncompressed_counts


def create(
    address: str = "127.0.0.1:8500",
    model: str = "",
    classes: str = "",
    simplify: float = 1.0,
    timeout: float = 60.0,
    tls_ca: str = "",
) -> Function:
    """The function, as ``cvat-cli`` asks for it.

    Args:
        address: of the server.
        model: its name; empty is the only one.
        classes: to annotate, with commas between them; empty for all of the model.
        simplify: pixels that a polygon may stray from the mask, where CVAT asks for polygons.
        timeout: seconds for an image.
        tls_ca: PEM file of the authority of the server's certificate.

    Raises:
        RequestError: the server cannot be reached, or has no such model or class.
        OSError: the PEM file cannot be read.
    """
    tls = credentials(tls_ca) if tls_ca else None
    client = Client(address, timeout=timeout, token=os.environ.get("WSSS_TOKEN", ""), tls=tls)
    return Function(
        client, model, tuple(name.strip() for name in classes.split(",") if name.strip()), simplify
    )


class Function:
    """A detection function of CVAT's SDK.

    Attributes:
        spec: the labels that it gives.
    """

    def __init__(
        self, client: Client, model: str, classes: tuple[str, ...], tolerance: float
    ) -> None:
        import cvat_sdk.auto_annotation as cvat

        self._cvat, self._client, self._model, self._tolerance = cvat, client, model, tolerance
        card = client.get_model(model)
        names = [label.name for label in card.labels][1:]
        for name in classes:
            if name not in names:
                raise FieldError(f"no class {name!r}", nearest(name, names), field="classes")
        self._classes = classes
        labels = [
            # CVAT itself takes this for "polygon" where it asks for polygons.
            cvat.label_spec(name, number, type="mask")
            for number, name in enumerate(names, 1)
            if not classes or name in classes
        ]
        self.spec = cvat.DetectionFunctionSpec(labels=labels)

    def detect(self, context: Any, image: Any) -> list[Any]:
        """The mask of an image: one shape a class, or one polygon an object.

        Args:
            context: what CVAT wants: polygons or not, and the least score of a class.
            image: of Pillow, as CVAT decoded it.
        """
        pixels = np.asarray(image.convert("RGB"))
        result = self._client.segment(pixels, self._model, classes=self._classes)
        least = context.conf_threshold or 0.0
        present = [name for name in result.present if result.scores[name] >= least]
        if context.conv_mask_to_poly:
            lines = editable(result.mask, self._tolerance)
            return [
                self._cvat.polygon(number, [float(value) for point in ring for value in point])
                for number in (result.labels[name] for name in present)
                for ring in lines.get(number, [])
            ]
        return [self._cvat.mask(result.labels[name], mask_points(result, name)) for name in present]


def mask_points(result: Segmentation, name: str) -> list[float]:
    """A class as CVAT writes masks: run lengths inside of its box, and the corners of the box."""
    left, top, width, height = result.boxes[name]
    box = result.mask[top : top + height, left : left + width]
    counts = uncompressed_counts((box == result.labels[name]).reshape(-1))
    return [*counts, left, top, left + width - 1, top + height - 1]
