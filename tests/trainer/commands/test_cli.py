"""Bad input to ``wsss-trainer``: exit code 2, what was found, what to type next, no traceback."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from trainer.cli import app
from trainer.commands.fit import export_command
from trainer.data.formats.opening import reopen_data
from trainer.data.knobs import DataConfig
from trainer.errors import ConfigError, DataError, RunError, UserError, WeightsError
from trainer.options import Options, make_configs
from trainer.scenes.writing import write_synthetic


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "data"
    write_synthetic(folder, count=8, size=48)
    return folder


def refused(*arguments: str | Path) -> UserError:
    """The user error that a command raises; ``main`` prints it and exits with 2 (tested below)."""
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert isinstance(result.exception, UserError), result.output
    return result.exception


def test_main_prints_the_error_and_exits_with_2(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "trainer", "fit", str(tmp_path / "nowhere")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "is not a folder" in done.stderr
    assert "try: " in done.stderr
    assert "Traceback" not in done.stderr


def test_unknown_method_backbone_stage_recipe_and_knobs_show_the_nearest(
    scenes: Path, tmp_path: Path
) -> None:
    base = ["fit", scenes, "--run", tmp_path / "run", "--weights", "none"]
    assert "'cam'" in refused(*base, "--method", "camm").expected
    assert "'resnet18'" in refused(*base, "--backbone", "resnet-18").expected
    assert "'refine'" in refused(*base, "--until", "refin").expected
    assert "'small'" in refused(*base, "--recipe", "smal").expected
    assert "'pooling'" in refused(*base, "--set", "method.poolin=gap").expected
    assert "'classify'" in refused(*base, "--set", "clasify.lr=1").expected
    assert "'hspp'" in refused(*base, "--set", "method.pooling=hsp").expected
    assert isinstance(refused(*base, "--set", "lr"), ConfigError)
    assert not (tmp_path / "run" / "manifest.json").exists()


def test_unknown_list_and_a_list_without_tags(scenes: Path, tmp_path: Path) -> None:
    error = refused(
        "fit", scenes, "--run", tmp_path / "run", "--weights", "none", "--train-list", "trian"
    )
    assert isinstance(error, DataError)
    assert "'train'" in error.expected


def test_missing_wrong_and_truncated_weights(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = ["fit", scenes, "--run", tmp_path / "run", "--backbone", "resnet18", "--weights"]
    assert isinstance(refused(*base, tmp_path / "absent.pth"), WeightsError)
    (tmp_path / "text.pth").write_text("not weights")
    assert isinstance(refused(*base, tmp_path / "text.pth"), WeightsError)


def test_a_run_in_use_is_refused(scenes: Path, tmp_path: Path) -> None:
    from trainer.run import Run

    with Run(tmp_path / "run").lock():
        command = [
            sys.executable,
            "-m",
            "trainer",
            "fit",
            str(scenes),
            "--run",
            str(tmp_path / "run"),
        ]
        command += ["--backbone", "resnet18", "--weights", "none", "--size", "32"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "is in use by process" in done.stderr


def test_eval_export_and_report_of_something_that_is_no_run(tmp_path: Path) -> None:
    for command in (["eval"], ["report"], ["export", "--name", "x"]):
        assert isinstance(refused(command[0], tmp_path, *command[1:]), RunError)


def test_check_exits_with_2_where_there_are_errors_and_0_otherwise(
    scenes: Path, tmp_path: Path
) -> None:
    assert CliRunner().invoke(app, ["check", str(scenes), "--json"]).exit_code == 0
    broken = tmp_path / "photos"
    broken.mkdir()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(broken / "a.png")
    (broken / "b.jpg").write_text("text pretending to be a JPEG")
    (broken / "labels.csv").write_text("image,tag\na.png,cat\nb.jpg,dog\n")
    assert CliRunner().invoke(app, ["check", str(broken)]).exit_code == 2


def test_methods_lists_and_describes(tmp_path: Path) -> None:
    runner = CliRunner()
    assert '"method": "cam"' in runner.invoke(app, ["methods", "--json"]).output
    assert '"knob": "pooling"' in runner.invoke(app, ["methods", "cam", "--json"]).output
    assert "pooling" in runner.invoke(app, ["methods", "cam"]).output
    assert isinstance(refused("methods", "camm"), ConfigError)


def test_help_of_every_command_has_an_example() -> None:
    runner = CliRunner()
    for command in (
        "fit",
        "eval",
        "compare",
        "report",
        "export",
        "check",
        "convert",
        "synth",
        "demo",
        "methods",
    ):
        assert "xample" in runner.invoke(app, [command, "--help"]).output


def test_how_data_are_read_is_asked_for_and_remembered(scenes: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    result = runner.invoke(app, ["check", str(scenes), "--labels-from", "masks", "--json"])
    assert json.loads(result.stdout)["tags_from"] == "classes in the masks"
    assert "'masks'" in refused("check", scenes, "--labels-from", "mask").expected
    assert "'crowd'" in refused("check", scenes, "--set", "data.crowds=keep").expected
    assert "data" in refused("check", scenes, "--set", "cams.batch=2").expected
    options = Options(
        data=scenes, run=tmp_path / "run", labels_from="masks", settings=("data.crowd=keep",)
    )
    assert make_configs(options).data == DataConfig(labels_from="masks", crowd="keep")
    manifest = {"data": {"path": str(scenes)}, "config": {"data": {"labels_from": "masks"}}}
    assert reopen_data(manifest).tags_from == "classes in the masks"
    assert (
        reopen_data({"data": {"path": str(scenes)}, "config": {}}).tags_from == "image_labels.csv"
    )


@pytest.mark.parametrize(
    "words",
    [("pictures",), ("predict", "--list", "val", "--out", "out"), ("ask", "--out", "out")],
)
def test_every_command_refuses_a_device_that_has_no_such_name(
    words: tuple[str, ...], tmp_path: Path
) -> None:
    error = refused(*words, tmp_path, "--device", "gpu")
    assert error.found == "--device gpu"
    assert "auto, cpu, cuda" in error.expected


@pytest.mark.parametrize(
    ("folder", "name"), [("photos", "photos"), ("my run.2", "my-run-2"), ("-_ü", "model")]
)
def test_fit_says_how_to_export_a_run_under_a_name_that_a_model_may_have(folder, name):
    words = shlex.split(export_command(Path("runs") / folder))
    assert words == ["wsss-trainer", "export", f"runs/{folder}", "--name", name]
