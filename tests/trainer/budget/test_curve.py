"""Budget curves from runs that are made of files only: figures, differences, minutes, and where
they are printed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_run import Page, make_run
from typer.testing import CliRunner

from trainer.budget.choice import random_order
from trainer.budget.curve import write_curve
from trainer.budget.runs import ALONE, BOTH, TAGS, Member, Wish, members
from trainer.cli import app
from trainer.data.dataset import Record
from trainer.evaluation.bootstrap import compare_paired, miou_interval
from trainer.evaluation.image_counts import ImageCounts, counts_path, sparse
from trainer.report.run_page import write_report
from trainer.run import Run

WISH = Wish(steps=(4, 8), ways=("ask", "random"), alone=True, seeds=(3, 5), draws=2)


def counts(right: float, seed: int) -> ImageCounts:
    """Twenty images of two classes with about this share of right pixels."""
    rng = np.random.default_rng(seed)
    matrices = []
    for _ in range(20):
        share = np.clip(right + rng.normal(0, 0.03), 0, 1)
        matrix = np.zeros((3, 4), np.int64)
        matrix[:, :3] = round(100 * (1 - share))
        matrix[range(3), range(3)] = round(1000 * share)
        matrices.append(sparse(matrix))
    return ImageCounts.of([f"{n}" for n in range(20)], ("cat", "dog"), matrices)


def write_figures(run: Path, stage: str, own: ImageCounts) -> None:
    own.write(counts_path(run, stage, "val"))
    path = run / "evaluation.json"
    content = json.loads(path.read_text()) if path.exists() else {}
    entry = content.setdefault(stage, {}).setdefault("val", {})
    entry["miou"] = miou_interval(own, samples=100).value
    path.write_text(json.dumps(content))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The report's run, with a budget beside it that knows more with every mask."""
    run = make_run(tmp_path)
    gain = {TAGS: 0.0, BOTH: 0.02, ALONE: -0.2}
    for number, member in enumerate(members(run, WISH)):
        right = 0.7 + gain[member.system] + 0.01 * member.count * (1 + (member.way == "ask"))
        write_figures(member.folder, member.stage, counts(right, number))
        if not member.count:
            write_figures(member.folder, "segment_full", counts(0.95, 100 + number))
    return run


def curve(run: Path, wish: Wish = WISH) -> dict[str, Any]:
    facts = {"masks_of": "train", "available": 4, "seeds": [3, 5], "draws": 2}
    return write_curve(run, "val", members(run, wish), wish.seconds, facts)


def point(content: dict[str, Any], system: str, way: str, count: int) -> dict[str, Any]:
    (entry,) = [
        p
        for p in content["points"]
        if (p["system"], p["chosen"], p["masks"]) == (system, way, count)
    ]
    return entry


def read_counts(run: Path, stage: str) -> ImageCounts:
    return ImageCounts.read(counts_path(run, stage, "val"))


def test_the_runs_of_a_curve() -> None:
    runs = members(Path("run"), WISH)
    # Of each seed one on tags; with 4 and 8 masks one of ask and two at random, each twice.
    assert len(runs) == len({member.folder for member in runs}) == 2 * (1 + 2 * 3 * 2)
    assert runs[0] == Member(TAGS, "", 0, 3, 0, Path("run"))
    assert runs[1].folder == Path("run/budget/ask-4-seed3")
    assert {m.stage for m in runs if m.system == ALONE} == {"segment_full"}
    # The run of tags that a copy starts from stands before the copies.
    seeds = [member.seed for member in runs]
    assert seeds == sorted(seeds)
    assert [not member.count for member in runs] == [n % 13 == 0 for n in range(26)]


def test_more_random_masks_contain_the_fewer() -> None:
    pool = [Record(str(n), Path("x.png"), (0,)) for n in range(50)]
    orders = [random_order(pool, seed, draw) for seed in (0, 1) for draw in (0, 1)]
    assert all(sorted(order) == sorted(r.id for r in pool) for order in orders)
    assert len({tuple(order[:5]) for order in orders}) == 4
    assert random_order(pool, 0, 0) == orders[0]


def test_one_run_has_the_figures_of_eval(run: Path) -> None:
    wish = Wish(steps=(4,), seeds=(3,))
    content = curve(run, wish)
    tags = read_counts(run, "segment")
    masks = read_counts(run / "budget" / "ask-4-seed3", "segment")
    pair = compare_paired(tags, masks)
    entry = point(content, BOTH, "ask", 4)
    assert entry["miou"] == miou_interval(masks).ends()
    assert entry["against"] == {TAGS: pair.difference.ends()}
    assert entry["deviation"] is None
    full = compare_paired(read_counts(run, "segment_full"), masks)
    assert entry["weak_full"] == full.ratio.ends()
    assert entry["minutes"] == {"20": 1.3, "240": 16.0}
    assert json.loads((run / "budget.json").read_text()) == content


def test_several_runs_have_the_mean_of_their_figures(run: Path) -> None:
    content = curve(run)
    entry = point(content, BOTH, "random", 8)
    values = [own["miou"] for own in entry["runs"]]
    assert len(values) == 4
    assert entry["miou"]["value"] == pytest.approx(np.mean(values), abs=1e-6)
    assert entry["deviation"] == pytest.approx(np.std(values, ddof=1))
    asked = point(content, BOTH, "ask", 4)
    assert set(asked["against"]) == {TAGS, ALONE, "random", "8 random"}
    for name, other in (("random", (BOTH, "random", 4)), (ALONE, (ALONE, "ask", 4))):
        gap = asked["miou"]["value"] - point(content, *other)["miou"]["value"]
        assert asked["against"][name]["value"] == pytest.approx(gap)
        assert asked["against"][name]["low"] < gap < asked["against"][name]["high"]
    assert content["full"]["value"] > asked["miou"]["value"]
    assert entry["miou"]["low"] < entry["miou"]["value"] < entry["miou"]["high"]


def test_report_and_eval_show_the_curve(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The maps of this run are not there to be measured again.
    figures = json.loads((run / "evaluation.json").read_text())
    monkeypatch.setattr("trainer.evaluation.over_seeds.evaluation_of", lambda *_: figures)
    assert "budget" not in Page(write_report(run).read_text()).ids
    content = curve(run)
    text = write_report(run).read_text(encoding="utf-8")
    page = Page(text)
    assert "budget" in page.ids
    value = f"{100 * point(content, BOTH, 'ask', 8)['miou']['value']:.1f}"
    assert value in page.text
    for words in ("tags and masks, ask", "masks alone, random", "Minutes at 240 s", "weak / full"):
        assert words in page.text
    assert "has changed since this curve" not in page.text
    result = CliRunner().invoke(app, ["eval", str(run), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["budget"] == content
    result = CliRunner().invoke(app, ["eval", str(run)])
    assert result.exit_code == 0, result.output
    assert "weak / full" in result.stdout
    assert value in result.stdout


def test_a_curve_that_is_older_than_its_run_says_so(run: Path) -> None:
    curve(run)
    changed = Run.existing(run)
    changed.manifest["stages"]["segment"]["key"] = "another"
    changed.save()
    assert "has changed since this curve" in Page(write_report(run).read_text()).text
