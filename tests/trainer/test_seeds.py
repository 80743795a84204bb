"""Runs of several seeds under one folder: what is shared, figures over seeds, and pages."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean, stdev

import pytest
from measured import write_run
from typer.testing import CliRunner, Result

from trainer.cli import app
from trainer.errors import ConfigError, RunError, UserError
from trainer.evaluation.compare import compare, open_sides
from trainer.evaluation.measure import current_evaluation
from trainer.evaluation.over_seeds import evaluation_of
from trainer.run import Metrics, Run
from trainer.seed_folder import is_seed_folder, mark, parse_seeds, seed_run, seed_runs
from trainer.sharing import _take_curves

pytestmark = pytest.mark.usefixtures("one_process")


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def refused(*arguments: str | Path) -> UserError:
    result = invoke(*arguments)
    assert isinstance(result.exception, UserError), result.output
    return result.exception


def seeds_of(folder: Path, data: Path, shares: list[float], **segment: float) -> Path:
    """A folder of ``fit --seeds`` whose run n misses the share n of every object."""
    mark(folder)
    for seed, share in enumerate(shares):
        run = write_run(seed_run(folder, seed), data, share, **segment)
        manifest = json.loads((run / "manifest.json").read_text())
        (run / "manifest.json").write_text(json.dumps(manifest | {"seed": seed}))
    return folder


@pytest.fixture(scope="session")
def poor(scenes, tmp_path_factory) -> Path:
    return seeds_of(tmp_path_factory.mktemp("poor") / "poor", scenes, [0.5, 0.6, 0.7])


@pytest.fixture(scope="session")
def good(scenes, tmp_path_factory) -> Path:
    return seeds_of(tmp_path_factory.mktemp("good") / "good", scenes, [0.1, 0.15, 0.2])


def test_stages_that_no_seed_changes_are_done_once(scenes, theirs, tmp_path):
    command = ("fit", scenes, "--cams", theirs, "--refine", "none", "--until", "refine")
    folder = tmp_path / "runs"
    result = invoke(*command, "--seeds", "0,1", "--run", folder)
    assert result.exit_code == 0, result.output
    assert list(seed_runs(folder)) == [0, 1]
    first, second = (
        json.loads((p / "manifest.json").read_text()) for p in seed_runs(folder).values()
    )
    assert [first["seed"], second["seed"]] == [0, 1]
    for name in ("cams", "refine"):
        assert "taken_from" not in first["stages"][name]
        assert second["stages"][name]["taken_from"] == "../seed-0"
        assert second["stages"][name]["key"] == first["stages"][name]["key"]
    names = [{p.name for p in (run / "masks").iterdir()} for run in seed_runs(folder).values()]
    assert names[0] == names[1]
    assert next((folder / "seed-1/cams").glob("*.npz")).stat().st_nlink == 2
    assert "seed 1: cams: taken over from" in result.stderr
    assert "seed 0: refine: done in" in result.stderr
    # The same command goes on: nothing is done or copied again.
    again = invoke(*command, "--seeds", "0,1", "--run", folder)
    assert "started" not in again.stderr
    assert "taken over" not in again.stderr
    # One more seed joins those that are there.
    assert invoke(*command, "--seeds", "7", "--run", folder).exit_code == 0
    assert list(seed_runs(folder)) == [0, 1, 7]
    figures = json.loads(invoke("eval", folder, "--json").stdout)
    assert list(figures["refined"]["val"]["seeds"]) == ["0", "1", "7"]
    assert figures["refined"]["val"]["deviation"]["miou"] == 0


def test_the_curves_of_other_stages_are_never_cut_short(tmp_path):
    run, owner = Run(tmp_path / "run"), Run(tmp_path / "owner")
    for path, stage in ((run.path, "classify"), (owner.path, "segment_full")):
        Metrics(path / "metrics.csv", stage).write(1, 10, {"loss": 0.5})
    file, second_name = run.path / "metrics.csv", tmp_path / "second name"
    second_name.hardlink_to(file)
    before = file.read_text()
    _take_curves(run, owner, "segment_full")
    assert [line.split(",")[0] for line in file.read_text().splitlines()[1:]] == [
        "classify",
        "segment_full",
    ]
    # A new file has taken the place of the old one, which nobody wrote into.
    assert second_name.read_text() == before


def test_events_name_the_seed(scenes, theirs, tmp_path):
    result = invoke(
        *("fit", scenes, "--cams", theirs, "--refine", "none", "--until", "cams"),
        *("--seeds", "3", "--run", tmp_path / "runs", "--log", "json"),
    )
    invoke("methods", "cam", "--json")
    events = [json.loads(line) for line in result.stderr.splitlines()]
    stages = [event for event in events if event["event"] == "stage"]
    assert {event["seed"] for event in stages} == {3}


def test_figures_are_means_with_a_deviation(scenes, poor):
    evaluation = evaluation_of(poor)
    runs = [current_evaluation(path) for path in seed_runs(poor).values()]
    for stage in ("cam", "refined", "segment"):
        for name in ("train", "val"):
            entry = evaluation[stage][name]
            values = [run[stage][name]["miou"] for run in runs]
            assert entry["miou"] == pytest.approx(fmean(values))
            assert entry["deviation"]["miou"] == pytest.approx(stdev(values))
            assert [one["miou"] for one in entry["seeds"].values()] == values
            classes = [run[stage][name]["iou"]["background"] for run in runs]
            assert entry["iou"]["background"] == pytest.approx(fmean(classes))
            assert entry["images"] == runs[0][stage][name]["images"]
            assert "mean over the seeds 0, 1 and 2" in entry["protocol"]
            assert entry["conditions"]["seeds"] == [0, 1, 2]
            assert entry["miou_interval"]["value"] == pytest.approx(entry["miou"])
            assert entry["miou_interval"]["low"] < min(values)
            assert entry["cautions"] == []
    json.dumps(evaluation, allow_nan=False)


def test_the_keys_of_one_run_stay(scenes, poor):
    one = current_evaluation(seed_run(poor, 0))["segment"]["val"]
    assert set(one) - set(evaluation_of(poor)["segment"]["val"]) == {"worst"} | {
        key for key in one if "interval" in key and key != "miou_interval"
    }


def test_other_conventions(poor):
    entry = evaluation_of(poor, "seam")["cam"]["val"]
    assert entry["convention"] == "seam"
    assert entry["miou"] == pytest.approx(entry["miou_by_convention"]["seam"])


def test_compare_takes_a_folder_of_seeds_as_one_side(poor, good):
    for line in compare(open_sides([poor, good]), samples=400):
        first, better = line.matches
        paired = better.against_first
        assert paired is not None
        assert paired.seeds == (3, 3)
        assert paired.difference.value == pytest.approx(better.entry["miou"] - first.entry["miou"])
        assert paired.difference.low > 0
        assert better.flags == ()
        assert better.report()["deviation"] > 0
        assert len(better.changes) > 0


def test_one_seed_against_several_is_a_caution(poor, good):
    lines = compare(open_sides([seed_run(poor, 0), good]), samples=100)
    assert all("other number of seeds: 1 | 3" in line.matches[1].flags for line in lines)


def test_commands_print_tables_and_pages(poor, good, tmp_path):
    table = invoke("eval", poor)
    assert table.exit_code == 0, table.output
    assert "±" in table.stdout
    assert "mIoU of segment val by seed: " in table.stdout
    assert "bootstrap samples of the images and, apart from them, of the seeds" in table.stdout
    page = tmp_path / "compare.html"
    both = invoke("compare", poor, good, "--page", page, "--samples", 200)
    assert "paired bootstrap over images and seeds" in both.stdout
    assert "paired bootstrap over images and seeds" in page.read_text()
    assert " ± " in page.read_text()
    report = invoke("report", poor)
    assert report.stdout.strip() == str(poor / "report.html")
    text = (poor / "report.html").read_text()
    assert 'href="seed-2/report.html"' in text
    assert "Runs of 3 seeds" in text
    assert text.count("seed 1</th>") == 1


def test_runs_that_differ_are_told(scenes, tmp_path):
    folder = seeds_of(tmp_path / "mixed", scenes, [0.3, 0.4])
    odd = seed_run(folder, 1) / "manifest.json"
    manifest = json.loads(odd.read_text())
    manifest["config"]["segment"]["crf"] = "P3"
    del manifest["stages"]["refine"]
    odd.write_text(json.dumps(manifest))
    evaluation = evaluation_of(folder)
    assert "other CRF: no CRF | dense CRF P3" in evaluation["segment"]["val"]["cautions"]
    assert "without seed-1, which lacks these figures" in evaluation["refined"]["val"]["cautions"]
    assert list(evaluation["refined"]["val"]["seeds"]) == ["0"]
    assert evaluation["refined"]["val"]["deviation"]["miou"] is None
    assert "caution, segment val: other CRF" in invoke("eval", folder).stdout


def test_bad_seeds_and_folders_are_refused(scenes, poor, tmp_path):
    assert parse_seeds("2, 0,1") == (2, 0, 1)
    for text in ("", "1,", "0,0", "0,x", "-1", "0.5"):
        with pytest.raises(ConfigError, match="--seeds"):
            parse_seeds(text)
    base = ("fit", scenes, "--weights", "none", "--run")
    assert isinstance(refused(*base, tmp_path / "x", "--seed", 0, "--seeds", "0,1"), ConfigError)
    assert not (tmp_path / "x").exists()
    error = refused(*base, poor)
    assert isinstance(error, RunError)
    assert "--seeds 0,1,2" in error.hint
    error = refused(*base, seed_run(poor, 1), "--seeds", "0,1")
    assert "is a run of one seed" in error.found
    assert str(4294967296) in refused(*base, tmp_path / "y", "--seeds", "4294967296").found
    assert not is_seed_folder(tmp_path / "y")
    error = refused("export", poor, "--name", "x")
    assert "holds runs of the seeds 0, 1, 2" in error.found
    assert str(seed_run(poor, 0)) in error.hint
    mark(tmp_path / "empty")
    assert "holds no run yet" in refused("eval", tmp_path / "empty").found
    (tmp_path / "other").mkdir()
    (tmp_path / "other/notes.txt").write_text("mine")
    assert "holds other things" in refused(*base, tmp_path / "other", "--seeds", "0,1").found
