"""Many images over one stream: the client's half of ``SegmentStream``, without the waiting, which
each client does its way.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any

from serving.client import results
from serving.client.results import ImageLike, Segmentation, SegmentWishes
from serving.errors import ImageError, RequestError, RetryLater, ServerUnavailable
from serving.listing import list_images
from serving.rpc import status
from wsss.v1 import segmentation_pb2 as pb

Result = tuple[Hashable, Segmentation | RequestError]


class Bulk:
    """What was sent and not answered yet, kept to be sent again if the connection or the server
    goes away.

    Args:
        model: name; empty for the only segmenter.
        wishes: for every image.
        timeout: seconds for each image, from its arrival at the server.
        in_flight: images sent and not answered yet, at most.
        in_order: whether answers come in the order of the images.
    """

    def __init__(
        self, model: str, wishes: SegmentWishes, timeout: float, in_flight: int, in_order: bool
    ) -> None:
        self._model, self._wishes, self._timeout = model, wishes, timeout
        self._in_flight, self._in_order = in_flight, in_order
        self._waiting: dict[str, tuple[Hashable, Any]] = {}
        self._numbers = itertools.count()

    @property
    def full(self) -> bool:
        """Whether an answer must come before the next image is sent."""
        return len(self._waiting) >= self._in_flight

    @property
    def idle(self) -> bool:
        """Whether no answer is due."""
        return not self._waiting

    def opening(self) -> list[Any]:
        """What a new stream begins with: its options, and every request without an answer."""
        order = pb.STREAM_ORDER_SENDING if self._in_order else pb.STREAM_ORDER_COMPLETION
        options = pb.SegmentStreamRequest(
            options=pb.StreamOptions(order=order, in_flight=self._in_flight)
        )
        return [options, *(message for _, message in self._waiting.values())]

    def message(self, key: Hashable, image: ImageLike) -> Any:
        """The request for an image.

        Raises:
            ImageError: no such file, or an array that is no image.
        """
        try:
            request = results.segment_request(image, self._model, self._wishes)
        except OSError as error:
            raise ImageError(
                f"{error.filename} cannot be read: {error.strerror}", "an image file"
            ) from error
        number = str(next(self._numbers))
        message = pb.SegmentStreamRequest(id=number, segment=request)
        message.timeout.FromNanoseconds(int(self._timeout * 1e9))
        self._waiting[number] = (key, message)
        return message

    def result(self, reply: Any) -> Result:
        """What a reply says, with the key of its image. None is the end of the stream.

        Raises:
            RetryLater: the server cannot answer now; the request is still among those without an
            answer.
        """
        if reply is None:
            raise ServerUnavailable(
                f"the stream ended with {len(self._waiting)} images unanswered", retry_after=0.0
            )
        if reply.HasField("failure"):
            error = status.from_failure(reply.failure)
            if isinstance(error, RetryLater):
                raise error
            return self._waiting.pop(reply.id)[0], error
        return self._waiting.pop(reply.id)[0], results.segmentation(reply.segment)


def named_images(folder: str | os.PathLike[str]) -> Iterator[tuple[str, Path]]:
    """The image files of a folder, searched in depth: path relative to it, and path; sorted, hidden
    ones left out.

    Raises:
        ImageError: no such folder.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ImageError(f"no folder {root}", "a folder of images")
    for path in list_images(root).images:
        yield path.as_posix(), root / path
