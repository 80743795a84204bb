"""Trials in real processes, which crash, hang and want too much."""

from __future__ import annotations

import asyncio
import os
import sys
import time

import numpy as np
import pytest
import tiny_models
from configs import configured
from onnx import helper, numpy_helper

from serving.errors import RepositoryError
from serving.repository import trial

# What runs in the place of ``python -m serving.repository.trial``: the same trial, with an engine
# that does as told.
SCRIPT = """
import os, sys, time
from serving.engines.onnxruntime import OnnxRuntimeEngine as engine
def run(self, inputs, stop=None):
    {run}
engine.run = run
from serving.repository.trial import main
main()
"""


@pytest.fixture
def misbehave(monkeypatch):
    def instead(run: str) -> None:
        monkeypatch.setattr(trial, "COMMAND", (sys.executable, "-c", SCRIPT.format(run=run)))

    return instead


def attempt(folder, **settings):
    asyncio.run(trial.try_model(folder, configured(folder.parent.parent, **settings)))


def test_sound_models_pass_and_the_loop_turns_meanwhile(tmp_path):
    folders = [tiny_models.export(tmp_path), tiny_models.export(tmp_path, "sums", "tensor")]
    turns = 0

    async def work():
        nonlocal turns
        config = configured(tmp_path, schedule__warm=["40x50"], schedule__max_batch=2)
        tasks = [asyncio.ensure_future(trial.try_model(folder, config)) for folder in folders]
        while not all(task.done() for task in tasks):
            turns += 1
            await asyncio.sleep(0.001)
        await asyncio.gather(*tasks)

    asyncio.run(work())
    assert turns > 20


def test_the_reason_of_a_refusal_comes_over(tmp_path):
    folder = tiny_models.export(tmp_path, changes={"sha256": {"model.onnx": "0" * 64}})
    with pytest.raises(RepositoryError, match="SHA-256") as caught:
        attempt(folder)
    assert str(folder) in caught.value.found
    assert caught.value.expected.startswith("0000")
    with pytest.raises(RepositoryError, match=r"schedule\.warm has 8x999"):
        attempt(tiny_models.export(tmp_path, "other"), schedule__warm=["8x999"])


@pytest.mark.parametrize(
    ("run", "told"),
    [
        ("os.abort()", "crashed with SIGABRT"),
        ("os.kill(os.getpid(), 11)", "crashed with SIGSEGV"),
        ("os._exit(3)", "ended with exit code 3"),
        ("raise SystemExit(0)", "ended with exit code 0"),
    ],
)
def test_a_crash_is_a_refusal(tmp_path, misbehave, run, told):
    misbehave(run)
    with pytest.raises(RepositoryError, match=told):
        attempt(tiny_models.export(tmp_path))


def test_what_a_crash_wrote_is_in_the_log(tmp_path, misbehave, caplog):
    misbehave("sys.stderr.write('assertion of the library failed'); sys.stderr.flush(); os.abort()")
    with pytest.raises(RepositoryError):
        attempt(tiny_models.export(tmp_path))
    assert "assertion of the library failed" in caplog.text


def test_a_hang_is_a_refusal(tmp_path, misbehave):
    misbehave("time.sleep(300)")
    began = time.monotonic()
    with pytest.raises(RepositoryError, match="took longer than 1 s"):
        attempt(tiny_models.export(tmp_path), models__trial_seconds=1)
    assert time.monotonic() - began < 60


def test_the_kernel_would_end_the_trial_before_the_server(tmp_path, misbehave):
    misbehave("raise RuntimeError(open('/proc/self/oom_score_adj').read() + ' ' + str(os.nice(0)))")
    with pytest.raises(RepositoryError, match=f"1000\n {min(19, os.nice(0) + 5)}"):
        attempt(tiny_models.export(tmp_path))


def test_what_libraries_print_is_not_the_verdict(tmp_path, misbehave):
    misbehave("print('{\"sound\": true}', flush=True); raise RuntimeError('fails all the same')")
    with pytest.raises(RepositoryError, match="fails all the same"):
        attempt(tiny_models.export(tmp_path))


def test_absurd_shapes_meet_the_memory_limit(tmp_path):
    folder = tiny_models.export(tmp_path, "sums", "tensor")
    shape = numpy_helper.from_array(np.array([300_000, 300_000]), "shape")
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["huge"]),
        helper.make_node("ReduceSum", ["huge"], ["sum"], keepdims=0),
        helper.make_node("Add", ["x", "sum"], ["y"]),
    ]
    tiny_models.save_graph(folder, tiny_models.small_graph(nodes, constants=[shape]))
    with pytest.raises(RepositoryError, match=r"fails on x \[1, 3\]"):
        attempt(folder, models__trial_memory_mb=1000)


def test_a_model_that_wants_more_memory_than_a_trial_has(tmp_path, misbehave):
    misbehave("bytearray(1 << 40)")
    with pytest.raises(RepositoryError, match=r"fails on an image of 8x8|needs more memory"):
        attempt(tiny_models.export(tmp_path), models__trial_memory_mb=1000)


def test_a_trial_that_nobody_waits_for_is_ended(tmp_path, misbehave):
    pid = tmp_path / "pid"
    misbehave(f"open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(300)")

    async def work():
        task = asyncio.ensure_future(
            trial.try_model(tiny_models.export(tmp_path), configured(tmp_path))
        )
        async with asyncio.timeout(60):
            while not (pid.exists() and pid.read_text()):
                await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid.read_text()), 0)

    asyncio.run(work())
