from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path

import numpy as np
import pytest

from trainer.data import creatures, drawing, scenery
from trainer.data.check import check
from trainer.data.opening import open_dataset
from trainer.data.pixels import read_image
from trainer.data.synthetic import render, write_synthetic
from trainer.errors import DataError, TargetError


def digests(root: Path) -> dict[str, str]:
    files = sorted(p for p in root.rglob("*") if p.is_file())
    return {
        p.relative_to(root).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files
    }


def test_written_data_set_is_whole_and_exact(tmp_path: Path) -> None:
    write_synthetic(tmp_path / "s", count=24, size=64)
    data = open_dataset(tmp_path / "s")
    assert data.format == "synthetic"
    assert data.classes == ("fox", "panda", "deer", "owl", "parrot", "robot")
    assert [len(data.lists[name]) for name in ("train", "val", "all")] == [18, 6, 24]
    assert not set(data.lists["train"]) & set(data.lists["val"])
    assert data.notes == ()
    for n, record in enumerate(data.subset("all")):
        picture, label = render(n, 64, 0, 0.5, 6)
        assert data.read_mask(record).tolist() == label.tolist()
        assert {k + 1 for k in record.tags} == set(np.unique(label).tolist()) - {0}
        image = read_image(record.image)
        assert image.shape == (*label.shape, 3) == picture.shape
        assert max(label.shape) == 64
        assert np.abs(image.astype(int) - picture).mean() < 10
    assert data.tag_matrix(data.subset("all")).sum(axis=0).min() >= 4
    report = check(tmp_path / "s")
    assert report.problems == ()


def test_same_seed_same_bytes_and_longer_begins_with_shorter(tmp_path: Path) -> None:
    write_synthetic(tmp_path / "a", count=6, size=48, seed=3)
    write_synthetic(tmp_path / "b", count=6, size=48, seed=3)
    write_synthetic(tmp_path / "c", count=6, size=48, seed=4)
    first, second, other = (digests(tmp_path / name) for name in "abc")
    assert first == second
    images = [name for name in first if name.startswith("JPEGImages")]
    assert len(images) == 6
    assert all(first[name] != other[name] for name in images)
    write_synthetic(tmp_path / "b", count=9, size=48, seed=3)
    longer = digests(tmp_path / "b")
    masks = [name for name in first if name.startswith("SegmentationClass")]
    assert all(longer[name] == first[name] for name in images + masks)
    assert len(open_dataset(tmp_path / "b").records) == 9


def test_interrupted_writing_is_completed(tmp_path: Path) -> None:
    write_synthetic(tmp_path / "a", count=5, size=48)
    whole = digests(tmp_path / "a")
    (tmp_path / "a" / "JPEGImages" / "scene_00002.jpg").unlink()
    (tmp_path / "a" / "image_labels.csv").unlink()
    kept = (tmp_path / "a" / "JPEGImages" / "scene_00001.jpg").stat().st_mtime_ns
    write_synthetic(tmp_path / "a", count=5, size=48)
    assert digests(tmp_path / "a") == whole
    assert (tmp_path / "a" / "JPEGImages" / "scene_00001.jpg").stat().st_mtime_ns == kept


