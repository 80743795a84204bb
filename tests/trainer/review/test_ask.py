"""A review of a run: its files, whom it leaves out, and the whole way back."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
from configs import configured
from PIL import Image
from refined import fit
from reviews import paint
from servers import running
from typer.testing import CliRunner

from serving.client import Client
from trainer.cli import app
from trainer.data.dataset import Record, read_index_png
from trainer.data.formats.opening import open_dataset
from trainer.data.palette import write_index_png
from trainer.data.pixels import read_image
from trainer.errors import ConfigError, DataError, RunError, TargetError
from trainer.review.answers import answer
from trainer.review.asking import Wish, ask
from trainer.review.ledger import read_ledger
from trainer.training.inference import ViewBatch, iterate_views


@pytest.fixture(scope="module")
def run(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run until its segmenter, on scenes of which two pairs are of one group."""
    folder = tmp_path_factory.mktemp("ask")
    data = Path(shutil.copytree(scenes, folder / "data"))
    settings = ("segment.workers=0", "segment.scales=1", "segment.precision=fp32")
    fit(data, folder / "run", *settings, refine="none", until="segment")
    return folder / "run"


def test_the_whole_way_there_and_back(run: Path, tmp_path: Path) -> None:
    data = run.parent / "data"
    before = {path: path.read_bytes() for path in data.rglob("*") if path.is_file()}
    command = ["ask", str(run), "--n", "3", "--out", str(tmp_path / "review"), "--for", "folder"]
    result = CliRunner().invoke(app, [*command, "--json"])
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    ids = [entry["id"] for entry in summary["images"]]
    training = {record.id for record in open_dataset(data).subset("train")}
    assert len(set(ids)) == 3
    assert set(ids) <= training
    assert all(0 <= entry["doubt"] <= 1 and entry["reason"] for entry in summary["images"])
    for name in ids:
        mask = read_index_png(tmp_path / "review" / "masks" / f"{name}.png")
        (image,) = (tmp_path / "review" / "images").glob(f"{name}.*")
        assert read_image(image).shape[:2] == mask.shape
    changed = tmp_path / "review" / "masks" / f"{ids[0]}.png"
    mask = read_index_png(changed).copy()
    mask[:9, :9] = 255 - mask[:9, :9] // 255
    write_index_png(changed, mask)
    command = ["answer", str(run), str(tmp_path / "review"), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, [*command, "--json"])
    assert result.exit_code == 0, result.output
    assert list(json.loads(result.stdout)["images"]) == [ids[0]]
    # What was corrected is not asked for again.
    wish = Wish(100, "folder", corrections=tmp_path / "out")
    again = ask(run, tmp_path / "again", wish)
    assert {entry["id"] for entry in again["images"]} == training - {ids[0]}
    assert before == {path: path.read_bytes() for path in before}
    # Nor is what the run was trained on.
    copied = Path(shutil.copytree(run, tmp_path / "trained"))
    manifest = json.loads((copied / "manifest.json").read_text())
    (copied / "manifest.json").write_text(json.dumps({**manifest, "masks": {"ids": [ids[1]]}}))
    trained = ask(copied, tmp_path / "once more", wish)
    assert {entry["id"] for entry in trained["images"]} == training - set(ids[:2])


