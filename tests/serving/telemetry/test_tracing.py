from __future__ import annotations

import sys

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from serving.errors import StartError
from serving.telemetry import tracing
from serving.telemetry.call import Call

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def spans():
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    write = tracing.writer(provider)

    def written(call):
        exporter.clear()
        write(call)
        return {span.name: span for span in exporter.get_finished_spans()}

    return written


def test_a_span_a_stage_below_that_of_the_caller(spans):
    call = Call(
        "a/B",
        (("traceparent", f"00-{TRACE}-{PARENT}-01"), ("bin-bin", b"x")),
        "id-1",
        None,
        began=100.0,
    )
    call.model, call.ended = "pets", 100.5
    call.stage("decode", 100.1, 100.2)
    call.stage("infer", 100.2, 100.4)
    found = spans(call)
    assert set(found) == {"a/B", "decode", "infer"}
    top = found["a/B"]
    assert f"{top.context.trace_id:032x}" == TRACE
    assert f"{top.parent.span_id:016x}" == PARENT
    assert top.end_time - top.start_time == pytest.approx(0.5e9, abs=1e6)
    assert top.attributes["wsss.model"] == "pets"
    assert top.attributes["rpc.grpc.status_code"] == "OK"
    for name, seconds in (("decode", 0.1), ("infer", 0.2)):
        assert found[name].parent.span_id == top.context.span_id
        assert found[name].end_time - found[name].start_time == pytest.approx(
            seconds * 1e9, abs=1e6
        )


def test_a_failed_call_is_an_error_and_a_bad_traceparent_begins_a_trace(spans):
    call = Call("a/B", (("traceparent", "nonsense"),), "id-1", None, began=1.0, ended=2.0)
    call.code, call.reason = "NOT_FOUND", "MODEL_NOT_FOUND"
    (span,) = spans(call).values()
    assert span.parent is None
    assert span.status.description == "MODEL_NOT_FOUND"
    assert not span.status.is_ok


def test_a_call_by_http_has_the_attributes_of_http(spans):
    call = Call("POST /v1/models/{name}/segment", (), "id-1", None, began=1.0, ended=2.0)
    (span,) = spans(call).values()
    assert span.name == "POST /v1/models/{name}/segment"
    assert span.attributes["http.request.method"] == "POST"
    assert span.attributes["http.route"] == "/v1/models/{name}/segment"
    assert "rpc.system" not in span.attributes


def test_an_absent_library_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.resources", None)
    with pytest.raises(StartError, match=r"wsss\[otel\]"):
        tracing.tracer("0")
