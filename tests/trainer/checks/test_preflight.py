"""What ``fit`` says and checks about its data before it starts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from refined import pipeline
from typer.testing import CliRunner

from trainer.checks.check import check
from trainer.checks.preflight import preflight
from trainer.cli import app
from trainer.data.formats.opening import open_dataset
from trainer.data.knobs import DataConfig
from trainer.errors import DataError
from trainer.fit import fit as run_plan


def photos(
    root: Path, rows: list[tuple[str, str, str]], masks: dict[str, int] | None = None
) -> Path:
    """Pictures of 40x32 with a table of image, tag and split, and square masks of one value."""
    root.mkdir(exist_ok=True)
    for name in {row[0] for row in rows}:
        pixels = np.random.default_rng(len(name)).integers(0, 255, (32, 40, 3), np.uint8)
        Image.fromarray(pixels).save(root / f"{name}.png")
    lines = "".join(f"{','.join(row)}\n" for row in rows)
    (root / "labels.csv").write_text(f"image,tag,split\n{lines}")
    for name, value in (masks or {}).items():
        (root / "masks").mkdir(exist_ok=True)
        mask = np.zeros((32, 40), np.uint8)
        mask[4:20, 4:20] = value
        Image.fromarray(mask).save(root / "masks" / f"{name}.png")
    return root


ONE_CLASS = [("a", "cow", "train"), ("b", "", "train"), ("c", "cow", "val"), ("d", "", "val")]
TWO = [("a", "cow", "train"), ("b", "cat", "train"), ("c", "cow", "val"), ("d", "cat", "val")]


def refusal(data: Path, run: Path, *settings: str) -> DataError:
    with pytest.raises(DataError) as error:
        run_plan(
            pipeline(data, run, *settings, until="evaluate", supervision="both"), lambda _: None
        )
    assert not (run / "manifest.json").exists()
    return error.value


def test_masks_of_0_and_255_are_no_silent_ignore(tmp_path: Path) -> None:
    data = photos(tmp_path / "data", ONE_CLASS, {"a": 255, "b": 0, "c": 255, "d": 0})
    report = check(data)
    (problem,) = (p for p in report.problems if p.kind == "mask-binary")
    assert problem.severity == "error"
    assert "--set data.masks=binary" in problem.hint
    assert report.exit_code == 2
    error = refusal(data, tmp_path / "run")
    assert "masks that hold 0 and 255 only, and no mask shows a class: 2: a, c" in str(error)
    assert "--set data.masks=binary" in error.hint
    dataset = open_dataset(data, config=DataConfig(masks="binary"))
    assert [int(dataset.read_mask(r).max()) for r in dataset.subset("all")] == [1, 0, 1, 0]
    assert check(data, config=DataConfig(masks="binary")).ok
    assert dataset.fingerprint() != open_dataset(data).fingerprint()


def test_binary_masks_of_images_with_one_tag(tmp_path: Path) -> None:
    data = photos(tmp_path / "data", TWO, dict.fromkeys("abcd", 255))
    assert "mask-binary" in {p.kind for p in check(data).problems}
    dataset = open_dataset(data, config=DataConfig(masks="binary"))
    assert dataset.classes == ("cat", "cow")
    assert [int(dataset.read_mask(r).max()) for r in dataset.subset("all")] == [2, 1, 2, 1]
    several = photos(tmp_path / "more", [*TWO, ("a", "cat", "train")], {"a": 255})
    dataset = open_dataset(several, config=DataConfig(masks="binary"))
    with pytest.raises(DataError, match=r"a\.png says where an object is .* has 2 tags"):
        dataset.read_mask(dataset.records["a"])


@pytest.mark.parametrize("mode", ["L", "1", "RGB", "P"])
def test_binary_masks_in_every_mode(tmp_path: Path, mode: str) -> None:
    data = photos(tmp_path / "data", ONE_CLASS, {"a": 1 if mode == "P" else 255})
    path = data / "masks" / "a.png"
    with Image.open(path) as image:
        image.convert(mode).save(path)
    dataset = open_dataset(data, config=DataConfig(masks="binary"))
    label = dataset.read_mask(dataset.records["a"])
    assert (label == 1).sum() == 256
    assert (label == 0).sum() == 32 * 40 - 256
    Image.fromarray(np.array([[0, 1, 255]], np.uint8)).save(path)
    with pytest.raises(DataError, match=r"holds the values 0, 1, 255"):
        dataset.read_mask(dataset.records["a"])


def test_a_class_with_index_masks_keeps_255_as_ignore(tmp_path: Path) -> None:
    data = photos(tmp_path / "data", ONE_CLASS, {"a": 1, "c": 255})
    report = check(data)
    assert "mask-binary" not in {p.kind for p in report.problems}
    (problem,) = (p for p in report.problems if p.kind == "mask-ignored")
    assert (problem.severity, problem.names) == ("info", ("masks/c.png",))


def test_bad_masks_stop_a_run_that_uses_them_before_it_starts(tmp_path: Path) -> None:
    data = photos(tmp_path / "data", TWO, {"a": 2, "b": 1, "c": 9, "d": 1})
    Image.new("L", (32, 40)).save(data / "masks" / "b.png")
    Image.new("RGB", (40, 32), "red").save(data / "masks" / "a.png")
    (data / "masks" / "d.png").write_text("no PNG")
    error = refusal(data, tmp_path / "run")
    for part in (
        "masks of another size than their image: 1 (first: 32x40 for an image of 40x32): b",
        "masks that are pictures in colours instead of class indices: 1",
        "masks with values that no class has: 1",
        "masks that cannot be read: 1",
    ):
        assert part in str(error)
    run = pipeline(data, tmp_path / "run", until="cams")
    assert not [p for p in run.preflight.problems if p.severity == "error"]


def test_what_is_trained_and_measured_is_said_first(tmp_path: Path) -> None:
    rows = [*TWO, ("e", "", "train"), ("f", "cow", "test")]
    data = photos(tmp_path / "data", rows, {"a": 2, "b": 1, "c": 2})
    Image.new("RGB", (40, 32)).save(data / "stray.png")
    facts = preflight(open_dataset(data), "train", ("train", "val"), True, True)
    text = "\n".join(facts.lines())
    for part in (
        "trains on 'train': 3 images, 2 with a tag and 1 that show no class; tags from labels.csv:",
        "the upper bound on 3 true masks",
        "measures on images with a true mask: 'train' (3 of 3), 'val' (1 of 2)",
        "'val' has 2 images, 2 with a tag and 0 that show no class",
        "does not use the lists: test 1",
        "1 images have no row in labels.csv",
        "warning: classes with one image only in list 'train': 2 (cat, cow)",
    ):
        assert part in text
    assert facts.report()["measured"][1]["masks"] == 1
    json.dumps(facts.report())
    bare = photos(tmp_path / "bare", TWO)
    facts = preflight(open_dataset(bare), "train", (), False, True)
    assert "measures nothing: no image" in "\n".join(facts.lines())
    facts = preflight(open_dataset(bare), "train", (), False, True, ("train", "val"))
    text = "\n".join(facts.lines())
    assert "measures no masks: no image" in text
    assert "measures the classifier's scores on the tags of 'train', 'val'" in text
    assert "does not use" not in text


def test_lists_that_share_images_and_classes_that_cannot_be_learnt(tmp_path: Path) -> None:
    rows = [("a", "cow", "train"), ("a", "dog", "train"), ("b", "cow", "train;val")]
    data = photos(tmp_path / "data", [*rows, ("c", "cat", "val")], dict.fromkeys("abc", 1))
    kinds = {
        problem.kind: problem.names
        for problem in preflight(open_dataset(data), "train", ("val",), False, True).problems
    }
    assert kinds["overlap"] == ("b",)
    assert kinds["class-unlisted"] == ("cat",)
    assert kinds["no-negatives"] == ("cow",)
    assert kinds["class-single"] == ("dog",)


def test_images_without_a_tag_teach_what_a_class_is_not(tmp_path: Path) -> None:
    data = photos(tmp_path / "data", ONE_CLASS)
    assert [r.id for r in pipeline(data, tmp_path / "run").context.taught] == ["a", "b"]
    data = photos(tmp_path / "two", [*TWO, ("e", "", "train"), ("f", "?", "train")])
    assert [r.id for r in pipeline(data, tmp_path / "run").context.taught] == ["a", "b", "e"]
    without = pipeline(data, tmp_path / "run", "classify.negatives=0")
    assert [r.id for r in without.context.taught] == ["a", "b"]
    report = check(photos(tmp_path / "all", [("a", "cow", ""), ("b", "cow", "")]))
    (problem,) = (p for p in report.problems if p.kind == "no-negatives")
    assert problem.names == ("cow",)


def test_fit_prints_and_records_it(tmp_path: Path) -> None:
    data = photos(tmp_path / "data", TWO, {"a": 2, "c": 2})
    options = ["--weights", "none", "--epochs", "1", "--size", "32", "--until", "classify"]
    run = tmp_path / "run"
    result = CliRunner().invoke(
        app,
        ["fit", str(data), "--run", str(run), *options, "--json", "--set", "classify.workers=0"],
    )
    assert result.exit_code == 0, result.output
    assert result.stderr.index("trains on 'train': 2 images") < result.stderr.index("classify:")
    used = json.loads(result.stdout)["data"]
    assert used["trained"]["tags"] == {"cat": 1, "cow": 1}
    assert json.loads((run / "manifest.json").read_text())["data"]["used"] == used
