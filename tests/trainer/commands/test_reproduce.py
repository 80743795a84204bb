"""Tables of the papers: their files, their commands, and one table from end to end."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from trainer.cli import app
from trainer.commands.reproduce import job_of
from trainer.errors import ConfigError, TargetError, UserError
from trainer.evaluation.metrics import convention_name
from trainer.reproduce.tables import PAPERS, UNTIL, read_table, table_names
from trainer.reproduce.work import Cell, orders

TABLES = {
    *(f"cpn-{n}" for n in range(1, 6)),
    *("cpn-fig-6", "cpn-fig-7", "mixup-cam-fig-5", "sc-cam-fig-4"),
    *(f"{paper}-{n}" for paper in ("mixup-cam", "mva", "vwe") for n in (1, 2, 3)),
    *(f"sc-cam-{n}" for n in range(1, 5)),
}


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["reproduce", *(str(a) for a in arguments)])


def refused(*arguments: str | Path) -> UserError:
    result = invoke(*arguments)
    assert isinstance(result.exception, UserError), result.output
    return result.exception


def test_every_table_of_the_papers_is_there():
    assert set(table_names()) == TABLES
    listing = json.loads(invoke("--list", "--json").stdout)
    assert {entry["table"] for entry in listing} == TABLES
    assert "mixup-cam-1" in invoke("--list").stdout
    assert "refined train 58.1" in " ".join(invoke("mixup-cam-1", "--list").stdout.split())


@pytest.mark.parametrize("name", sorted(TABLES))
def test_published_values_say_where_they_stand_and_how_they_were_measured(name):
    table = read_table(name)
    assert table.place.split()[0] in ("Table", "Fig.")
    assert table.place.split()[1] == name.rsplit("-", 1)[1]
    assert table.paper in PAPERS.read_text()
    assert "PASCAL VOC 2012" in table.protocol
    assert convention_name(table.convention) == table.convention
    assert len({row.folder for row in table.rows}) == len(table.rows)
    columns = {str(figure) for figure in table.figures}
    for row in table.rows:
        assert set(row.published) <= columns
        assert all(20 < value < 100 for value in row.published.values())
    assert all(figure.stage in UNTIL for figure in table.figures)
    # What a paper only draws is said to be drawn.
    if not any(row.published for row in table.rows):
        assert "values are not printed" in table.note


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("name", sorted(TABLES))
def test_every_row_is_a_valid_plan(name, small):
    table = read_table(name)
    backbones = set()
    for row in table.rows:
        further = ["--set", f"{row.needs}=none"] if row.needs else []
        job = job_of(table, row, Path("VOC2012"), Path("runs"), small, further)
        assert not job.lack
        assert (
            job.stages()[-1]
            == {"cams": "cams", "refine": "refine", "segment": "segment"}[table.until]
        )
        assert job.options.run == Path("runs") / row.folder
        backbones.add(job.options.backbone)
    assert len(backbones) == 1
    assert ("resnet38" in backbones or "resnet50" in backbones) is not small


def test_a_dry_run_prints_commands_that_can_be_typed(tmp_path):
    result = invoke(
        *("vwe-1", "VOC 2012", "--dry-run", "--only", "baseline", "--out", tmp_path / "o"),
        *("--seeds", "0,1", "--", "--train-list", "train"),
    )
    assert result.exit_code == 0, result.output
    comment, command = result.stdout.splitlines()
    assert comment == "# baseline: classify, cams"
    words = shlex.split(command)
    assert words[:5] == ["wsss-trainer", "fit", "VOC 2012", "--run", str(tmp_path / "o/baseline")]
    assert words[-4:] == ["--train-list", "train", "--seeds", "0,1"]
    assert not (tmp_path / "o").exists()
    rows = json.loads(invoke("vwe-1", "x", "--dry-run", "--json").stdout)
    assert [row["row"] for row in rows] == ["baseline", "hspp", "vwe", "vwe-and-hspp"]


def test_a_row_that_needs_a_file_says_so():
    rows = json.loads(invoke("mva-1", "x", "--dry-run", "--json").stdout)
    lacks = {row["row"]: row["lacks"] for row in rows}
    name = "sub-category-teaching"
    assert lacks.pop(name) == f"--only {name} -- --set method.teacher_weights=FILE"
    assert not any(lacks.values())
    small = json.loads(invoke("mva-1", "x", "--small", "--dry-run", "--json").stdout)
    assert not any(row["lacks"] for row in small)


def test_bad_names_and_options_are_refused(scenes, tmp_path):
    assert "'vwe-1'" in refused("vwe1", scenes).expected
    assert "'hspp'" in refused("vwe-1", scenes, "--only", "hsp").expected
    assert "--list" in refused("vwe-1").hint
    assert "--list" in refused().hint
    assert isinstance(
        refused("vwe-1", scenes, "--dry-run", "--", "--set", "classify.lrr=1"), ConfigError
    )
    assert invoke("vwe-1", scenes, "--dry-run", "--", "--epoch").exit_code == 2
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/notes.txt").write_text("mine")
    assert isinstance(refused("vwe-1", scenes, "--out", tmp_path / "theirs"), TargetError)


def test_order_of_rows_against_the_published_one():
    table = read_table("vwe-1")
    figure = table.figures[0]

    def cells(ours):
        published = [row.published[str(figure)] for row in table.rows]
        names = [row.name for row in table.rows]
        return [Cell(n, figure, o, None, p) for n, o, p in zip(names, ours, published)]

    (same,) = orders(table, cells([30, 31, 32, 33]))
    assert (same.tau, same.rows) == (1, 4)
    assert orders(table, cells([33, 32, 31, 30]))[0].tau == -1
    assert orders(table, cells([30, 32, 31, 33]))[0].tau == pytest.approx(2 / 3)
    assert orders(table, cells([30, 30, 30, 30])) == []
    assert orders(table, cells([30, 31, None, None])) == []


@pytest.mark.usefixtures("one_process")
def test_two_rows_from_end_to_end(scenes, tmp_path):
    folder = tmp_path / "table"
    command = (
        *("cpn-1", scenes, "--small", "--only", "cam-0-5", "--only", "cam-1", "--out", folder),
        *("--json", "--", "--weights", "none", "--backbone", "resnet18", "--epochs", "1"),
        *("--size", "32", "--set", "classify.workers=0", "--set", "cams.workers=0"),
    )
    result = invoke(*command)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    first, second = report["rows"]
    assert (first["row"], first["figure"], first["published"]) == ("CAM, 0.5", "cam train", 41.15)
    assert first["difference"] == pytest.approx(first["ours"] - 41.15)
    assert second["published"] == 48.29
    assert report["order"] == []
    # Both rows are one training: only their maps differ.
    stages = json.loads((folder / "cam-1/manifest.json").read_text())["stages"]
    assert stages["classify"]["taken_from"] == "../cam-0-5"
    assert "taken_from" not in stages["cams"]
    page = (folder / "reproduce.md").read_text()
    assert f"| CAM, 0.5 | cam train | {first['ours']:.1f} | 41.15 |" in page
    assert "only the order of the rows can be compared" in page
    # The same command does nothing again.
    again = invoke(*command)
    assert again.exit_code == 0, again.output
    assert "started" not in again.stderr
    assert json.loads(again.stdout)["rows"] == report["rows"]


@pytest.mark.usefixtures("one_process")
def test_rows_of_several_seeds_have_a_deviation(scenes, theirs, tmp_path):
    result = invoke(
        *("mixup-cam-1", scenes, "--small", "--only", "cam", "--out", tmp_path / "t"),
        *("--seeds", "0,1", "--json", "--", "--cams", theirs, "--refine", "none"),
    )
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["rows"]
    assert [row["figure"] for row in rows] == ["cam train", "refined train"]
    assert [row["deviation"] for row in rows] == [0, 0]
    assert (tmp_path / "t/cam/seed-1/manifest.json").is_file()
