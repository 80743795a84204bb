"""One call, from its arrival to its reply, whatever answers it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from serving.scheduling.job import Ran

Metadata = tuple[tuple[str, str | bytes], ...]


@dataclass(eq=False)
class Call:
    """One request, from its arrival to its reply. Moments are of ``time.monotonic``, lengths in
    seconds.

    Attributes:
        rpc: ``package.Service/Method``.
        metadata: as the caller sent it.
        request_id: the caller's or a new one.
        deadline: when the caller stops waiting; None if never.
        caller: whose token or certificate it carries, else the address that it comes from.
        model, version: what answers, once it is found.
        stages: name, beginning and length of what was done.
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
        """Say that a stage of :data:`serving.telemetry.metrics.STAGES` went from ``began`` to
        ``ended``, or until now.
        """
        self.stages.append((name, began, (time.monotonic() if ended is None else ended) - began))

    def seconds(self, name: str) -> float:
        """How long a stage took, all its parts together."""
        return sum(seconds for stage, _, seconds in self.stages if stage == name)

    def ran(self, ran: Ran) -> None:
        """Say that a run of the engine is over now."""
        now = time.monotonic()
        self.stage("queue", now - ran.ran - ran.queued, now - ran.ran)
        self.stage("infer", now - ran.ran, now)


def fields_of(call: Call) -> dict[str, Any]:
    """What the log says of a call."""
    fields: dict[str, Any] = {"rpc": call.rpc, "code": call.code, "caller": call.caller}
    if call.reason:
        fields["reason"] = call.reason
    if call.model:
        fields |= {"model": call.model, "version": call.version}
    return fields | {
        name: round(seconds, 6)
        for name, _, seconds in (*call.stages, ("total", 0, call.ended - call.began))
    }
