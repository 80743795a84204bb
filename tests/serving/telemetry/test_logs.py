from __future__ import annotations

import io
import json
import logging

import grpc
import pytest
from rpc_calls import IMAGE, failure

from serving.telemetry import logs
from wsss.v1 import segmentation_pb2 as pb
from wsss.v1 import segmentation_pb2_grpc


@pytest.fixture
def lines():
    """What is logged as each format, and the root logger as it was afterwards."""
    root = logging.getLogger()
    before = (root.level, list(root.handlers))
    stream = io.StringIO()

    def configure(format, level="info"):
        logs.configure(format, level, stream)
        return stream

    yield configure
    root.handlers[:] = before[1]
    root.setLevel(before[0])


def test_json_lines_hold_the_fields_the_request_id_and_the_trace(lines):
    stream = lines("json")
    token = logs.REQUEST_ID.set("abc-1")
    try:
        raise ValueError("of\nno use")
    except ValueError:
        logging.getLogger("serving.x").exception(
            "failed %d", 7, extra={"fields": {"rpc": "a/B", "total": 0.25}}
        )
    finally:
        logs.REQUEST_ID.reset(token)
    logging.getLogger("serving.x").debug("below the level")
    (line,) = stream.getvalue().splitlines()
    entry = json.loads(line)
    assert entry["time"].endswith("+00:00")
    assert "ValueError: of\nno use" in entry.pop("exception")
    del entry["time"]
    assert entry == {
        **{"level": "ERROR", "logger": "serving.x", "message": "failed 7"},
        **{"rpc": "a/B", "total": 0.25, "request_id": "abc-1"},
    }


def test_text_lines_are_one_line_and_quote_what_could_be_misread(lines):
    stream = lines("text")
    logging.getLogger("serving.x").info(
        "two\nlines", extra={"fields": {"a": "b c", "seconds": 0.5, "empty": ""}}
    )
    (line,) = stream.getvalue().splitlines()
    assert line.endswith('INFO serving.x: two; lines a="b c" seconds=0.500000 empty=""')


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, "new\nline", "é", b"bytes"])
def test_an_unsound_request_id_is_replaced(given):
    made = logs.request_id([(logs.REQUEST_ID_KEY, given)])
    assert logs.SOUND_ID.fullmatch(made)
    assert made != given
    assert logs.request_id([("other", "x"), (logs.REQUEST_ID_KEY, "job-7/a")]) == "job-7/a"


def test_a_call_leaves_one_line_with_its_id_and_neither_pixels_nor_secrets(server, caplog):
    caplog.set_level(logging.DEBUG)
    secret, pixels = "s3cr3t-token", b"PIXELS" * 100
    image = pb.Image(raw=pb.RawImage(height=10, width=20, pixels=pixels))
    metadata = ((logs.REQUEST_ID_KEY, "job-8"), ("authorization", f"Bearer {secret}"))
    with grpc.insecure_channel(server.address) as channel:
        stub = segmentation_pb2_grpc.SegmentationStub(channel)
        _, call = stub.Segment.with_call(
            pb.SegmentRequest(image=image), metadata=metadata, timeout=20
        )
        assert (logs.REQUEST_ID_KEY, "job-8") in call.trailing_metadata()
    (record,) = (r for r in caplog.records if r.name == "serving.requests")
    assert record.fields.items() >= {
        ("rpc", "wsss.v1.Segmentation/Segment"),
        ("code", "OK"),
        ("model", "colours"),
        ("version", 1),
    }
    assert set(record.fields) >= {"decode", "queue", "infer", "encode", "total"}
    everything = "".join(str(vars(record)) for record in caplog.records)
    assert secret not in everything
    assert "PIXELS" not in everything


def test_a_refused_call_tells_its_id_too(server, caplog):
    caplog.set_level(logging.DEBUG)
    failure(
        server,
        "Segment",
        pb.SegmentRequest(image=IMAGE, model="x"),
        metadata=((logs.REQUEST_ID_KEY, "job-9"),),
    )
    (record,) = (r for r in caplog.records if r.name == "serving.requests")
    assert record.fields["code"] == "NOT_FOUND"
    assert record.fields["reason"] == "MODEL_NOT_FOUND"
    assert "model" not in record.fields
