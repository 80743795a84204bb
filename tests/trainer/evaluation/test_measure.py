"""Stage ``evaluate`` of a run, and its figures in other conventions."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from measured import write_run
from refined import pipeline

from trainer.data.dataset import read_index_png
from trainer.data.formats.opening import open_dataset
from trainer.data.palette import write_index_png
from trainer.errors import ConfigError, DataError
from trainer.evaluation.figures_table import print_evaluation
from trainer.evaluation.image_counts import ImageCounts, counts_path
from trainer.evaluation.knobs import EvaluateConfig
from trainer.evaluation.measure import current_evaluation, in_convention
from trainer.evaluation.metrics import confusion, mean_iou
from trainer.scenes.writing import write_synthetic


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr("trainer.pool.cores", lambda: 1)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("measure") / "data"
    write_synthetic(folder, 12, 48)
    return folder


@pytest.fixture
def run(data, tmp_path):
    return write_run(tmp_path / "run", data, 0.4, full=0.1)


def test_every_entry_has_its_figures_conditions_and_counts(data, run):
    evaluation = current_evaluation(run)
    assert list(evaluation) == ["cam", "refined", "segment", "segment_full"]
    assert json.loads((run / "evaluation.json").read_text()) == evaluation
    dataset = open_dataset(data)
    for stage, lines in evaluation.items():
        for name, entry in lines.items():
            counts = ImageCounts.read(counts_path(run, stage, name))
            assert counts.ids == dataset.lists[name]
            assert float(mean_iou(counts.total())) == entry["miou"]
            assert entry["convention"] == "default"
            assert 0 < entry["boundary_f"] <= 1
            assert entry["boundary_tolerance"] == 0.0075
            assert entry["miou_interval"]["low"] <= entry["miou"] <= entry["miou_interval"]["high"]
            assert len(entry["worst"]) == min(20, len(counts.ids))
            assert entry["conditions"]["initial_weights"] == "ImageNet tags"
            assert {
                "mean_f",
                "f_of_means",
                "over_activation",
                "under_activation",
                "precision",
                "recall",
            } <= set(entry)
    assert evaluation["cam"]["val"]["conditions"]["threshold_from"] == "train"
    assert "sweep" in evaluation["cam"]["val"]
    assert evaluation["segment"]["val"]["conditions"]["views"] == "scales 1 and mirror"


def test_counts_are_those_of_the_masks(data, run):
    current_evaluation(run)
    dataset, counts = open_dataset(data), ImageCounts.read(counts_path(run, "segment", "val"))
    for n, name in enumerate(counts.ids):
        pred = read_index_png(run / "segment" / "predictions" / "val" / f"{name}.png")
        truth = dataset.read_mask(dataset.records[name])
        alone = counts.select([name]).total()[:, :-1]
        np.testing.assert_array_equal(alone, confusion(pred, truth, len(dataset.classes) + 1))
        assert counts.miou()[n] == pytest.approx(float(mean_iou(alone)))


def test_weak_over_full_comes_with_an_interval(run):
    entry = current_evaluation(run)["segment"]["val"]
    full = current_evaluation(run)["segment_full"]["val"]["miou"]
    assert entry["weak_full"]["ratio"]["value"] == pytest.approx(entry["miou"] / full)
    assert entry["weak_full"]["ratio"]["low"] <= entry["weak_full"]["ratio"]["value"] < 1
    assert entry["weak_full"]["difference"]["high"] < 0


def test_a_run_without_full_supervision_has_no_ratio(data, tmp_path):
    assert (
        "weak_full"
        not in current_evaluation(write_run(tmp_path / "run", data, 0.4))["segment"]["val"]
    )


def test_it_is_measured_once_and_again_when_the_counts_are_gone(run):
    current_evaluation(run)
    before = (run / "evaluation.json").stat().st_mtime_ns
    current_evaluation(run)
    assert (run / "evaluation.json").stat().st_mtime_ns == before
    counts_path(run, "cam", "val").unlink()
    current_evaluation(run)
    assert counts_path(run, "cam", "val").exists()
    (run / "evaluation.json").write_text("{")
    assert "segment" in current_evaluation(run)


def test_another_convention_from_the_same_counts(run):
    evaluation = current_evaluation(run)
    seam = in_convention(run, evaluation, "seam")
    for stage, lines in seam.items():
        for name, entry in lines.items():
            assert entry["convention"] == "seam"
            assert entry["miou"] == evaluation[stage][name]["miou_by_convention"]["seam"]
            assert entry["protocol"] == evaluation[stage][name]["protocol"]
    full = seam["segment_full"]["val"]["miou"]
    assert seam["segment"]["val"]["weak_full"]["ratio"]["value"] == pytest.approx(
        seam["segment"]["val"]["miou"] / full
    )


def test_a_convention_that_refuses_predicted_255_says_so(data, run):
    name = open_dataset(data).lists["val"][0]
    path = run / "segment" / "predictions" / "val" / f"{name}.png"
    mask = read_index_png(path)
    mask[:5] = 255
    write_index_png(path, mask)
    evaluation = current_evaluation(run)
    assert evaluation["segment"]["val"]["predicted_ignore"] > 0
    with pytest.raises(DataError, match="hold 255"):
        in_convention(run, evaluation, "deeplab-pytorch")


def test_images_without_a_mask_are_left_out_and_counted(data, tmp_path):
    folder = shutil.copytree(data, tmp_path / "data")
    bare, *rest = open_dataset(folder).lists["val"]
    run = write_run(tmp_path / "run", folder, 0.4, full=0.1)
    (folder / "SegmentationClass" / f"{bare}.png").unlink()
    evaluation = current_evaluation(run)
    for stage in ("cam", "refined", "segment", "segment_full"):
        entry = evaluation[stage]["val"]
        assert entry["images"] == len(rest)
        assert entry["conditions"]["unmasked"] == 1
        assert entry["protocol"].startswith(
            f"val ({len(rest)} of {len(rest) + 1} images, 1 without a true mask), true masks of"
        )
        assert entry["protocol"].count("images") == 1
        assert ImageCounts.read(counts_path(run, stage, "val")).ids == tuple(rest)
    assert "(9 images)" in evaluation["cam"]["train"]["protocol"]


def test_an_image_without_a_class_and_a_mask_counts_as_background(data, tmp_path):
    folder = shutil.copytree(data, tmp_path / "data")
    names = open_dataset(folder).lists["val"]
    free = names[0]
    table = folder / "image_labels.csv"
    rows = [
        ",".join([free, *("0" for _ in row.split(",")[1:])]) if row.startswith(free) else row
        for row in table.read_text().splitlines()
    ]
    table.write_text("\n".join(rows))
    (folder / "SegmentationClass" / f"{free}.png").unlink()
    run = write_run(tmp_path / "run", folder, 0.4)
    calm = current_evaluation(run)["segment"]["val"]
    assert calm["images"] == len(names)
    assert (calm["conditions"]["unmasked"], calm["conditions"]["blank"]) == (0, 1)
    assert calm["protocol"].startswith(
        f"val ({len(names)} images, 1 of them without a class and a mask: background), true masks"
    )
    prediction = run / "segment" / "predictions" / "val" / f"{free}.png"
    mask = read_index_png(prediction)
    mask[:20] = 1
    write_index_png(prediction, mask)
    (run / "evaluation.json").unlink()
    alarmed = current_evaluation(run)["segment"]["val"]
    assert alarmed["iou"] != calm["iou"]
    assert alarmed["miou"] < calm["miou"]
    for stage in ("cam", "refined"):
        assert current_evaluation(run)[stage]["val"]["images"] == len(names)


def test_figures_follow_a_mask_that_was_mended(data, run, tmp_path):
    folder = shutil.copytree(data, tmp_path / "data")
    run = write_run(tmp_path / "mended", folder, 0.4)
    before = current_evaluation(run)
    name = open_dataset(folder).lists["val"][0]
    path = folder / "SegmentationClass" / f"{name}.png"
    mask = read_index_png(path)
    mask[:20] = 0
    write_index_png(path, mask)
    after = current_evaluation(run)
    assert after["segment"]["val"]["miou"] != before["segment"]["val"]["miou"]
    assert after["segment"]["train"] == before["segment"]["train"]


def test_a_copy_is_the_same_data_and_a_mended_mask_trains_on_true_masks_again(data, tmp_path):
    def keys(folder):
        settings = ("refine.threshold_from=train",)
        return pipeline(
            folder, tmp_path / "run", *settings, until="report", supervision="both"
        ).keys

    folder = shutil.copytree(data, tmp_path / "copy", copy_function=shutil.copyfile)
    before = keys(folder)
    assert before == keys(data)
    train = open_dataset(folder).lists["train"]
    path = folder / "SegmentationClass" / f"{train[0]}.png"
    mask = read_index_png(path)
    mask[0, 0] = 255 - mask[0, 0]
    write_index_png(path, mask)
    after = keys(folder)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {
        "refine",
        "segment_train",
        "segment",
        "segment_full_train",
        "segment_full",
        "evaluate",
    }


def test_an_impossible_tolerance_is_refused():
    with pytest.raises(ConfigError, match="tolerance"):
        EvaluateConfig(boundary_tolerance=0)


def test_the_mean_without_the_background_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    iou = {"background": 0.9, "cat": 0.5, "dog": 0.7, "cow": None}
    entry = {"miou": 0.7, "iou": iou, "threshold": None, "threshold_from": None, "protocol": "p"}
    entry |= {"convention": "default", "predicted_ignore": 0}
    print_evaluation({"cam": {"val": entry}})
    row = next(line for line in capsys.readouterr().out.splitlines() if "foreground" in line)
    assert "60.0" in row
