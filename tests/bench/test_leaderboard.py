"""The leaderboard: its plan, its rows, and what they share, on synthetic scenes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from trainer.scenes.writing import write_synthetic

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture(scope="module")
def leaderboard() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCH))
        import leaderboard

    return leaderboard


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("board")
    write_synthetic(folder / "data", 16, 48, classes=3)
    fit = "--weights none --backbone timm/test_resnet --device cpu --epochs 1 --size 48"
    knobs = "--set classify.workers=0 --set cams.workers=0"
    out = ["--out", str(folder / "out"), "--seeds", "0,1"]
    return [str(folder / "data"), *out, *fit.split(), *knobs.split()]


def call(leaderboard: ModuleType, monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["leaderboard.py", *words])
    leaderboard.main()


def plan_of(text: str) -> dict[str, int]:
    lines = [line.split() for line in text.splitlines() if line.endswith(" to do")]
    return {stage: int(count) for stage, count, *_ in lines}


def test_the_plan_counts_what_rows_share_once(leaderboard, words, monkeypatch, capsys):
    only = ["--plan", "--only", "sc_cam", "--refine", "crf", "affinity"]
    call(leaderboard, monkeypatch, *words, *only)
    text = capsys.readouterr().out
    assert "4 rows x 2 seeds" in text
    assert "of the times are guesses" in text
    # Two methods and two seeds; the maps serve both refinements, the walk has two stages before it.
    assert plan_of(text) == {
        "round0": 2,
        "classify": 4,
        "cams": 4,
        "affinity_labels": 4,
        "affinity": 4,
        "walk": 4,
        "refine": 8,
        "segment_train": 8,
        "segment": 8,
    }
    assert not Path(words[2]).exists()


def test_rows_are_measured_and_not_made_again(leaderboard, words, monkeypatch, capsys):
    short = ["--only", "mixup_cam", "--refine", "crf", "none", "--until", "refine"]
    call(leaderboard, monkeypatch, *words, *short)
    out = Path(words[2])
    lines = (out / "leaderboard.md").read_text().splitlines()
    rows = [line.split(" | ") for line in lines if line.startswith(("| cam", "| mixup"))]
    assert sorted((row[0], row[1]) for row in rows) == [
        ("| cam", "crf"),
        ("| cam", "none"),
        ("| mixup_cam", "crf"),
        ("| mixup_cam", "none"),
    ]
    facts = {fact["row"]: fact for fact in json.loads((out / "leaderboard.json").read_text())}
    assert facts["cam crf"]["against"] is None
    against = facts["mixup_cam crf"]["against"]
    values = {
        row: {figure["figure"]: figure["ours"] for figure in fact["figures"]}
        for row, fact in facts.items()
    }
    difference = values["mixup_cam crf"]["refined val"] - values["cam crf"]["refined val"]
    assert 100 * against["value"] == pytest.approx(difference, abs=0.2)
    assert against["low"] <= against["value"] <= against["high"]
    # The best row of the last column comes first.
    order = [fact["row"] for fact in json.loads((out / "leaderboard.json").read_text())]
    assert order == sorted(order, key=lambda row: -values[row]["refined val"])
    # The second refinement took over the classifier and the maps.
    stages = json.loads((out / "cam-none" / "seed-0" / "manifest.json").read_text())["stages"]
    assert (
        stages["classify"]["taken_from"] == stages["cams"]["taken_from"] == "../../cam-crf/seed-0"
    )
    assert values["cam none"]["cam val"] == values["cam crf"]["cam val"]
    capsys.readouterr()
    call(leaderboard, monkeypatch, *words, *short, "--plan")
    text = capsys.readouterr().out
    assert plan_of(text) == {}
    assert "about 0.0 hours" in text


def test_a_row_that_fails_leaves_the_others(leaderboard, words, monkeypatch, capsys):
    call_words = [*words[:1], "--out", words[2] + "-irn", "--seeds", "0", *words[5:]]
    short = ["--only", "cam", "--refine", "irn", "crf", "--until", "refine"]
    with pytest.raises(SystemExit, match="1 rows failed: cam irn"):
        call(leaderboard, monkeypatch, *call_words, *short, "--backbone", "timm/test_vit")
    assert "| cam | crf |" in capsys.readouterr().out
