"""Maps that others made, as stage ``cams`` of a run."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.models import resnet18

from trainer import cli
from trainer.data.formats.opening import open_dataset
from trainer.errors import ConfigError, DataError, RunError
from trainer.evaluation.measure import current_evaluation
from trainer.fit import fit as run_plan
from trainer.maps.camfile import cam_path, read_cam, write_cam
from trainer.maps.foreign import read_foreign
from trainer.options import Options
from trainer.plan import Plan, make_plan
from trainer.run import Output
from trainer.segmenters.training import read_pseudo_mask
from trainer.stages.import_cams import import_cams

pytestmark = pytest.mark.usefixtures("one_process")


@pytest.fixture
def dataset(scenes):
    return open_dataset(scenes)


@pytest.fixture
def theirs(dataset, tmp_path) -> Path:
    """Our maps of every image: 1 on the true masks, 0.1 elsewhere, at stride 4."""
    folder = tmp_path / "theirs"
    for record in dataset.records.values():
        truth = dataset.read_mask(record)
        maps = [0.1 + 0.9 * (truth[::4, ::4] == tag + 1) for tag in record.tags]
        write_cam(cam_path(folder, record.id), record.tags, np.stack(maps), truth.shape)
    return folder


def imported(dataset, folder: Path, out: Path, bad: Any = "stop") -> Output:
    stage = Output(out)
    import_cams(dataset, list(dataset.records.values()), folder, stage, bad)
    return stage


def pickled(folder: Path, name: str, content: Any) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.npy"
    np.save(path, content)
    return path


def replaced(folder: Path, name: str, content: Any) -> Path:
    """A .npy in place of the .npz."""
    cam_path(folder, name).unlink()
    return pickled(folder, name, content)


def test_our_own_maps_are_taken_as_they_are(dataset, theirs, tmp_path):
    stage = imported(dataset, theirs, tmp_path / "cams")
    assert stage.outputs == {"count": 10, "taken_from": str(theirs), "left_out": [], "foreign": []}
    for record in dataset.records.values():
        given, taken = (
            read_cam(cam_path(folder, record.id)) for folder in (theirs, tmp_path / "cams")
        )
        assert taken.size == given.size
        assert taken.classes.tolist() == given.classes.tolist() == sorted(record.tags)
        np.testing.assert_array_equal(taken.maps, given.maps)


def test_maps_of_psa_are_reduced_to_stride_4_and_put_in_order(dataset, theirs, tmp_path):
    record = next(record for record in dataset.records.values() if len(record.tags) > 1)
    size = read_cam(cam_path(theirs, record.id)).size
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
    ramps = {tag: (n + 1) * (x + n * y) - 5 for n, tag in enumerate(record.tags)}
    replaced(theirs, record.id, {tag: ramps[tag] for tag in reversed(record.tags)})
    imported(dataset, theirs, tmp_path / "cams")
    cam = read_cam(cam_path(tmp_path / "cams", record.id))
    assert cam.classes.tolist() == sorted(record.tags)
    assert cam.maps.shape == (len(record.tags), (size[0] - 1) // 4 + 1, (size[1] - 1) // 4 + 1)
    for n, tag in enumerate(sorted(record.tags)):
        full = np.maximum(ramps[tag], 0) / ramps[tag].max()
        cells = (
            full[: size[0] // 4 * 4, : size[1] // 4 * 4]
            .reshape(size[0] // 4, 4, -1, 4)
            .mean((1, 3))
        )
        inside = cam.maps[n, 2 : size[0] // 4 - 2, 2 : size[1] // 4 - 2]
        np.testing.assert_allclose(inside, cells[2:-2, 2:-2], atol=0.02)


@pytest.mark.parametrize("kind", [torch.from_numpy, np.asarray], ids=["tensors", "arrays"])
def test_maps_of_irn_come_with_keys(dataset, theirs, tmp_path, kind):
    record = next(record for record in dataset.records.values() if len(record.tags) > 1)
    given = read_cam(cam_path(theirs, record.id))
    backwards = kind(given.classes[::-1].astype(np.int64)), kind(given.maps[::-1].copy() * 7)
    whole = kind(np.zeros((len(given.classes), *given.size), np.float32))
    replaced(theirs, record.id, {"keys": backwards[0], "cam": backwards[1], "high_res": whole})
    imported(dataset, theirs, tmp_path / "cams")
    taken = read_cam(cam_path(tmp_path / "cams", record.id))
    assert taken.classes.tolist() == given.classes.tolist()
    np.testing.assert_allclose(
        taken.maps, given.maps / given.maps.max((1, 2), keepdims=True), atol=1e-3
    )


def test_foreign_maps_are_brought_to_0_to_1(tmp_path):
    maps = {
        3: np.array([[-2.0, 1.0], [4.0, 2.0]], np.float32),
        1: np.array([[-1.0, -2], [-3, -4]], np.float32),
    }
    cam = read_foreign(pickled(tmp_path, "a", maps), (8, 8))
    assert cam.classes.tolist() == [1, 3]
    assert cam.size == (8, 8)
    np.testing.assert_allclose(cam.maps, [[[0, 0], [0, 0]], [[0, 0.25], [1, 0.5]]])
    assert read_foreign(pickled(tmp_path, "b", {}), (8, 8)).maps.shape == (0, 1, 1)


def test_maps_smaller_than_stride_4_stay_as_they_are(dataset, theirs, tmp_path):
    record = dataset.records["scene_00000"]
    maps = np.random.default_rng(0).random((len(record.tags), 3, 4), np.float32)
    maps /= maps.max((1, 2), keepdims=True)
    replaced(theirs, record.id, {"keys": np.array(record.tags), "cam": maps})
    imported(dataset, theirs, tmp_path / "cams")
    np.testing.assert_allclose(
        read_cam(cam_path(tmp_path / "cams", record.id)).maps, maps, atol=1e-3
    )


def spoil(dataset, theirs: Path, how: str) -> str:
    """Damage the maps of ``scene_00002``; what the error says of them."""
    name = "scene_00002"
    record, path = dataset.records[name], cam_path(theirs, name)
    cam, content = read_cam(path), path.read_bytes()
    if how == "missing":
        path.unlink()
        return "are missing"
    if how == "truncated":
        path.write_bytes(content[: len(content) // 2])
        return "cannot be read"
    if how == "truncated .npy":
        other = replaced(theirs, name, dict(zip(record.tags, cam.maps)))
        other.write_bytes(other.read_bytes()[:-40])
        return "cannot be read"
    if how == "no maps":
        path.write_bytes(b"not a map")
        return "cannot be read"
    if how == "an array":
        replaced(theirs, name, cam.maps)
        return "an array without class names"
    if how == "not finite":
        replaced(theirs, name, {tag: np.full((4, 4), np.nan, np.float32) for tag in record.tags})
        return "cannot be read"
    if how == "of another size":
        write_cam(path, cam.classes, cam.maps, (31, 33))
        return r"are for \(31, 33\) pixels"
    absent = next(k for k in range(len(dataset.classes)) if k not in record.tags)
    if how == "of other classes":
        write_cam(path, [absent], cam.maps[:1], cam.size)
        return rf"are of the classes \[{absent}\]"
    if how == "of too few classes":
        write_cam(path, [], cam.maps[:0], cam.size)
        return r"are of the classes \[\]"
    assert how == "outside the table"
    write_cam(path, [17], cam.maps[:1], cam.size)
    return r"are of the classes \[17\]"


BAD = [
    "missing",
    "truncated",
    "truncated .npy",
    "no maps",
    "an array",
    "not finite",
    "of another size",
    "of other classes",
    "of too few classes",
    "outside the table",
]


@pytest.mark.parametrize("how", BAD)
def test_bad_maps_are_told_after_all_others_were_taken(dataset, theirs, tmp_path, how):
    said = spoil(dataset, theirs, how)
    with pytest.raises(DataError, match=said) as caught:
        imported(dataset, theirs, tmp_path / "cams")
    assert caught.value.found.startswith(
        "1 of 10 images have no usable maps (cams.bad=skip leaves them out)"
    )
    assert "scene_00002" in caught.value.found
    assert len(list((tmp_path / "cams").glob("*.npz"))) == 9
    # They are the user's: nothing makes them anew.
    assert "delete" not in str(caught.value)
    if how == "outside the table":
        assert "the class tables differ" in caught.value.expected


def test_suffixes_in_capital_letters(dataset, theirs, tmp_path):
    path = cam_path(theirs, "scene_00002")
    path.rename(path.with_suffix(".NPZ"))
    assert imported(dataset, theirs, tmp_path / "cams").outputs["count"] == 10


@pytest.mark.parametrize("how", BAD)
def test_bad_maps_may_be_skipped(dataset, theirs, tmp_path, how):
    spoil(dataset, theirs, how)
    stage = imported(dataset, theirs, tmp_path / "cams", "skip")
    assert (stage.outputs["count"], stage.outputs["left_out"]) == (9, ["scene_00002"])
    assert not cam_path(tmp_path / "cams", "scene_00002").exists()


def test_all_bad_maps_are_listed_together(dataset, theirs, tmp_path):
    for name in ("scene_00001", "scene_00004", "scene_00007"):
        cam_path(theirs, name).unlink()
    with pytest.raises(DataError, match="3 of 10") as caught:
        imported(dataset, theirs, tmp_path / "cams")
    assert all(name in caught.value.found for name in ("scene_00001", "scene_00004", "scene_00007"))


def test_skipping_all_is_refused(dataset, theirs, tmp_path):
    for path in theirs.iterdir():
        path.unlink()
    with pytest.raises(DataError, match="none is left"):
        imported(dataset, theirs, tmp_path / "cams", "skip")
    with pytest.raises(DataError, match="is not a folder"):
        imported(dataset, tmp_path / "nowhere", tmp_path / "cams", "skip")


def test_files_of_no_image_are_noted(dataset, theirs, tmp_path):
    shutil.copy(theirs / "scene_00000.npz", theirs / "elsewhere.npz")
    pickled(theirs, "other", {0: np.ones((2, 2), np.float32)})
    (theirs / "notes.txt").write_text("")
    assert imported(dataset, theirs, tmp_path / "cams").outputs["foreign"] == [
        "elsewhere.npz",
        "other.npy",
    ]


def test_maps_that_were_taken_are_kept(dataset, theirs, tmp_path):
    spoil(dataset, theirs, "missing")
    with pytest.raises(DataError):
        imported(dataset, theirs, tmp_path / "cams")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cams").iterdir()}
    record = dataset.records["scene_00002"]
    pickled(theirs, record.id, {tag: np.ones((9, 9), np.float32) for tag in record.tags})
    imported(dataset, theirs, tmp_path / "cams")
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cams").iterdir()}
    assert after.keys() - before.keys() == {"scene_00002.npz"}
    assert {name: after[name] for name in before} == before


def test_a_disk_that_fills_up_in_the_middle_loses_nothing(dataset, theirs, tmp_path, monkeypatch):
    real, room = os.replace, iter(range(4))

    def full(part, path):
        if next(room, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(part, path)

    monkeypatch.setattr("trainer.files.os.replace", full)
    with pytest.raises(RunError, match="no space left while writing") as caught:
        imported(dataset, theirs, tmp_path / "cams")
    assert "run the same command again" in caught.value.hint
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cams").iterdir()}
    assert len(before) == 4
    monkeypatch.setattr("trainer.files.os.replace", real)
    assert imported(dataset, theirs, tmp_path / "cams").outputs["count"] == 10
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cams").iterdir()}
    assert {name: after[name] for name in before} == before


class Harm:
    """A pickle of it writes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, "ran")


