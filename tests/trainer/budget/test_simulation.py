"""``wsss-trainer budget`` on scenes: what it trains, what it shares, and what it refuses."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from fast import FAST
from typer.testing import CliRunner

from trainer.budget.runs import Wish
from trainer.budget.simulation import simulate
from trainer.cli import app
from trainer.commands.fit import options_of, parse
from trainer.data.formats.opening import open_dataset
from trainer.errors import ConfigError, DataError, UserError
from trainer.progress import Log

QUICK = ["--set=segment.flip=off"]


def budget(data: Path, run: Path, *words: str) -> Any:
    return CliRunner().invoke(app, ["budget", str(data), "--run", str(run), *words])


def stages(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "manifest.json").read_text())["stages"]
    return content


def test_a_curve_of_two_points(
    scenes: Path, tmp_path: Path, one_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--steps", "0,2", "--alone", "--json", "--", "--supervision", "both", *FAST, *QUICK]
    result = budget(scenes, tmp_path / "run", *words)
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    assert [(p["system"], p["masks"]) for p in content["points"]] == [
        ("tags alone", 0),
        ("tags and masks", 2),
        ("masks alone", 2),
    ]
    assert all(p["weak_full"] for p in content["points"])
    folder = tmp_path / "run" / "budget"
    masked, alone = folder / "ask-2-seed0", folder / "alone-ask-2-seed0"
    # The classifier and its maps are those of the run on tags.
    for name in ("classify", "cams", "segment_full_train"):
        assert stages(masked)[name]["taken_from"] == "../.."
        assert stages(masked)[name]["key"] == stages(tmp_path / "run")[name]["key"]
    assert "taken_from" not in stages(masked)["segment_train"]
    manifest = json.loads((masked / "manifest.json").read_text())
    ids = manifest["masks"]["ids"]
    assert len(ids) == 2
    assert {*ids} <= {*open_dataset(scenes).lists["train"]}
    table = (tmp_path / "run" / "budget" / "lists" / "alone-ask-2-seed0.csv").read_text()
    assert [row[0] for row in csv.reader(table.splitlines()) if row[1] == "few"] == ids
    assert json.loads((alone / "manifest.json").read_text())["train_list"] == "few"
    assert (tmp_path / "run" / "report.html").exists()
    # The same command keeps everything, and asks nobody again.
    monkeypatch.setattr("trainer.budget.choice.examine", None)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.pt")}
    again = budget(scenes, tmp_path / "run", *words)
    assert json.loads(again.stdout) == content
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.pt")}


@pytest.mark.parametrize(
    ("words", "error", "text"),
    [
        (["--", "--masks", "x.txt"], ConfigError, "chooses the masks"),
        (["--", "--supervision", "full"], ConfigError, "trains on tags"),
        (["--", "--until", "cams"], ConfigError, "measures every run"),
        (["--", "--val-list", "train"], DataError, "in the training list"),
        (["--", "--seeds", "0,1"], ConfigError, "--seeds before --"),
        (["--masks-of", "val"], DataError, "which is measured"),
        (["--masks-of", "none"], DataError, "neither a list"),
        (["--steps", "0,500"], DataError, "goes up to 500"),
        (["--steps", "1,x"], ConfigError, "whole numbers"),
        (["--seconds", "fast"], ConfigError, "--seconds fast"),
        (["--", "--segmenter", "aspq"], UserError, "aspq"),
    ],
)
def test_what_is_refused(
    scenes: Path, tmp_path: Path, words: list[str], error: type[UserError], text: str
) -> None:
    own = words if "--" in words else [*words, "--"]
    result = budget(scenes, tmp_path / "run", *own, *FAST)
    assert isinstance(result.exception, error)
    assert text in str(result.exception)
    assert not (tmp_path / "run" / "budget").exists()


def test_words_that_fit_does_not_know(scenes: Path, tmp_path: Path) -> None:
    result = budget(scenes, tmp_path / "run", "--", "--epoch", "3")
    assert result.exit_code == 2
    assert "--epoch" in result.stderr


def test_groups_limit_what_can_be_asked(scenes: Path, tmp_path: Path) -> None:
    dataset, table = open_dataset(scenes), tmp_path / "lists.csv"
    with open(table, "w", newline="") as file:
        rows = [
            (record_id, name, f"{name}{n // 3}")
            for name in ("train", "val")
            for n, record_id in enumerate(dataset.lists[name])
        ]
        csv.writer(file).writerows([("image", "list", "group"), *rows])
    lists = f"--set=data.lists={table}"
    words = [str(scenes), "--run", str(tmp_path / "run"), *FAST, lists]
    options, _ = options_of(parse(words, Log.text))
    with pytest.raises(DataError, match="of different groups"):
        simulate(options, Wish(steps=(6,)), lambda text: None)
