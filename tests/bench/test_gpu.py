"""The program for a GPU: tried on processors, and what it says where no GPU is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

PROGRAM = Path(__file__).parents[2] / "bench" / "gpu.py"


def run(*options: str) -> tuple[int, list[dict[str, Any]]]:
    """Exit code and rows."""
    command = [sys.executable, str(PROGRAM), *options]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "Traceback" not in finished.stderr
    return finished.returncode, [json.loads(line) for line in finished.stdout.splitlines()]


def test_every_part_runs_on_processors() -> None:
    code, (machine, *rows) = run("--device", "cpu", "--quick")
    assert code == 0, rows
    assert machine["torch"] == torch.__version__.partition("+")[0]
    by_part = {name: [row for row in rows if row["part"] == name] for name in ("train", "maps")}
    plain, *ours = by_part["train"]
    assert plain["ratio"] == 1
    assert [row["side"] for row in ours] == ["this loop, fp32", "this loop, auto"]
    assert all(row["loss_gap"] < 0.01 and row["images_per_second"] > 0 for row in ours)
    _, exact, fast = by_part["maps"]
    assert exact["map_gap"] < 1e-3
    assert fast["map_gap"] < 0.5
    parity, serve = rows[-2:]
    assert (parity["part"], parity["engine"], parity["equal_pixels"]) == (
        "parity",
        "onnxruntime",
        1.0,
    )
    assert (serve["part"], set(serve["codes"])) == ("serve", {"OK"})
    assert serve["run_ms"] > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_what_is_missing_is_named() -> None:
    code, (machine, *rows) = run("--only", "train,maps,parity", "--quick")
    assert code == 1
    assert machine["device"] == "cuda"
    assert "gpu" not in machine
    missing = [row["missing"] for row in rows]
    assert all("torch" in text for text in missing[:2])
    assert [row["engine"] for row in rows[2:]] == ["onnxruntime-cuda", "tensorrt"]
    assert "CUDAExecutionProvider" in missing[2]
    assert "TensorRT" in missing[3]


def test_an_unknown_part_is_refused() -> None:
    assert run("--only", "trian")[0] == 1
