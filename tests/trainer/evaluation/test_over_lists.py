import json

import numpy as np
import pytest
import torch
from PIL import Image

from trainer.data.dataset import Dataset, Record, read_index_png
from trainer.data.palette import write_index_png
from trainer.errors import DataError
from trainer.evaluation.boundary import boundary_f
from trainer.evaluation.metrics import confusion, iou, mean_iou, metrics, summarise
from trainer.evaluation.objects import count_objects
from trainer.evaluation.over_lists import evaluate_cams, evaluate_folder, threshold_maps
from trainer.evaluation.pixel_ranking import PixelRanking, image_pixels
from trainer.evaluation.sweep import SWEEP, sweep_thresholds, threshold_sweep
from trainer.maps.camfile import cam_path, read_cam, upsample_cam, write_cam

CLASSES = ("cat", "dog", "cow")


def u(shape, s):
    """Numbers in 0..1 that any language gives alike: the fractions of a fast sine."""
    i = np.arange(np.prod(shape)) + 1
    v = np.sin(12.9898 * i + 78.233 * s) * 43758.5453
    return (v - np.floor(v)).reshape(shape)


@pytest.fixture
def scenes(tmp_path):
    """Five images with true masks and maps at stride 4; image 4 has no tags."""
    rng = np.random.RandomState(3)
    records = {}
    for n in range(5):
        size = (30 + n, 41 - n)
        truth = rng.choice([0, 1, 2, 3, 255], size=size, p=[0.5, 0.2, 0.1, 0.1, 0.1]).astype(
            np.uint8
        )
        classes = [] if n == 4 else sorted(rng.choice(3, 1 + n % 3, replace=False))
        mask = tmp_path / "truth" / f"i{n}.png"
        write_index_png(mask, truth)
        records[f"i{n}"] = Record(
            f"i{n}", tmp_path / f"i{n}.jpg", tuple(int(c) for c in classes), mask
        )
        grid = [(s - 1) // 4 + 1 for s in size]
        maps = rng.uniform(size=(len(classes), *grid)).round(2)
        write_cam(cam_path(tmp_path / "cams", f"i{n}"), classes, maps, size)
    ids = tuple(records)
    return Dataset(tmp_path, "voc", CLASSES, (1, 2, 3), records, {"all": ids, "train": ids}, "test")


def by_many_passes(dataset, folder, thresholds):
    total = np.zeros((len(thresholds), 4, 4), np.int64)
    for t, threshold in enumerate(thresholds):
        for record in dataset.records.values():
            cam = read_cam(cam_path(folder, record.id))
            stack = np.concatenate(
                [np.full((1, *cam.size), threshold, np.float32), upsample_cam(cam.maps, cam.size)]
            )
            pred = np.concatenate([[0], cam.classes + 1])[stack.argmax(0)]
            total[t] += confusion(pred, dataset.read_mask(record), 4)
    return total


def test_golden_values_of_the_specification():
    gt = np.floor(23 * u((3, 12, 12), 71)).astype(int)
    gt[gt > 20] = 255
    pred = np.where(
        u((3, 12, 12), 73) < 0.6,
        np.where(gt == 255, 0, gt),
        np.floor(21 * u((3, 12, 12), 72)).astype(int),
    )
    counts = confusion(pred, gt, 21)
    assert counts.dtype == np.int64
    assert metrics(counts).miou == pytest.approx(0.4499749754, abs=1e-10)
    assert metrics(counts).accuracy == pytest.approx(0.6134020619, abs=1e-10)
    assert float(mean_iou(counts)) == pytest.approx(0.4499749754, abs=1e-10)


def test_confusion_rows_are_the_truth_and_tensors_are_taken():
    truth = torch.tensor([[0, 0, 1], [2, 255, 7]])
    pred = torch.tensor([[0, 1, 1], [255, 2, 2]], dtype=torch.uint8)
    assert confusion(pred, truth, 3).tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]
    assert confusion(np.zeros((0, 3)), np.zeros((0, 3)), 2).sum() == 0
    with pytest.raises(DataError, match="differ in size"):
        confusion(pred, truth[:1], 3)
    with pytest.raises(DataError, match="from 0 to 2"):
        confusion([0, 2], [0, 1], 2)


def test_iou_of_an_absent_class_is_nan_and_left_out_of_the_mean():
    counts = np.array([[6, 2, 0], [0, 4, 0], [0, 0, 0]])
    values = iou(counts)
    np.testing.assert_allclose(values, [0.75, 4 / 6, np.nan])
    assert float(mean_iou(counts)) == pytest.approx((0.75 + 4 / 6) / 2)
    assert np.isnan(iou(np.zeros((2, 2)))).all()


