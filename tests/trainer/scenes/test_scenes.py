from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from trainer.checks.check import check
from trainer.cli import app
from trainer.data.formats.opening import open_dataset
from trainer.data.pixels import read_image
from trainer.errors import DataError, TargetError
from trainer.scenes import drawing, places, shapes
from trainer.scenes.rendering import render
from trainer.scenes.writing import write_synthetic

ROOT = Path(__file__).resolve().parents[3]


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


def pen(side: int, scale: float, x: float, y: float) -> drawing.Pen:
    return drawing.Pen((slice(0, side), slice(0, side)), np.eye(2) * scale, (x, y))


def test_heads_tell_classes_apart_and_bodies_do_not() -> None:
    """The same scene seed with another head changes head pixels only; the body is a small
    class-free majority.
    """
    bodies, areas = {}, {}
    for name, creature in shapes.CREATURES.items():
        pose = shapes.draw_pose(creature, np.random.default_rng(5), 0.0, typical=0.0)
        body, whole, alone = creature.body, pen(120, 60, 60, 60), pen(120, 60, 60, 60)
        pose.draw(whole, body.back)
        pose.draw(whole, body.front)
        bodies[name] = whole.layer()
        x, y = pose.values(shapes.parse_numbers(body.head))
        pose.draw(alone.at(x, y, body.radius, 0.0), creature.head)
        areas[name] = float(alone.layer().alpha.sum() / bodies[name].alpha.sum())
    assert np.array_equal(bodies["fox"].rgb, bodies["deer"].rgb)
    assert np.array_equal(bodies["owl"].rgb, bodies["parrot"].rgb)
    assert not np.array_equal(bodies["fox"].alpha, bodies["owl"].alpha)
    assert max(areas.values()) < 0.75
    assert np.mean(list(areas.values())) < 0.5


def test_coats_tell_the_class_in_easy_scenes_only() -> None:
    def coats(typical: float) -> set[tuple[int, ...]]:
        poses = [
            shapes.draw_pose(shapes.CREATURES[name], np.random.default_rng(5), 0.0, typical)
            for name in ("fox", "panda", "deer")
        ]
        return {tuple(round(100 * float(v)) for v in pose.colours["coat"]) for pose in poses}

    assert len(coats(0.0)) == 1
    assert len(coats(1.0)) == 3


def test_head_colours_differ_within_a_body() -> None:
    means = []
    for creature in shapes.CREATURES.values():
        head, pose = pen(90, 25, 45, 50), shapes.Pose({}, {"": 1.0, "gaze": 0.0})
        pose.draw(head, creature.head)
        layer = head.layer()
        means.append((creature.body, layer.rgb.sum(axis=(0, 1)) / layer.alpha.sum()))
    pairs = [(a, b) for n, a in enumerate(means) for b in means[:n] if a[0] is b[0]]
    assert min(np.abs(a[1] - b[1]).max() for a, b in pairs) > 0.05


def test_a_line_of_shapes_is_mirrored_and_moves_with_the_pose() -> None:
    plain, mirrored = pen(40, 10, 20, 20), pen(40, 10, 20, 20)
    pose = shapes.Pose({"coat": (0.8, 0.4, 0.2)}, {"": 1.0, "gaze": 0.5})
    pose.draw(plain, "polygon coat-0.5 -.7,-1 -.2,-1 -.2,.5\npolygon coat-.5 1.7,-1 1.2,-1 1.2,.5")
    pose.draw(mirrored, "± polygon coat-.5 1.2+gaze,-1 .7+gaze,-1 .7+gaze,.5")
    assert np.array_equal(plain.layer().rgb, mirrored.layer().rgb)
    assert plain.layer().rgb[12, 33] == pytest.approx([0.43, 0.23, 0.135], abs=0.005)
    assert shapes.parse_numbers("-.2gaze,0.3-leg") == [[(-0.2, "gaze")], [(0.3, ""), (-1.0, "leg")]]
    assert shapes.parse_numbers("@.5", side=-1) == [[(-0.5, "")]]
    assert shapes.parse_numbers(".5:1", side=-1) == [[(0.5, "")], [(1.0, "")]]


@pytest.mark.parametrize("kind", places.PLACES)
def test_places_have_texture_and_depth(kind: str) -> None:
    scene = places.Scene(kind, 60, 80, np.random.default_rng(0))
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
    square = drawing.Pen((slice(3, 13), slice(2, 12)), np.eye(2), (7, 8))
    square.polygon((1.0, 0.5, 0.0), -2, -2, 2, -2, 2, 2, -2, 2)
    layer = square.layer()
    canvas = np.full((16, 16, 3), 0.25, np.float32)
    drawing.paste(canvas, layer)
    assert canvas[8, 7] == pytest.approx([1.0, 0.5, 0.0], abs=0.01)
    assert canvas[0, 0] == pytest.approx([0.25] * 3)
    assert 0 < layer.alpha.sum() < 30


@pytest.mark.parametrize(
    ("settings", "digest"),
    [
        ((64, 0, 0.5, 6), "cb312fa8ffc169bb"),
        ((80, 7, 1.0, 10), "e4745d758125d588"),
        ((48, 3, 0.0, 2), "8f7edc4e8a558b24"),
    ],
)
def test_pixels_and_masks_never_change(settings: tuple[int, int, float, int], digest: str) -> None:
    """Figures of earlier runs are compared with those of later ones, so the scenes must stay."""
    content = hashlib.sha256()
    for index in range(20):
        picture, label = render(index, *settings)
        content.update(picture.tobytes() + label.tobytes())
    assert content.hexdigest()[:16] == digest


def test_scenes_stand_apart() -> None:
    """They need little of the trainer, and the readers of data sets need nothing of them."""
    pattern = re.compile(r"^\s*(?:from|import) (trainer\.[\w.]+)", re.MULTILINE)

    def imports(folder: str) -> set[str]:
        files = (ROOT / "trainer" / folder).rglob("*.py")
        return {name for file in files for name in pattern.findall(file.read_text("utf-8"))}

    allowed = {f"trainer.{name}" for name in ("errors", "files", "outputs", "progress")}
    outer = {name for name in imports("scenes") if not name.startswith("trainer.scenes")}
    assert outer <= allowed | {"trainer.data.palette"}
    assert not [name for name in imports("data") if name.startswith("trainer.scenes")]


def test_the_command_takes_the_number_of_classes(tmp_path: Path) -> None:
    words = ["synth", str(tmp_path / "s"), "--count", "4", "--size", "48", "--classes", "3"]
    assert CliRunner().invoke(app, words).exit_code == 0
    assert len(open_dataset(tmp_path / "s").classes) == 3
