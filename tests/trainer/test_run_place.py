"""Where a run may be: never in, around or on top of what it reads."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from trainer.cli import app
from trainer.errors import TargetError, UserError

FIT = ("--backbone", "resnet18", "--weights", "none", "--until", "classify")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Images, labels.csv and true masks."""
    folder = tmp_path / "photos"
    (folder / "masks").mkdir(parents=True)
    rows = ["image,tag"]
    for n, tag in enumerate(("cat", "cow", "cat", "cow")):
        Image.new("RGB", (8, 8), (n, n, n)).save(folder / f"{n}.png")
        Image.new("L", (8, 8), 1).save(folder / "masks" / f"{n}.png")
        rows.append(f"{n}.png,{tag}")
    (folder / "labels.csv").write_text("\n".join(rows))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def refused(*arguments: str | Path) -> UserError:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert isinstance(result.exception, UserError), (result.output, result.exception)
    return result.exception


def test_a_run_that_is_holds_or_lies_in_the_data(photos, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(photos)
    before = contents(tmp_path)
    for place in (photos, photos / "runs" / "x", tmp_path, tmp_path / "link", photos / "masks"):
        error = refused("fit", photos, "--run", place, *FIT)
        assert isinstance(error, TargetError), error
    monkeypatch.chdir(photos)
    error = refused("fit", ".", *FIT)
    assert "runs/default lies in" in str(error)
    assert error.hint == "--run ../runs/photos"
    assert contents(tmp_path) == before


def test_a_run_folder_of_an_older_version_that_is_the_data_folder(photos):
    (photos / "manifest.json").write_text('{"format": 1, "stages": {}}')
    assert "is read" in str(refused("fit", photos, "--run", photos, *FIT))


def test_a_folder_of_something_else_and_a_file_in_the_way(photos, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "masks").mkdir()
    (tmp_path / "thesis" / "masks" / "0.png").write_text("mine")
    assert "holds other things" in str(refused("fit", photos, "--run", tmp_path / "thesis", *FIT))
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file", tmp_path / "file" / "run"):
        assert "no folder" in str(refused("fit", photos, "--run", place, *FIT))
    (tmp_path / "thesis" / "manifest.json").write_text('{"name": "a web page"}')
    assert "no run" in str(refused("fit", photos, "--run", tmp_path / "thesis", *FIT))


def test_maps_of_this_very_run_would_be_deleted_first(photos, tmp_path):
    run = tmp_path / "run"
    (run / "cams").mkdir(parents=True)
    (run / "manifest.json").write_text('{"format": 1, "stages": {}}')
    (run / "cams" / "0.npz").write_text("maps")
    error = refused("fit", photos, "--run", run, "--cams", run / "cams", *FIT)
    assert "holds" in str(error)
    assert "cams" in str(error)
    assert (run / "cams" / "0.npz").exists()


def test_images_of_a_linked_folder_and_masks_linked_into_the_run(photos, tmp_path):
    pool = tmp_path / "pool"
    (photos / "masks").rename(pool)
    (photos / "masks").symlink_to(pool)
    assert "lies in" in str(refused("fit", photos, "--run", pool / "run", *FIT))
    run = tmp_path / "run"
    run.mkdir()
    (run / "manifest.json").write_text('{"format": 1, "stages": {}}')
    (run / "masks").symlink_to(photos / "masks")
    assert "holds the link masks" in str(refused("fit", photos, "--run", run, *FIT))


def test_names_of_lists_and_images_that_lead_outside(photos, tmp_path):
    (photos / "labels.csv").write_text("image,tag,split\n0.png,cat,train\n1.png,cow,../../escape\n")
    assert "../../escape" in str(refused("fit", photos, "--run", tmp_path / "run", *FIT))
    assert not (tmp_path / "run").exists()
