"""From a labelled folder to its review, and back into corrections: serving and trainer together."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny_models
from configs import EXACT
from PIL import Image

from serving.labelling.label import label
from serving.labelling.labeller import LabelConfig
from trainer.data.dataset import read_index_png
from trainer.data.formats.opening import open_dataset
from trainer.data.palette import write_index_png
from trainer.data.tables.corrections import extended, read_corrections
from trainer.errors import DataError
from trainer.review.answers import answer
from trainer.review.record import FILE, read_review

DARK, BRIGHT = 60, 240


def photo(path: Path, light: int, seed: int, **options: object) -> Path:
    """A picture whose doubt is 1 - light/255, for tiny models."""
    pixels = np.random.default_rng(seed).integers(0, light, (24, 36, 3), dtype=np.uint8)
    pixels[..., seed % 3] = light
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run on four pictures of a data set, without anything trained."""
    data = tmp_path / "data"
    for n in range(4):
        photo(data / "images" / f"{n}.png", BRIGHT if n % 2 else DARK, n)
    rows = "".join(f"{n}.png,{tiny_models.CLASSES[n % 3]}\n" for n in range(4))
    (data / "labels.csv").write_text(f"image,tags\n{rows}")
    (data / "classes.txt").write_text("".join(f"{name}\n" for name in tiny_models.CLASSES))
    run = tmp_path / "runs" / "colours"
    run.mkdir(parents=True)
    manifest = {"format": 1, "stages": {}, "data": {"path": str(data)}, "train_list": "all"}
    (run / "manifest.json").write_text(json.dumps(manifest))
    return run


@pytest.fixture
def config(run: Path, tmp_path: Path) -> LabelConfig:
    """Two dark and two bright pictures of the world, of which one is dark and turned."""
    source = tmp_path / "world"
    photo(source / "0.png", DARK, 10)
    exif = Image.Exif()
    exif[0x0112] = 6
    photo(source / "deep" / "turned.jpg", DARK, 11, exif=exif)
    photo(source / "bright.png", BRIGHT, 12)
    photo(source / "deep" / "bright.webp", BRIGHT, 13)
    tiny_models.export(tmp_path / "exported", doubt=True)
    return LabelConfig(
        source, tmp_path / "out", tmp_path / "exported", engine=EXACT, review_below=0.5
    )


def paint(path: Path) -> np.ndarray:
    mask = read_index_png(path).copy()
    mask[3:9, 4:9] = 2
    mask[5, 5] = 255
    write_index_png(path, mask)
    return mask


def test_an_untouched_review_changes_nothing(
    run: Path, config: LabelConfig, tmp_path: Path
) -> None:
    assert label(config).review == 2
    summary = answer(run, config.target / "review", tmp_path / "corrections")
    assert summary["images"] == {}
    assert len(summary["unchanged"]) == 2
    assert not (tmp_path / "corrections").exists()
    # The run keeps nothing of it either.
    assert [path.name for path in run.iterdir()] == ["manifest.json"]
    taken = answer(run, config.target / "review", tmp_path / "corrections", "take")
    assert taken["pixels"] == {}
    for name in taken["images"]:
        stem = name.rpartition("-")[0]
        mask = read_index_png(tmp_path / "corrections" / "masks" / f"{name}.png")
        predicted = config.target / "review" / ".predicted" / f"{stem}.png"
        np.testing.assert_array_equal(mask, read_index_png(predicted))


def test_a_corrected_mask_becomes_a_new_image_of_the_training(
    run: Path, config: LabelConfig, tmp_path: Path
) -> None:
    label(config)
    review = config.target / "review"
    mask = paint(review / "masks" / "deep__turned.png")
    summary = answer(run, review, tmp_path / "corrections")
    (name,) = summary["images"]
    assert name.startswith("deep__turned-")
    assert summary["not_asked"] == []
    assert len(summary["unchanged"]) == 1
    dataset = open_dataset(run.parent.parent / "data")
    corrections = read_corrections(tmp_path / "corrections", dataset)
    np.testing.assert_array_equal(corrections.read(name), mask)
    record = extended(dataset, corrections, "all").records[name]
    # Upright, as the mask is.
    with Image.open(record.image) as image:
        assert image.size == mask.shape[::-1] == (24, 36)
    assert summary["images"][name]["tags_added"] == ["green"]
    # The same answer again, and the labeller again, leave everything as it is.
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    answer(run, review, tmp_path / "corrections")
    label(dataclasses.replace(config, force=True))
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    changed = {path.name for path in before if before[path] != after[path]}
    assert changed <= {"manifest.jsonl"}
    assert before.keys() == after.keys()


def test_a_new_image_with_the_name_of_an_old_one_is_no_mask_of_it(
    run: Path, config: LabelConfig, tmp_path: Path
) -> None:
    label(config)
    review = config.target / "review"
    mask = paint(review / "masks" / "0.png")
    (name,) = answer(run, review, tmp_path / "corrections")["images"]
    assert name != "0"
    np.testing.assert_array_equal(
        read_index_png(tmp_path / "corrections" / "masks" / f"{name}.png"), mask
    )
    assert (tmp_path / "corrections" / "images" / f"{name}.png").read_bytes() == (
        config.source / "0.png"
    ).read_bytes()


def test_images_of_the_data_are_known_by_their_content(
    run: Path, config: LabelConfig, tmp_path: Path
) -> None:
    data = tmp_path / "data" / "images"
    for name in ("renamed", "twin"):
        shutil.copy(data / "2.png", config.source / f"{name}.png")
    label(config)
    review = config.target / "review"
    paint(review / "masks" / "renamed.png")
    with pytest.raises(DataError, match="has two answers"):
        answer(run, review)
    paint(review / "masks" / "twin.png")
    # The folder may move to another machine.
    moved = shutil.move(review, tmp_path / "moved")
    shutil.rmtree(config.source)
    summary = answer(run, Path(moved), tmp_path / "corrections")
    (name,) = summary["images"]
    assert open_dataset(tmp_path / "data").records[name].image == data / "2.png"
    assert not (tmp_path / "corrections" / "images").exists()


def test_what_answer_refuses(run: Path, config: LabelConfig, tmp_path: Path) -> None:
    label(config)
    review = config.target / "review"
    other = Path(shutil.copytree(run, tmp_path / "runs" / "other"))
    with pytest.raises(DataError, match="model of the run 'colours'"):
        answer(other, review)
    question = read_review(review / FILE).images["0"]
    (review / question.file).rename(review / "away.png")
    with pytest.raises(DataError, match="cannot be read"):
        answer(run, review)
    (review / "away.png").rename(review / question.file)
    write_index_png(review / "masks" / "0.png", np.zeros((5, 5), np.uint8))
    with pytest.raises(DataError, match="5 pixels high"):
        answer(run, review)
    content = json.loads((review / FILE).read_text())
    images = {"0": content["images"]["0"] | {"file": "../0.png"}}
    (review / FILE).write_text(json.dumps(content | {"images": images}))
    with pytest.raises(DataError, match="names files outside of it"):
        answer(run, review)
    (review / FILE).write_text(json.dumps(content | {"classes": ["red", "green"]}))
    with pytest.raises(DataError, match="has the classes red, green"):
        answer(run, review)
