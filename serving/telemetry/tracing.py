"""OpenTelemetry spans: one per request and one per stage, below the span of a caller's
``traceparent``.

They are made after the reply, from times that are measured anyway, so requests do not pay for them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from serving.errors import StartError
from serving.telemetry.call import Call

Trace = Callable[[Call], None]


def tracer(version: str) -> tuple[Trace, Callable[[], None]]:
    """The writer of a finished call's spans, and the function that flushes them at the end.

    Spans are exported over OTLP as the ``OTEL_*`` environment variables say.

    Raises:
        StartError: OpenTelemetry is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise StartError(
            f"tracing is on and {error.name} is not installed",
            "OpenTelemetry",
            "pip install 'wsss[otel]'",
        ) from error
    resource = Resource.create({"service.name": "wsss-serving", "service.version": version})
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return writer(provider), provider.shutdown


def writer(provider: Any) -> Trace:
    """The writer of a finished call's spans to a ``TracerProvider``."""
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    spans = provider.get_tracer("wsss.serving")
    propagator = TraceContextTextMapPropagator()

    def write(call: Call) -> None:
        # Stages are timed by the monotonic clock, spans by the wall clock.
        offset = time.time_ns() - time.monotonic_ns()

        def stamp(moment: float) -> int:
            return offset + int(moment * 1e9)

        carrier = {key: value for key, value in call.metadata if isinstance(value, str)}
        attributes = {
            **_protocol(call),
            "wsss.request_id": call.request_id,
            "wsss.model": call.model,
        }
        span = spans.start_span(
            call.rpc,
            context=propagator.extract(carrier),
            kind=trace.SpanKind.SERVER,
            start_time=stamp(call.began),
            attributes=attributes,
        )
        if call.code != "OK":
            span.set_status(trace.StatusCode.ERROR, call.reason or call.code)
        inside = trace.set_span_in_context(span)
        for name, began, seconds in call.stages:
            spans.start_span(name, context=inside, start_time=stamp(began)).end(
                stamp(began + seconds)
            )
        span.end(stamp(call.ended))

    return write


def _protocol(call: Call) -> dict[str, str]:
    """The attributes that OpenTelemetry has for calls of this protocol."""
    method, _, route = call.rpc.partition(" ")
    if route:
        return {"http.request.method": method, "http.route": route, "wsss.code": call.code}
    return {"rpc.system": "grpc", "rpc.method": call.rpc, "rpc.grpc.status_code": call.code}
