"""Runs on data that leaves open whether some images show some classes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from refined import fit, names
from tiny_nets import TinyBackbone, pictures

from trainer import cli, plan
from trainer.data.dataset import Record, read_index_png
from trainer.data.formats.opening import open_dataset
from trainer.data.pixels import image_size
from trainer.errors import DataError
from trainer.maps.camfile import cam_path, read_cam, write_cam
from trainer.maps.protocols import PROTOCOLS, CamsConfig, key_knobs
from trainer.methods.cam import Cam, Config
from trainer.methods.registry import method_names
from trainer.methods.samples import make_sample as make_classifier_sample
from trainer.run import Output
from trainer.segmenters.aspp import Aspp
from trainer.segmenters.config import SegmentConfig
from trainer.segmenters.training import make_sample
from trainer.stages import classify
from trainer.stages.cams import make_cams
from trainer.stages.import_cams import import_cams
from trainer.training.inference import image_logits

CLASSES = 3
QUICK = {
    "sc_cam": ("method.rounds=1", "method.k=2"),
    "subcategory_teaching": ("method.teacher=backbone",),
}
OPEN, PARTLY, FREE = "scene_00001", "scene_00002", "scene_00004"
"""Nobody knows any class; one class is unknown; it shows none."""


def tiny_cam() -> Cam:
    torch.manual_seed(0)
    return Cam(Config(), TinyBackbone(), CLASSES)


def test_an_unknown_class_has_a_map_where_its_score_is_high_enough(tmp_path):
    data = pictures(tmp_path / "data")
    first, second, *_ = data.subset("all")
    scores = 1 / (1 + np.exp(-image_logits(tiny_cam(), [first], device="cpu")[0]))
    order = np.argsort(scores)
    least = float(scores[order[1:]].mean())
    records = [
        Record("none known", first.image, (), unknown=(0, 1, 2)),
        Record("one known", first.image, (int(order[0]),), unknown=tuple(sorted(order[1:]))),
        Record("all known", first.image, (1,)),
        Record("free", second.image, ()),
    ]
    expected = {
        "none known": [order[2]],
        "one known": sorted(order[[0, 2]]),
        "all known": [1],
        "free": [],
    }
    stage, config = Output(tmp_path / "cams"), CamsConfig(workers=0, unknown=least)
    make_cams(tiny_cam(), records, stage, PROTOCOLS["psa"], config, "cpu")
    for name, classes in expected.items():
        cam = read_cam(cam_path(stage.folder, name))
        assert cam.classes.tolist() == classes
        assert len(cam.maps) == len(classes)
    alone = Output(tmp_path / "alone")
    known = Record("one known", first.image, (int(order[0]),))
    make_cams(tiny_cam(), [known], alone, PROTOCOLS["psa"], config, "cpu")
    both = read_cam(cam_path(stage.folder, "one known"))
    one = read_cam(cam_path(alone.folder, "one known"))
    assert np.array_equal(both.maps[both.classes.tolist().index(order[0])], one.maps[0])


def test_the_default_leaves_the_key_of_older_runs_alone():
    usual = key_knobs(CamsConfig())
    assert "unknown" not in str(usual)
    assert key_knobs(CamsConfig(unknown=0.7)) == [*usual, ["unknown", 0.7]]


def test_imported_maps_may_show_unknown_classes(tmp_path):
    data = pictures(tmp_path / "data", count=4)
    a, b, c, d = data.subset("all")
    records = [
        replace(a, tags=(1,), unknown=(0,)),
        replace(b, tags=(1,), unknown=(2,)),
        replace(c, tags=(), unknown=(0, 2)),
        replace(d, tags=(), unknown=(0,)),
    ]
    folder = tmp_path / "theirs"
    for record, classes in zip(records, ([0, 1], [1], [2])):
        size = image_size(record.image)
        write_cam(cam_path(folder, record.id), classes, np.ones((len(classes), 3, 3)), size)
    stage = Output(tmp_path / "cams")
    import_cams(data, records, folder, stage, workers=0)
    stored = [read_cam(cam_path(stage.folder, r.id)).classes.tolist() for r in records]
    assert stored == [[0, 1], [1], [2], []]
    wrong = replace(a, tags=(1,), unknown=(2,))
    with pytest.raises(DataError, match=r"are of the classes \[0, 1\]") as caught:
        import_cams(data, [wrong], folder, Output(tmp_path / "others"), workers=0)
    assert "those of its tags, [1], and any of the unknown [2]" in str(caught.value)


def test_the_teacher_of_a_segmenter_may_find_unknown_classes(tmp_path):
    data = pictures(tmp_path, count=2)
    record = replace(data.subset("all")[1], tags=(1,), unknown=(2,))
    segmenter = Aspp(SegmentConfig(teacher="replace", ema=0.9, crop=32), "resnet18", CLASSES)
    sample = make_sample(record, np.random.default_rng(0), segmenter, data.read_mask)
    assert sample["possible"].tolist() == [True, False, True, True]


@pytest.fixture
def gaps(scenes, monkeypatch) -> Path:
    """The scenes with unknown tags and an image without any class."""

    def with_gaps(*args, **more):
        dataset = open_dataset(*args, **more)
        every = tuple(range(len(dataset.classes)))
        records = dict(dataset.records)
        records[OPEN] = replace(records[OPEN], tags=(), unknown=every)
        rest = tuple(k for k in every if k not in records[PARTLY].tags)
        records[PARTLY] = replace(records[PARTLY], unknown=rest[:1])
        records[FREE] = replace(records[FREE], tags=())
        return replace(dataset, records=records)

    monkeypatch.setattr(plan, "open_dataset", with_gaps)
    return scenes


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("name", method_names())
def test_every_method_trains_on_negatives_and_unknown_tags(gaps, tmp_path, name, monkeypatch):
    run = tmp_path / "run"
    seen = {}

    def spied(record, *args, **more):
        sample = make_classifier_sample(record, *args, **more)
        seen[record.id] = sample
        return sample

    monkeypatch.setattr(classify, "make_sample", spied)
    fit(gaps, run, "classify.batch=7", *QUICK.get(name, ()), method=name, until="classify")
    assert {PARTLY, FREE} <= set(seen)
    # Nothing can be learned from an image of which nothing is known.
    assert OPEN not in seen
    assert seen[PARTLY]["tags"].isnan().sum() == 1
    assert not seen[FREE]["tags"].any()
    if "subcategories" in seen[FREE]:
        assert not seen[FREE]["subcategories"].any()
    state = torch.load(run / "classify" / "model.pt", weights_only=True)["state"]
    assert all(value.isfinite().all() for value in state.values() if value.is_floating_point())
    rows = (run / "metrics.csv").read_text()
    assert "nan" not in rows
    assert "loss" in rows


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("way", ["crf", "affinity", "irn"])
@pytest.mark.parametrize("least", [0, 1])
def test_a_whole_run_with_unknown_tags_and_negatives(gaps, tmp_path, way, least):
    run = tmp_path / "run"
    fit(gaps, run, f"cams.unknown={least}", refine=way, until="refine")
    everything = set(open_dataset(gaps).records)
    maps = {name: read_cam(cam_path(run / "cams", name)).classes.tolist() for name in everything}
    assert len(maps[OPEN]) == (0 if least else len(open_dataset(gaps).classes))
    tags = open_dataset(gaps).records[PARTLY].tags
    assert len(maps[PARTLY]) == len(tags) + (0 if least else 1)
    assert maps[FREE] == []
    if way != "crf":
        walked = {name: read_cam(cam_path(run / "walk", name)) for name in everything}
        assert {name: cam.classes.tolist() for name, cam in walked.items()} == maps
        # Only images with a tag teach the walk.
        labels = names(run / f"{way}_labels", ".npz" if way == "affinity" else ".png")
        assert {OPEN, FREE} & labels == set()
        assert PARTLY in labels
    if way == "irn":
        assert (run / "instances" / f"{OPEN}.npz").exists() == (not least)
    masks = {name: read_index_png(run / "masks" / f"{name}.png") for name in everything}
    for name, classes in maps.items():
        assert set(np.unique(masks[name])) <= {0, 255, *(k + 1 for k in classes)}
    assert not masks[FREE].any()
    assert json.loads((run / "manifest.json").read_text())["stages"]["refine"]["status"] == "done"


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("least", [0, 1])
def test_the_segmenter_and_the_report_take_such_runs(gaps, tmp_path, least):
    run = tmp_path / "run"
    fit(
        gaps,
        run,
        f"cams.unknown={least}",
        "segment.epochs=1",
        "segment.crop=64",
        "segment.workers=0",
        "segment.ema=0.5",
        "segment.teacher=replace",
        refine="affinity",
        until="evaluate",
    )
    stages = json.loads((run / "manifest.json").read_text())["stages"]
    assert {"segment", "evaluate"} <= {n for n, s in stages.items() if s["status"] == "done"}
    figures = json.loads((run / "evaluation.json").read_text())
    protocol = figures["cam"]["train"]["protocol"]
    assert "true tags (2 of 8 images have unknown ones)" in protocol
    assert "unknown" not in figures["cam"]["val"]["protocol"]
    cli.app(["report", str(run), "--images", "10"], standalone_mode=False)
    assert (run / "report.html").read_text().count("AffinityNet labels") >= 6
