"""A labeller without a terminal says how far it is."""

from __future__ import annotations

import json

import pytest

from serving.commands.progress import Log, progress_bar, set_log


def test_a_log_gets_a_line_every_half_minute(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with progress_bar("labelling") as report:
        for count in range(101):
            report(count, 100)
            now[0] += 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "labelling 30/100 (30%), 1 images/s, about 70 s left",
        "labelling 60/100 (60%), 1 images/s, about 40 s left",
        "labelling 90/100 (90%), 1 images/s, about 10 s left",
    ]


@pytest.fixture
def in_json():
    set_log(Log.json)
    yield
    set_log(Log.text)


def test_lines_can_be_json(monkeypatch, capsys, in_json):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with progress_bar("labelling") as report:
        for count in range(40):
            report(count, 40)
            now[0] += 1
    assert list(map(json.loads, capsys.readouterr().err.splitlines())) == [
        {"event": "stage", "stage": "labelling", "state": "started"},
        {
            "event": "progress",
            "stage": "labelling",
            "step": 30,
            "steps": 40,
            "share": 0.75,
            "images_per_second": 1.0,
            "seconds_left": 10.0,
            "losses": {},
        },
        {"event": "stage", "stage": "labelling", "state": "done"},
    ]