def test_the_two_views_of_an_image_are_computed_once(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although they calibrate, choose, and are shown as doubt maps."""
    viewed: list[str] = []

    def watched(records: Sequence[Record], *rest: Any) -> Iterator[ViewBatch]:
        viewed.extend(record.id for record in records)
        return iterate_views(records, *rest)

    monkeypatch.setattr("trainer.review.doubt.iterate_views", watched)
    summary = ask(run, tmp_path / "review", Wish(3, "folder"))
    assert summary["calibration"]
    data = open_dataset(run.parent / "data")
    assert sorted(viewed) == sorted(record.id for record in data.subset("train"))


@pytest.mark.parametrize("tool", ["labelstudio", "cvat"])
def test_the_sheet_shows_every_image_and_loads_nothing(
    tool: str, run: Path, tmp_path: Path
) -> None:
    summary = ask(run, tmp_path / "review", Wish(2, tool))
    page = (tmp_path / "review" / "index.html").read_text()
    for entry in summary["images"]:
        assert entry["id"] in page
        assert f"doubt {entry['doubt']:.2f}" in page
    assert "default-src 'none'" in page
    assert set(re.findall(r'(?:src|url\()="?(\w+):', page)) <= {"data"}
    assert summary["steps"][0].split()[0] in page


def test_folders_of_images_without_tags(run: Path, tmp_path: Path) -> None:
    more = tmp_path / "more"
    more.mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(noise).save(more / "new.tif")
    summary = ask(run, tmp_path / "review", Wish(99, "folder", also=more))
    assert "new" in {entry["id"] for entry in summary["images"]}
    # No browser shows a TIFF.
    assert (read_image(tmp_path / "review" / "images" / "new.png") == noise).all()
    path = tmp_path / "review" / "masks" / "new.png"
    write_index_png(path, np.full((40, 50), 2, np.uint8))
    classes = open_dataset(run.parent / "data").classes
    facts = answer(run, tmp_path / "review", tmp_path / "out")["images"]["new"]
    assert facts["tags_added"] == [classes[1]]
    correction = read_ledger(tmp_path / "out").images["new"]
    assert (tmp_path / "out" / correction.image).read_bytes() == (more / "new.tif").read_bytes()
    name = next(entry["id"] for entry in summary["images"] if entry["id"] != "new")
    paint(tmp_path / "review" / "masks" / f"{name}.png", 1)
    (more / "new.tif").rename(more / "away")
    with pytest.raises(DataError, match="image 'new' is not at"):
        answer(run, tmp_path / "review", tmp_path / "other")
    assert not (tmp_path / "other").exists()
    (more / "away").rename(more / "new.tif")
    (more / "new.tif").rename(more / f"{name}.tif")
    with pytest.raises(DataError, match="called like images of the data"):
        ask(run, tmp_path / "again", Wish(also=more))


def test_images_that_a_server_kept(run: Path, tmp_path: Path) -> None:
    tiny_models.export(tmp_path / "exported", "photos", doubt=True)
    dark = np.random.default_rng(0).integers(0, 50, (40, 50, 3), dtype=np.uint8)
    kept = tmp_path / "kept"
    config = configured(tmp_path / "exported", capture__folder=str(kept), capture__doubt=0.5)
    with running(config) as server, Client(server.address) as client:
        client.segment(dark)
    (image,) = (kept / "photos").glob("*.png")
    command = ["ask", str(run), "--n", "99", "--also", str(kept / "photos"), "--for", "folder"]
    result = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "review"), "--json"])
    assert result.exit_code == 0, result.output
    training = {record.id for record in open_dataset(run.parent / "data").subset("train")}
    ids = {entry["id"] for entry in json.loads(result.stdout)["images"]}
    assert ids == training | {image.stem}
    mask = np.full((40, 50), 1, np.uint8)
    write_index_png(tmp_path / "review" / "masks" / f"{image.stem}.png", mask)
    answer(run, tmp_path / "review", tmp_path / "out")
    correction = read_ledger(tmp_path / "out").images[image.stem]
    assert read_image(tmp_path / "out" / correction.image).tolist() == dark.tolist()


def test_what_cannot_be_asked(run: Path, mapped: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no trained segmenter"):
        ask(mapped, tmp_path / "review", Wish())
    with pytest.raises(ConfigError, match="did you mean 'cvat'"):
        ask(run, tmp_path / "review", Wish(tool="cvta"))
    with pytest.raises(DataError, match="no list 'none'"):
        ask(run, tmp_path / "review", Wish(list="none"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has no images"):
        ask(run, tmp_path / "review", Wish(also=tmp_path / "empty"))
    with pytest.raises(DataError, match="cannot be read"):
        ask(run, tmp_path / "review", Wish(corrections=tmp_path / "empty"))
    assert not (tmp_path / "review").exists()
    # Somebody may be at work in an earlier review.
    ask(run, tmp_path / "review", Wish(1, "folder"))
    with pytest.raises(TargetError, match="holds other things"):
        ask(run, tmp_path / "review", Wish(1, "folder"))
    with pytest.raises(TargetError):
        ask(run, run / "review", Wish())


def test_the_table_of_tags(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trainer.review.tag_table import Suspicion

    record = open_dataset(run.parent / "data").subset("train")[0]
    suspicions = [Suspicion(record.id, 1, 1 in record.tags, 0.25)] * 3
    monkeypatch.setattr("trainer.review.asking.wrong_tags", lambda *_: suspicions)
    summary = ask(run, tmp_path / "review", Wish(1, "folder", tags=2))
    with (tmp_path / "review" / "tags.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["id", "class", "tag", "score", "answer"]
    assert len(rows) == 3
    assert len(summary["suspicious_tags"]) == 2
    assert "Tags that look wrong" in (tmp_path / "review" / "index.html").read_text()
