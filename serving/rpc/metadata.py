"""The metadata of a call: who calls and until when, and what the reply says beside its message."""

from __future__ import annotations

import time
from contextvars import ContextVar

import grpc

from serving.telemetry import logs
from serving.telemetry.call import Call, Metadata

# A caller sends this key to get the times of the stages under the same key.
TIMINGS_KEY = "wsss-timings"
# The name of the token that a call carries. The check of tokens sets it before the call is handled.
TOKEN_NAME: ContextVar[str] = ContextVar("token_name", default="")


def started(rpc: str, context: grpc.aio.ServicerContext) -> Call:
    """A call that has just come in; on a stream, one request of it."""
    metadata = tuple(context.invocation_metadata() or ())
    remaining = context.time_remaining()
    deadline = None if remaining is None else time.monotonic() + remaining
    return Call(rpc, metadata, logs.request_id(metadata), deadline, caller_of(context))


def caller_of(context: grpc.aio.ServicerContext) -> str:
    """Whose token or certificate a call carries, else the address that it comes from."""
    if token := TOKEN_NAME.get():
        return token
    names = context.auth_context().get("x509_common_name") or ()
    # Without the port: another connection is no other caller.
    return names[0].decode(errors="replace") if names else str(context.peer()).rpartition(":")[0]


def trailing(call: Call) -> Metadata:
    """The trailing metadata of a reply: the id, and the times of the stages in milliseconds if the
    caller wants them.
    """
    entries: list[tuple[str, str]] = [(logs.REQUEST_ID_KEY, call.request_id)]
    if any(key == TIMINGS_KEY and value not in ("0", "") for key, value in call.metadata):
        times = {name: call.seconds(name) for name, _, _ in call.stages} | {
            "total": time.monotonic() - call.began
        }
        entries.append(
            (
                TIMINGS_KEY,
                ", ".join(f"{name};dur={1e3 * spent:.3f}" for name, spent in times.items()),
            )
        )
    return tuple(entries)
