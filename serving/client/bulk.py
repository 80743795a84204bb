"""Many images over one stream: the client's half of ``SegmentStream``, without the waiting."""

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
    """The images that were sent and not answered yet, so that they can be sent again after a lost
    connection.

    Args:
        wishes: for every image.
        timeout: seconds per image, from its arrival at the server.
        in_flight: unanswered images at most.
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
        """Whether an answer must arrive before the next image is sent."""
        return len(self._waiting) >= self._in_flight

    @property
    def idle(self) -> bool:
        """Whether no answer is due."""
        return not self._waiting

    def opening(self) -> list[Any]:
        """First messages of a new stream: its options, then every unanswered request."""
        order = pb.STREAM_ORDER_SENDING if self._in_order else pb.STREAM_ORDER_COMPLETION
        options = pb.SegmentStreamRequest(
            options=pb.StreamOptions(order=order, in_flight=self._in_flight)
        )
        return [options, *(message for _, message in self._waiting.values())]

    def message(self, key: Hashable, image: ImageLike) -> Any:
        """The request for an image.

        Raises:
            ImageError: the file cannot be read, or the array is not an image.
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
        """The key and the result of a reply; None is the end of the stream.

        Raises:
            RetryLater: the server cannot answer now; the request stays unanswered.
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
    """Relative path and path of each image file below a folder, sorted; hidden files are skipped.

    Raises:
        ImageError: no such folder.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ImageError(f"no folder {root}", "a folder of images")
    for path in list_images(root).images:
        yield path.as_posix(), root / path
