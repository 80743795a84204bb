"""The end of the process: in time whatever a worker does, by every signal that asks for it, and at
once by the second.
"""

from __future__ import annotations

import signal
import sys
import time

import grpc
import pytest
from rpc_calls import IMAGE
from server_process import served

from wsss.v1 import segmentation_pb2 as pb
from wsss.v1 import segmentation_pb2_grpc

# A server whose decoder is busy in C for half a minute with every image.
BUSY = (
    "import time\nfrom serving.images import decoding\n"
    "decoding.from_raw = lambda *arguments: print('decoding', flush=True) or time.sleep(30)\n"
    "from serving.cli import main; main()"
)
# One in which every thread of Python stands still as soon as it begins to end.
STANDING = (
    "import ctypes, threading\nfrom serving.server import Server\n"
    "Server.stop = lambda *arguments, **options: ctypes.PyDLL(None).sleep(30)\n"
    "from serving.cli import main; main()"
)
REQUEST = pb.SegmentRequest(model="colours", image=IMAGE)


def ends(process, number, seconds):
    """The exit code after a signal, which must come in time."""
    began = time.monotonic()
    process.send_signal(number)
    code = process.wait(seconds)
    assert time.monotonic() - began < seconds
    return code


@pytest.fixture
def busy(repository):
    """The process, and a call that it decodes the image of."""
    settings = ("--repository", repository, "--grace", "0.5", "--set", "models.trial=false")
    with (
        served(*settings, command=(sys.executable, "-c", BUSY)) as (process, address),
        grpc.insecure_channel(address) as channel,
    ):
        call = segmentation_pb2_grpc.SegmentationStub(channel).Segment.future(REQUEST, timeout=60)
        assert process.stdout.readline() == "decoding\n"
        yield process, call


def test_the_grace_is_the_end_whatever_a_decoder_does(busy):
    process, call = busy
    assert ends(process, signal.SIGTERM, 5) == 1, "an accepted request was left"
    assert call.code() is grpc.StatusCode.UNAVAILABLE


def test_a_decoder_whose_caller_is_gone_is_not_waited_for(busy):
    process, call = busy
    call.cancel()
    time.sleep(0.2)
    assert ends(process, signal.SIGTERM, 5) == 0


def test_a_library_that_holds_the_lock_of_python_does_not_outlast_the_grace(repository):
    settings = ("--repository", repository, "--grace", "0.2", "--set", "models.trial=false")
    with served(*settings, command=(sys.executable, "-c", STANDING)) as (process, _):
        assert ends(process, signal.SIGTERM, 8) == 1


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM])
def test_every_signal_drains_and_the_second_ends_at_once(repository, number):
    settings = ("--repository", repository, "--lame-duck", "20", "--set", "models.trial=false")
    with served(*settings) as (process, address), grpc.insecure_channel(address) as channel:
        stub = segmentation_pb2_grpc.SegmentationStub(channel)
        process.send_signal(number)
        time.sleep(0.3)
        assert stub.Segment(REQUEST, timeout=10).mask.png, "the lame duck flies"
        assert ends(process, number, 3) == 128 + number


def test_nohup_is_heeded(repository):
    code = (
        "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "from serving.cli import main; main()"
    )
    settings = ("--repository", repository, "--set", "models.trial=false")
    with served(*settings, command=(sys.executable, "-c", code)) as (process, address):
        process.send_signal(signal.SIGHUP)
        with grpc.insecure_channel(address) as channel:
            assert segmentation_pb2_grpc.SegmentationStub(channel).Segment(REQUEST, timeout=10)
        assert ends(process, signal.SIGTERM, 10) == 0
