from __future__ import annotations

import time

import grpc
import numpy as np
import pytest
from configs import configured

from serving import errors
from serving.client import Client
from serving.client.retries import Retries
from serving.rpc import status
from wsss.v1 import segmentation_pb2 as pb


def test_waits_grow_have_jitter_and_heed_the_server():
    tries = Retries(3, 100.0)
    waits = [tries.delay(errors.ServerUnavailable("gone", retry_after=0.0)) for _ in range(3)]
    assert all(0.1 * 2**k <= wait <= 0.15 * 2**k for k, wait in enumerate(waits))
    with pytest.raises(errors.ServerUnavailable, match="gone"):
        tries.delay(errors.ServerUnavailable("gone", retry_after=0.0))
    many = {Retries(1, 100.0).delay(errors.Overloaded("full", retry_after=2.0)) for _ in range(20)}
    assert len(many) > 10
    assert all(2.0 <= wait <= 3.0 for wait in many)


@pytest.mark.parametrize(
    "error",
    [
        errors.FieldError("wrong"),
        errors.DeadlineMissed("late"),
        errors.ServerFault("broken"),
        errors.Overloaded("full", retry_after=60.0),
    ],
)
def test_what_is_never_tried_again(error):
    with pytest.raises(type(error)):
        Retries(5, 1.0).delay(error)


class Flaky:
    """A method of a stub that fails some times before it answers."""

    def __init__(self, failures: int) -> None:
        self.failures, self.calls = failures, []

    def __call__(self, request, timeout, metadata):
        self.calls.append(timeout)
        if len(self.calls) <= self.failures:
            raise FakeError
        return pb.ListModelsResponse()


class FakeError(grpc.RpcError):
    def code(self):
        return grpc.StatusCode.UNAVAILABLE

    def details(self):
        return "no connection"

    def trailing_metadata(self):
        return ()


def test_a_call_is_made_again_within_its_time():
    with Client("127.0.0.1:1", timeout=5.0) as client:
        method = Flaky(2)
        assert client._call(method, None) == pb.ListModelsResponse()
        assert len(method.calls) == 3
        assert method.calls[0] > method.calls[1] > method.calls[2] > 4.0
        method = Flaky(9)
        with pytest.raises(errors.ServerUnavailable):
            client._call(method, None)
        assert len(method.calls) == 4
    with Client("127.0.0.1:1", timeout=5.0, retries=0) as client:
        method = Flaky(1)
        with pytest.raises(errors.ServerUnavailable):
            client._call(method, None)
        assert len(method.calls) == 1


def test_no_time_is_spent_beyond_the_deadline():
    began = time.monotonic()
    with (
        Client("127.0.0.1:1", timeout=0.5, retries=100) as lost,
        pytest.raises(errors.ServerUnavailable),
    ):
        lost.list_models()
    assert time.monotonic() - began < 5.0


def test_a_full_queue_is_waited_for(repository, run_server):
    with run_server(configured(repository, schedule__queue=1, schedule__workers=1)) as server:
        from concurrent.futures import ThreadPoolExecutor

        pixels = np.zeros((200, 200, 3), np.uint8)
        with Client(server.address, retries=50) as client, ThreadPoolExecutor(4) as threads:
            results = list(threads.map(lambda _: client.segment(pixels, "colours"), range(12)))
    assert len(results) == 12


@pytest.mark.parametrize(
    "error",
    [
        errors.ImageTooLarge(
            "large", "small", "less", field="image", metadata={"max_image_bytes": "3"}
        ),
        errors.ModelNotFound("no model", metadata={"known": "a,b"}),
        errors.Overloaded("full", retry_after=1.5),
        errors.DeadlineMissed("late"),
    ],
)
def test_a_failure_on_a_stream_is_the_same_error_at_the_client(error):
    found = status.from_failure(status.to_failure(error))
    assert type(found) is type(error)
    assert (str(found), found.code, found.reason, found.metadata, found.field) == (
        str(error),
        error.code,
        error.reason,
        error.metadata,
        error.field,
    )
    assert getattr(found, "retry_after", None) == getattr(error, "retry_after", None)


def test_an_unknown_code_on_a_stream_is_borne():
    assert status.from_failure(pb.Failure(code=99, message="odd")).code == "UNKNOWN"
