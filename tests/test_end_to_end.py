"""A run on a tiny synthetic data set, as a user would type it: figures, staleness, interruption.

How a run is exported and served is in ``test_documented_commands.py``.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fast import FAST

from trainer.commands import demo

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def trainer(*arguments: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "trainer", *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=ENVIRONMENT, timeout=500, check=False
    )
    assert done.returncode == code, f"{command}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "data"
    trainer("synth", folder, "--count", "28", "--size", "64")
    return folder


@pytest.fixture(scope="module")
def finished(scenes: Path) -> Path:
    run = scenes.parent / "run"
    trainer("fit", scenes, "--run", run, *FAST, "--supervision", "both")
    return run


def test_every_stage_is_done_and_measured(finished: Path) -> None:
    manifest = json.loads((finished / "manifest.json").read_text())
    stages = manifest["stages"]
    assert {n: s["status"] for n, s in stages.items()} == dict.fromkeys(
        (
            "classify",
            "cams",
            "refine",
            "segment_train",
            "segment",
            "segment_full_train",
            "segment_full",
            "scores",
            "evaluate",
        ),
        "done",
    )
    evaluation = json.loads(trainer("eval", finished, "--json").stdout)
    assert set(evaluation) == {"classifier", "cam", "refined", "segment", "segment_full"}
    for name, figures in evaluation.pop("classifier").items():
        assert figures["images"] == {"train": 21, "val": 7}[name]
        assert all(0 <= figures["mean"][key] <= 1 for key in ("auroc", "average_precision"))
    for lines in evaluation.values():
        for name, entry in lines.items():
            assert name in ("train", "val")
            assert 0 <= entry["miou"] <= 1
            assert entry["images"] == {"train": 21, "val": 7}[name]
            assert "seed 0" in entry["protocol"]
    assert evaluation["cam"]["val"]["threshold_from"] == "train"
    assert evaluation["cam"]["train"]["threshold_from"] == "label_free"
    assert (finished / "report.html").stat().st_size > 20_000


def test_a_second_fit_makes_nothing_again(scenes: Path, finished: Path) -> None:
    before = (finished / "segment" / "model.pt").stat().st_mtime_ns
    done = trainer("fit", scenes, "--run", finished, *FAST, "--supervision", "both", "--json")
    assert done.stderr.count("done, kept") == 9
    assert (finished / "segment" / "model.pt").stat().st_mtime_ns == before
    assert "cam" in json.loads(done.stdout)


def test_a_changed_knob_makes_its_stage_and_all_after_it_stale(
    scenes: Path, finished: Path, tmp_path: Path
) -> None:
    import shutil

    run = tmp_path / "copy"
    shutil.copytree(finished, run)
    done = trainer(
        "fit", scenes, "--run", run, *FAST, "--until", "refine", "--set", "refine.refine=none"
    )
    lines = done.stderr.splitlines()
    assert "classify: done, kept" in lines
    assert "cams: done, kept" in lines
    assert any(line.startswith("refine: settings or inputs changed") for line in lines)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_killed_training_goes_on_to_the_same_weights(
    scenes: Path, tmp_path: Path, how: signal.Signals
) -> None:
    knobs = [
        *FAST,
        "--until",
        "classify",
        "--set",
        "classify.epochs=6",
        "--set",
        "classify.checkpoint_minutes=0",
    ]
    trainer("fit", scenes, "--run", tmp_path / "whole", *knobs)
    command = [
        sys.executable,
        "-m",
        "trainer",
        "fit",
        str(scenes),
        "--run",
        str(tmp_path / "broken"),
        *knobs,
    ]
    process = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while process.poll() is None and not list(
        (tmp_path / "broken").glob("classify/checkpoint-*.pt")
    ):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(how)
    assert process.wait(timeout=100) in (0, 75, -signal.SIGKILL)
    trainer("fit", scenes, "--run", tmp_path / "broken", *knobs)
    first, second = (tmp_path / name / "classify" / "model.pt" for name in ("whole", "broken"))
    assert first.read_bytes() == second.read_bytes()


def test_the_demo_reaches_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "SCENES", ("--count", "16", "--size", "64"))
    monkeypatch.setattr(demo, "FIT", FAST)
    lines: list[str] = []
    result = demo.run_demo(tmp_path / "demo", lines.append)
    assert set(result["miou"]) == {"cam", "refined", "segment"}
    assert all(0 <= value <= 1 for value in result["miou"].values())
    assert all(Path(place).exists() for place in result["look_at"].values())
    assert len(list((tmp_path / "demo" / "masks").glob("*.png"))) == 16
    assert "mIoU on val: cam 0." in lines[-5]
