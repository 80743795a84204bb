"""A small complete run, made of files only, whose names try to break out of the page."""

from __future__ import annotations

import csv
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from trainer.data.palette import write_index_png
from trainer.evaluation.over_lists import evaluate_cams, evaluate_folder
from trainer.evaluation.sweep import sweep_thresholds
from trainer.maps.camfile import cam_path, write_cam
from trainer.report.facts import read_facts

CLASSES = ("cat", "<script>document.title='owned'</script>", 'sheep\'s & "co" é')
VAL = ("val_0", "two words", "quo\"te's", "ünï 猫", "<b>bold", "100%25 #1")
TRAIN = tuple(f"train_{i}" for i in range(4))
CHOSEN = 0.415
"""A threshold between two steps of the sweep."""
VOID = {"meta", "img", "br", "input", "hr", "link", "rect", "line", "circle", "polyline"}


class Page(HTMLParser):
    """Checks that tags are closed in order, and collects what tests ask about."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.elements.append((tag, values))
        if values.get("id"):
            self.ids.append(str(values["id"]))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data if self.open[-1:] not in (["style"], ["script"]) else ""

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.elements if name == tag]


def make_run(root: Path) -> Path:
    """Tags, maps, masks, predictions and figures that belong to each other; the run directory."""
    rng = np.random.default_rng(0)
    data, run = root / "data", root / "animals"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (data / folder).mkdir(parents=True)
    rows = [["image_id", *CLASSES]]
    for n, name in enumerate((*VAL, *TRAIN)):
        tags = (n % 3,) if n % 4 else (0, 1)
        image, mask = _scene(rng, tags)
        Image.fromarray(image).save(data / "JPEGImages" / f"{name}.jpg")
        write_index_png(data / "SegmentationClass" / f"{name}.png", mask)
        rows.append([name, *(str(int(k in tags)) for k in range(3))])
        maps = np.stack(
            [0.9 * (mask[::4, ::4] == k + 1) + 0.1 * rng.random((12, 16)) for k in tags]
        )
        write_cam(cam_path(run / "cams", name), tags, maps, (48, 64))
        spoiled = np.roll(np.where(mask == 255, 0, mask), 2 + n, axis=1).astype(np.uint8)
        if name in TRAIN:
            spoiled[:3] = 255
            write_index_png(run / "masks" / f"{name}.png", spoiled)
        else:
            write_index_png(run / "segment" / "predictions" / "val" / f"{name}.png", spoiled)
    with (data / "image_labels.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    table = [{"voc_index": k + 1, "name": name} for k, name in enumerate(CLASSES)]
    (data / "classes.json").write_text(json.dumps({"classes": table, "ignore": 255}))
    for list_name, ids in (("val", VAL), ("train", TRAIN)):
        path = data / "ImageSets" / "Segmentation" / f"{list_name}.txt"
        path.write_text("\n".join(ids) + "\n", encoding="utf-8")
    (run / "manifest.json").write_text(json.dumps(_manifest(data)))
    _write_metrics(run)
    _evaluate(run)
    return run


def add_refinement(run: Path) -> None:
    """What AffinityNet, IRNet and the rounds of SC-CAM leave, beside the rest."""
    rng = np.random.default_rng(1)
    manifest = json.loads((run / "manifest.json").read_text())
    done = {"status": "done", "key": "ab", "seconds": 1.0, "outputs": {}, "metrics": {}}
    for stage in (
        "walk",
        "irn",
        "irn_labels",
        "affinity",
        "affinity_labels",
        "round0",
        "round1",
        "segment_full",
    ):
        manifest["stages"][stage] = done
    manifest["config"]["refine"] = {"refine": "irn", "background": "auto"}
    (run / "manifest.json").write_text(json.dumps(manifest))
    (run / "affinity_labels").mkdir()
    for name in TRAIN:
        with np.load(cam_path(run / "cams", name)) as cam:
            tags = cam["classes"].tolist()
        write_cam(cam_path(run / "walk", name), tags, rng.random((len(tags), 12, 16)), (48, 64))
        write_index_png(
            run / "irn_labels" / f"{name}.png",
            rng.choice([0, tags[0] + 1, 255], (48, 64)).astype(np.uint8),
        )
        scores = {
            kind: rng.integers(0, 255, (len(tags) + 1, 48, 64)).astype(np.uint8)
            for kind in ("low", "high")
        }
        np.savez_compressed(run / "affinity_labels" / f"{name}.npz", **scores)
    for stage in ("round0", "round1"):
        (run / stage).mkdir()
        labels = np.zeros((len(TRAIN), 6), np.uint8)
        labels[[0, 1, 2, 3], [0, 1, 0, 4]] = 1
        np.savez(
            run / stage / "subcategories.npz",
            ids=np.array(TRAIN),
            labels=labels,
            counts=np.array([2, 2, 2]),
        )
    for name in VAL:
        write_index_png(
            run / "segment_full" / "predictions" / "val" / f"{name}.png",
            np.zeros((48, 64), np.uint8),
        )


def _scene(rng: np.random.Generator, tags: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    image = rng.integers(90, 150, (48, 64, 3)).astype(np.uint8)
    mask = np.zeros((48, 64), np.uint8)
    for n, k in enumerate(tags):
        box = np.s_[10:40, 4 + 30 * n : 28 + 30 * n]
        image[box], mask[box] = rng.integers(0, 256, 3), k + 1
    mask[42:46] = 255
    return image, mask


def _manifest(data: Path) -> dict[str, Any]:
    def stage(seconds: float) -> dict[str, Any]:
        return {
            "status": "done",
            "key": "0123456789abcdef",
            "seconds": seconds,
            "peak_memory_mb": 900.0,
            "outputs": {"count": 10},
            "metrics": {},
        }

    refine = stage(3.0) | {"metrics": {"threshold": 0.3, "threshold_from": "label_free"}}
    return {
        "format": 1,
        "created": "2026-11-21T03:02:11+00:00",
        "command": ["wsss-trainer", "fit", str(data), "--method", "cam"],
        "versions": {"wsss": "0.1.0", "torch": "2.15.0"},
        "commit": "5f1c9a7be0d2",
        "host": {"name": "bench-01", "cpus": 2, "device": "cpu"},
        "seed": 7,
        "method": "cam",
        "backbone": "mobilenet_v2",
        "supervision": "ImageNet tags",
        "data": {
            "path": str(data),
            "format": "voc",
            "fingerprint": "9f3a61c2",
            "classes": list(CLASSES),
            "lists": {"val": 6},
            "tags_from": "image_labels.csv",
        },
        "config": {"classify": {"epochs": 4, "lr": 0.001}},
        "stages": {
            "classify": stage(61.0),
            "cams": stage(8.25),
            "refine": refine,
            "segment": stage(7000.0),
        },
    }


def _write_metrics(run: Path) -> None:
    with (run / "metrics.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["stage", "epoch", "step", "name", "value"])
        for step in range(10, 1000, 10):
            writer.writerow(["classify", 1, step, "loss", 1 / step])
            writer.writerow(["classify", 1, step, "lr", 0.001])
        writer.writerow(["classify", 1, 990, "val_map", 0.73])


def _evaluate(run: Path) -> None:
    facts = read_facts(run)
    assert facts.dataset is not None
    val, train = facts.dataset.subset("val"), facts.dataset.subset("train")
    cams = evaluate_cams(facts.dataset, val, run / "cams", sweep_thresholds(CHOSEN), workers=1)
    refined = evaluate_folder(facts.dataset, train, run / "masks", workers=1)
    segment = evaluate_folder(
        facts.dataset, val, run / "segment" / "predictions" / "val", workers=1
    )
    full = segment.report("val, true masks") | {"miou": 0.9}
    figures = {
        "cam": {"val": cams.report(CHOSEN, "train", "val, four scales & flip")},
        "refined": {"train": refined.report("train, CRF", 0.4, "train")},
        "segment": {"val": segment.report("val, no CRF")},
        "segment_full": {"val": full},
    }
    (run / "evaluation.json").write_text(json.dumps(figures))
