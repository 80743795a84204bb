"""A training that is killed (SIGKILL) at random moments ends with the bytes of an unbroken one.

Three kills here; WSSS_KILLS=20 for more by hand.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import loop_job
import pytest
import torch
from loop_job import ALL, job, same

KILLS = int(os.environ.get("WSSS_KILLS", "3"))


CONTEXT = multiprocessing.get_context("forkserver")
"""Starts a process in milliseconds, where a fresh interpreter loads torch for seconds."""


def started(folder: Path) -> ForkServerProcess:
    process = CONTEXT.Process(target=loop_job.whole, args=(folder,))
    process.start()
    return process


def wait_for_step(folder: Path, process: ForkServerProcess, seconds: float) -> None:
    """Until the process trains (it has written a checkpoint of its own), then ``seconds`` more."""
    before = set(folder.glob("checkpoint-*.pt"))
    while process.is_alive() and set(folder.glob("checkpoint-*.pt")) <= before:
        time.sleep(0.005)
    time.sleep(seconds)


@pytest.mark.timeout(120 + 30 * KILLS)
def test_random_kills_leave_the_bytes_of_an_unbroken_training(tmp_path: Path) -> None:
    CONTEXT.set_forkserver_preload(["loop_job"])
    unbroken, chance = job(tmp_path / "whole", ALL), random.Random(0)
    killed = rounds = 0
    while killed < KILLS:
        folder = tmp_path / f"cut{rounds}"
        folder.mkdir(exist_ok=True)
        process = started(folder)
        wait_for_step(folder, process, chance.uniform(0, 0.15))
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        if (folder / "final.pt").exists() or killed == KILLS:
            last = started(folder)
            last.join()
            assert last.exitcode == 0
            assert same(torch.load(folder / "final.pt", weights_only=True), unbroken)
            rounds += 1
    assert rounds >= 1
