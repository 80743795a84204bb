from __future__ import annotations

import errno
import io
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_models
from claims import CLAIMS
from configs import EXACT, configured
from PIL import Image
from typer.testing import CliRunner

from serving.cli import app
from serving.client import Client
from serving.errors import LabelError, ModelNotFound, RepositoryError, TargetError
from serving.files import write_atomic
from serving.labelling.label import label
from serving.labelling.labeller import LabelConfig
from serving.labelling.ledger import read_manifest


def photo(seed: int, size: tuple[int, int] = (37, 52)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight images in three folders: JPEG, CMYK, EXIF-turned, 16 bit, palette, alpha, WebP, larger
    than the model.
    """
    source = tmp_path / "in"
    (source / "sub" / "deep").mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = 8
    photo(0).save(source / "a.jpg")
    photo(1).convert("CMYK").save(source / "cmyk.jpg")
    photo(2).save(source / "turned.JPG", "JPEG", exif=exif)
    Image.fromarray(np.arange(900, dtype=np.uint16).reshape(30, 30) * 70).save(
        source / "sub" / "deep16.png"
    )
    photo(3).convert("P").save(source / "sub" / "palette.png")
    photo(4).convert("RGBA").save(source / "sub" / "alpha.tif")
    photo(5).save(source / "sub" / "deep" / "a.webp")
    photo(6, (300, 400)).save(source / "sub" / "deep" / "large.bmp")
    (source / "notes.txt").write_text("no image")
    (source / ".hidden.jpg").write_text("no image")
    return source


@pytest.fixture
def config(folder: Path, tmp_path: Path, repository: Path) -> LabelConfig:
    return LabelConfig(folder, tmp_path / "out", repository, engine=EXACT)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_masks_equal_the_servers_to_the_byte(config, folder, server):
    calls = []
    summary = label(config, lambda done, total: calls.append((done, total)))
    assert (summary.images, summary.written, summary.skipped, summary.failed) == (8, 8, 0, 0)
    assert calls == [(done, 8) for done in range(1, 9)]
    entries = read_manifest(config.target / "manifest.jsonl")
    assert len(entries) == 8
    with Client(server.address) as client:
        for entry in entries.values():
            reply = client.segment(folder / entry["image"], "colours").reply
            mask = config.target / entry["mask"]
            assert mask.read_bytes() == reply.mask.png
            with Image.open(mask) as image:
                assert image.mode == "P"
                assert image.size == (entry["width"], entry["height"])
    assert entries["turned.JPG"]["height"] == 52
    assert (config.target / "classes.txt").read_text() == "background\nred\ngreen\nblue\n"
    assert (config.target / "failures.jsonl").read_text() == ""
    assert sorted(path.name for path in config.target.iterdir()) == [
        "a.png",
        "classes.txt",
        "cmyk.png",
        "failures.jsonl",
        "manifest.jsonl",
        "sub",
        "turned.png",
    ]


def test_masks_of_buckets_equal_the_servers_to_the_byte_too(config, folder, repository, run_server):
    label(config)
    padded = replace(config, bucket=32)
    assert label(padded).written == 8, "masks of another bucket are not current"
    entries = read_manifest(config.target / "manifest.jsonl")
    with (
        run_server(configured(repository, schedule__bucket=32)) as server,
        Client(server.address) as client,
    ):
        for entry in entries.values():
            result = client.segment(folder / entry["image"], "colours")
            assert (config.target / entry["mask"]).read_bytes() == result.reply.mask.png
            # The tiny model's scores are means over the padded image, so they show that both padded
            # alike.
            assert entry["scores"] == {
                name: round(score, 6) for name, score in result.scores.items()
            }
            assert result.reply.provenance.bucket == entry["settings"]["bucket"] == 32
            image = result.reply.image
            assert {image.model_height % 32, image.model_width % 32} == {0}
    assert label(padded).skipped == 8


def test_a_second_run_skips_and_repairs(config, folder):
    label(config)
    again = label(config)
    assert (again.written, again.skipped) == (0, 8)
    (config.target / "a.png").write_bytes((config.target / "a.png").read_bytes()[:50])
    (config.target / "cmyk.png").unlink()
    photo(9, (20, 20)).save(folder / "turned.JPG", "JPEG")
    repaired = label(config)
    assert (repaired.written, repaired.skipped) == (3, 5)
    assert read_manifest(config.target / "manifest.jsonl")["turned.JPG"]["height"] == 20
    forced = label(
        LabelConfig(config.source, config.target, config.repository, force=True, engine=EXACT)
    )
    assert forced.written == 8


def test_another_model_labels_again(config, tmp_path):
    label(config)
    other = tmp_path / "other"
    graph = tiny_models.graph("segmenter")
    graph.doc_string = "other bytes, same behaviour"
    made = tiny_models.export(other)
    (made / "model.onnx").write_bytes(graph.SerializeToString())
    import hashlib

    digest = hashlib.sha256((made / "model.onnx").read_bytes()).hexdigest()
    (made / "model.json").write_text(
        json.dumps(tiny_models.card("colours", 1, "segmenter", digest))
    )
    summary = label(LabelConfig(config.source, config.target, other, engine=EXACT))
    assert (summary.written, summary.skipped) == (8, 0)


def test_a_run_that_was_cut_goes_on(config, monkeypatch):
    whole = label(config)
    manifest = config.target / "manifest.jsonl"
    text = manifest.read_text().splitlines(keepends=True)
    manifest.write_text("".join(text[:3]) + text[3][:40])
    summary = label(config)
    assert (summary.written, summary.skipped) == (whole.images - 3, 3)
    assert manifest.read_text().splitlines(keepends=True)[:3] == text[:3]
    assert len(lines(manifest)) == 8


def test_bad_files_are_counted_and_named_and_the_rest_is_done(config, folder):
    (folder / "text.jpg").write_text("this is text")
    (folder / "empty.png").write_bytes(b"")
    (folder / "bomb.png").write_bytes(CLAIMS["png"](30_000, 30_000))
    (folder / "huge.jpeg").write_bytes(CLAIMS["jpeg"](10_000, 10_000))
    jpeg = io.BytesIO()
    photo(1).save(jpeg, "JPEG")
    (folder / "sub" / "cut.jpg").write_bytes(jpeg.getvalue()[:700])
    Image.new("RGB", (5000, 2)).save(folder / "strip.png")
    (folder / "gone.jpg").symlink_to(folder / "nowhere.jpg")
    summary = label(config)
    assert (summary.images, summary.written, summary.failed) == (15, 8, 7)
    failures = {entry["image"]: entry["error"] for entry in lines(config.target / "failures.jsonl")}
    assert set(failures) == {
        "text.jpg",
        "empty.png",
        "bomb.png",
        "huge.jpeg",
        "sub/cut.jpg",
        "strip.png",
        "gone.jpg",
    }
    assert "900,000,000 pixels" in failures["bomb.png"]
    assert "100,000,000 pixels" in failures["huge.jpeg"]
    assert "this is text" in failures["text.jpg"]
    assert not (config.target / "text.png").exists()
    again = label(config)
    assert (again.skipped, again.failed) == (8, 7)


def test_the_same_image_fails_after_it_was_good(config, folder):
    label(config)
    (folder / "a.jpg").write_text("now it is text")
    assert label(config).failed == 1
    assert "a.jpg" not in read_manifest(config.target / "manifest.jsonl")


def test_no_space_left_stops_with_what_was_done_kept(config, monkeypatch):
    original = Path.write_bytes
    written = []

    def write_bytes(self, data):
        if self.name.endswith(".tmp") and data.startswith(b"\x89PNG"):
            if len(written) == 3:
                original(self, data[:10])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))
            written.append(self)
        return original(self, data)

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    config = LabelConfig(config.source, config.target, config.repository, workers=1, engine=EXACT)
    with pytest.raises(LabelError, match="no space left") as caught:
        label(config)
    assert "3 masks written in this run are kept" in caught.value.found
    assert caught.value.exit_code == 2
    assert len(lines(config.target / "manifest.jsonl")) == 3
    assert not list(config.target.rglob("*.tmp"))
    monkeypatch.undo()
    summary = label(config)
    assert (summary.written, summary.skipped) == (5, 3)


def test_folders_that_cannot_be_labelled(config, folder, tmp_path):
    def run(source: Path, target: Path) -> None:
        label(LabelConfig(source, target, config.repository, engine=EXACT))

    with pytest.raises(LabelError, match="no folder"):
        run(tmp_path / "missing", config.target)
    (tmp_path / "bare").mkdir()
    with pytest.raises(LabelError, match="no image below"):
        run(tmp_path / "bare", config.target)
    for target in (folder, folder.parent):
        with pytest.raises(TargetError, match="which is read"):
            run(folder, target)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(TargetError, match="no folder"):
        run(folder, tmp_path / "file" / "out")
    photo(1).save(folder / "a.png")
    with pytest.raises(LabelError, match=r"a\.jpg and a\.png would both become a\.png"):
        run(folder, config.target)


def test_an_output_folder_inside_of_the_input_is_not_labelled(folder, repository):
    config = LabelConfig(folder, folder / "masks", repository, engine=EXACT)
    assert label(config).images == 8
    again = label(config)
    assert (again.images, again.skipped) == (8, 8)


def test_models_that_cannot_label(config, folder, tmp_path, repository):
    with pytest.raises(ModelNotFound):
        label(LabelConfig(folder, config.target, repository, model="nothing", engine=EXACT))
    with pytest.raises(RepositoryError):
        label(LabelConfig(folder, config.target, tmp_path / "nowhere", engine=EXACT))
    assert not config.target.exists()


def test_an_atomic_write_leaves_nothing_behind(tmp_path, monkeypatch):
    write_atomic(tmp_path / "deep" / "file", b"one")

    def replace(self, target):
        raise OSError(errno.EIO, "broken disk")

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(OSError, match="broken disk"):
        write_atomic(tmp_path / "deep" / "file", b"two")
    assert [path.read_bytes() for path in (tmp_path / "deep").iterdir()] == [b"one"]


@pytest.fixture
def doubtful(tmp_path: Path) -> LabelConfig:
    """Pictures with a doubt of 0.8, 0.5 and 0.1."""
    for name, light in (("dark", 51), ("grey", 128), ("light", 230)):
        path = tmp_path / "in" / "deep" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((20, 30, 3), light, np.uint8)).save(path)
    tiny_models.export(tmp_path / "exported", doubt=True)
    return LabelConfig(
        tmp_path / "in", tmp_path / "out", tmp_path / "exported", engine=EXACT, review_below=0.7
    )


def files_of(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_the_manifest_has_the_doubt_of_each_image(doubtful):
    summary = label(replace(doubtful, review_below=None))
    assert summary.review is None
    entries = read_manifest(doubtful.target / "manifest.jsonl")
    doubts = {name: entry["doubt"] for name, entry in entries.items()}
    assert doubts == pytest.approx(
        {"deep/dark.png": 0.8, "deep/grey.png": 1 - 128 / 255, "deep/light.png": 1 - 230 / 255},
        abs=1e-5,
    )
    assert not (doubtful.target / "review").exists()


@pytest.mark.parametrize("form", ["voc", "coco"])
def test_images_with_too_few_right_pixels_are_for_review(doubtful, form):
    summary = label(replace(doubtful, format=form))
    assert (summary.written, summary.review) == (3, 2)
    review = doubtful.target / "review"
    names = ("deep__dark", "deep__grey")
    assert files_of(review) == sorted(
        ["classes.txt", "review.json"]
        + [f"{folder}/{n}.png" for folder in (".predicted", "images", "masks") for n in names]
    )
    content = json.loads((review / "review.json").read_text())
    assert (content["tool"], content["classes"]) == ("folder", list(tiny_models.CLASSES))
    question = content["images"]["deep__dark"]
    assert (question["size"], question["file"]) == ([20, 30], "images/deep__dark.png")
    assert question["doubt"] == 0.8
    image = doubtful.source / "deep" / "dark.png"
    assert (review / question["file"]).read_bytes() == image.read_bytes()
    entry = read_manifest(doubtful.target / "manifest.jsonl")["deep/dark.png"]
    assert entry["review"] == question["file"]
    # Again, nothing changes; a lower limit takes nothing away, a higher one adds.
    times = {path: path.stat().st_mtime_ns for path in review.rglob("*") if path.is_file()}
    again = label(replace(doubtful, format=form))
    assert (again.skipped, again.review) == (3, 2)
    assert label(replace(doubtful, format=form, review_below=0.1)).review == 2
    assert times == {path: path.stat().st_mtime_ns for path in times}
    more = label(replace(doubtful, format=form, review_below=1))
    assert (more.written, more.skipped, more.review) == (1, 2, 3)


def test_a_corrected_mask_of_the_review_is_never_overwritten(doubtful):
    label(doubtful)
    review = doubtful.target / "review"
    corrected, plain = (review / "masks" / f"deep__{n}.png" for n in ("dark", "grey"))
    Image.fromarray(np.full((20, 30), 3, np.uint8)).save(corrected)
    mine, predicted = corrected.read_bytes(), (review / ".predicted" / corrected.name).read_bytes()
    plain.unlink()
    # Another threshold makes other masks.
    summary = label(replace(doubtful, confidence_threshold=0.9))
    assert (summary.written, summary.review) == (3, 2)
    assert corrected.read_bytes() == mine
    assert (review / ".predicted" / corrected.name).read_bytes() == predicted
    with Image.open(plain) as mask:
        assert (np.asarray(mask) == 255).all()


def test_reviews_that_cannot_be_made(doubtful, repository, tmp_path):
    with pytest.raises(LabelError, match="colours version 1 gives no doubt"):
        label(replace(doubtful, repository=repository, model="colours"))
    with pytest.raises(LabelError, match="--review-below 2"):
        label(replace(doubtful, review_below=2.0))
    twin = doubtful.source / "deep__dark.png"
    photo(0).save(twin)
    with pytest.raises(LabelError, match="would both be deep__dark"):
        label(doubtful)
    twin.unlink()
    (doubtful.source / "review").mkdir()
    photo(0).save(doubtful.source / "review" / "a.png")
    with pytest.raises(LabelError, match="would lie in"):
        label(doubtful)
    # Without a review it is a folder as any other; from then on it is the user's.
    assert label(replace(doubtful, review_below=None)).written == 4
    (doubtful.source / "review" / "a.png").unlink()
    with pytest.raises(LabelError, match="is no review"):
        label(doubtful)
    assert files_of(doubtful.target / "review") == ["a.png"]


def test_the_command_says_how_many_images_are_for_review(doubtful):
    runner = CliRunner()
    paths = [str(doubtful.source), str(doubtful.target), "--repository", str(doubtful.repository)]
    result = runner.invoke(app, ["label", *paths, "--review-below", "0.7"])
    assert result.exit_code == 0, result.output
    assert f"2 of 3 images are in {doubtful.target / 'review'}" in result.output
    result = runner.invoke(app, ["label", *paths, "--review-below", "0.7", "--json"])
    assert json.loads(result.stdout)["review"] == 2
    assert runner.invoke(app, ["label", *paths, "--review-below", "1.5"]).exit_code == 2
