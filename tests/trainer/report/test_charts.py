from __future__ import annotations

import re

import numpy as np
import pytest

from trainer.report.charts import (
    Line,
    Mark,
    bars,
    forest,
    histogram,
    line_chart,
    short,
    thin,
    ticks,
)
from trainer.report.confusion import matrix


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.25, 0.5, 0.75, 1]),
        (0, 0.73, [0, 0.2, 0.4, 0.6, 0.8]),
        (0, 420, [0, 200, 400, 600]),
        (0, 0, [0, 0.2, 0.4, 0.6]),
        (-1, 1, [-1, -0.5, 0, 0.5, 1]),
    ],
)
def test_ticks_are_round_and_cover_the_range(
    low: float, high: float, expected: list[float]
) -> None:
    assert ticks(low, high, 4) == pytest.approx(expected)


def test_long_curves_are_averaged_and_keep_their_end() -> None:
    points = [(float(i), float(i % 2)) for i in range(10_001)]
    few = thin(points, 240)
    assert len(few) <= 240
    assert few[-1] == points[-1]
    assert all(0.35 < y < 0.65 for _, y in few[:-1])
    assert thin(points[:50], 240) == points[:50]


def test_a_chart_maps_values_to_places() -> None:
    drawn = line_chart(
        [Line("up", "red", [(0, 0), (10, 1)])],
        "label",
        "x",
        marks=[Mark(5, "here", [(5, 0.5)])],
        size=(360, 220),
    )
    assert drawn is not None
    path = re.search(r'points="([^"]+)"', drawn)
    assert path is not None
    assert path.group(1) == "46.0,186.0 346.0,12.0"
    assert '<circle class="dot" cx="196.0" cy="99.0"' in drawn
    assert line_chart([Line("none", "red", [(0, float("nan"))])], "label", "x") is None
    assert "<circle" in str(line_chart([Line("one", "red", [(3, 0.5)])], "label", "x"))


def test_bars_are_clipped_and_leave_gaps_for_missing_values() -> None:
    drawn = bars([("red", 0.25), ("blue", None), ("green", 1.7)], "three")
    assert re.findall(r'y="(\d+)" width="([\d.]+)%"', drawn) == [("0", "25.00"), ("18", "100.00")]
    assert 'aria-label="three"' in drawn


def test_a_histogram_counts_and_marks_the_median() -> None:
    drawn = histogram([0.0, 0.26, 0.26, 1.0, 1.7], "red", "five", bins=4, size=(200, 100))
    assert re.findall(r"<title>([^<]+)</title>", drawn) == [
        "0 to 25: 1",
        "25 to 50: 2",
        "50 to 75: 0",
        "75 to 100: 2",
    ]
    assert re.findall(r'x1="([\d.]+)" x2="\1" y1="0"', drawn) == ["52.0"]
    assert 'x1="100.0" x2="100.0"' in histogram([0.4, 0.6], "red", "two", size=(200, 100))


def test_names_are_escaped() -> None:
    name = '<b>"&'
    drawn = line_chart([Line(name, "red", [(0, 0), (1, 1)])], name, name, name, [Mark(0, name)])
    counts = np.eye(2, dtype=np.int64)
    for chart in (drawn, bars([("red", 1)], name), matrix(counts, [name, "x"], name)):
        assert "<b>" not in str(chart)
        assert 'aria-label="&lt;b&gt;&#34;&amp;"' in str(chart)


def test_a_forest_bar_shows_where_zero_is() -> None:
    drawn = str(forest(0.005, 0.01, 0.02, 0.02, "gain"))
    assert 'x1="112.5" x2="180.0"' in drawn
    assert 'cx="135.0"' in drawn
    assert "var(--segment)" in drawn
    assert "var(--warn)" in str(forest(-0.02, -0.01, -0.005, 0.02, "loss"))
    assert forest(float("nan"), 0.1, float("nan"), 0.02, "undefined") is None


def test_words_for_numbers() -> None:
    assert [short(v) for v in (0, 0.25, 1500, 2.5e6, 0.0001, 0.00025)] == [
        "0",
        "0.25",
        "1.5k",
        "2.5M",
        "1e-4",
        "2.5e-4",
    ]
