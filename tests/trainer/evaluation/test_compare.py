"""Runs compared on the same images: figures, cautions, page."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from measured import write_masks, write_run
from PIL import Image
from typer.testing import CliRunner

from trainer.cli import app
from trainer.data.formats.opening import open_dataset
from trainer.data.palette import write_index_png
from trainer.errors import ConfigError, DataError, RunError
from trainer.evaluation.compare import Side, compare, open_sides
from trainer.evaluation.figures_table import print_comparison
from trainer.evaluation.image_counts import counts_path
from trainer.evaluation.measure_folder import Folder, keep, measure_folder
from trainer.report.compare_page import write_page
from trainer.scenes.writing import write_synthetic


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr("trainer.pool.cores", lambda: 1)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder: Path = tmp_path_factory.mktemp("compared") / "data"
    write_synthetic(folder, 16, 48)
    return folder


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory) -> tuple[Path, Path, Path]:
    """A poor run, a good one, and one of other settings."""
    folder: Path = tmp_path_factory.mktemp("runs")
    other = {"scales": [0.5, 1.0], "crf": "P3", "supervision": "COCO masks"}
    return (
        write_run(folder / "poor", data, 0.6),
        write_run(folder / "good", data, 0.1),
        write_run(folder / "other", data, 0.6, **other),
    )


def test_every_stage_and_list_is_compared_with_the_first(runs):
    lines = compare(open_sides(runs[:2]), samples=500)
    assert [(line.stage, line.list) for line in lines] == [
        (stage, name) for stage in ("cam", "refined", "segment") for name in ("train", "val")
    ]
    for line in lines:
        first, good = line.matches
        assert first.against_first is None
        assert good.against_first is not None
        assert good.against_first.difference.value == pytest.approx(
            good.entry["miou"] - first.entry["miou"]
        )
        assert not good.flags
        assert good.against_first.classes["background"].value > 0
        assert set(good.against_first.classes) == set(first.entry["iou"])
    segment = lines[4].matches[1].against_first
    assert segment is not None
    assert segment.difference.low > 0
    assert segment.p < 0.05


def test_a_run_differs_from_its_copy_by_nothing(runs, data, tmp_path):
    same = write_run(tmp_path / "same", data, 0.6)
    for line in compare(open_sides([runs[0], same]), samples=200):
        paired = line.matches[1].against_first
        assert paired is not None
        assert (paired.difference.low, paired.difference.high, paired.p) == (0, 0, 1)
        assert line.matches[1].changes == ()


def test_what_was_not_the_same_is_said(runs):
    lines = {
        (x.stage, x.list): x.matches[1]
        for x in compare(open_sides([runs[0], runs[2]]), samples=100)
    }
    flags = lines["segment", "val"].flags
    assert "other scales: scales 1 and mirror | scales 0.5/1 and mirror" in flags
    assert "other CRF: no CRF | dense CRF P3" in flags
    assert any(
        flag.startswith("other initial weights: ImageNet tags | COCO masks (EXTRA SUPERVISION")
        for flag in flags
    )
    assert [flag.partition(":")[0] for flag in lines["cam", "val"].flags] == [
        "other initial weights"
    ]


def test_changes_are_the_largest_gains_and_losses_of_single_images(runs):
    sides = open_sides(runs[:2])
    line = next(
        x
        for x in compare(sides, samples=100, changes=6)
        if (x.stage, x.list) == ("segment", "train")
    )
    before, after = (side.figures("segment", "train")[0][0] for side in sides)
    gain = after.miou() - before.miou()
    changes = line.matches[1].changes
    shown = [row["after"] - row["before"] for row in changes]
    assert shown[:3] == pytest.approx(sorted(gain, reverse=True)[:3], abs=2e-6)
    assert changes[0]["id"] == before.ids[int(gain.argmax())]
    assert all(value < 0 for value in shown[3:])


def test_a_kept_folder_is_compared_on_the_images_that_both_have(runs, data, tmp_path):
    dataset = open_dataset(data)
    some = list(dataset.lists["val"])[1:]
    write_masks(dataset, tmp_path / "theirs", 0.2, some)
    keep(
        measure_folder(Folder(tmp_path / "theirs", data, "val", bad="skip")),
        "val",
        tmp_path / "kept",
    )
    (line,) = compare(open_sides([runs[0], tmp_path / "kept"]), samples=100)
    match = line.matches[1]
    assert match.against_first is not None
    assert match.against_first.images == len(some)
    assert (
        match.flags[0]
        == f"other images: {len(some) + 1} and {len(some)}, compared on the {len(some)} that both"
        " have"
    )
    assert match.flags[1].startswith("not recorded, so perhaps different: ")
    assert "scales" in match.flags[1]
    text = write_page(
        open_sides([runs[0], tmp_path / "kept"]), [line], tmp_path / "page.html"
    ).read_text()
    assert "No pictures" not in text
    assert "data:image/webp" in text


def test_what_cannot_be_compared_is_refused(runs, data, tmp_path):
    with pytest.raises(ConfigError, match="only one run"):
        open_sides(runs[:1])
    with pytest.raises(ConfigError, match="only one run"):
        open_sides([runs[0], runs[0]])
    with pytest.raises(RunError, match="is no run and holds") as caught:
        open_sides([runs[0], tmp_path])
    assert "--out" in caught.value.hint
    other = tmp_path / "other"
    write_synthetic(other, 4, 32)
    masks = tmp_path / "masks"
    write_masks(open_dataset(other), masks, 0.1)
    keep(measure_folder(Folder(masks, other, "train", stage="segment")), "train", tmp_path / "kept")
    sides = open_sides([runs[0], tmp_path / "kept"])
    sides[1].evaluation["segment"] = {"else": sides[1].evaluation["segment"]["train"]}
    with pytest.raises(DataError, match="no stage and list in common"):
        compare(sides)


def test_other_true_masks_of_the_same_images_are_noticed(runs, data, tmp_path):
    """The same list and the same predictions, against truth that was cleaned up."""
    other = tmp_path / "data"
    shutil.copytree(data, other)
    dataset = open_dataset(other)
    name = dataset.lists["val"][0]
    truth = dataset.read_mask(dataset.records[name])
    truth[:5] = 255
    write_index_png(other / "SegmentationClass" / f"{name}.png", truth)
    again = write_run(tmp_path / "again", other, 0.6)
    lines = compare(open_sides([runs[0], again]), samples=100)
    flags = next(x for x in lines if (x.stage, x.list) == ("segment", "val")).matches[1].flags
    count = len(dataset.lists["val"])
    assert flags == (
        f"other true masks: 1 of {count} images have different true pixels on the two sides",
    )


def test_a_mean_that_is_undefined_is_a_dash_and_not_a_result(runs, tmp_path):
    """No image of this data shows every class, so that the devkit's mean is undefined on a list of
    two.
    """
    sides = open_sides(runs[:2])
    for side in sides:
        for stage, lines in side.evaluation.items():
            for name in lines:
                two = side.figures(stage, name)[0][0]
                two.select(two.ids[:2]).write(counts_path(tmp_path / side.name, stage, name))
    halves = [Side(side.name, tmp_path / side.name, side.evaluation) for side in sides]
    lines = compare(halves, "voc-devkit", samples=100)
    paired = lines[0].matches[1].against_first
    assert paired is not None
    assert np.isnan(paired.p)
    json.dumps([match.report() for line in lines for match in line.matches], allow_nan=False)
    print_comparison(lines)
    assert (
        "nan"
        not in write_page(halves, lines, tmp_path / "p.html")
        .read_text()
        .split("<main>")[1]
        .split("<h3>")[0]
    )


def test_damaged_figures_are_refused(runs, tmp_path):
    (tmp_path / "evaluation.json").write_text("{")
    with pytest.raises(RunError, match="cannot be read"):
        open_sides([runs[0], tmp_path])


def test_runs_of_the_same_name_are_told_apart(runs, data, tmp_path):
    again = write_run(tmp_path / "again" / "poor", data, 0.1)
    assert [side.name for side in open_sides([runs[0], again])] == [
        f"{runs[0].parent.name}/poor",
        "again/poor",
    ]


def test_the_page_holds_figures_cautions_classes_and_pictures(runs, tmp_path):
    sides = open_sides(runs)
    lines = compare(sides, samples=200, changes=4)
    text = write_page(sides, lines, tmp_path / "page.html").read_text(encoding="utf-8")
    assert not re.search(
        r"https?://|url\((?!data:image/webp;)", re.sub(r"base64,[A-Za-z0-9+/=]+", "", text)
    )
    for heading in ("figures", "fairness", "classes", "images"):
        assert f'id="{heading}"' in text
    assert "other CRF: no CRF | dense CRF P3" in text
    assert text.count('<svg class="forest"') >= 2 * len(lines)
    assert "EXTRA SUPERVISION" in text
    changed = sum(len(match.changes) for line in lines for match in line.matches)
    pictures = re.findall(r"data:image/webp;base64,([A-Za-z0-9+/=]+)", text)
    assert len(pictures) == 4 * changed
    with Image.open(io.BytesIO(base64.b64decode(pictures[0]))) as image:
        assert max(image.size) <= 300


def test_the_page_is_written_without_the_data(runs, tmp_path, data):
    sides = open_sides(runs[:2])
    lines = compare(sides, samples=100)
    for side in sides:
        manifest = json.loads((side.path / "manifest.json").read_text())
        before = json.dumps(manifest)
        manifest["data"]["path"] = str(tmp_path / "gone")
        (side.path / "manifest.json").write_text(json.dumps(manifest))
        text = write_page(sides, lines, tmp_path / "page.html").read_text(encoding="utf-8")
        (side.path / "manifest.json").write_text(before)
        assert "No pictures" in text


def test_the_command_line(runs, tmp_path):
    arguments = [
        "compare",
        *map(str, runs),
        "--page",
        str(tmp_path / "c.html"),
        "--samples",
        "200",
        "--images",
        "2",
    ]
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 0, shown.output
    assert "caution, segment val of other: other CRF" in shown.output
    assert (tmp_path / "c.html").stat().st_size > 10_000
    printed = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert list(printed["runs"]) == ["poor", "good", "other"]
    first, good, _ = printed["lines"][-1]["runs"]
    assert first["against_first"] is None
    assert good["against_first"]["difference"]["seed"] == 0
    assert good["against_first"]["difference"]["value"] == pytest.approx(
        good["miou"] - first["miou"]
    )
    assert isinstance(CliRunner().invoke(app, ["compare", str(runs[0])]).exception, ConfigError)
