"""A labeller without a terminal says how far it is."""

from __future__ import annotations

from serving.commands.options import progress_bar


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
        "labelling 30/100, about 70 s left",
        "labelling 60/100, about 40 s left",
        "labelling 90/100, about 10 s left",
    ]
