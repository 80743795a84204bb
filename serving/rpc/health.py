"""``grpc.health.v1`` for the server, its services, and ``models/NAME`` for each model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2 as pb

from serving.errors import FieldError, RequestError
from serving.repository.models import Models
from serving.rpc.calls import Calls, abort, write
from serving.rpc.metadata import caller_of
from serving.rpc.streams import Patient

NAME: str = pb.DESCRIPTOR.services_by_name["Health"].full_name
SERVING, NOT_SERVING, SERVICE_UNKNOWN = (
    pb.HealthCheckResponse.SERVING,
    pb.HealthCheckResponse.NOT_SERVING,
    pb.HealthCheckResponse.SERVICE_UNKNOWN,
)
# How long the message that names the service may take.
MESSAGE_SECONDS = 10.0


class Health:
    """The health service. ``start`` when calls are answered, ``end`` before they no longer are.

    Every ``Check`` is answered, however many calls are open. Watches have places of their own.
    """

    def __init__(self, models: Models, calls: Calls) -> None:
        self._models = models
        self._calls = calls
        self._states: dict[str, int] = {}
        self._change = asyncio.Event()
        self._ended = False

    def handler(self) -> Any:
        """For ``add_generic_rpc_handlers`` of a server."""
        parse = pb.HealthCheckRequest.FromString
        return grpc.method_handlers_generic_handler(
            NAME,
            {
                "Check": grpc.stream_unary_rpc_method_handler(self._check, parse, write),
                "Watch": grpc.stream_stream_rpc_method_handler(self._watch, parse, write),
            },
        )

    def start(self, services: Iterable[str]) -> None:
        """Report the server, ``services`` and the models, and follow every change of a model."""
        for name in {state.name for state in self._models.index()}:
            self._report(name)
        self._models.subscribe(lambda change: self._report(change.name))
        for service in (*services, ""):
            self._set(service, SERVING)

    def end(self) -> None:
        """Report NOT_SERVING for everything, whatever happens to a model afterwards."""
        for service in self._states:
            self._set(service, NOT_SERVING)
        self._ended = True

    def _report(self, name: str) -> None:
        is_live = any(model.card.name == name for model in self._models.served())
        self._set(f"models/{name}", SERVING if is_live else NOT_SERVING)

    def _set(self, service: str, state: int) -> None:
        if self._ended:
            return
        self._states[service] = state
        # Wakes every watch. Each holds the old event, so a new one serves the next change.
        self._change.set()
        self._change = asyncio.Event()

    async def _check(self, messages: AsyncIterator[Any], context: grpc.aio.ServicerContext) -> Any:
        try:
            service = await _service(messages)
        except RequestError as error:
            await abort(context, error)
        if service not in self._states:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"unknown service {service[:200]!r}")
        return pb.HealthCheckResponse(status=self._states[service])

    async def _watch(self, messages: AsyncIterator[Any], context: grpc.aio.ServicerContext) -> None:
        try:
            with self._calls.watches.hold(caller_of(context)):
                service, last = await _service(messages), None
                while True:
                    # Take the event before the write: a change meanwhile must not be missed.
                    change, state = self._change, self._states.get(service, SERVICE_UNKNOWN)
                    if state != last:
                        await context.write(pb.HealthCheckResponse(status=state))
                    last = state
                    await change.wait()
        except RequestError as error:
            await self._calls.refuse(context, f"{NAME}/Watch", error)


async def _service(messages: AsyncIterator[Any]) -> str:
    request = await anext(Patient(messages, MESSAGE_SECONDS), None)
    if request is None:
        raise FieldError("a call without a message", "one message")
    return str(request.service)
