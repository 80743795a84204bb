"""Lists without masks are predicted by the run's own segmenter."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from refined import pipeline
from typer.testing import CliRunner

from trainer.cli import app
from trainer.data.dataset import read_index_png
from trainer.data.formats.opening import open_dataset
from trainer.data.palette import voc_palette, write_index_png
from trainer.data.pixels import image_size
from trainer.errors import ConfigError, DataError, RunError, TargetError
from trainer.fit import fit as run_plan
from trainer.predict import predict_list
from trainer.segmenters import prediction as segment


@pytest.fixture(scope="module")
def data(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes with a list ``test`` whose masks nobody has, and VOC's values."""
    folder = Path(shutil.copytree(scenes, tmp_path_factory.mktemp("predict") / "data"))
    lists = folder / "ImageSets" / "Segmentation"
    names = (lists / "val.txt").read_text().split()
    (lists / "test.txt").write_text(names[0])
    (folder / "SegmentationClass" / f"{names[0]}.png").unlink()
    table = json.loads((folder / "classes.json").read_text())
    values = np.arange(256, dtype=np.uint8)
    for n, entry in enumerate(table["classes"]):
        values[entry["voc_index"]] = 2 * n + 3
        entry["voc_index"] = 2 * n + 3
    (folder / "classes.json").write_text(json.dumps(table))
    for path in (folder / "SegmentationClass").glob("*.png"):
        write_index_png(path, values[read_index_png(path)])
    return folder


@pytest.fixture(scope="module")
def run(data: Path) -> Path:
    folder = data.parent / "run"
    settings = ("segment.workers=0", "segment.scales=1", "segment.precision=fp32")
    run_plan(
        pipeline(data, folder, *settings, refine="none", until="segment", supervision="full"),
        lambda _: None,
    )
    return folder


def test_the_servers_layout_values_and_palette(
    data: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = open_dataset(data)
    (record,) = dataset.subset("test")
    height, width = image_size(record.image)
    chance = np.zeros((7, height, width), np.float32)
    chance[2] = 1

    def second_class(*_: object) -> Iterator[Any]:
        yield record, chance

    monkeypatch.setattr(segment, "_probabilities", second_class)
    options = (
        f"--list test --out {tmp_path / 'out'} --stage segment_full --layout voc-server --json"
    )
    result = CliRunner().invoke(
        app, ["predict", str(run), *options.split(), "--set", "segment.crf=none"]
    )
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["images"] == 1
    path = tmp_path / "out" / "results/VOC2012/Segmentation/comp6_test_cls" / f"{record.id}.png"
    with Image.open(path) as image:
        assert (image.mode, image.size) == ("P", (width, height))
        np.testing.assert_array_equal(np.array(image.convert("RGB"))[0, 0], voc_palette()[5])
    assert set(np.unique(read_index_png(path))) == {5}
    predict_list(run, "test", tmp_path / "ids", "segment_full")
    assert set(np.unique(read_index_png(tmp_path / "ids" / f"{record.id}.png"))) == {2}


def test_it_predicts_as_fit_does(data: Path, run: Path, tmp_path: Path) -> None:
    predict_list(run, "val", tmp_path / "out", "segment_full")
    predictions = run / "segment_full" / "predictions" / "val"
    for path in predictions.glob("*.png"):
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.png")}
    assert len(kept) == len(open_dataset(data).lists["val"])
    predict_list(run, "val", tmp_path / "out", "segment_full")
    assert kept == {path: path.stat().st_mtime_ns for path in kept}


def test_what_cannot_be_predicted(data: Path, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(RunError, match="no trained segmenter in 'segment'"):
        predict_list(run, "test", out)
    with pytest.raises(DataError, match="no list 'tset'"):
        predict_list(run, "tset", out, "segment_full")
    with pytest.raises(ConfigError, match=r"segment\.lr is not a knob of the test"):
        predict_list(run, "test", out, "segment_full", settings=("segment.lr=1",))
    for place in (data, data / "new", run, run / "segment_full", data.parent):
        with pytest.raises(TargetError):
            predict_list(run, "test", place, "segment_full")
    assert not out.exists()
    predict_list(run, "test", out, "segment_full")
    with pytest.raises(TargetError, match="holds other things"):
        predict_list(run, "val", out, "segment_full")


def test_masks_with_another_verdict_are_not_continued(run: Path, tmp_path: Path) -> None:
    folder, out = Path(shutil.copytree(run, tmp_path / "run")), tmp_path / "out"
    predict_list(folder, "test", out, "segment_full")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["stages"]["segment_full"]["metrics"]["least"] = [0.6] * 6
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(TargetError, match="holds other things"):
        predict_list(folder, "test", out, "segment_full")
    predict_list(folder, "test", tmp_path / "anew", "segment_full")
    assert json.loads((tmp_path / "anew" / "predictions.json").read_text())["least"] == [0.6] * 6
