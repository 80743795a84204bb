"""Long work says how far it is, also where no bar can be drawn."""

from __future__ import annotations

import re

import pytest

from trainer import progress


@pytest.fixture
def clock(monkeypatch):
    """Time that passes only when a test says so."""
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_every_half_minute_and_one_at_the_end(clock, capsys):
    with progress.progress_bar("cams", 100) as advance:
        for _ in range(100):
            clock[0] += 1
            advance()
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert [line.split(",")[0] for line in lines] == [
        "cams 30/100",
        "cams 60/100",
        "cams 90/100",
        "cams 100/100",
    ]
    assert re.fullmatch(r"cams 60/100, 0:01:00 spent, 0:00:4\d left", lines[1])
    assert "left" not in lines[-1]


def test_a_resumed_training_starts_at_its_step_and_shows_its_loss(clock, capsys):
    with progress.make_progress() as bar:
        task = bar.add_task("classify", total=80, completed=40, status="")
        for step in range(41, 81):
            clock[0] += 1
            bar.update(task, completed=step, status=f"loss {step / 100}")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("classify 70/80, ")
    assert lines[0].endswith("loss 0.7")
    assert lines[-1].startswith("classify 80/80, ")


def test_the_other_processes_of_a_training_print_nothing(clock, capsys):
    with progress.make_progress(False) as bar:
        task = bar.add_task("classify", total=2, status="")
        clock[0] += 100
        bar.update(task, completed=1)
    assert capsys.readouterr().err == ""
