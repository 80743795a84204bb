"""Pictures of what a method learnt: heads, words, masks."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from measured import write_run
from typer.testing import CliRunner

from trainer.cli import app
from trainer.config import as_dict, replace
from trainer.data.formats.opening import open_dataset
from trainer.errors import ConfigError
from trainer.methods.base import Method
from trainer.methods.registry import build_method, declaration
from trainer.report.method_pictures import PATCH, in_plane, nearest_cells, patch_at, write_pictures
from trainer.training.model_file import save_model


def run_of(data: Path, path: Path, name: str, **knobs: Any) -> tuple[Path, Method]:
    """A run with an untrained classifier of a method."""
    write_run(path, data, 0.3)
    classes = open_dataset(data).classes
    config = replace(declaration(name).config(), knobs, f"method {name}")
    torch.manual_seed(0)
    method = build_method(name, config, "resnet18", {}, len(classes))
    identity = {
        "method": name,
        "backbone": "resnet18",
        "classes": list(classes),
        "method_config": as_dict(method.config),
        "backbone_knobs": {},
        "initial": "none",
    }
    save_model(path / "classify", method, identity)
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | {"method": name}))
    return path, method


def test_heads_lie_in_the_plane_with_their_classes(scenes, tmp_path):
    count = len(open_dataset(scenes).classes)
    run, _ = run_of(scenes, tmp_path / "run", "sc_cam", subcategories=(3,) * count)
    page = write_pictures(run)
    assert page == run / "pictures.html"
    text = page.read_text()
    assert len(re.findall(r"<circle", text)) == 4 * count
    assert text.count(", sub-category</title>") == 3 * count
    # The same file again is the same page.
    assert write_pictures(run, tmp_path / "again.html").read_text() == text


def test_rows_that_point_the_same_way_lie_together():
    rng = np.random.default_rng(0)
    ways = np.repeat(rng.normal(size=(2, 64)), 8, 0)
    vectors = (ways + 0.05 * rng.normal(size=ways.shape)) * rng.uniform(1, 9, (16, 1))
    points = in_plane(vectors.astype(np.float32))
    assert points.shape == (16, 2)
    distances = np.linalg.norm(points[:, None] - points[None], axis=2) + 1e9 * np.eye(16)
    assert (distances.argmin(1) // 8 == np.arange(16) // 8).all()


def test_words_have_patches_of_the_cells_that_are_most_like_them(scenes, tmp_path):
    run, method = run_of(scenes, tmp_path / "run", "vwe", words=5)
    dataset = open_dataset(scenes)
    records = dataset.subset("train")
    counts, best = nearest_cells(method.eval(), records, "cpu")
    # Every cell has one word; all images have as many cells.
    assert counts.sum() % len(records) == 0 < counts.sum()
    assert set(best) == set(np.flatnonzero(counts).tolist())
    for cells in best.values():
        assert len({name for _, name, *_ in cells}) == len(cells)
        assert all(0 < y < 1 and 0 < x < 1 for *_, y, x in cells)
    text = write_pictures(run, device="cpu").read_text()
    assert f"{len(best)} of 5 words" in text
    assert f"word {counts.argmax()}, {counts.max()} cells" in text
    assert text.count("data:image/webp") >= len(best)


def test_patches_stay_inside():
    image = np.arange(100 * 80 * 3, dtype=np.uint8).reshape(100, 80, 3)
    assert patch_at(image, 0.5, 0.5).shape == (PATCH, PATCH, 3)
    np.testing.assert_array_equal(patch_at(image, 0, 0), image[:PATCH, :PATCH])
    np.testing.assert_array_equal(patch_at(image, 0.99, 0.99), image[-PATCH:, -PATCH:])
    assert patch_at(image[:20], 0.5, 0.5).shape == (20, PATCH, 3)


def test_fmix_shows_masks_and_mixtures(scenes, tmp_path):
    run, _ = run_of(scenes, tmp_path / "run", "fmix_cam")
    text = write_pictures(run).read_text()
    assert len(re.findall("mask of share", text)) == 5
    assert text.count("data:image/webp") == 12


def test_other_methods_and_folders_are_refused(scenes, tmp_path):
    run, _ = run_of(scenes, tmp_path / "run", "cam")
    with pytest.raises(ConfigError, match="no pictures of its own"):
        write_pictures(run)
    plain, _ = run_of(scenes, tmp_path / "plain", "sc_cam")
    with pytest.raises(ConfigError, match="without sub-categories"):
        write_pictures(plain)
    (tmp_path / "mine.html").write_text("mine")
    result = CliRunner().invoke(app, ["pictures", str(run), "--out", str(tmp_path / "mine.html")])
    assert result.exit_code != 0
    assert (tmp_path / "mine.html").read_text() == "mine"
