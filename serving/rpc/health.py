"""``grpc.health.v1`` for the server, its services and ``models/NAME`` of each model, following what
is served.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio

from serving.repository.models import Models, ModelState

NAME: str = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
SERVING, NOT_SERVING = (
    health_pb2.HealthCheckResponse.SERVING,
    health_pb2.HealthCheckResponse.NOT_SERVING,
)


class Health:
    """The health service. ``start`` once calls are answered, ``end`` before they no longer are."""

    def __init__(self, models: Models) -> None:
        self._models = models
        self._servicer = health_aio.HealthServicer()
        self._tasks: set[asyncio.Task[None]] = set()

    def add_to(self, server: grpc.aio.Server) -> None:
        """Answer on the port of ``server``."""
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)

    async def start(self, services: Iterable[str]) -> None:
        """Report the server, ``services`` and the models, from now on with every change of a
        model.
        """
        for name in {state.name for state in self._models.index()}:
            await self._report(name)
        self._models.subscribe(self._changed)
        for service in (*services, ""):
            await self._servicer.set(service, SERVING)

    async def end(self) -> None:
        """Report NOT_SERVING for everything, whatever happens to a model afterwards."""
        await self._servicer.enter_graceful_shutdown()

    def _changed(self, change: ModelState) -> None:
        task = asyncio.ensure_future(self._report(change.name))
        # The loop itself keeps no task alive.
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _report(self, name: str) -> None:
        served = any(served.card.name == name for served in self._models.served())
        await self._servicer.set(f"models/{name}", SERVING if served else NOT_SERVING)