def test_other_contents_are_never_touched(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(TargetError, match="holds other things"):
        write_synthetic(tmp_path, count=2, size=48)
    assert [p.name for p in tmp_path.iterdir()] == ["holiday.jpg"]
    out = tmp_path / "s"
    write_synthetic(out, count=3, size=48)
    with pytest.raises(DataError, match=r"other settings \(seed=0\)"):
        write_synthetic(out, count=3, size=48, seed=1)
    with pytest.raises(DataError, match="already holds 3 scenes"):
        write_synthetic(out, count=2, size=48)
    (out / "synthetic.json").write_text("{")
    with pytest.raises(DataError, match=r"synthetic\.json cannot be read"):
        write_synthetic(out, count=3, size=48)


@pytest.mark.parametrize(
    "settings",
    [
        {"count": 0},
        {"size": 8},
        {"difficulty": 1.5},
        {"classes": 1},
        {"classes": 11},
        {"difficulty": -0.1},
    ],
)
def test_settings_out_of_range(tmp_path: Path, settings: dict[str, int]) -> None:
    (name,) = settings
    with pytest.raises(DataError, match=f"{name}="):
        write_synthetic(tmp_path / "s", **settings)
    assert not (tmp_path / "s").exists()


def test_number_of_classes_and_difficulty(tmp_path: Path) -> None:
    write_synthetic(tmp_path / "s", count=20, size=48, classes=10, difficulty=1.0)
    data = open_dataset(tmp_path / "s")
    assert len(data.classes) == 10
    assert {k for record in data.subset("all") for k in record.tags} == set(range(10))
    assert json.loads((tmp_path / "s" / "synthetic.json").read_text())["classes"] == 10
    easy, hard = (
        np.mean([len(np.unique(render(n, 48, 0, difficulty, 6)[1])) for n in range(30)])
        for difficulty in (0.0, 1.0)
    )
    assert easy < hard
    assert max(len(np.unique(render(n, 48, 0, 1.0, 6)[1])) - 1 for n in range(30)) <= 3


def test_heads_tell_classes_apart_and_bodies_do_not() -> None:
    """The same scene seed with another head changes head pixels only; the body is a small
    class-free majority.
    """
    boxes, areas = {}, {}
    for label, (name, body_name, head) in enumerate(creatures.CLASSES):
        rng = np.random.default_rng(5)
        pose = creatures.draw_pose(label, rng, 0.0, typical=0.0)
        body = creatures.BODIES[body_name]
        pen = drawing.Pen((0, 0, 120, 120), np.eye(2) * 60, (60, 60))
        body.back(pen, pose)
        body.front(pen, pose)
        boxes[name] = pen.layer()
        alone = drawing.Pen((0, 0, 120, 120), np.eye(2) * 60, (60, 60))
        head(alone.at(*body.head(pose), scale=body.radius), pose.gaze)
        areas[name] = float(alone.layer().alpha.sum() / boxes[name].alpha.sum())
    assert np.array_equal(boxes["fox"].rgb, boxes["deer"].rgb)
    assert np.array_equal(boxes["owl"].rgb, boxes["parrot"].rgb)
    assert not np.array_equal(boxes["fox"].alpha, boxes["owl"].alpha)
    assert max(areas.values()) < 0.75
    assert np.mean(list(areas.values())) < 0.5


def test_coats_tell_the_class_in_easy_scenes_only() -> None:
    def coats(typical: float) -> set[tuple[int, ...]]:
        poses = [
            creatures.draw_pose(label, np.random.default_rng(5), 0.0, typical)
            for label in (0, 1, 2)
        ]
        return {tuple(round(100 * float(v)) for v in pose.coat) for pose in poses}

    assert len(coats(0.0)) == 1
    assert len(coats(1.0)) == 3
    assert set(creatures.TYPICAL) == {name for name, _, _ in creatures.CLASSES}


def test_head_colours_differ_within_a_body() -> None:
    means = {}
    for name, body, head in creatures.CLASSES:
        pen = drawing.Pen((0, 0, 90, 90), np.eye(2) * 25, (45, 50))
        head(pen, 0.0)
        layer = pen.layer()
        means[name, body] = layer.rgb.sum(axis=(0, 1)) / layer.alpha.sum()
    names = list(means)
    gaps = [
        np.abs(means[a] - means[b]).max()
        for n, a in enumerate(names)
        for b in names[:n]
        if a[1] == b[1]
    ]
    assert min(gaps) > 0.05


@pytest.mark.parametrize("kind", scenery.KINDS)
def test_backdrops_have_texture_and_depth(kind: str) -> None:
    scene = scenery.backdrop(kind, 60, 80, np.random.default_rng(0))
    assert scene.canvas.shape == (60, 80, 3)
    assert np.isfinite(scene.canvas).all()
    assert 0 < scene.horizon < 60
    assert scene.light[1] > 0  # from above
    above, below = scene.canvas[: int(scene.horizon)], scene.canvas[int(scene.horizon) + 1 :]
    assert np.abs(above.mean(axis=(0, 1)) - below.mean(axis=(0, 1))).max() > 0.03
    for part in (above, below):
        assert np.abs(np.diff(part, axis=0)).mean() > 0.002
    assert np.abs(np.diff(below, axis=1)).mean() > 0.002


def test_composing_is_exact_where_layers_are_opaque() -> None:
    pen = drawing.Pen((2, 3, 12, 13), np.eye(2), (7, 8))
    pen.polygon([(-2, -2), (2, -2), (2, 2), (-2, 2)], (1.0, 0.5, 0.0))
    layer = pen.layer()
    canvas = np.full((16, 16, 3), 0.25, np.float32)
    drawing.paste(canvas, layer)
    assert canvas[8, 7] == pytest.approx([1.0, 0.5, 0.0], abs=0.01)
    assert canvas[0, 0] == pytest.approx([0.25] * 3)
    assert 0 < layer.alpha.sum() < 30


def test_fast_enough() -> None:
    seconds = []
    for _ in range(3):  # the best of three: other work on the machine must not fail this
        start = time.process_time()
        for n in range(8):
            render(n, 128, 0, 0.5, 6)
        seconds.append(time.process_time() - start)
    assert 8 / min(seconds) > 20
