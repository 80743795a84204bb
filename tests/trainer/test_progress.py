"""Long work says how far it is, also where no bar can be drawn."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from trainer import progress
from trainer.scenes.writing import write_synthetic


@pytest.fixture
def clock(monkeypatch):
    """Time that passes only when a test says so."""
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


@pytest.fixture
def in_json():
    """What is said is JSON, until the test ends."""
    handlers = logging.root.handlers[:]
    progress.set_log(progress.Log.json)
    yield
    progress.set_log(progress.Log.text)
    assert logging.root.handlers == handlers


def test_a_log_gets_a_line_every_half_minute_and_one_at_the_end(clock, capsys):
    with progress.progress_bar("cams", 100) as advance:
        for _ in range(100):
            clock[0] += 1
            advance()
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert [line.split(",")[0] for line in lines] == [
        "cams 30/100 (30%)",
        "cams 60/100 (60%)",
        "cams 90/100 (90%)",
        "cams 100/100 (100%)",
    ]
    assert re.fullmatch(r"cams 60/100 \(60%\), 1 images/s, 0:01:00 spent, 0:00:4\d left", lines[1])
    assert "left" not in lines[-1]


@pytest.mark.parametrize(("seconds", "text"), [(1, "16"), (0.01, "1600"), (200, "0.08")])
def test_speeds_are_plain_numbers(clock, capsys, seconds, text):
    with progress.make_progress(images=16) as bar:
        task = bar.add_task("cams", total=40, status="")
        for _ in range(40):
            clock[0] += seconds
            bar.advance(task)
    assert f", {text} images/s, " in capsys.readouterr().err


def test_a_resumed_training_starts_at_its_step_and_shows_its_loss(clock, capsys):
    with progress.make_progress(images=16) as bar:
        task = bar.add_task("classify", total=80, completed=40, status="")
        for step in range(41, 81):
            clock[0] += 1
            bar.update(task, completed=step, status=f"loss {step / 100}")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("classify 70/80 (88%), 16 images/s, ")
    assert lines[0].endswith("loss 0.7")
    assert lines[-1].startswith("classify 80/80 (100%), ")


def test_the_other_processes_of_a_training_print_nothing(clock, capsys):
    with progress.make_progress(False) as bar:
        task = bar.add_task("classify", total=2, status="")
        clock[0] += 100
        bar.update(task, completed=1)
    assert capsys.readouterr().err == ""


def test_progress_as_json_has_every_figure(clock, capsys, in_json):
    with progress.make_progress(images=16) as bar:
        task = bar.add_task("classify", total=80, status="")
        for step in range(1, 81):
            clock[0] += 1
            bar.update(task, completed=step, losses={"loss": step / 100, "loss_x": float("nan")})
    first, *_, last = map(json.loads, capsys.readouterr().err.splitlines())
    assert first == {
        "event": "progress",
        "stage": "classify",
        "step": 30,
        "steps": 80,
        "share": 0.375,
        "images_per_second": 16.0,
        "seconds_left": 50.0,
        "losses": {"loss": 0.3, "loss_x": None},
    }
    assert (last["step"], last["share"], last["seconds_left"]) == (80, 1.0, 0.0)


def test_messages_stages_and_warnings_are_objects_too(clock, capsys, in_json):
    progress.say("two\nlines")
    progress.say("warning: segment: background alone")
    with progress.announced("refine"):
        clock[0] += 2.5
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("careful", stacklevel=1)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    message, sign, started, finished, warning = lines
    assert message == {"event": "message", "text": "two\nlines"}
    assert sign == {"event": "warning", "text": "segment: background alone"}
    assert started == {"event": "stage", "stage": "refine", "state": "started"}
    assert finished == {"event": "stage", "stage": "refine", "state": "done", "seconds": 2.5}
    assert warning["event"] == "warning"
    assert "careful" in warning["text"]


def test_a_stage_that_fails_is_not_called_done(capsys):
    with pytest.raises(ValueError), progress.announced("refine"):
        raise ValueError
    assert capsys.readouterr().err == "refine: started\n"


def fit(tmp_path: Path, *more: str) -> tuple[int, str, list[dict]]:
    command = [sys.executable, "-m", "trainer", "fit", str(tmp_path / "data"), "--weights", "none"]
    command += ["--run", str(tmp_path / "run"), "--epochs", "1", "--size", "64", "--log", "json"]
    command += ["--set", "classify.batch=4", "--set", "classify.workers=0", "--until", "refine"]
    ended = subprocess.run([*command, *more], capture_output=True, text=True)
    return ended.returncode, ended.stdout, [json.loads(x) for x in ended.stderr.splitlines()]


def test_every_line_of_a_training_is_json(tmp_path):
    write_synthetic(tmp_path / "data", 12, 64, 0, 0.2)
    code, out, events = fit(tmp_path)
    assert (code, out) == (0, "")
    stages = [(e["stage"], e["state"]) for e in events if e["event"] == "stage"]
    names = ("classify", "cams", "refine")
    assert stages == [(name, state) for name in names for state in ("started", "done")]
    (training,) = [e for e in events if e["event"] == "progress" and e["stage"] == "classify"]
    assert training["step"] == training["steps"] > 0
    assert training["losses"]["loss"] > 0
    maps = [e for e in events if e["event"] == "progress" and e["stage"] == "cams"]
    assert maps[-1]["share"] == 1
    code, _, events = fit(tmp_path)
    stages = [(e["stage"], e["state"]) for e in events if e["event"] == "stage"]
    assert (code, stages) == (0, [(name, "kept") for name in names])
    code, _, events = fit(tmp_path, "--method", "nothing")
    assert (code, events[-1]["event"], events[-1]["exit_code"]) == (2, "error", 2)
    assert "nothing" in events[-1]["text"]
