"""Python clients, one plain and one for asyncio. Both return NumPy arrays at the size of the image.

>>> with Client("127.0.0.1:8500") as client:  # doctest: +SKIP
...     result = client.segment("cat.jpg")
...     result.mask.shape, result.present
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import grpc
import numpy as np
import numpy.typing as npt

from serving import masks, status
from serving.errors import ImageError
from wsss.v1 import segmentation_pb2 as pb
from wsss.v1 import segmentation_pb2_grpc

Pixels = npt.NDArray[np.uint8]
ImageLike = str | os.PathLike[str] | bytes | Pixels
Encoding = Literal["png", "raw"]
CamFormat = Literal["uint8", "float16"]

ADDRESS = "127.0.0.1:8500"
OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
ENCODINGS = {"png": pb.MASK_ENCODING_PNG, "raw": pb.MASK_ENCODING_RAW}
FORMATS = {"uint8": pb.CAM_FORMAT_UINT8, "float16": pb.CAM_FORMAT_FLOAT16}


@dataclass(frozen=True)
class Segmentation:
    """A mask and what belongs to it.

    Attributes:
        mask: uint8 [H,W] at the size of the upright image; 0 background, k+1 the k-th class of the model.
        labels: the value in ``mask`` of each class kept, by name.
        scores: image-level score of each class kept, 0 to 1.
        present: names whose score reaches the threshold.
        areas: pixels of each class kept.
        confidence: uint8 [H,W] if asked for, else None.
        model, version: what answered.
        reply: the whole ``wsss.v1.SegmentResponse``: image, provenance, timings.
    """

    mask: Pixels
    labels: dict[str, int]
    scores: dict[str, float]
    present: list[str]
    areas: dict[str, int]
    confidence: Pixels | None
    model: str
    version: int
    reply: Any


@dataclass(frozen=True)
class Cam:
    """Class activation maps.

    Attributes:
        maps: [k,h,w], uint8 0..255 or float16 0..1 as asked; coarser than the image, covering all of it.
        classes: the k names.
        scores: image-level score of every class of the model.
        present: names whose score reaches the threshold.
        size: height and width of the upright image.
        model, version: what answered.
        reply: the whole ``wsss.v1.ComputeCamResponse``.
    """

    maps: npt.NDArray[np.uint8] | npt.NDArray[np.float16]
    classes: list[str]
    scores: dict[str, float]
    present: list[str]
    size: tuple[int, int]
    model: str
    version: int
    reply: Any


class Client:
    """Calls a server and waits for the answer.

    Args:
        address: ``host:port``.
        timeout: seconds for each call.

    Every call raises a subclass of ``serving.errors.RequestError``: ``ImageError``, ``ModelNotFound``, ``Overloaded``,
    ``ServerUnavailable``, ... as the server says.
    """

    def __init__(self, address: str = ADDRESS, *, timeout: float = 30.0) -> None:
        self._channel = grpc.insecure_channel(address, options=OPTIONS)
        self._stub = segmentation_pb2_grpc.SegmentationStub(self._channel)
        self._timeout = timeout

    def segment(
        self,
        image: ImageLike,
        model: str = "",
        *,
        version: int = 0,
        classes: Iterable[str] = (),
        confidence: bool = False,
        score_threshold: float | None = None,
        encoding: Encoding = "png",
    ) -> Segmentation:
        """The mask of one image.

        Args:
            image: path, bytes of an image file, or uint8 [H,W,3] RGB (or [H,W] grey) pixels.
            model: name; empty means the only segmenter served.
            version: 0 means the newest.
            classes: names to keep; the others become background. Empty keeps all.
            confidence: whether to fetch the confidence map too.
            score_threshold: from which a class counts as present; None takes the model's own.
            encoding: of the mask on the way; ``raw`` saves time and costs bytes.
        """
        request = _segment_request(image, model, version, classes, confidence, score_threshold, encoding)
        return _segmentation(self._call(self._stub.Segment, request))

    def compute_cam(
        self,
        image: ImageLike,
        model: str = "",
        *,
        version: int = 0,
        tags: Iterable[str] = (),
        score_threshold: float | None = None,
        format: CamFormat = "uint8",
    ) -> Cam:
        """Class activation maps of one image, for ``tags`` or else for the classes that score enough."""
        return _cam(
            self._call(self._stub.ComputeCam, _cam_request(image, model, version, tags, score_threshold, format))
        )

    def list_models(self) -> list[Any]:
        """``wsss.v1.Model`` of every model served, the newest version of each."""
        return list(self._call(self._stub.ListModels, pb.ListModelsRequest()).models)

    def get_model(self, model: str = "", *, version: int = 0) -> Any:
        """``wsss.v1.Model`` of one model."""
        return self._call(self._stub.GetModel, pb.GetModelRequest(model=model, version=version))

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def _call(self, method: Any, request: Any) -> Any:
        try:
            return method(request, timeout=self._timeout)
        except grpc.RpcError as error:
            raise status.from_call(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncClient:
    """:class:`Client` with coroutines, for many calls at once; make and use it on one event loop."""

    def __init__(self, address: str = ADDRESS, *, timeout: float = 30.0) -> None:
        self._channel = grpc.aio.insecure_channel(address, options=OPTIONS)
        self._stub = segmentation_pb2_grpc.SegmentationStub(self._channel)
        self._timeout = timeout

    async def segment(
        self,
        image: ImageLike,
        model: str = "",
        *,
        version: int = 0,
        classes: Iterable[str] = (),
        confidence: bool = False,
        score_threshold: float | None = None,
        encoding: Encoding = "png",
    ) -> Segmentation:
        """See :meth:`Client.segment`."""
        request = _segment_request(image, model, version, classes, confidence, score_threshold, encoding)
        return _segmentation(await self._call(self._stub.Segment, request))

    async def compute_cam(
        self,
        image: ImageLike,
        model: str = "",
        *,
        version: int = 0,
        tags: Iterable[str] = (),
        score_threshold: float | None = None,
        format: CamFormat = "uint8",
    ) -> Cam:
        """See :meth:`Client.compute_cam`."""
        request = _cam_request(image, model, version, tags, score_threshold, format)
        return _cam(await self._call(self._stub.ComputeCam, request))

    async def list_models(self) -> list[Any]:
        """See :meth:`Client.list_models`."""
        return list((await self._call(self._stub.ListModels, pb.ListModelsRequest())).models)

    async def get_model(self, model: str = "", *, version: int = 0) -> Any:
        """See :meth:`Client.get_model`."""
        return await self._call(self._stub.GetModel, pb.GetModelRequest(model=model, version=version))

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close()

    async def _call(self, method: Any, request: Any) -> Any:
        try:
            return await method(request, timeout=self._timeout)
        except grpc.RpcError as error:
            raise status.from_call(error) from error

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def _segment_request(
    image: ImageLike,
    model: str,
    version: int,
    classes: Iterable[str],
    confidence: bool,
    score_threshold: float | None,
    encoding: Encoding,
) -> Any:
    return pb.SegmentRequest(
        image=_image(image),
        model=model,
        version=version,
        classes=list(classes),
        confidence=confidence,
        score_threshold=score_threshold,
        encoding=ENCODINGS[encoding],
    )


def _cam_request(
    image: ImageLike, model: str, version: int, tags: Iterable[str], score_threshold: float | None, format: CamFormat
) -> Any:
    return pb.ComputeCamRequest(
        image=_image(image),
        model=model,
        version=version,
        tags=list(tags),
        score_threshold=score_threshold,
        format=FORMATS[format],
    )


def _image(image: ImageLike) -> Any:
    if isinstance(image, bytes):
        return pb.Image(encoded=image)
    if not isinstance(image, np.ndarray):
        return pb.Image(encoded=Path(image).read_bytes())
    pixels = np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ImageError(f"an array of {image.dtype} {list(image.shape)}", "uint8 [H,W,3] RGB or [H,W] grey")
    height, width = pixels.shape[:2]
    return pb.Image(raw=pb.RawImage(height=height, width=width, pixels=pixels.tobytes()))


def _plane(plane: Any) -> Pixels:
    if plane.WhichOneof("data") == "raw":
        return np.frombuffer(plane.raw, np.uint8).reshape(plane.height, plane.width)
    return masks.read_png(plane.png)


def _segmentation(reply: Any) -> Segmentation:
    return Segmentation(
        mask=_plane(reply.mask),
        labels={result.name: result.label for result in reply.classes},
        scores={result.name: result.score for result in reply.classes},
        present=[result.name for result in reply.classes if result.present],
        areas={result.name: result.area for result in reply.classes},
        confidence=_plane(reply.confidence) if reply.HasField("confidence") else None,
        model=reply.provenance.model,
        version=reply.provenance.version,
        reply=reply,
    )


def _cam(reply: Any) -> Cam:
    cam = reply.cam
    half = cam.WhichOneof("data") == "float16"
    values = np.frombuffer(cam.float16, "<f2") if half else np.frombuffer(cam.uint8, np.uint8)
    return Cam(
        maps=values.reshape(len(cam.classes), cam.height, cam.width),
        classes=list(cam.classes),
        scores={result.name: result.score for result in reply.classes},
        present=[result.name for result in reply.classes if result.present],
        size=(reply.image.height, reply.image.width),
        model=reply.provenance.model,
        version=reply.provenance.version,
        reply=reply,
    )
