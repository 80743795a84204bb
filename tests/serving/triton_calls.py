"""Every call of ``tritonclient.grpc`` and ``tritonclient.grpc.aio`` against a server:
``triton_calls.py ADDRESS``.

Run by test_triton.py with the interpreter of an environment that has NVIDIA's client and
nothing of ours. Prints the names of the calls that were made and answered as NVIDIA's own server
answers them.
"""

from __future__ import annotations

import asyncio
import json
import queue
import sys

import numpy as np
import tritonclient.grpc as sync
import tritonclient.grpc.aio as aio
from tritonclient.utils import InferenceServerException

X = np.arange(6, dtype=np.float32).reshape(2, 3)
Y = np.ones((2, 3), np.float32)
PIXELS = np.random.default_rng(0).integers(0, 256, (1, 16, 24, 3), dtype=np.uint8)
CONTROL = ("load_model", "unload_model")
NOT_OFFERED = (
    ("get_system_shared_memory_status", ()),
    ("register_system_shared_memory", ("a", "/a", 8)),
    ("unregister_system_shared_memory", ("a",)),
    ("get_cuda_shared_memory_status", ()),
    ("register_cuda_shared_memory", ("a", b"aGFuZGxl", 0, 8)),
    ("unregister_cuda_shared_memory", ("a",)),
    ("get_trace_settings", ()),
    ("update_trace_settings", ()),
    ("get_log_settings", ()),
    ("update_log_settings", ({"log_info": True},)),
)

done: set[str] = set()


def tensor(client, name, values, datatype="FP32", shape=None):
    made = client.InferInput(name, shape or list(values.shape), datatype)
    made.set_data_from_numpy(values)
    return made


def sums(client):
    return [tensor(client, "x", X), tensor(client, "y", Y)]


def check_metadata(server, model, config, segmenter):
    assert server.name == "wsss-serving"
    assert {"statistics", "model_repository", "binary_tensor_data"} <= set(server.extensions)
    assert (model.name, list(model.versions), model.platform) == ("sums", ["1"], "onnxruntime_onnx")
    assert [(t.name, t.datatype, list(t.shape)) for t in model.inputs] == [
        ("x", "FP32", [-1, 3]),
        ("y", "FP32", [-1, 3]),
    ]
    assert [(t.name, list(t.shape)) for t in segmenter.inputs] == [("image", [-1, -1, -1, 3])]
    assert config.config.name == "sums"
    assert config.config.max_batch_size > 1
    assert [list(entry.dims) for entry in config.config.input] == [[3], [3]], "without the batch"


def check_sums(result, request_id="7"):
    reply = result.get_response()
    assert (reply.id, reply.model_name, reply.model_version) == (request_id, "sums", "1")
    np.testing.assert_array_equal(result.as_numpy("sum"), X + Y)
    if len(reply.outputs) > 1:
        np.testing.assert_array_equal(result.as_numpy("twice"), 2 * X)
    assert len(reply.raw_output_contents) == len(reply.outputs)


def check_image(result):
    mask = result.as_numpy("mask")
    assert mask.shape == PIXELS.shape[:3]
    expected = np.where(PIXELS.max(axis=3) > 127, PIXELS.argmax(axis=3) + 1, 0)
    np.testing.assert_array_equal(mask, expected)


def check_classes(result):
    names = [text.decode().split(":") for text in result.as_numpy("scores")[0]]
    assert len(names) == 2
    assert all(len(parts) == 3 and parts[2] in ("red", "green", "blue") for parts in names)
    assert float(names[0][0]) >= float(names[1][0])


def check_statistics(before, after):
    old, new = before.model_stats[0], after.model_stats[0]
    assert (new.name, new.version) == ("sums", "1")
    assert new.inference_stats.queue.count > old.inference_stats.queue.count
    assert new.inference_stats.success.count > old.inference_stats.success.count
    assert new.inference_stats.success.ns >= new.inference_stats.compute_infer.ns > 0
    assert new.inference_count >= new.execution_count > 0
    assert new.last_inference > 1_600_000_000_000


