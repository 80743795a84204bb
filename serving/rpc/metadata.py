"""The metadata of a call: who calls, until when, and what accompanies the reply."""

from __future__ import annotations

import time
from contextvars import ContextVar

import grpc

from serving.telemetry import logs
from serving.telemetry.call import Call, Metadata

# A caller who sends this key gets the times of the stages under the same key.
TIMINGS_KEY = "wsss-timings"
# The name on the call's token, set by the token check before the handler runs.
TOKEN_NAME: ContextVar[str] = ContextVar("token_name", default="")


def started(rpc: str, context: grpc.aio.ServicerContext) -> Call:
    """A call that has just arrived; on a stream, one of its requests."""
    metadata = tuple(context.invocation_metadata() or ())
    remaining = context.time_remaining()
    deadline = None if remaining is None else time.monotonic() + remaining
    return Call(rpc, metadata, logs.request_id(metadata), deadline, caller_of(context))


def caller_of(context: grpc.aio.ServicerContext) -> str:
    """The token or certificate name of a call, otherwise its address."""
    if token := TOKEN_NAME.get():
        return token
    names = context.auth_context().get("x509_common_name") or ()
    # Without the port: a second connection is the same caller.
    return names[0].decode(errors="replace") if names else str(context.peer()).rpartition(":")[0]


def trailing(call: Call) -> Metadata:
    """The trailing metadata of a reply: the id, and stage times in milliseconds if the caller
    asked.
    """
    entries: list[tuple[str, str]] = [(logs.REQUEST_ID_KEY, call.request_id)]
    if any(key == TIMINGS_KEY and value not in ("0", "") for key, value in call.metadata):
        entries.append((TIMINGS_KEY, timings(call)))
    return tuple(entries)


def timings(call: Call) -> str:
    """The stages of a call until now, in milliseconds, as in HTTP's ``Server-Timing``."""
    times = {name: call.seconds(name) for name, _, _ in call.stages}
    times["total"] = time.monotonic() - call.began
    return ", ".join(f"{name};dur={1e3 * spent:.3f}" for name, spent in times.items())
