"""The load generator counts right, and every figure comes from a real server."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from concurrent import futures
from pathlib import Path

import grpc
import pytest
import tiny_models
from configs import EXACT
from typer.testing import CliRunner

from serving.bench import SERVED, bench, load
from serving.bench.load import Load, Request
from serving.bench.setting import BenchConfig
from serving.cli import app
from serving.errors import BenchError

ROOT = Path(__file__).resolve().parents[3]
METHOD = "/test.Service/Method"


@pytest.fixture
def slow_server():
    """Two at a time, each takes 20 ms and says how long; a third is refused."""
    places = threading.Semaphore(2)

    def answer(request, context):
        if not places.acquire(blocking=False):
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
        time.sleep(0.02)
        places.release()
        context.set_trailing_metadata(
            (("wsss-timings", "queue;dur=1.500, infer;dur=20.000, total;dur=22.000"),)
        )
        return request

    server = grpc.server(futures.ThreadPoolExecutor(16))
    handler = grpc.unary_unary_rpc_method_handler(answer)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("test.Service", {"Method": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


def test_callers_wait_for_their_answers(slow_server):
    found = load.closed(
        slow_server, Request(METHOD, (b"a", b"b")), callers=2, seconds=0.5, count=1000
    )
    assert set(found.codes) == {"OK"}
    assert 2 <= found.codes["OK"] <= 2 * 0.5 / 0.02 + 2
    assert min(found.waits) >= 0.02
    assert found.rate == found.in_time / found.seconds <= 2 / 0.02
    assert found.in_time <= len(found.waits) == found.codes["OK"]


def test_a_load_ends_after_so_many_requests(slow_server):
    began = time.perf_counter()
    found = load.closed(slow_server, Request(METHOD, (b"",)), callers=1, seconds=60, count=3)
    assert found.codes.total() == 3
    assert found.seconds < time.perf_counter() - began < 30


def test_requests_come_by_chance_whatever_the_server_does(slow_server):
    found = load.poisson(
        slow_server, Request(METHOD, (b"",)), rate=400, seconds=0.5, count=1000, seed=1
    )
    again = load.poisson(
        slow_server, Request(METHOD, (b"",)), rate=400, seconds=0.5, count=1000, seed=1
    )
    assert found.codes.total() == again.codes.total() > 100, "the times are those of the seed"
    assert set(found.codes) == {"OK", "RESOURCE_EXHAUSTED"}
    assert len(found.waits) == found.codes["OK"]
    assert found.rate <= 2 / 0.02


def test_a_wait_counts_from_when_the_request_was_due(slow_server):
    """A loop that stands still sends late, and the waits say so."""

    async def blocked():
        async with grpc.aio.insecure_channel(slow_server) as channel:
            caller = load.Caller(channel, Request(METHOD, (b"",)))
            asyncio.get_running_loop().call_later(0.05, time.sleep, 0.4)
            return await caller.open(20, 0.3, 100, seed=3)

    found = asyncio.run(blocked())
    assert max(found.waits) > 0.2


def test_times_of_the_server_are_read(slow_server):
    found = load.closed(
        slow_server, Request(METHOD, (b"",), timed=True), callers=1, seconds=60, count=2
    )
    assert (found.queued, found.ran) == ([0.0015] * 2, [0.02] * 2)


def test_no_answer_is_an_endless_wait():
    assert Load(seconds=1).wait(0.99) == float("inf")
    assert Load(seconds=1).rate == 0


def run(*arguments: object):
    return CliRunner().invoke(app, ["bench", "--engine", "onnxruntime", *map(str, arguments)])


def test_every_figure_of_images(repository):
    done = run(
        "--repository", repository, "--model", "colours", "--rounds", 1, "--seconds", 0.3, "--json"
    )
    assert done.exit_code == 0, done.output
    results = json.loads(done.stdout)
    assert list(results["figures"]) == list(SERVED.figures)
    check_figures(results)
    assert results["measured"]["flood_failed"] == 0
    assert results["model"] == "colours"


def test_what_the_program_in_bench_measures_beside():
    figures = ["batch-wait", "rounded-sizes", "labelling", "probe-wait"]
    words = ("--net", "segmenter", "--rounds", "1", "--seconds", "1", "--only", ",".join(figures))
    command = [sys.executable, "bench/serve.py", *words, "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert list(results["figures"]) == figures
    check_figures(results)
    assert results["measured"]["stalls"] >= 0


def check_figures(results):
    for figure in results["figures"].values():
        assert figure["low"] <= figure["value"] <= figure["high"]


def test_some_figures_of_tensors_in_a_table(tmp_path):
    tiny_models.export(tmp_path, "sums", "tensor")
    short = ("--rounds", 2, "--seconds", 0.2)
    done = run("--repository", tmp_path, *short, "--only", "all-callers,tail")
    assert done.exit_code == 0, done.output
    assert "all-callers" in done.stdout
    assert "tail" in done.stdout
    assert "flood" not in done.stdout.partition("loop per second")[0]


def test_a_server_that_runs_already(server, repository):
    config = BenchConfig(
        repository, "colours", engine=EXACT, address=server.address, rounds=1, seconds=0.2
    )
    assert set(bench(config)["figures"]) == set(SERVED.figures)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"only": ("all-caller",)}, "(?s)no figure 'all-caller'.* nearest: all-callers"),
        ({"images": "empty"}, "no JPEG below"),
        ({"address": "127.0.0.1:1"}, "answered UNAVAILABLE"),
    ],
)
def test_what_cannot_be_measured_is_said(repository, tmp_path, changes, message):
    if "images" in changes:
        changes = {"images": tmp_path}
    with pytest.raises(BenchError, match=message):
        bench(BenchConfig(repository, "colours", engine=EXACT, **changes))


def test_another_model_behind_the_address_is_noticed(tmp_path, server):
    """The same name and other weights."""
    tiny_models.export(tmp_path, "colours", "cam")
    with pytest.raises(BenchError, match="server and engine disagree"):
        bench(
            BenchConfig(
                tmp_path, "colours", engine=EXACT, address=server.address, rounds=1, seconds=0.2
            )
        )
