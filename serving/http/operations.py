"""The paths that take an image: their options, and the message that a request stands for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from serving.errors import FieldError, nearest
from serving.http import shapes
from wsss.v1 import segmentation_pb2 as pb

# Set from the path and the body.
OUTSIDE = ("image", "model")
# ``format`` is the reply's.
RENAMED = {"format": "cam_format"}


@dataclass
class Wish:
    """What a caller wants.

    Attributes:
        message: the request without image and model.
        format: of the reply; empty leaves the choice to the ``Accept`` header.
        seconds: that the caller waits; None for ever.
    """

    message: Any
    format: str = ""
    seconds: float | None = None


@dataclass(frozen=True)
class Operation:
    """A call of the protocol as a path.

    Attributes:
        request, reply: classes of its messages.
        formats: of the reply, with their media types; the first is the default.
        names: options that are fields of ``request``, each with its field.
    """

    summary: str
    request: Callable[..., Any]
    reply: Callable[..., Any]
    formats: dict[str, str]
    names: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        fields = (one.name for one in self.request().DESCRIPTOR.fields)
        names = {RENAMED.get(name, name): name for name in fields if name not in OUTSIDE}
        object.__setattr__(self, "names", names)

    def read(self, items: Sequence[tuple[str, str]]) -> Wish:
        """The wish in names and values.

        Raises:
            FieldError: an unknown option, one that is given twice, or a wrong value.
        """
        wish = Wish(self.request())
        rest = []
        for name, text in items:
            if name not in ("format", "timeout"):
                rest.append((name, text))
            elif name == "timeout":
                wish.seconds = _seconds(text)
            elif text in self.formats:
                wish.format = text
            else:
                raise FieldError(f"format is {text!r}", nearest(text, self.formats), field=name)
        try:
            shapes.fill(wish.message, rest, self.names)
        except FieldError as error:
            if error.field in self.names:
                raise
            options = ("format", "timeout", *self.names)
            raise FieldError(
                error.found, nearest(error.field, options), field=error.field
            ) from None
        return wish

    def accepted(self, header: str) -> str:
        """The format for an ``Accept`` header: of the media type that it weighs most, the first of
        those that weigh the same, and the default if it names none of them.
        """
        weights = [_weight(part) for part in header.lower().split(",")]
        refused = {kind for kind, weight in weights if not weight}
        for kind, _ in sorted(weights, key=lambda one: one[1], reverse=True):
            for name, media_type in self.formats.items():
                wanted = kind in (media_type, f"{media_type.partition('/')[0]}/*", "*/*")
                if wanted and not {kind, media_type} & refused:
                    return name
        return next(iter(self.formats))


def _weight(part: str) -> tuple[str, float]:
    """A media type of an ``Accept`` header, and its weight."""
    kind, *parameters = (word.strip() for word in part.split(";"))
    text = next((one[2:] for one in parameters if one.startswith("q=")), "1")
    try:
        return kind, float(text)
    except ValueError:
        return kind, 1.0


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise FieldError(f"timeout is {text!r}", "seconds above 0", field="timeout")
    return seconds


SEGMENT = Operation(
    "The mask of an image",
    pb.SegmentRequest,
    pb.SegmentResponse,
    {"png": "image/png", "json": "application/json", "overlay": "image/png"},
)
CAM = Operation(
    "The class activation maps of an image",
    pb.ComputeCamRequest,
    pb.ComputeCamResponse,
    {"json": "application/json", "overlay": "image/png"},
)
