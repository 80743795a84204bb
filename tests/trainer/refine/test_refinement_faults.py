"""What goes wrong while a run is refined: damaged and lost files, a full disk, a wrong network.
What was made is kept.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from refined import SETTINGS, again, fit, pipeline, times, unfinished

from trainer import cli
from trainer.errors import DataError, RunError, WeightsError
from trainer.evaluation.measure import current_evaluation
from trainer.files import check_space
from trainer.fit import work
from trainer.interrupt import Interrupted
from trainer.maps.camfile import cam_path
from trainer.stages import affinity as affinity_stage
from trainer.stages import irn as irn_stage

pytestmark = pytest.mark.usefixtures("one_process")
FILES = [
    ("affinity", "affinity_labels", "affinity_labels", ".npz"),
    ("affinity", "walk", "walk", ".npz"),
    ("irn", "irn_labels", "irn_labels", ".png"),
    ("irn", "walk", "walk", ".npz"),
    ("irn", "walk", "instances", ".npz"),
    ("irn", "refine", "masks", ".png"),
]
"""Way, stage, folder and suffix of what is made one file an image."""


@pytest.mark.parametrize(("way", "stage", "folder", "suffix"), FILES)
def test_a_file_that_is_lost_after_its_stage_was_done_is_noticed(
    bare, finished, way, stage, folder, suffix
):
    run = finished(way)
    lost = run / folder / f"scene_00002{suffix}"
    before, content = times(run / folder), lost.read_bytes()
    lost.unlink()
    said = fit(bare, run, refine=way)
    assert again(said) == {stage}
    assert said[stage] == "1 of its files are gone, will be made again"
    assert {name for name, time in times(run / folder).items() if before[name] != time} == {
        lost.name
    }
    assert lost.read_bytes() == content
    assert again(fit(bare, run, refine=way)) == set()


def test_a_lost_network_is_trained_again(bare, finished):
    run = finished("irn")
    before = torch.load(run / "irn" / "model.pt", weights_only=True)["state"]
    (run / "irn" / "model.pt").unlink()
    assert again(fit(bare, run, refine="irn")) == {"irn"}
    after = torch.load(run / "irn" / "model.pt", weights_only=True)["state"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())


@pytest.mark.parametrize(("way", "stage", "folder", "suffix"), FILES)
def test_a_disk_that_fills_up_in_the_middle_loses_nothing(
    bare, finished, monkeypatch, way, stage, folder, suffix
):
    run = finished(way)
    before = {
        path.name: path.read_bytes() for path in (run / folder).iterdir() if path.suffix == suffix
    }
    for name in sorted(before)[2:]:
        (run / folder / name).unlink()
    unfinished(run, stage)
    real, room = os.replace, iter(range(3))

    def full(part, path):
        if path.parent == run / folder and next(room, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(part, path)

    monkeypatch.setattr("trainer.files.os.replace", full)
    with pytest.raises(RunError, match=f"no space left while writing {run / folder}") as caught:
        fit(bare, run, refine=way)
    assert (
        caught.value.hint == "free some space and run the same command again: what is there is kept"
    )
    kept = times(run / folder)
    assert len([name for name in kept if name in before]) == 5
    assert json.loads((run / "manifest.json").read_text())["stages"][stage]["status"] == "failed"
    monkeypatch.setattr("trainer.files.os.replace", real)
    fit(bare, run, refine=way)
    after = times(run / folder)
    assert {name: after[name] for name in kept} == kept
    assert {name: (run / folder / name).read_bytes() for name in before} == before


@pytest.mark.parametrize(("way", "stage", "folder", "suffix"), FILES)
def test_only_what_is_missing_is_made_again(bare, finished, way, stage, folder, suffix):
    run = finished(way)
    unfinished(run, stage)
    lost = run / folder / f"scene_00002{suffix}"
    before, content = times(run / folder), lost.read_bytes()
    lost.unlink()
    assert again(fit(bare, run, refine=way)) == {stage}
    after = times(run / folder)
    assert {name for name in before if after[name] != before[name]} == {lost.name}
    assert lost.read_bytes() == content


@pytest.mark.parametrize("way", ["affinity", "irn"])
def test_damaged_labels_and_maps_are_made_again(bare, finished, way):
    run = finished(way)
    unfinished(run, f"{way}_labels", "walk")
    damaged = [
        next((run / f"{way}_labels").glob("scene_00002.*")),
        run / "walk" / "scene_00002.npz",
    ]
    contents = [path.read_bytes() for path in damaged]
    for path, content in zip(damaged, contents):
        path.write_bytes(content[: len(content) // 2])
    assert again(fit(bare, run, refine=way)) == {f"{way}_labels", "walk"}
    assert [path.read_bytes() for path in damaged] == contents


@pytest.mark.parametrize(
    ("way", "writer", "suffix"),
    [("affinity", "write_atomic", ".npz"), ("irn", "write_index_png", ".png")],
)
def test_one_bad_image_does_not_lose_the_labels_of_the_others(
    bare, mapped, tmp_path, monkeypatch, way, writer, suffix
):
    run, module = (
        Path(shutil.copytree(mapped, tmp_path / "run")),
        {"affinity": affinity_stage, "irn": irn_stage}[way],
    )
    real = getattr(module, writer)

    def fail(path, *rest):
        if path.stem == "scene_00002":
            raise DataError("image 'scene_00002': as if damaged")
        real(path, *rest)

    monkeypatch.setattr(module, writer, fail)
    with pytest.raises(DataError, match="labels could not be made") as caught:
        fit(bare, run, refine=way)
    monkeypatch.setattr(module, writer, real)
    assert "scene_00002" in caught.value.found
    labels = run / f"{way}_labels"
    kept = times(labels)
    stages = json.loads((run / "manifest.json").read_text())["stages"]
    assert stages[f"{way}_labels"]["status"] == "failed"
    assert way not in stages
    plan = pipeline(bare, run, refine=way)
    work(plan, next(stage for stage in plan.stages if stage.name == f"{way}_labels"))
    after = times(labels)
    assert after.keys() - kept.keys() == {f"scene_00002{suffix}"}
    assert {name: after[name] for name in kept} == kept


@pytest.mark.parametrize(("way", "module"), [("affinity", affinity_stage), ("irn", irn_stage)])
def test_a_walk_that_is_stopped_goes_on(bare, finished, monkeypatch, way, module):
    run = finished(way)
    before = {path.name: path.read_bytes() for path in (run / "walk").iterdir()}
    shutil.rmtree(run / "walk")
    shutil.rmtree(run / "instances", ignore_errors=True)
    unfinished(run, "walk")
    real, count = module.write_cam, iter(range(100))

    def stop(path, *rest):
        if next(count) == 4:
            raise Interrupted("as if by Ctrl-C")
        real(path, *rest)

    monkeypatch.setattr(module, "write_cam", stop)
    with pytest.raises(Interrupted):
        fit(bare, run, refine=way)
    monkeypatch.setattr(module, "write_cam", real)
    kept = times(run / "walk")
    assert len(kept) == 4
    fit(bare, run, refine=way)
    after = times(run / "walk")
    assert {name: after[name] for name in kept} == kept
    assert {path.name: path.read_bytes() for path in (run / "walk").iterdir()} == before


def given(way: str, path: Path) -> str:
    return f"{way}.checkpoint={path}"


@pytest.mark.parametrize("way", ["affinity", "irn"])
def test_a_given_network_walks_without_labels_and_training(bare, mapped, finished, tmp_path, way):
    source = finished(way)
    run = Path(shutil.copytree(mapped, tmp_path / "given"))
    path = source / way / "model.pt"
    said = fit(bare, run, given(way, path), refine=way)
    assert list(said) == ["classify", "cams", "walk", "refine"]
    assert not (run / f"{way}_labels").exists()
    for folder in ("walk", "masks"):
        assert {f.name: f.read_bytes() for f in (run / folder).iterdir()} == {
            f.name: f.read_bytes() for f in (source / folder).iterdir()
        }
    stages = json.loads((run / "manifest.json").read_text())["stages"]
    assert stages["walk"]["outputs"]["taken_from"] == str(path)
    line = current_evaluation(run)["refined"]["val"]["protocol"]
    walks = {
        "affinity": "walk of AffinityNet from model.pt, dense CRF P7",
        "irn": "walk of IRNet from model.pt, dense CRF P7",
    }
    assert walks[way] in line
    assert again(fit(bare, run, given(way, path), refine=way)) == set()


def test_another_file_walks_again_and_the_same_elsewhere_does_not(bare, mapped, finished, tmp_path):
    run, path = (
        Path(shutil.copytree(mapped, tmp_path / "given")),
        finished("irn") / "irn" / "model.pt",
    )
    fit(bare, run, given("irn", path), refine="irn")
    copy = Path(shutil.copy(path, tmp_path / "copy.pt"))
    assert again(fit(bare, run, given("irn", copy), refine="irn")) == set()
    content = torch.load(path, weights_only=True)
    content["state"]["edge.head.bias"] += 1
    torch.save(content, copy)
    assert again(fit(bare, run, given("irn", copy), refine="irn")) == {"walk", "refine"}


def test_maps_and_a_network_that_are_given_need_no_weights(
    bare, mapped, finished, tmp_path, monkeypatch
):
    # Nothing is cached and nothing can be fetched.
    monkeypatch.setenv("WSSS_CACHE", str(tmp_path / "empty"))
    path, run = finished("affinity") / "affinity" / "model.pt", tmp_path / "run"
    more = {"weights": None, "cams": mapped / "cams", "recipe": "small", "refine": "affinity"}
    content = torch.load(path, weights_only=True)
    assert list(fit(bare, run, given("affinity", path), **more)) == ["cams", "walk", "refine"]
    assert content["identity"]["method"] == "cam"
    with pytest.raises(WeightsError):
        pipeline(bare, tmp_path / "other", **more)


@pytest.mark.parametrize(
    ("way", "change", "words"),
    [
        (
            "affinity",
            lambda content: content["identity"].update(classes=["cat", "dog"]),
            "for the 2 classes cat, dog",
        ),
        ("affinity", lambda content: content["state"].pop("f9.weight"), "it has no f9.weight"),
        (
            "irn",
            lambda content: content["state"].pop("backbone.features.5.conv.2.weight"),
            "missing, such as features.5.conv.2",
        ),
        ("irn", lambda content: content.clear(), "without named tensors"),
    ],
)
def test_a_wrong_network_ends_the_command_before_it_starts(
    bare, finished, tmp_path, monkeypatch, capsys, way, change, words
):
    path = finished(way) / way / "model.pt"
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)
    command = [
        "fit",
        bare,
        "--run",
        tmp_path / "run",
        "--backbone",
        "mobilenet_v2",
        "--weights",
        "none",
        "--refine",
        way,
    ]
    command += ["--until", "refine", "--device", "cpu"]
    for setting in (*SETTINGS, given(way, path)):
        command += ["--set", setting]
    monkeypatch.setattr("sys.argv", ["wsss-trainer", *map(str, command)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert [line.split(":")[0] for line in lines] == ["error", "expected", "try"]
    assert words in lines[0]
    assert str(path) in lines[0]
    assert not (tmp_path / "run").exists()


def test_networks_for_each_other_are_named(bare, finished, tmp_path):
    paths = {way: finished(way) / way / "model.pt" for way in ("affinity", "irn")}
    with pytest.raises(WeightsError, match="looks like an IRNet, which refines maps"):
        pipeline(bare, tmp_path / "run", given("affinity", paths["irn"]), refine="affinity")
    with pytest.raises(WeightsError, match="looks like an AffinityNet, which refines maps"):
        pipeline(bare, tmp_path / "run", given("irn", paths["affinity"]), refine="irn")
    with pytest.raises(WeightsError, match="is not a file"):
        pipeline(bare, tmp_path / "run", given("irn", tmp_path / "nowhere.pth"), refine="irn")


@pytest.mark.parametrize(("key", "value"), [("backbone", "resnet18"), ("classes", ["cat"])])
def test_weights_of_another_backbone_or_class_table_are_refused(bare, finished, key, value):
    run = finished("affinity")
    unfinished(run, "walk")
    content = torch.load(run / "affinity" / "model.pt", weights_only=True)
    content["identity"][key] = value
    torch.save(content, run / "affinity" / "model.pt")
    with pytest.raises(WeightsError, match=f"was made with {key} = "):
        fit(bare, run, refine="affinity")


def test_too_little_space_is_told_before_the_work(bare, mapped, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(
        "trainer.files.shutil.disk_usage", lambda folder: usage(10**12, 10**12, 3_000_000_000)
    )
    check_space(tmp_path, 3_000_000_000, "labels")
    with pytest.raises(RunError) as caught:
        check_space(tmp_path / "new", 5_100_000_000, "labels of AffinityNet")
    found = f"labels of AffinityNet need about 5.1 GB in {tmp_path / 'new'}, and 3.0 GB are free"
    assert (caught.value.found, caught.value.expected) == (found, "room on that disk")
    assert "choose another folder" in caught.value.hint
    monkeypatch.setattr("trainer.files.shutil.disk_usage", lambda folder: usage(10**12, 10**12, 0))
    for way in ("affinity", "irn"):
        run = Path(shutil.copytree(mapped, tmp_path / way))
        with pytest.raises(RunError, match="are free"):
            fit(bare, run, refine=way)
        assert not times(run / f"{way}_labels")


def test_labels_need_maps_of_every_image(bare, mapped, tmp_path):
    run = Path(shutil.copytree(mapped, tmp_path / "run"))
    cam_path(run / "cams", "scene_00002").unlink()
    for way in ("affinity", "irn"):
        plan = pipeline(bare, run, "refine.calibrate=off", refine=way)
        labels = next(stage for stage in plan.stages if stage.name == f"{way}_labels")
        with pytest.raises(
            DataError, match=r"1 of .* images have no maps in .*: scene_00002"
        ) as caught:
            work(plan, labels)
        assert caught.value.hint
