"""Calls of ``tritonclient.http`` against the REST side of a server: ``triton_http_calls.py ADDRESS
IMAGE``.

Run by test_triton.py with the interpreter of an environment that has NVIDIA's client and nothing
of ours.
"""

from __future__ import annotations

import itertools
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import tritonclient.http as http
from tritonclient.utils import InferenceServerException

X = np.arange(6, dtype=np.float32).reshape(2, 3)
Y = np.ones((2, 3), np.float32)


def tensors(binary: bool) -> list[Any]:
    made = []
    for name, values in (("x", X), ("y", Y)):
        one = http.InferInput(name, values.shape, "FP32")
        one.set_data_from_numpy(values, binary_data=binary)
        made.append(one)
    return made


def check_descriptions(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("sums")
    assert client.is_model_ready("sums", "1")
    assert not client.is_model_ready("nothing")
    assert client.get_server_metadata()["name"] == "wsss-serving"
    metadata = client.get_model_metadata("sums")
    assert [(one["name"], one["shape"]) for one in metadata["inputs"]] == [
        ("x", [-1, 3]),
        ("y", [-1, 3]),
    ]
    config = client.get_model_config("sums")
    assert [(one["data_type"], one["dims"]) for one in config["input"]] == [("TYPE_FP32", [3])] * 2
    index = client.get_model_repository_index()
    assert {one["name"]: one["state"] for one in index} == {
        "colours": "READY",
        "maps": "READY",
        "sums": "READY",
    }


def check_infer(client: Any) -> None:
    """Every mixture of numbers in JSON and of bytes behind it."""
    for sent, back in itertools.product((True, False), repeat=2):
        outputs = [http.InferRequestedOutput(name, binary_data=back) for name in ("sum", "twice")]
        result = client.infer("sums", tensors(sent), outputs=outputs, request_id="7")
        np.testing.assert_array_equal(result.as_numpy("sum"), X + Y)
        np.testing.assert_array_equal(result.as_numpy("twice"), 2 * X)
        reply = result.get_response()
        assert (reply["id"], reply["model_name"], reply["model_version"]) == ("7", "sums", "1")
        assert all(("parameters" in output) == back for output in reply["outputs"])
    every = client.infer("sums", tensors(True))
    np.testing.assert_array_equal(every.as_numpy("twice"), 2 * X)
    later = client.async_infer("sums", tensors(True)).get_result()
    np.testing.assert_array_equal(later.as_numpy("sum"), X + Y)
    best = [http.InferRequestedOutput("sum", class_count=1)]
    texts = client.infer("sums", tensors(True), outputs=best).as_numpy("sum").ravel()
    assert [text.decode().split(":")[1] for text in texts] == ["2", "2"]
    statistics = client.get_inference_statistics("sums")["model_stats"]
    assert statistics[0]["inference_count"] >= 2
    assert len(client.get_inference_statistics()["model_stats"]) == 3


def check_image(client: Any, path: str) -> None:
    with open(path, "rb") as file:
        data = file.read()
    image = http.InferInput("image", [1], "BYTES")
    image.set_data_from_numpy(np.array([data], object))
    mask = client.infer("colours", [image]).as_numpy("mask")
    assert mask.shape == (1, 300, 500)
    assert (mask == 1).all()


def check_failures(client: Any) -> None:
    y = tensors(True)[1:]
    compressed = {"request_compression_algorithm": "gzip"}
    for status, text, call in (
        ("404", "nearest: sums", lambda: client.infer("sum", tensors(True))),
        ("404", "no version", lambda: client.infer("sums", tensors(True), model_version="9")),
        ("400", "expected: 2: x, y", lambda: client.infer("sums", y)),
        ("415", "gzip", lambda: client.infer("sums", tensors(True), **compressed)),
        ("404", "no path", lambda: client.load_model("sums")),
    ):
        check_failure(status, text, call)


def check_failure(status: str, text: str, call: Callable[[], Any]) -> None:
    failure = None
    try:
        call()
    except InferenceServerException as error:
        failure = error
    assert failure, f"no failure with {status}, {text}"
    assert failure.status() == status, failure
    assert text in failure.message(), failure


def main(address: str, image: str) -> None:
    warnings.simplefilter("ignore")
    with http.InferenceServerClient(address, concurrency=2) as client:
        check_descriptions(client)
        check_infer(client)
        check_image(client, image)
        check_failures(client)


if __name__ == "__main__":
    main(*sys.argv[1:])