def failures(client):
    """Requests that must fail, each with its code."""
    wide = client.InferInput("x", [2, 4], "FP32")
    wide.set_data_from_numpy(np.ones((2, 4), np.float32))
    double = client.InferInput("x", [2, 3], "FP64")
    double.set_data_from_numpy(X.astype(np.float64))
    short = client.InferInput("x", [2, 3], "FP32")
    short.set_data_from_numpy(X)
    short._raw_content = short._get_content()[:-4]
    shared = client.InferInput("x", [2, 3], "FP32")
    shared.set_shared_memory("region", 24)
    y = tensor(client, "y", Y)
    large = [tensor(client, name, np.ones((65, 3), np.float32)) for name in ("x", "y")]
    ragged = [tensor(client, "x", X), tensor(client, "y", np.ones((3, 3), np.float32))]
    unknown = [client.InferRequestedOutput("nothing")]
    invalid = "StatusCode.INVALID_ARGUMENT"
    return [
        ({"model_name": "nothing", "inputs": sums(client)}, "StatusCode.NOT_FOUND"),
        (
            {"model_name": "sums", "inputs": sums(client), "model_version": "9"},
            "StatusCode.NOT_FOUND",
        ),
        ({"model_name": "sums", "inputs": sums(client), "model_version": "x"}, invalid),
        ({"model_name": "sums", "inputs": sums(client), "outputs": unknown}, invalid),
        ({"model_name": "sums", "inputs": [y]}, invalid),
        ({"model_name": "sums", "inputs": [y, tensor(client, "z", X)]}, invalid),
        *(
            ({"model_name": "sums", "inputs": [bad, y]}, invalid)
            for bad in (wide, double, short, shared)
        ),
        ({"model_name": "sums", "inputs": large}, invalid),
        ({"model_name": "sums", "inputs": ragged}, invalid),
    ]


def status(call, *arguments, **options):
    """The code with which a call fails, OK if it does not."""
    try:
        call(*arguments, **options)
    except InferenceServerException as error:
        return error.status()
    return "OK"


async def aio_status(call, *arguments, **options):
    try:
        await call(*arguments, **options)
    except InferenceServerException as error:
        return error.status()
    return "OK"


def sync_calls(address):
    with sync.InferenceServerClient(address) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("sums")
        assert client.is_model_ready("sums", "1")
        assert not client.is_model_ready("nothing")
        assert not client.is_model_ready("sums", "9")
        segmenter = client.get_model_metadata("colours")
        metadata, config = client.get_model_metadata("sums", "1"), client.get_model_config("sums")
        check_metadata(client.get_server_metadata(), metadata, config, segmenter)
        before = client.get_inference_statistics("sums")
        for options in (
            {},
            {"compression_algorithm": "gzip"},
            {"compression_algorithm": "deflate"},
        ):
            check_sums(client.infer("sums", sums(sync), request_id="7", **options))
        timed = {
            "priority": 1,
            "timeout": 5_000_000,
            "client_timeout": 5.0,
            "headers": {"x-request-id": "a"},
        }
        wanted = [sync.InferRequestedOutput("sum")]
        check_sums(
            client.infer(
                "sums", sums(sync), "1", wanted, request_id="7", parameters={"mine": 3}, **timed
            )
        )
        check_image(client.infer("colours", [tensor(sync, "image", PIXELS, "UINT8")]))
        best = [sync.InferRequestedOutput("scores", class_count=2)]
        check_classes(
            client.infer("colours", [tensor(sync, "image", PIXELS, "UINT8")], outputs=best)
        )
        encoded = tensor(sync, "image", np.array([PNG], object), "BYTES")
        assert client.infer("colours", [encoded]).as_numpy("mask").shape == (1, 300, 500)
        assert client.infer("maps", [encoded]).as_numpy("cam").shape[:2] == (1, 3)
        check_statistics(before, client.get_inference_statistics("sums", "1"))
        assert len(client.get_inference_statistics().model_stats) == 3
        index = {(m.name, m.version): m.state for m in client.get_model_repository_index().models}
        assert index == {(name, "1"): "READY" for name in ("colours", "maps", "sums")}
        done.update(
            {
                "is_server_live",
                "is_server_ready",
                "is_model_ready",
                "get_server_metadata",
                "get_model_metadata",
            }
        )
        done.update(
            {"get_model_config", "infer", "get_inference_statistics", "get_model_repository_index"}
        )
        sync_failures(client)
        sync_async_infer(client)
        sync_stream(client)