def test_summary_is_json_and_says_both_f_scores():
    counts = np.array([[50, 10, 0, 0], [5, 20, 5, 0], [0, 0, 10, 0], [0, 0, 0, 0]])
    summary = json.loads(json.dumps(summarise(counts, CLASSES), allow_nan=False))
    assert list(summary["iou"]) == ["background", *CLASSES]
    assert summary["iou"]["cow"] is None
    assert summary["precision"]["dog"] == pytest.approx(10 / 15)
    assert summary["recall"]["cat"] == pytest.approx(20 / 30)
    p, r = summary["mean_precision"], summary["mean_recall"]
    assert p == pytest.approx((50 / 55 + 20 / 30 + 10 / 15) / 3)
    assert summary["f_of_means"] == pytest.approx(2 * p * r / (p + r))
    assert summary["mean_f"] == pytest.approx((100 / 115 + 40 / 60 + 20 / 25) / 3)
    assert summary["over_activation"] == pytest.approx((10 / 40 + 5 / 15) / 2)
    assert summary["under_activation"] == pytest.approx((10 / 40 + 0) / 2)
    assert summary["confusion"] == counts.tolist()
    with pytest.raises(ValueError, match="labels"):
        summarise(counts, ("cat",))


@pytest.mark.parametrize("workers", [0, 2])
def test_sweep_equals_one_pass_a_threshold(scenes, workers):
    folder = scenes.root / "cams"
    result = evaluate_cams(scenes, scenes.subset("train"), folder, workers=workers)
    np.testing.assert_array_equal(result.confusions, by_many_passes(scenes, folder, SWEEP))
    assert result.confusions.dtype == np.int64
    assert result.miou[round(result.best * 100)] == result.miou.max()


def test_background_wins_ties_and_the_first_class_wins_among_equals():
    maps = np.array([[[0.5, 0.5, 0.2]], [[0.5, 0.3, 0.2]]], np.float32)
    truth = np.array([[1, 2, 3]], np.uint8)
    counts = threshold_sweep([(maps, [0, 1], truth)], [0.2, 0.4999, 0.5], num_classes=4)
    assert counts[0].tolist() == [[0] * 4, [0, 1, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0]]
    np.testing.assert_array_equal(counts[1], counts[0])
    assert counts[2, :, 0].tolist() == [0, 1, 1, 1]
    with pytest.raises(ValueError, match="ascending"):
        threshold_sweep([], [0.5, 0.2], num_classes=4)


def test_sweep_of_an_image_without_classes_is_all_background():
    truth = np.array([[0, 3, 255]], np.uint8)
    counts = threshold_sweep([(np.zeros((0, 1, 3), np.float32), [], truth)], num_classes=4)
    assert counts.shape == (100, 4, 4)
    assert (counts[:, 0, 0] == 1).all()
    assert (counts[:, 3, 0] == 1).all()
    assert counts.sum() == 200


def test_worst_images_of_the_sweep_are_those_of_single_images(scenes):
    folder = scenes.root / "cams"
    result = evaluate_cams(scenes, scenes.subset("train"), folder, workers=0)
    for n, record in enumerate(scenes.subset("train")):
        alone = evaluate_cams(scenes, [record], folder, workers=0)
        np.testing.assert_allclose(result.image_miou[n], alone.miou, atol=1e-6)
    report = json.loads(
        json.dumps(result.report(result.best, "oracle", "a protocol"), allow_nan=False)
    )
    lowest = sorted(result.image_miou[:, round(result.best * 100)])[:2]
    assert [w["miou"] for w in report["worst"][:2]] == pytest.approx(lowest, abs=1e-5)
    assert report["protocol"] == "a protocol"
    assert report["threshold_from"] == "oracle"
    assert report["images"] == 5
    assert report["sweep"]["best"]["miou"] == report["miou"]
    assert len(report["sweep"]["thresholds"]) == len(report["sweep"]["miou"]) == 100


def test_a_threshold_between_the_steps_is_measured_when_asked_for(scenes):
    folder, records = scenes.root / "cams", scenes.subset("train")
    plain = evaluate_cams(scenes, records, folder, workers=0)
    with pytest.raises(ValueError, match="not measured"):
        plain.report(0.3825, "label_free", "p")
    levels = sweep_thresholds(0.3825, 0.5)
    assert len(levels) == 101
    report = evaluate_cams(scenes, records, folder, levels, workers=0).report(
        0.3825, "label_free", "p"
    )
    expected = by_many_passes(scenes, folder, np.array([0.3825], np.float32))[0]
    assert report["confusion"] == expected.tolist()


def test_missing_and_damaged_maps_are_listed_together(scenes):
    folder = scenes.root / "cams"
    cam_path(folder, "i1").unlink()
    whole = cam_path(folder, "i3").read_bytes()
    cam_path(folder, "i3").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="2 of 5 images") as caught:
        evaluate_cams(scenes, scenes.subset("train"), folder, workers=0)
    assert "i1.npz are missing" in caught.value.found
    assert "i3.npz cannot be read" in caught.value.found