class Evaluated:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return eval, (f"open({str(self.path)!r}, 'w')",)


@pytest.mark.parametrize("kind", [Harm, Evaluated])
@pytest.mark.parametrize("inside_a_tensor", [False, True])
def test_a_pickle_that_would_run_code_is_refused_and_not_run(tmp_path, kind, inside_a_tensor):
    trap = tmp_path / "trap"
    content: dict[Any, Any] = {0: kind(trap)}
    if inside_a_tensor:
        torch.save(kind(trap), tmp_path / "storage")
        content = {0: Loaded((tmp_path / "storage").read_bytes())}
    path = pickled(tmp_path, "a", content)
    with pytest.raises(DataError, match="cannot be read"):
        read_foreign(path, (8, 8))
    assert not trap.exists()


class Loaded:
    """As torch pickles a storage inside another pickle."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __reduce__(self):
        return torch.storage._load_from_bytes, (self.data,)


def test_the_trap_of_these_tests_would_work(tmp_path):
    pickle.loads(pickle.dumps(Harm(tmp_path / "trap")))
    assert (tmp_path / "trap").read_text() == "ran"


def pipeline(scenes: Path, folder: Path, run: Path, *settings: str, **more: Any) -> Plan:
    fast = [
        f"segment.{knob}"
        for knob in ("workers=0", "precision=fp32", "scales=1", "flip=off", "batch=7", "crf=none")
    ]
    options: dict[str, Any] = {"weights": "none", "until": "cams", **more}
    return make_plan(
        Options(
            data=scenes,
            run=run,
            cams=folder,
            backbone="resnet18",
            device="cpu",
            refine="none",
            epochs=1,
            size=64,
            settings=(*fast, *settings),
            **options,
        )
    )


def test_bad_images_are_left_out_to_the_end_and_the_protocol_says_so(
    scenes, dataset, theirs, tmp_path, monkeypatch
):
    torch.manual_seed(0)
    torch.save(resnet18().state_dict(), tmp_path / "weights.pth")
    for name in ("scene_00002", "scene_00003"):
        cam_path(theirs, name).unlink()
    trained: list[str] = []
    real = read_pseudo_mask

    def read(record, folder):
        trained.append(record.id)
        return real(record, folder)

    monkeypatch.setattr("trainer.stages.segment.read_pseudo_mask", read)
    more = {"weights": str(tmp_path / "weights.pth"), "until": "evaluate"}
    run = tmp_path / "run"
    said: list[str] = []
    line = pipeline(
        scenes, theirs, run, "cams.bad=skip", "evaluate.threshold_from=label_free", **more
    )
    run_plan(line, said.append)
    stages = ["cams", "refine", "segment_train", "segment", "evaluate"]
    assert [text.split(":")[0] for text in said if not text.startswith("warning")] == stages
    training = {record.id for record in dataset.subset("train")}
    assert {path.stem for path in (run / "masks").glob("*.png")} == set(dataset.records) - {
        "scene_00002",
        "scene_00003",
    }
    assert set(trained) == training - {"scene_00002"}
    evaluation = current_evaluation(run)
    for stage, left_out in {"cam": 1, "refined": 1, "segment": 0}.items():
        for name in ("train", "val"):
            count = len(dataset.subset(name))
            entry = evaluation[stage][name]
            some = f", {left_out} of them left out: they lack maps" if left_out else ""
            assert entry["images"] == count - left_out
            assert entry["protocol"].startswith(f"{name} ({count} images{some}), ")
            assert f"maps of {theirs} on resnet18" in entry["protocol"]
    assert (
        f"maps of true tags, protocol as in {theirs}, no CRF"
        in evaluation["cam"]["val"]["protocol"]
    )


def test_other_maps_in_the_folder_make_the_stage_again(scenes, theirs, tmp_path):
    first = pipeline(scenes, theirs, tmp_path / "run")
    run_plan(first, print)
    assert first.context.run.done("cams", first.keys["cams"])
    cam = read_cam(cam_path(theirs, "scene_00001"))
    write_cam(cam_path(theirs, "scene_00001"), cam.classes, cam.maps / 2, cam.size)
    second = pipeline(scenes, theirs, tmp_path / "run")
    assert not second.context.run.done("cams", second.keys["cams"])
    run_plan(second, print)
    assert read_cam(cam_path(tmp_path / "run" / "cams", "scene_00001")).maps.max() == pytest.approx(
        0.5, abs=1e-3
    )


def test_maps_without_weights_end_before_the_work(scenes, theirs, tmp_path):
    pipeline(
        scenes, theirs, tmp_path / "run", until="refine"
    )  # a threshold and a CRF train nothing
    for until in ("segment", "report"):
        with pytest.raises(ConfigError, match="--cams brings no classifier") as caught:
            pipeline(scenes, theirs, tmp_path / "run", until=until)
        assert caught.value.expected == "--weights FILE"
    assert [s.name for s in pipeline(scenes, theirs, tmp_path / "run").stages] == ["cams"]


def test_the_command_lists_bad_maps_and_ends_with_code_2(
    scenes, dataset, theirs, tmp_path, monkeypatch, capsys
):
    spoil(dataset, theirs, "outside the table")
    cam_path(theirs, "scene_00001").unlink()
    command = [
        "fit",
        str(scenes),
        "--run",
        str(tmp_path / "run"),
        "--cams",
        str(theirs),
        "--until",
        "cams",
    ]
    command += ["--weights", "none", "--backbone", "resnet18"]
    monkeypatch.setattr("sys.argv", ["wsss-trainer", *command])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    shown = capsys.readouterr().err
    assert "error: 2 of 10 images have no usable maps" in shown
    assert "scene_00001" in shown
    assert "scene_00002" in shown
    stages = json.loads((tmp_path / "run" / "manifest.json").read_text())["stages"]
    assert stages["cams"]["status"] == "failed"