def sync_failures(client):
    for arguments, expected in failures(sync):
        assert status(client.infer, **arguments) == expected, arguments
    assert status(client.infer, "sums", sums(sync), timeout=1) == "StatusCode.DEADLINE_EXCEEDED", (
        "microseconds"
    )
    for name in CONTROL:
        assert status(getattr(client, name), "sums") == "StatusCode.UNAVAILABLE", name
    for name, arguments in NOT_OFFERED:
        assert status(getattr(client, name), *arguments) == "StatusCode.UNIMPLEMENTED", name
    done.update({*CONTROL, *(name for name, _ in NOT_OFFERED)})


def sync_async_infer(client):
    answers: queue.Queue = queue.Queue()
    for _ in range(8):
        client.async_infer(
            "sums", sums(sync), lambda result, error: answers.put((result, error)), request_id="7"
        )
    for _ in range(8):
        result, error = answers.get(timeout=20)
        assert error is None, error
        check_sums(result)
    done.add("async_infer")


def sync_stream(client):
    answers: queue.Queue = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    for number in range(6):
        inputs = sums(sync) if number != 2 else sums(sync)[:1]
        client.async_stream_infer(
            "sums", inputs, request_id=str(number), enable_empty_final_response=number == 5
        )
    for number in range(6):
        result, error = answers.get(timeout=20)
        if number == 2:
            assert error is not None
            assert "1 inputs" in str(error)
        else:
            assert error is None, error
            check_sums(result, str(number))
    assert result.get_response().parameters["triton_final_response"].bool_param
    client.stop_stream()
    client.start_stream(lambda result, error: answers.put((result, error)))
    client.async_stream_infer("sums", sums(sync), request_id="7")
    check_sums(answers.get(timeout=20)[0])
    client.stop_stream(cancel_requests=True)
    done.update({"start_stream", "async_stream_infer", "stop_stream"})


async def aio_calls(address):
    async with aio.InferenceServerClient(address) as client:
        assert await client.is_server_live()
        assert await client.is_server_ready()
        assert await client.is_model_ready("sums")
        assert not await client.is_model_ready("nothing")
        segmenter = await client.get_model_metadata("colours")
        metadata, config = (
            await client.get_model_metadata("sums"),
            await client.get_model_config("sums"),
        )
        check_metadata(await client.get_server_metadata(), metadata, config, segmenter)
        before = await client.get_inference_statistics("sums")
        results = await asyncio.gather(
            *(client.infer("sums", sums(aio), request_id="7") for _ in range(8))
        )
        for result in results:
            check_sums(result)
        check_statistics(before, await client.get_inference_statistics("sums"))
        assert len((await client.get_model_repository_index()).models) == 3
        for arguments, expected in failures(aio):
            assert await aio_status(client.infer, **arguments) == expected, arguments
        for name in CONTROL:
            assert await aio_status(getattr(client, name), "sums") == "StatusCode.UNAVAILABLE"

        async def requests():
            for number in range(4):
                yield {
                    "model_name": "sums",
                    "inputs": sums(aio)[: 1 if number == 1 else 2],
                    "request_id": str(number),
                }

        number = 0
        async for result, error in client.stream_infer(requests()):
            assert (error is not None) == (number == 1)
            if error is None:
                check_sums(result, str(number))
            number += 1
        assert number == 4
        done.update({"aio", "aio.infer", "aio.stream_infer"})


if __name__ == "__main__":
    with open(sys.argv[2], "rb") as file:
        PNG = file.read()
    sync_calls(sys.argv[1])
    asyncio.run(aio_calls(sys.argv[1]))
    print(json.dumps(sorted(done)))