@pytest.mark.parametrize("workers", [0, 2])
def test_folder_of_masks(scenes, workers):
    folder = scenes.root / "masks"
    total = np.zeros((4, 4), np.int64)
    for record in scenes.subset("train"):
        truth = scenes.read_mask(record)
        pred = np.where(truth == 2, 1, np.where(truth == 3, 255, truth)).astype(np.uint8)
        write_index_png(folder / f"{record.id}.png", pred)
        total += confusion(pred, truth, 4)
    result = evaluate_folder(scenes, scenes.subset("train"), folder, workers=workers)
    np.testing.assert_array_equal(result.confusion, total)
    mious = [
        float(mean_iou(confusion(read_index_png(folder / f"{r.id}.png"), scenes.read_mask(r), 4)))
        for r in scenes.subset("train")
    ]
    np.testing.assert_allclose(result.image_miou, mious, atol=1e-6)
    report = result.report("a protocol")
    assert report["recall"]["cat"] == 1
    assert report["recall"]["dog"] == 0
    assert report["confusion"][3][0] > 0
    assert report["threshold"] is None


def test_missing_and_wrong_masks_are_listed_together(scenes):
    folder = scenes.root / "masks"
    for record in scenes.subset("train"):
        write_index_png(folder / f"{record.id}.png", scenes.read_mask(record))
    (folder / "i0.png").unlink()
    write_index_png(folder / "i2.png", np.zeros((3, 3), np.uint8))
    (folder / "i3.png").write_bytes(b"nothing")
    Image.new("RGB", (4, 4), "red").save(folder / "i4.png")
    with pytest.raises(DataError, match="4 of 5 images") as caught:
        evaluate_folder(scenes, scenes.subset("train"), folder, workers=0)
    for part in (
        "i0.png is missing",
        "'i2': prediction (3, 3)",
        "i3.png cannot be read",
        "i4.png is a RGB",
    ):
        assert part in caught.value.found


@pytest.mark.parametrize("workers", [0, 2])
def test_the_threshold_looked_at_closely_has_counts_and_outlines_of_every_image(scenes, workers):
    folder, records = scenes.root / "cams", scenes.subset("train")
    levels = sweep_thresholds(0.3825)
    result = evaluate_cams(scenes, records, folder, levels, at=0.3825, tolerance=2, workers=workers)
    assert result.chosen is not None
    row = int(np.flatnonzero(levels == np.float32(0.3825))[0])
    np.testing.assert_array_equal(result.chosen.confusion, result.confusions[row])
    np.testing.assert_allclose(result.chosen.image_miou, result.image_miou[:, row], atol=1e-6)
    for n, record in enumerate(records):
        cam = read_cam(cam_path(folder, record.id))
        full = np.concatenate(
            [np.full((1, *cam.size), 0.3825, np.float32), upsample_cam(cam.maps, cam.size)]
        )
        pred = np.concatenate([[0], cam.classes + 1])[full.argmax(0)].astype(np.uint8)
        outlines = boundary_f(pred, scenes.read_mask(record), 4, 2)
        np.testing.assert_allclose(result.chosen.images.boundary[n], outlines)
    report = result.report(0.3825, "label_free", "p")
    assert report["boundary_f"] == pytest.approx(result.chosen.images.boundary_f())
    assert report["boundary_tolerance"] == 2
    with pytest.raises(ValueError, match="not measured"):
        evaluate_cams(scenes, records, folder, at=0.3825, workers=0)


def test_objects_and_pixels_by_score_are_those_of_single_images(scenes):
    records = list(scenes.records.values())
    folder = scenes.root / "cams"
    figures = evaluate_cams(scenes, records, folder, [0.2, 0.4], at=0.4, workers=0)
    ranking, objects = PixelRanking.empty(3), []
    for record in records:
        cam, truth = read_cam(cam_path(folder, record.id)), scenes.read_mask(record)
        maps = upsample_cam(cam.maps, cam.size)
        ranking.add(image_pixels(maps, cam.classes.tolist(), truth, 4))
        objects.append(count_objects(threshold_maps(maps, cam.classes, 0.4), truth, 4))
    entry = figures.report(0.4, "fixed", "")
    assert entry["pixel_ap_by_class"] == ranking.report(CLASSES)["pixel_ap_by_class"]
    assert 0 < entry["pro"] < 1
    assert entry["objects"] == dict(zip(CLASSES, np.sum(objects, 0)[0, 1:].tolist(), strict=True))
    np.testing.assert_array_equal(figures.chosen.images.objects, objects)
    # Another threshold of the sweep has no masks, and so no objects.
    assert "objects_hit" not in figures.report(0.2, "fixed", "")
