"""One call, from its arrival to its reply."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from serving.scheduling.job import Ran

Metadata = tuple[tuple[str, str | bytes], ...]


@dataclass(eq=False)
class Call:
    """One request, from its arrival to its reply. Times are ``time.monotonic``, in seconds.

    Attributes:
        rpc: ``package.Service/Method``, or method and path of HTTP with placeholders.
        metadata: as the caller sent it.
        request_id: the caller's, or a new one.
        deadline: when the caller stops waiting; None if never.
        caller: name of its token or certificate, otherwise its address.
        model, version: of the model that answers, once it is known.
        stages: name, start and length of what was done.
        code, reason: of the reply.
    """

    rpc: str
    metadata: Metadata
    request_id: str
    deadline: float | None
    caller: str = ""
    model: str = ""
    version: int = 0
    stages: list[tuple[str, float, float]] = field(default_factory=list)
    code: str = "OK"
    reason: str = ""
    began: float = field(default_factory=time.monotonic)
    ended: float = 0.0

    def stage(self, name: str, began: float, ended: float | None = None) -> None:
        """Record a stage from ``began`` to ``ended`` or now; see
        :data:`serving.telemetry.metrics.STAGES`.
        """
        self.stages.append((name, began, (time.monotonic() if ended is None else ended) - began))

    def seconds(self, name: str) -> float:
        """Total time of a stage."""
        return sum(seconds for stage, _, seconds in self.stages if stage == name)

    def ran(self, ran: Ran) -> None:
        """Record a run of the engine that has just ended."""
        now = time.monotonic()
        self.stage("queue", now - ran.ran - ran.queued, now - ran.ran)
        self.stage("infer", now - ran.ran, now)


def fields_of(call: Call) -> dict[str, Any]:
    """The fields of a call's log line."""
    fields: dict[str, Any] = {"rpc": call.rpc, "code": call.code, "caller": call.caller}
    if call.reason:
        fields["reason"] = call.reason
    if call.model:
        fields |= {"model": call.model, "version": call.version}
    return fields | {
        name: round(seconds, 6)
        for name, _, seconds in (*call.stages, ("total", 0, call.ended - call.began))
    }
