"""A training that is killed (SIGKILL) at random moments ends with the bytes of an unbroken one.

Three kills here; WSSS_KILLS=20 for more by hand.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import loop_job
import pytest
import torch
from loop_job import ALL, job
from test_loop import environment, same

KILLS = int(os.environ.get("WSSS_KILLS", "3"))


def started(folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, loop_job.__file__, str(folder), "--whole"]
    return subprocess.Popen(command, env=environment(), stderr=subprocess.DEVNULL)


def wait_for_step(folder: Path, process: subprocess.Popen[bytes], seconds: float) -> None:
    """Until the process trains (it has written a checkpoint of its own), then ``seconds`` more."""
    before = {path.name for path in folder.glob("checkpoint-*.pt")}
    while process.poll() is None and {p.name for p in folder.glob("checkpoint-*.pt")} <= before:
        time.sleep(0.005)
    time.sleep(seconds)


@pytest.mark.timeout(60 + 60 * KILLS)
def test_random_kills_leave_the_bytes_of_an_unbroken_training(tmp_path: Path) -> None:
    unbroken, chance = job(tmp_path / "whole", ALL), random.Random(0)
    killed = rounds = 0
    while killed < KILLS:
        folder = tmp_path / f"cut{rounds}"
        folder.mkdir(exist_ok=True)
        process = started(folder)
        wait_for_step(folder, process, chance.uniform(0, 0.15))
        process.kill()
        if process.wait() == -signal.SIGKILL:
            killed += 1
        if (folder / "final.pt").exists() or killed == KILLS:
            started(folder).wait()
            final = torch.load(folder / "final.pt", weights_only=True)
            assert same(final, unbroken)
            rounds += 1
    assert rounds >= 1
