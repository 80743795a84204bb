import csv
import json
import os
import signal
import subprocess
import sys

import pytest

from trainer.errors import RunError, TrainingError
from trainer.interrupt import Interrupted
from trainer.run import Metrics, Run, stage_key

HOLD = """
import sys, time
from trainer.run import Run
with Run(sys.argv[1]).lock():
    print("held", flush=True)
    time.sleep(60)
"""


def rows(path) -> list[list[str]]:
    with open(path, newline="") as file:
        return list(csv.reader(file))


def make(run: Run, name: str, key: str, file: str) -> None:
    with run.stage(name, key) as stage:
        (stage.folder / file).write_text(key)


def test_a_key_depends_on_everything_that_it_is_given():
    key = stage_key("cams", {"a": 1, "b": [2.0]}, ["x"])
    assert key == stage_key("cams", {"b": [2.0], "a": 1}, ["x"])
    others = [
        ("refine", {"a": 1, "b": [2.0]}, ["x"]),
        ("cams", {"a": 2, "b": [2.0]}, ["x"]),
        ("cams", {"a": 1}, ["x"]),
    ]
    others += [("cams", {"a": 1, "b": [2.0]}, ["y"]), ("cams", {"a": 1, "b": [2.0]}, [])]
    assert len({key, *(stage_key(*other) for other in others)}) == 6


def test_a_stage_whose_files_are_gone_is_not_done(tmp_path):
    run = Run(tmp_path)
    with run.stage("walk", "k") as stage:
        stage.places.append(tmp_path / "instances")
        (tmp_path / "instances").mkdir()
        for name in ("a", "b", "c"):
            (stage.folder / f"{name}.npz").write_text(name)
            (tmp_path / "instances" / f"{name}.npz").write_text(name)
    assert run.standing("walk", "k") == "done, kept"
    (tmp_path / "walk" / "a.npz").unlink()
    (tmp_path / "walk" / ".b.npz.99.part").write_text("left by a killed process")
    (tmp_path / "instances" / "b.npz").unlink()
    assert not Run(tmp_path).done("walk", "k")
    assert Run(tmp_path).standing("walk", "k") == "2 of its files are gone, will be made again"
    assert Run(tmp_path).standing("walk", "other").startswith("settings or inputs changed")
    with run.stage("walk", "k") as stage:
        assert (stage.folder / "c.npz").exists()
    assert run.standing("walk", "k") == "done, kept"
    assert run.standing("refine", "k") == "to do"


def test_a_run_of_an_older_version_counts_no_files(tmp_path):
    run = Run(tmp_path)
    make(run, "cams", "k", "a.npz")
    del run.manifest["stages"]["cams"]["files"]
    run.save()
    (tmp_path / "cams" / "a.npz").unlink()
    assert Run(tmp_path).done("cams", "k")


def test_two_processes_cannot_hold_one_run(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(RunError, match=f"in use by process {holder.pid} on ") as caught,
            Run(tmp_path).lock(),
        ):
            pytest.fail("two processes hold the run")
        assert "another --run" in caught.value.hint
    finally:
        os.kill(holder.pid, signal.SIGKILL)
        holder.communicate()
    with Run(tmp_path).lock():
        assert (tmp_path / ".lock").read_text().startswith(f"process {os.getpid()} ")
    with Run(tmp_path).lock():
        pass


def test_a_second_process_of_torchrun_neither_locks_nor_writes(tmp_path, monkeypatch):
    with Run(tmp_path).lock():
        monkeypatch.setenv("RANK", "1")
        with Run(tmp_path).lock():
            run = Run(tmp_path)
            make(run, "cams", "k", "a.npz")
    assert not run.manifest_path.exists()


def test_a_stage_is_done_only_when_the_manifest_says_so(tmp_path):
    run = Run(tmp_path / "run")
    with run.stage("classify", "k1") as stage:
        during = json.loads(run.manifest_path.read_text())["stages"]["classify"]
        assert during["status"] == "running"
        assert not Run(tmp_path / "run").done("classify", "k1")
        stage.outputs.update(count=1)
        stage.metrics.update(loss=0.5)
    entry = Run.existing(tmp_path / "run").manifest["stages"]["classify"]
    assert (entry["status"], entry["key"], entry["outputs"], entry["metrics"]) == (
        "done",
        "k1",
        {"count": 1},
        {"loss": 0.5},
    )
    assert entry["seconds"] >= 0
    assert entry["peak_memory_mb"] > 1
    again = Run.existing(tmp_path / "run")
    assert again.done("classify", "k1")
    assert not again.done("classify", "k2")
    assert not again.done("cams", "k1")
    assert again.is_stale("classify", "k2")
    assert not again.is_stale("classify", "k1")
    assert not again.is_stale("cams", "k1")


