"""Python clients, one blocking and one for asyncio. Both return NumPy arrays at the image's size.

>>> with Client("127.0.0.1:8500") as client:  # doctest: +SKIP
...     result = client.segment("cat.jpg")
...     result.mask.shape, result.present
"""

from __future__ import annotations

import asyncio
import os
import queue
import time
from collections.abc import AsyncIterable, AsyncIterator, Hashable, Iterable, Iterator
from typing import Any, Self, Unpack

import grpc

from serving.client import results
from serving.client.bulk import Bulk, Result, named_images
from serving.client.connection import Connection, credentials
from serving.client.results import Cam, CamWishes, ImageLike, Segmentation, SegmentWishes
from serving.errors import ImageError, RetryLater
from serving.rpc import status
from wsss.v1 import segmentation_pb2 as pb

__all__ = ["AsyncClient", "Cam", "Client", "Segmentation", "credentials"]

IN_FLIGHT = 8
Images = Iterable[tuple[Hashable, ImageLike]]
AsyncImages = Images | AsyncIterable[tuple[Hashable, ImageLike]]


class Client(Connection):
    """A client that blocks until the answer is there.

    Every call raises a subclass of ``serving.errors.RequestError``, such as ``ImageError``,
    ``ModelNotFound``, ``Overloaded`` or ``ServerUnavailable``.

    Args:
        address: ``host:port``.
        timeout: seconds per call with all its retries; on a stream, per image.
        retries: further attempts while the server is busy or unreachable, with growing pauses
            unless the server names one.
        token: bearer token, if the server needs one.
        tls: from :func:`credentials`; None for a plain connection.
    """

    def segment(
        self, image: ImageLike, model: str = "", **wishes: Unpack[SegmentWishes]
    ) -> Segmentation:
        """The mask of one image.

        Args:
            image: path, bytes of an image file, or uint8 pixels, [H,W,3] RGB or [H,W] grey.
            model: name; empty is the only segmenter served, or else the only CAM model.
            wishes: see :class:`serving.client.results.SegmentWishes`.
        """
        return results.segmentation(
            self._call(self._stub.Segment, results.segment_request(image, model, wishes))
        )

    def segment_many(
        self,
        images: Images,
        model: str = "",
        *,
        in_flight: int = IN_FLIGHT,
        in_order: bool = False,
        **wishes: Unpack[SegmentWishes],
    ) -> Iterator[Result]:
        """The masks of many images over one stream: for each key, its result or its error.

        Args:
            images: keys of your choice with their images; consumed lazily.
            model, wishes: as in :meth:`segment`.
            in_flight: images sent and not answered yet; the server may take fewer.
            in_order: keep the order of ``images``; otherwise the first result ready comes first.

        Raises:
            ServerUnavailable: the server went away and did not come back in time.
        """
        bulk = Bulk(model, wishes, self._timeout, in_flight, in_order)
        source, tries = iter(images), None
        while True:
            try:
                for result in self._stream(bulk, source):
                    tries = None
                    yield result
                return
            except RetryLater as error:
                tries = tries or self._tries()
                wait = tries.delay(error)
            time.sleep(wait)

    def segment_folder(
        self,
        folder: str | os.PathLike[str],
        model: str = "",
        *,
        in_flight: int = IN_FLIGHT,
        **wishes: Unpack[SegmentWishes],
    ) -> Iterator[Result]:
        """:meth:`segment_many` for the images below a folder, in order; keys are relative paths."""
        return self.segment_many(
            named_images(folder), model, in_flight=in_flight, in_order=True, **wishes
        )

    def compute_cam(self, image: ImageLike, model: str = "", **wishes: Unpack[CamWishes]) -> Cam:
        """Class activation maps of one image: of ``tags``, or else of the classes that reach the
        threshold.

        Args:
            image, model: as in :meth:`segment`.
            wishes: see :class:`serving.client.results.CamWishes`.
        """
        return results.cam(
            self._call(self._stub.ComputeCam, results.cam_request(image, model, wishes))
        )

    def list_models(self) -> list[Any]:
        """``wsss.v1.Model`` of the newest version of every model."""
        return list(self._call(self._stub.ListModels, pb.ListModelsRequest()).models)

    def limits(self) -> Any:
        """``wsss.v1.Limits``: what the server refuses, and how it treats large images."""
        return self._call(self._stub.ListModels, pb.ListModelsRequest()).limits

    def get_model(self, model: str = "", *, version: int = 0) -> Any:
        """``wsss.v1.Model`` of one model."""
        return self._call(self._stub.GetModel, pb.GetModelRequest(model=model, version=version))

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def _call(self, method: Any, request: Any) -> Any:
        tries = self._tries()
        while True:
            try:
                return method(request, timeout=tries.remaining, metadata=self._metadata)
            except grpc.RpcError as error:
                wait = tries.delay(status.from_call(error))
            time.sleep(wait)

    def _stream(self, bulk: Bulk, source: Iterator[tuple[Hashable, ImageLike]]) -> Iterator[Result]:
        """Send and receive on one call until the source is empty and everything is answered."""
        # gRPC iterates over the requests in a thread of its own. A queue lets this thread decide
        # when the next request goes out: an answer must arrive first once ``in_flight`` are open.
        outgoing: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for message in bulk.opening():
            outgoing.put(message)
        call = self._stub.SegmentStream(iter(outgoing.get, None), metadata=self._metadata)
        try:
            while True:
                while not bulk.full and (item := next(source, None)):
                    try:
                        outgoing.put(bulk.message(*item))
                    except ImageError as error:
                        yield item[0], error
                if bulk.idle:
                    return
                yield bulk.result(next(call, None))
        except grpc.RpcError as error:
            raise status.from_call(error) from error
        finally:
            # None ends the iterator above. Without it gRPC's thread would wait for ever.
            outgoing.put(None)
            call.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class AsyncClient(Connection):
    """:class:`Client` with coroutines. Create and use it on one event loop."""

    _grpc = grpc.aio

    async def segment(
        self, image: ImageLike, model: str = "", **wishes: Unpack[SegmentWishes]
    ) -> Segmentation:
        """See :meth:`Client.segment`."""
        return results.segmentation(
            await self._call(self._stub.Segment, results.segment_request(image, model, wishes))
        )

    async def segment_many(
        self,
        images: AsyncImages,
        model: str = "",
        *,
        in_flight: int = IN_FLIGHT,
        in_order: bool = False,
        **wishes: Unpack[SegmentWishes],
    ) -> AsyncIterator[Result]:
        """See :meth:`Client.segment_many`; ``images`` may be an asynchronous iterable."""
        bulk = Bulk(model, wishes, self._timeout, in_flight, in_order)
        source, tries = _each(images), None
        while True:
            try:
                async for result in self._stream(bulk, source):
                    tries = None
                    yield result
                return
            except RetryLater as error:
                tries = tries or self._tries()
                wait = tries.delay(error)
            await asyncio.sleep(wait)

    def segment_folder(
        self,
        folder: str | os.PathLike[str],
        model: str = "",
        *,
        in_flight: int = IN_FLIGHT,
        **wishes: Unpack[SegmentWishes],
    ) -> AsyncIterator[Result]:
        """See :meth:`Client.segment_folder`."""
        return self.segment_many(
            named_images(folder), model, in_flight=in_flight, in_order=True, **wishes
        )

    async def compute_cam(
        self, image: ImageLike, model: str = "", **wishes: Unpack[CamWishes]
    ) -> Cam:
        """See :meth:`Client.compute_cam`."""
        return results.cam(
            await self._call(self._stub.ComputeCam, results.cam_request(image, model, wishes))
        )

    async def list_models(self) -> list[Any]:
        """See :meth:`Client.list_models`."""
        return list((await self._call(self._stub.ListModels, pb.ListModelsRequest())).models)

    async def limits(self) -> Any:
        """See :meth:`Client.limits`."""
        return (await self._call(self._stub.ListModels, pb.ListModelsRequest())).limits

    async def get_model(self, model: str = "", *, version: int = 0) -> Any:
        """See :meth:`Client.get_model`."""
        return await self._call(
            self._stub.GetModel, pb.GetModelRequest(model=model, version=version)
        )

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close()

    async def _call(self, method: Any, request: Any) -> Any:
        tries = self._tries()
        while True:
            try:
                return await method(request, timeout=tries.remaining, metadata=self._metadata)
            except grpc.RpcError as error:
                wait = tries.delay(status.from_call(error))
            await asyncio.sleep(wait)

    async def _stream(
        self, bulk: Bulk, source: AsyncIterator[tuple[Hashable, ImageLike]]
    ) -> AsyncIterator[Result]:
        """Send and receive on one call until the source is empty and everything is answered."""
        call = self._stub.SegmentStream(metadata=self._metadata)
        try:
            for message in bulk.opening():
                await _send(call, message)
            while True:
                while not bulk.full and (item := await anext(source, None)):
                    try:
                        # Reading a file must not block the event loop.
                        message = await asyncio.to_thread(bulk.message, *item)
                    except ImageError as error:
                        yield item[0], error
                    else:
                        await _send(call, message)
                if bulk.idle:
                    return
                reply = await call.read()
                yield bulk.result(None if reply is grpc.aio.EOF else reply)
        except grpc.RpcError as error:
            raise status.from_call(error) from error
        finally:
            call.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()


async def _send(call: Any, message: Any) -> None:
    try:
        await call.write(message)
    except asyncio.InvalidStateError:
        # The call has ended, but this error does not say why. Reading raises the status.
        await call.read()


async def _each(images: AsyncImages) -> AsyncIterator[tuple[Hashable, ImageLike]]:
    if isinstance(images, AsyncIterable):
        async for item in images:
            yield item
    else:
        for item in images:
            yield item
