"""The comparison with anomalib, whose half of it is played by a program that is told the truth."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from trainer.data.formats.opening import open_dataset
from trainer.evaluation.image_scores import FILE, ImageScores
from trainer.files import file_sha256
from trainer.maps.camfile import cam_path, write_cam
from trainer.nets import build_backbone
from trainer.run import write_json

SCRIPT = Path(__file__).parents[3] / "bench/peers/anomalib.py"
KINDS = ("dent", "scratch")
SIDE = 32
# A peer that finds what is bright, in maps that are not within 0..1.
PEER = """
import json, pathlib, sys
import numpy as np
from PIL import Image
settings = json.loads(pathlib.Path(sys.argv[-1]).read_text())
out, scores = pathlib.Path(settings["out"]), {}
for path in sorted(pathlib.Path(settings["measured"]).glob("*.png")):
    grey = np.asarray(Image.open(path), np.float32).mean(2)
    np.save(out / f"{path.stem}.npy", 100 + 3 * grey)
    scores[path.stem] = float(grey.max())
with open(out / "calls", "a") as calls:
    calls.write("x")
(out / "scores.json").write_text(json.dumps({"scores": scores, "seconds": {}}))
"""


@pytest.fixture(scope="module")
def anomalib():
    spec = importlib.util.spec_from_file_location("anomalib_comparison", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "lite0.pth"
    torch.save(build_backbone("efficientnet_lite0").state_dict(), path)
    return path


@pytest.fixture
def tiles(tmp_path) -> Path:
    """Dark tiles, 4 of them free, 2 of each kind with a bright spot."""
    folder, rows = tmp_path / "tiles", ["image,tag,split"]
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    for number, (tag, split) in enumerate(
        [("", "train"), ("", "train"), ("", "val"), ("", "val"), *[(k, "val") for k in KINDS] * 2]
    ):
        mask = np.zeros((SIDE, SIDE), np.uint8)
        if tag:
            mask[8 : 16 + number, 8:16] = KINDS.index(tag) + 1
        image = np.full((SIDE, SIDE, 3), 40, np.uint8)
        image[mask > 0] = 200
        Image.fromarray(image).save(folder / "images" / f"{number}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{number}.png")
        rows.append(f"images/{number}.png,{tag},{split}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    (folder / "classes.txt").write_text("\n".join(KINDS) + "\n")
    return folder


@pytest.fixture
def environment(tmp_path) -> Path:
    folder = tmp_path / "environment"
    (folder / "bin").mkdir(parents=True)
    (folder / "ready").touch()
    (folder / "peer.py").write_text(PEER)
    python = folder / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {folder}/peer.py "$@"\n')
    python.chmod(0o755)
    return folder


@pytest.fixture
def run(tiles, weights, tmp_path) -> Path:
    """A run that sees every defect and takes each second one for the other kind."""
    folder, dataset = tmp_path / "run", open_dataset(tiles)
    records = dataset.subset("val")
    maps = folder / "segment" / "predictions" / "maps" / "val"
    scores = np.zeros((len(records), len(KINDS)))
    for n, record in enumerate(records):
        kind = [(record.tags[0] + (n % 4 < 2)) % 2] if record.tags else []
        planes = np.zeros((len(KINDS), SIDE // 4, SIDE // 4), np.float32)
        planes[kind] = dataset.read_mask(record)[::4, ::4] > 0
        write_cam(cam_path(maps, record.id), range(len(KINDS)), planes, (SIDE, SIDE))
        scores[n, kind] = 1
    (folder / FILE).parent.mkdir(parents=True)
    ImageScores(tuple(r.id for r in records), KINDS, scores).write(folder / FILE)
    manifest = {
        "format": 1,
        "stages": {name: {"status": "done", "key": name} for name in ("scores", "segment")},
        "data": {"classes": list(KINDS)},
        "train_list": "train",
        "backbone": "efficientnet_lite0",
        "weights": {"sha256": file_sha256(weights)},
    }
    write_json(folder / "manifest.json", manifest)
    return folder


@pytest.fixture
def compare(anomalib, tiles, weights, environment, tmp_path, monkeypatch):
    out = tmp_path / "out"

    def call(*options):
        words = [tiles, "--out", out, "--environment", environment, "--weights", weights, *options]
        monkeypatch.setattr(sys, "argv", ["anomalib.py", *map(str, words)])
        anomalib.main()
        return json.loads((out / "anomalib.json").read_text())

    return call


def test_both_sides_are_measured_kind_by_kind(compare, run, tmp_path, capsys) -> None:
    sides = compare("--run", run, run)
    perfect = dict.fromkeys(KINDS, 1.0)
    assert [each["pixel_ap"] for each in sides["PatchCore"]] == [perfect]
    assert sides["PaDiM"][0]["pro"] == pytest.approx(perfect)
    assert sides["PaDiM"][0]["auroc"] == {"any": 1.0}
    assert len(sides["ours, any"]) == len(sides["ours, named"]) == 2
    for kind in KINDS:
        # The edge of a map at stride 4 is not sharp.
        assert sides["ours, any"][0]["pixel_ap"][kind] > 0.9
        assert sides["ours, named"][0]["pixel_ap"][kind] < 0.7
    assert sides["ours, named"][0]["auroc"] == {"any": 1.0}
    printed = capsys.readouterr().out
    assert "6 images, 2 of them free of defects" in printed
    assert "dent (2 images)" in printed
    assert "of the better peer" in printed
    trained = sorted((tmp_path / "out/images/train").glob("*.png"))
    assert [int(np.asarray(Image.open(path)).max()) for path in trained] == [40, 40]


def test_maps_that_are_made_stay_until_a_setting_changes(compare, tmp_path) -> None:
    calls = tmp_path / "out" / "patchcore" / "calls"
    compare("--only", "patchcore")
    compare("--only", "patchcore")
    assert calls.read_text() == "x"
    compare("--only", "patchcore", "--coreset", "0.1")
    assert calls.read_text() == "xx"


@pytest.mark.parametrize(
    ("entry", "value", "text"),
    [
        ("weights", {"sha256": "other"}, "another initial weights: other"),
        ("train_list", "all", "another training list: all"),
        ("stages", {}, "is not finished"),
    ],
)
def test_a_run_that_cannot_be_compared(compare, run, capsys, entry, value, text) -> None:
    path = run / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {entry: value}))
    with pytest.raises(SystemExit) as stop:
        compare("--run", run)
    assert stop.value.code == 2
    assert text in capsys.readouterr().err


def test_without_a_free_image_there_is_nothing_to_learn(compare, tiles, capsys) -> None:
    table = tiles / "labels.csv"
    table.write_text(table.read_text().replace(",,train", ",dent,train"))
    with pytest.raises(SystemExit) as stop:
        compare()
    assert stop.value.code == 2
    assert "no image without a class" in capsys.readouterr().err


def test_a_network_that_the_peers_do_not_have(compare, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        compare("--backbone", "mobilenet_v2")
    assert stop.value.code == 2
    assert "no network of timm" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--out", "--environment"])
def test_folders_of_others_stay_as_they_are(compare, tmp_path, capsys, option) -> None:
    photo = tmp_path / "mine" / "images" / "train" / "photo.png"
    photo.parent.mkdir(parents=True)
    photo.touch()
    with pytest.raises(SystemExit) as stop:
        compare(option, tmp_path / "mine")
    assert stop.value.code == 2
    assert f"{option} {tmp_path / 'mine'} holds other things" in capsys.readouterr().err
    assert photo.exists()