@pytest.mark.parametrize(
    "error", [TrainingError("nan"), Interrupted("stop"), KeyboardInterrupt(), ValueError("bug")]
)
def test_a_stage_that_broke_is_failed_and_keeps_its_files(tmp_path, error):
    run = Run(tmp_path)

    def fall() -> None:
        with run.stage("cams", "k") as stage:
            (stage.folder / "a.npz").write_text("whole")
            raise error

    with pytest.raises(type(error)):
        fall()
    again = Run(tmp_path)
    assert again.manifest["stages"]["cams"]["status"] == "failed"
    assert not again.done("cams", "k")
    again.manifest["stages"]["cams"]["seconds"] = 100.0
    make(again, "cams", "k", "b.npz")
    assert {p.name for p in (tmp_path / "cams").iterdir()} == {"a.npz", "b.npz"}
    assert again.done("cams", "k")
    assert again.manifest["stages"]["cams"]["seconds"] >= 100


def test_weights_of_another_key_are_set_aside_and_image_files_are_remade(tmp_path):
    run = Run(tmp_path)
    for name, file in (("classify", "model.pt"), ("cams", "a.npz")):
        make(run, name, "old", file)
        make(run, name, "new", "other")
        assert [p.name for p in (tmp_path / name).iterdir()] == ["other"]
    assert (tmp_path / "stale" / "classify-old" / "model.pt").read_text() == "old"
    assert [p.name for p in (tmp_path / "stale").iterdir()] == ["classify-old"]


def test_setting_aside_the_same_key_twice_keeps_the_newer(tmp_path):
    run = Run(tmp_path)
    for key in ("a", "b", "a", "b"):
        make(run, "classify", key, "model.pt")
    assert {p.name for p in (tmp_path / "stale").iterdir()} == {"classify-a", "classify-b"}
    assert run.done("classify", "b")


@pytest.mark.parametrize("text", ["{", "", "[]", "null", '"text"', "\x00"])
def test_an_unreadable_manifest(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(RunError, match=r"manifest\.json"):
        Run(tmp_path)


def test_a_manifest_of_another_format(tmp_path):
    (tmp_path / "manifest.json").write_text('{"format": 99, "stages": {}}')
    with pytest.raises(RunError, match="no run of this version") as caught:
        Run(tmp_path)
    assert "new --run" in caught.value.hint


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(RunError, match="is not a run") as caught:
        Run.existing(tmp_path)
    assert "wsss-trainer fit" in caught.value.hint


def test_a_run_says_what_made_it(tmp_path):
    run = Run(tmp_path)
    run.describe(seed=3, method="cam")
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["seed"] == 3
    assert manifest["host"]["cpus"] >= 1
    assert set(manifest["versions"]) >= {"python", "torch", "numpy"}
    assert manifest["command"] == sys.argv
    assert manifest["format"] == 1
    assert manifest["created"] <= manifest["updated"]


def test_metrics_are_long_and_rewind_drops_what_comes_again(tmp_path):
    first = Metrics(tmp_path / "metrics.csv", "classify")
    first.rewind(0)
    assert not (tmp_path / "metrics.csv").exists()
    first.write(1, 10, {"loss": 0.5, "lr": 1e-7})
    first.write(1, 20, {"loss": 0.25})
    Metrics(tmp_path / "metrics.csv", "segment").write(1, 99, {"loss": 3.0})
    Metrics(tmp_path / "metrics.csv", "classify").rewind(10)
    assert rows(tmp_path / "metrics.csv") == [
        ["stage", "epoch", "step", "name", "value"],
        ["classify", "1", "10", "loss", "0.5"],
        ["classify", "1", "10", "lr", "1e-07"],
        ["segment", "1", "99", "loss", "3"],
    ]


def test_rewind_drops_a_line_that_a_kill_cut(tmp_path):
    metrics = Metrics(tmp_path / "metrics.csv", "classify")
    metrics.write(1, 10, {"loss": 0.5})
    with open(tmp_path / "metrics.csv", "a") as file:
        file.write("classify,1,1")
    metrics.rewind(10)
    metrics.write(1, 20, {"loss": 0.4})
    assert [row[2] for row in rows(tmp_path / "metrics.csv")[1:]] == ["10", "20"]
