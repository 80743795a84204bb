"""The Open Inference Protocol by REST, with numbers in JSON and with bytes behind it."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
import tiny_models
from configs import configured
from http_calls import ask
from servers import running

from serving.images import masks

SUMS = "/v2/models/sums/infer"
KIND = {"content-type": "application/json"}
X, Y = [[1.5, 2, 3], [4, 5, 6]], [[10, 20, 30], [40, 50, 60.25]]


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    root = tmp_path_factory.mktemp("rest")
    for name, kind in (("colours", "segmenter"), ("sums", "tensor")):
        tiny_models.export(root, name, kind)
    with running(configured(root, network__http_port=0)) as server:
        yield server.http_address


def tensor(name, data, datatype="FP32", shape=(2, 3), **more):
    return {"name": name, "shape": list(shape), "datatype": datatype, "data": data, **more}


def infer(address, document, path=SUMS):
    return ask(address, path, json.dumps(document).encode(), KIND)


def sums(**more):
    return {"inputs": [tensor("x", X), tensor("y", np.ravel(Y).tolist())], **more}


def test_numbers_in_numbers_out(address):
    reply = infer(address, sums(id="a", outputs=[{"name": "sum"}])).json
    assert (reply["model_name"], reply["model_version"], reply["id"]) == ("sums", "1", "a")
    assert reply["outputs"] == [
        {
            "name": "sum",
            "datatype": "FP32",
            "shape": [2, 3],
            "data": (np.array(X) + np.array(Y)).ravel().tolist(),
        }
    ]


def test_bytes_in_bytes_out(address):
    x, y = (np.array(values, "<f4").tobytes() for values in (X, Y))
    document = {
        "inputs": [
            tensor(name, None, parameters={"binary_data_size": len(raw)})
            for name, raw in (("x", x), ("y", y))
        ],
        "outputs": [{"name": "twice", "parameters": {"binary_data": True}}, {"name": "sum"}],
    }
    text = json.dumps(document).encode()
    headers = {"inference-header-content-length": str(len(text))}
    headers["content-type"] = "application/octet-stream"
    reply = ask(address, "/v2/models/sums/versions/1/infer", text + x + y, headers)
    end = int(reply.headers["inference-header-content-length"])
    twice, added = json.loads(reply.body[:end])["outputs"]
    assert twice["parameters"] == {"binary_data_size": 24}
    assert np.frombuffer(reply.body[end:], "<f4").tolist() == (2 * np.array(X)).ravel().tolist()
    assert added["data"][0] == 11.5


def test_an_encoded_image_is_one_element_of_bytes(address, pixels):
    png = masks.encode_rgb(pixels)
    raw = struct.pack("<I", len(png)) + png
    one = {"name": "image", "shape": [1], "datatype": "BYTES"}
    one["parameters"] = {"binary_data_size": len(raw)}
    text = json.dumps({"inputs": [one], "outputs": [{"name": "mask"}]}).encode()
    headers = {"inference-header-content-length": str(len(text))} | KIND
    reply = ask(address, "/v2/models/colours/infer", text + raw, headers).json
    (mask,) = reply["outputs"]
    assert mask["shape"] == [1, *pixels.shape[:2]]
    assert mask["data"] == tiny_models.expected_mask(pixels).ravel().tolist()


@pytest.mark.parametrize(
    ("document", "text"),
    [
        ([], "no JSON object"),
        ({}, "inputs"),
        ({"inputs": [{}]}, "name"),
        ({"inputs": [tensor("x", X)]}, "2: x, y"),
        (sums(outputs=[{"name": "smu"}]), "nearest: sum"),
        ({"inputs": [tensor("x", X, "FP31")]}, "FP32"),
        ({"inputs": [tensor("x", X, "INT8"), tensor("y", Y)]}, "values out of INT8"),
        ({"inputs": [tensor("x", [[300]], "UINT8"), tensor("y", Y)]}, "values out of UINT8"),
        ({"inputs": [tensor("x", [["a"]]), tensor("y", Y)]}, "no numbers"),
        ({"inputs": [tensor("x", [[1], [2, 3]]), tensor("y", Y)]}, "no inference request"),
        ({"inputs": [tensor("x", X[0]), tensor("y", Y)]}, "24 for FP32"),
        (
            {"inputs": [tensor("x", X, parameters={"binary_data_size": 9}), tensor("y", Y)]},
            "at most",
        ),
        (sums(parameters={"timeout": -1}), "not negative"),
        (sums(parameters={"timeout": {}}), "no inference request"),
    ],
    ids=str,
)
def test_a_wrong_request_is_a_problem(address, document, text):
    reply = infer(address, document)
    assert reply.status == 400, reply.json
    assert text in str(reply.json)


def test_what_is_no_json_is_a_problem(address):
    for body in (b"{", b"[" * 100_000, b"\xff", b'{"inputs": 1}'):
        assert ask(address, SUMS, body, KIND).status == 400
    headers = KIND | {"inference-header-content-length": "99"}
    assert ask(address, SUMS, b"{}", headers).status == 400


def test_a_compressed_body_is_refused_by_name(address):
    reply = ask(address, SUMS, b"\x1f\x8b", KIND | {"content-encoding": "gzip"})
    assert (reply.status, reply.json["reason"]) == (415, "MEDIA_TYPE")
    assert "gzip" in reply.json["detail"]


def test_every_refusal_has_its_text_where_clients_of_the_protocol_look(address):
    for reply in (
        infer(address, sums(), "/v2/models/sum/infer"),
        infer(address, {}),
        ask(address, "/v2/nothing"),
        ask(address, SUMS),
    ):
        assert reply.status >= 400
        assert reply.headers["content-type"] == "application/problem+json"
        assert reply.json["error"].startswith(reply.json["detail"])


def test_configurations_statistics_and_index(address):
    infer(address, sums())
    config = ask(address, "/v2/models/sums/config").json
    assert config["input"][0] == {"name": "x", "data_type": "TYPE_FP32", "dims": [3]}
    (own,) = ask(address, "/v2/models/sums/versions/1/stats").json["model_stats"]
    assert own["inference_count"] >= 1
    assert len(ask(address, "/v2/models/stats").json["model_stats"]) == 2
    index = ask(address, "/v2/repository/index", b"", KIND).json
    assert [(one["name"], one["state"]) for one in index] == [
        ("colours", "READY"),
        ("sums", "READY"),
    ]
    assert ask(address, "/v2/repository/index", b'{"ready": true}', KIND).json == index
    for body in (b"{", b"\xff", b'{"raedy": true}', b'{"repository_name": "x"}'):
        assert ask(address, "/v2/repository/index", body, KIND).status == 400


def test_server_and_models_describe_themselves(address):
    assert ask(address, "/v2").json["name"] == "wsss-serving"
    assert ask(address, "/v2/health/live").json == {"live": True}
    assert ask(address, "/v2/health/ready").json == {"ready": True}
    model = ask(address, "/v2/models/sums").json
    assert [one["name"] for one in model["inputs"]] == ["x", "y"]
    assert model["inputs"][0]["shape"] == [-1, 3]
    assert ask(address, "/v2/models/sums/versions/1/ready").status == 200
    assert ask(address, "/v2/models/sums/versions/2/ready").status == 503
    assert ask(address, "/v2/models/nothing").status == 404
    assert ask(address, "/v2/models/sums/versions/x").status == 400
