"""Refinement as stages of a run: files, keys, resume, protocol, presets."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from trainer.camfile import Cam, cam_path, read_cam, upsample_cam, write_cam
from trainer.data.dataset import Record, open_dataset, read_index_png
from trainer.data.synthetic import write_synthetic
from trainer.errors import ConfigError, DataError, RunError, WeightsError
from trainer.files import check_space
from trainer.interrupt import Interrupted
from trainer.measure import current_evaluation
from trainer.options import Options, make_configs
from trainer.pipeline import Pipeline
from trainer.refine import affinity_stage, irn_stage
from trainer.refine.affinitynet import AffinityConfig, walk_scores
from trainer.refine.irnet import IrnConfig
from trainer.refine.pseudo_masks import RefineConfig, background_scores, refine_scores
from trainer.refine.threshold import calibration
from trainer.refinement import named_refinement

PLAIN = "scene_00001"
"""The training image whose tags are taken away."""
QUICK = {
    "affinity": ("epochs=1", "batch=4", "crop=72", "precision=fp32", "workers=0", "jitter=off"),
    "irn": (
        "epochs=1", "batch=4", "crop=64", "precision=fp32", "workers=0", "radius=3", "canvas=64", "displacement=on",
        "instances=on",
    ),
}  # fmt: skip
SETTINGS = (
    "classify.workers=0", "classify.precision=fp32", "cams.workers=0", "cams.scales=1",
    *(f"{way}.{knob}" for way, knobs in QUICK.items() for knob in knobs),
)  # fmt: skip


@pytest.fixture(autouse=True)
def _one_process(monkeypatch):
    monkeypatch.setattr("trainer.pool.cores", lambda: 1)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder: Path = tmp_path_factory.mktemp("refinement") / "data"
    write_synthetic(folder, 10, 64)
    table = folder / "image_labels.csv"
    lines = table.read_text().splitlines()
    bare = [f"{PLAIN}{',0' * line.count(',')}" if line.startswith(PLAIN) else line for line in lines]
    table.write_text("\n".join(bare) + "\n")
    return folder


def pipeline(data: Path, run: Path, *settings: str, refine: str | None = None, until: str = "refine") -> Pipeline:
    return Pipeline(
        Options(
            data=data, run=run, backbone="mobilenet_v2", weights="none", size=64, epochs=1, until=until, device="cpu",
            refine=refine, settings=(*SETTINGS, *settings),
        )
    )  # fmt: skip


def fit(data: Path, run: Path, *settings: str, **more: Any) -> dict[str, str]:
    """What was said of each stage."""
    said: list[str] = []
    pipeline(data, run, *settings, **more).fit(said.append)
    return dict(line.split(": ", 1) for line in said)


def again(said: dict[str, str]) -> set[str]:
    return {name for name, what in said.items() if not what.startswith("done")}


@pytest.fixture(scope="module")
def mapped(data) -> Path:
    """A run until its maps, which are replaced by blurred true masks: an untrained network may leave a class empty."""
    run = data.parent / "mapped"
    fit(data, run, until="cams")
    dataset = open_dataset(data)
    for record in dataset.records.values():
        truth, shape = dataset.read_mask(record), read_cam(cam_path(run / "cams", record.id)).maps.shape[1:]
        planes = [Image.fromarray(np.uint8(255) * (truth == tag + 1)) for tag in record.tags]
        maps = [np.asarray(plane.resize((3, 3)).resize(shape[::-1]), float) for plane in planes]
        full = np.array([m / m.max() for m in maps]).reshape(-1, *shape)
        write_cam(cam_path(run / "cams", record.id), record.tags, full, truth.shape)
    return run


def made(data: Path, mapped: Path, way: str) -> Path:
    run = data.parent / way
    shutil.copytree(mapped, run)
    fit(data, run, refine=way)
    return run


@pytest.fixture(scope="module")
def affinity(data, mapped) -> Path:
    return made(data, mapped, "affinity")


@pytest.fixture(scope="module")
def irn(data, mapped) -> Path:
    return made(data, mapped, "irn")


@pytest.fixture
def finished(request, tmp_path):
    """A copy of a finished run: ``finished("irn")``."""
    return lambda way: Path(shutil.copytree(request.getfixturevalue(way), tmp_path / way))


def names(folder: Path, suffix: str) -> set[str]:
    return {path.stem for path in folder.glob(f"*{suffix}")}


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def unfinished(run: Path, *stages: str) -> None:
    """As a kill leaves them."""
    path = run / "manifest.json"
    manifest = json.loads(path.read_text())
    for stage in stages:
        manifest["stages"][stage]["status"] = "running"
    path.write_text(json.dumps(manifest))


def test_affinity_makes_labels_weights_maps_and_masks(data, affinity):
    dataset = open_dataset(data)
    training = dataset.subset("train")
    tagged = [record for record in training if record.tags]
    assert len(tagged) == len(training) - 1
    assert names(affinity / "affinity_labels", ".npz") == {record.id for record in tagged}
    for record in tagged:
        size = read_cam(cam_path(affinity / "cams", record.id)).size
        for scores in affinity_stage.read_labels(affinity / "affinity_labels", record):
            assert scores.dtype == np.uint8
            assert scores.shape == (len(record.tags) + 1, *size)
            assert np.abs(scores.sum(0, dtype=int) - 255).max() <= 3
    assert (affinity / "affinity" / "model.pt").exists()
    assert names(affinity / "walk", ".npz") == names(affinity / "masks", ".png") == set(dataset.records)
    manifest = json.loads((affinity / "manifest.json").read_text())
    order = ["classify", "cams", "affinity_labels", "affinity", "walk", "refine"]
    assert {name: stage["status"] for name, stage in manifest["stages"].items()} == dict.fromkeys(order, "done")
    assert manifest["stages"]["walk"]["metrics"]["power"] > 0


def test_walked_shares_leave_the_rest_to_the_background(data, affinity):
    for record in open_dataset(data).records.values():
        cam = read_cam(cam_path(affinity / "walk", record.id))
        assert cam.classes.tolist() == sorted(record.tags)
        assert cam.maps.sum(0).max(initial=0) <= 1 + 2e-3
        mask = read_index_png(affinity / "masks" / f"{record.id}.png")
        assert mask.shape == cam.size
        shares = upsample_cam(cam.maps, cam.size) if record.tags else np.zeros((0, *cam.size), np.float32)
        scores = np.concatenate([1 - shares.sum(0, keepdims=True).clip(0, 1), shares])
        expected = np.array([0, *(tag + 1 for tag in sorted(record.tags))])[scores.argmax(0)]
        assert (mask == expected).mean() > 0.999


@pytest.mark.parametrize("way", ["affinity", "irn"])
def test_an_image_without_tags_has_empty_maps_and_an_empty_mask(request, way):
    run = request.getfixturevalue(way)
    assert PLAIN not in names(run / f"{way}_labels", "")
    assert len(read_cam(cam_path(run / "walk", PLAIN)).classes) == 0
    assert not read_index_png(run / "masks" / f"{PLAIN}.png").any()
    assert not (run / "instances" / f"{PLAIN}.npz").exists()


def test_irn_makes_labels_weights_maps_masks_and_instances(data, irn):
    dataset = open_dataset(data)
    tagged = {record.id: record for record in dataset.subset("train") if record.tags}
    assert names(irn / "irn_labels", ".png") == set(tagged)
    for record in tagged.values():
        label = read_index_png(irn / "irn_labels" / f"{record.id}.png")
        assert label.shape == read_cam(cam_path(irn / "cams", record.id)).size
        assert set(np.unique(label)) <= {0, 255, *(tag + 1 for tag in record.tags)}
    assert torch.load(irn / "irn" / "model.pt", weights_only=True)["state"]["mean_shift"].any()
    assert names(irn / "walk", ".npz") == names(irn / "masks", ".png") == set(dataset.records)
    for record in (record for record in dataset.records.values() if record.tags):
        cam = read_cam(cam_path(irn / "walk", record.id))
        assert cam.classes.tolist() == sorted(record.tags)
        assert cam.maps.max() == pytest.approx(1, abs=1e-3)
        with np.load(irn / "instances" / f"{record.id}.npz") as found:
            assert found["labels"].shape == cam.size
            assert len(found["classes"]) == len(found["scores"])
            assert found["labels"].max() <= len(found["classes"])
            assert set(found["classes"].tolist()) <= set(record.tags)


@pytest.mark.parametrize(
    ("way", "setting", "first"),
    [
        ("affinity", "affinity.low_alpha=2", "affinity_labels"),
        ("affinity", "affinity.crf=P2", "affinity_labels"),
        ("affinity", "refine.calibrate=off", "affinity_labels"),
        ("affinity", "affinity.lr=0.002", "affinity"),
        ("affinity", "affinity.crop=80", "affinity"),
        ("affinity", "affinity.radius=4", "affinity"),
        ("affinity", "affinity.beta=4", "walk"),
        ("affinity", "affinity.steps=64", "walk"),
        ("affinity", "affinity.walk_alpha=6", "walk"),
        ("affinity", "affinity.borders=psa", "walk"),
        ("affinity", "refine.crf_after_walk=on", "refine"),
        ("affinity", "refine.background=soft", "refine"),
        ("affinity", "affinity.workers=1", None),
        ("affinity", "irn.beta=3", None),
        ("irn", "irn.foreground=0.4", "irn_labels"),
        ("irn", "irn.background=0.1", "irn_labels"),
        ("irn", "irn.rescale=0.9,1.1", "irn"),
        ("irn", "irn.beta=4", "walk"),
        ("irn", "irn.canvas=80", "walk"),
        ("irn", "irn.instances=off", "walk"),
        ("irn", "refine.threshold_from=fixed", "irn_labels"),
        ("irn", "refine.crf_after_walk=on", "refine"),
        ("irn", "irn.tensorboard=on", None),
    ],
)
def test_a_knob_makes_its_own_stage_and_those_after_it_again(data, tmp_path, way, setting, first):
    before = {step.name: step.key for step in pipeline(data, tmp_path / "run", refine=way).steps()}
    after = {step.name: step.key for step in pipeline(data, tmp_path / "run", setting, refine=way).steps()}
    order = ["classify", "cams", f"{way}_labels", way, "walk", "refine"]
    assert list(before) == list(after) == order
    stale = order[order.index(first) :] if first else []
    assert [name for name in order if before[name] != after[name]] == stale


def test_a_changed_beta_walks_again_on_the_same_weights(data, finished):
    run = finished("affinity")
    before = {name: times(run / name) for name in ("affinity_labels", "affinity", "walk", "masks")}
    assert again(fit(data, run, "affinity.beta=1", refine="affinity")) == {"walk", "refine"}
    after = {name: times(run / name) for name in before}
    assert [after[name] == before[name] for name in before] == [True, True, False, False]


def test_a_changed_alpha_keeps_the_old_weights_aside(data, finished):
    run = finished("affinity")
    said = fit(data, run, "affinity.low_alpha=2", refine="affinity")
    assert again(said) == {"affinity_labels", "affinity", "walk", "refine"}
    assert [path.name for path in (run / "stale").glob("affinity-*/*")] == ["model.pt"]
    assert (run / "affinity" / "model.pt").exists()


def test_a_second_fit_makes_nothing_again(data, finished):
    run = finished("irn")
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*.??g")}
    assert again(fit(data, run, refine="irn")) == set()
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*.??g")} == before


@pytest.mark.parametrize(
    ("way", "stage", "folder", "suffix"),
    [
        ("affinity", "affinity_labels", "affinity_labels", ".npz"),
        ("affinity", "walk", "walk", ".npz"),
        ("irn", "irn_labels", "irn_labels", ".png"),
        ("irn", "walk", "walk", ".npz"),
        ("irn", "walk", "instances", ".npz"),
    ],
)
def test_only_what_is_missing_is_made_again(data, finished, way, stage, folder, suffix):
    run = finished(way)
    unfinished(run, stage)
    lost = run / folder / f"scene_00002{suffix}"
    before, content = times(run / folder), lost.read_bytes()
    lost.unlink()
    assert again(fit(data, run, refine=way)) == {stage}
    after = times(run / folder)
    assert {name for name in before if after[name] != before[name]} == {lost.name}
    assert lost.read_bytes() == content


@pytest.mark.parametrize("way", ["affinity", "irn"])
def test_damaged_labels_and_maps_are_made_again(data, finished, way):
    run = finished(way)
    unfinished(run, f"{way}_labels", "walk")
    damaged = [next((run / f"{way}_labels").glob("scene_00002.*")), run / "walk" / "scene_00002.npz"]
    contents = [path.read_bytes() for path in damaged]
    for path, content in zip(damaged, contents):
        path.write_bytes(content[: len(content) // 2])
    assert again(fit(data, run, refine=way)) == {f"{way}_labels", "walk"}
    assert [path.read_bytes() for path in damaged] == contents


@pytest.mark.parametrize(
    ("way", "writer", "suffix"), [("affinity", "write_atomic", ".npz"), ("irn", "write_index_png", ".png")]
)
def test_one_bad_image_does_not_lose_the_labels_of_the_others(data, mapped, tmp_path, monkeypatch, way, writer, suffix):
    run, module = Path(shutil.copytree(mapped, tmp_path / "run")), {"affinity": affinity_stage, "irn": irn_stage}[way]
    real = getattr(module, writer)

    def fail(path, *rest):
        if path.stem == "scene_00002":
            raise DataError("image 'scene_00002': as if damaged")
        real(path, *rest)

    monkeypatch.setattr(module, writer, fail)
    with pytest.raises(DataError, match="labels could not be made") as caught:
        fit(data, run, refine=way)
    monkeypatch.setattr(module, writer, real)
    assert "scene_00002" in caught.value.found
    labels = run / f"{way}_labels"
    kept = times(labels)
    stages = json.loads((run / "manifest.json").read_text())["stages"]
    assert stages[f"{way}_labels"]["status"] == "failed"
    assert way not in stages
    steps = {step.name: step for step in pipeline(data, run, refine=way).steps()}
    steps[f"{way}_labels"].work()
    after = times(labels)
    assert after.keys() - kept.keys() == {f"scene_00002{suffix}"}
    assert {name: after[name] for name in kept} == kept


@pytest.mark.parametrize(("way", "module"), [("affinity", affinity_stage), ("irn", irn_stage)])
def test_a_walk_that_is_stopped_goes_on(data, finished, monkeypatch, way, module):
    run = finished(way)
    before = {path.name: path.read_bytes() for path in (run / "walk").iterdir()}
    shutil.rmtree(run / "walk")
    shutil.rmtree(run / "instances", ignore_errors=True)
    unfinished(run, "walk")
    real, count = module.write_cam, iter(range(100))

    def stop(path, *rest):
        if next(count) == 4:
            raise Interrupted("as if by Ctrl-C")
        real(path, *rest)

    monkeypatch.setattr(module, "write_cam", stop)
    with pytest.raises(Interrupted):
        fit(data, run, refine=way)
    monkeypatch.setattr(module, "write_cam", real)
    kept = times(run / "walk")
    assert len(kept) == 4
    fit(data, run, refine=way)
    after = times(run / "walk")
    assert {name: after[name] for name in kept} == kept
    assert {path.name: path.read_bytes() for path in (run / "walk").iterdir()} == before


class Fixed(torch.nn.Module):
    """A network whose features are a ramp, as if the right half of every image were another thing."""

    def forward(self, images_B3HW):
        batch, _, height, width = images_B3HW.shape
        ramp = torch.linspace(0, 3, width // 8).round()
        return ramp.expand(batch, 5, height // 8, width // 8)


def test_the_arg_max_of_the_stored_shares_is_that_of_the_walk(tmp_path):
    size = (90, 122)
    image = tmp_path / "a.png"
    Image.fromarray(np.zeros((*size, 3), np.uint8)).save(image)
    y, x = np.mgrid[:23, :31]
    blobs = [np.exp(-((y - 6) ** 2 + (x - 7) ** 2) / 40), 0.9 * np.exp(-((y - 15) ** 2 + (x - 24) ** 2) / 40)]
    write_cam(cam_path(tmp_path / "cams", "a"), [1, 4], np.stack(blobs), size)
    config = AffinityConfig(borders="full", steps=4, walk_alpha=10)
    affinity_stage.walk(Fixed(), [Record("a", image, (1, 4))], tmp_path / "cams", tmp_path / "walk", config, 1.3, "cpu")
    stored = torch.from_numpy(read_cam(cam_path(tmp_path / "walk", "a")).maps)
    maps = torch.from_numpy(upsample_cam(read_cam(cam_path(tmp_path / "cams", "a")).maps, size) ** np.float32(1.3))
    scores = walk_scores(Fixed()(torch.zeros(1, 3, 96, 128))[0], maps, config)
    small = F.interpolate(scores[None], stored.shape[1:], mode="bilinear")[0]
    shares = small / small.sum(0)
    top = shares.sort(0).values
    sure = top[-1] - top[-2] > 0.02
    found = torch.cat([1 - stored.sum(0, keepdim=True), stored]).argmax(0)
    assert len(found.unique()) == 3
    assert sure.float().mean() > 0.8
    assert (found == small.argmax(0))[sure].all()


def test_the_protocol_names_the_walk_and_the_crf(data, finished):
    runs = {"affinity": "walk of AffinityNet", "irn": "walk of IRNet"}
    for way, walk in runs.items():
        lines = current_evaluation(finished(way))["refined"]
        assert set(lines) == {"train", "val"}
        assert all(f"pseudo masks from true tags, {walk}, no CRF, " in line["protocol"] for line in lines.values())


def test_a_crf_after_the_walk_makes_only_the_masks_again(data, finished):
    run = finished("affinity")
    assert again(fit(data, run, "refine.crf_after_walk=on", refine="affinity")) == {"refine"}
    protocol = current_evaluation(run)["refined"]["val"]["protocol"]
    assert "walk of AffinityNet, dense CRF P7, no threshold: (1 - max)^16 walks along as background" in protocol


@pytest.mark.parametrize(("key", "value"), [("backbone", "resnet18"), ("classes", ["cat"])])
def test_weights_of_another_backbone_or_class_table_are_refused(data, finished, key, value):
    run = finished("affinity")
    unfinished(run, "walk")
    content = torch.load(run / "affinity" / "model.pt", weights_only=True)
    content["identity"][key] = value
    torch.save(content, run / "affinity" / "model.pt")
    with pytest.raises(WeightsError, match=f"was made with {key} = "):
        fit(data, run, refine="affinity")


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("none", {"refine": {"refine": "none"}}),
        ("crf", {"refine": {"refine": "crf"}}),
        ("affinity", {"refine": {"refine": "affinity"}}),
        ("irn", {"refine": {"refine": "irn"}, "irn": {}}),
        ("psa", {"refine": {"refine": "affinity"}, "affinity": {}}),
        (
            "seam",
            {"refine": {"refine": "affinity"}, "affinity": {"high_alpha": 24.0, "steps": 64, "walk_alpha": 6.0}},
        ),
        ("irn-coco", {"refine": {"refine": "irn"}, "irn": {"foreground": 0.35, "background": 0.10}}),
    ],
)
def test_named_refinements(name, changes):
    assert named_refinement(name) == changes


def test_an_unknown_refinement_shows_the_nearest():
    with pytest.raises(ConfigError, match="'affinty'") as caught:
        named_refinement("affinty")
    assert "did you mean 'affinity'?" in caught.value.expected


@pytest.mark.parametrize("recipe", ["small", "scratch"])
def test_small_networks_get_small_knobs_and_calibration(tmp_path, recipe):
    configs = make_configs(Options(tmp_path, tmp_path, recipe=recipe, refine="seam"))
    assert configs.refine == RefineConfig(refine="affinity", calibrate=True)
    assert {k: getattr(configs.affinity, k) for k in affinity_stage.SMALL} == affinity_stage.SMALL
    assert {k: getattr(configs.irn, k) for k in irn_stage.SMALL} == irn_stage.SMALL
    assert (configs.affinity.high_alpha, configs.affinity.steps, configs.affinity.walk_alpha) == (24.0, 64, 6.0)


@pytest.mark.parametrize("recipe", ["psa", "irn"])
def test_published_networks_get_published_knobs(tmp_path, recipe):
    configs = make_configs(Options(tmp_path, tmp_path, backbone="resnet50", recipe=recipe, refine="irn-coco"))
    assert configs.refine == RefineConfig(refine="irn", calibrate=False, threshold_from="fixed", threshold=0.25)
    assert configs.affinity == AffinityConfig()
    assert configs.irn == IrnConfig(foreground=0.35, background=0.10)


def test_settings_win_over_presets(tmp_path):
    changes = ("affinity.steps=8", "refine.calibrate=off", "refine.refine=crf")
    configs = make_configs(Options(tmp_path, tmp_path, recipe="small", refine="seam", settings=changes))
    assert (configs.affinity.steps, configs.affinity.walk_alpha) == (8, 6.0)
    assert (configs.refine.refine, configs.refine.calibrate) == ("crf", False)


def test_calibration_puts_a_threshold_at_the_published_one():
    assert calibration(0.15) == pytest.approx(1)
    for threshold in (0.05, 0.2, 0.37, 0.5, 0.8):
        assert threshold ** calibration(threshold) == pytest.approx(0.15)
    powers = [calibration(threshold) for threshold in np.linspace(0.01, 0.9, 20)]
    assert powers == sorted(powers)
    assert calibration(0.0) == calibration(0.01)
    assert calibration(1.0) == calibration(0.9)


@pytest.mark.parametrize(
    ("refine", "after", "background", "score", "crf"),
    [
        ("none", False, "auto", "threshold", False),
        ("none", True, "auto", "threshold", False),
        ("crf", False, "auto", "threshold", True),
        ("affinity", False, "auto", "rest", False),
        ("affinity", True, "soft", "soft", True),
        ("irn", False, "auto", "threshold", False),
        ("irn", True, "threshold", "threshold", True),
    ],
)
def test_what_scores_the_background_and_whether_a_crf_follows(refine, after, background, score, crf):
    config = RefineConfig(refine=refine, crf_after_walk=after, background=background)
    assert (config.score, config.with_crf) == (score, crf)


def test_rest_is_what_the_maps_leave():
    maps = np.array([[[0.3, 0.8, 0.0]], [[0.1, 0.4, 0.0]]], np.float32)
    config = RefineConfig(refine="affinity")
    scores = background_scores(maps, config, 0.7)
    np.testing.assert_allclose(scores[0, 0], [0.6, 0, 1], atol=1e-6)
    (shares,) = refine_scores(np.zeros((1, 3, 3), np.uint8), [scores], config)
    assert shares.argmax(0).tolist() == [[0, 1, 0]]
    with pytest.raises(ConfigError, match="needs a threshold"):
        RefineConfig(refine="affinity", band=0.1)


def test_too_little_space_is_told_before_the_work(data, mapped, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("trainer.files.shutil.disk_usage", lambda folder: usage(10**12, 10**12, 3_000_000_000))
    check_space(tmp_path, 3_000_000_000, "labels")
    with pytest.raises(RunError) as caught:
        check_space(tmp_path / "new", 5_100_000_000, "labels of AffinityNet")
    found = f"labels of AffinityNet need about 5.1 GB in {tmp_path / 'new'}, and 3.0 GB are free"
    assert (caught.value.found, caught.value.expected) == (found, "room on that disk")
    assert "another --run" in caught.value.hint
    monkeypatch.setattr("trainer.files.shutil.disk_usage", lambda folder: usage(10**12, 10**12, 0))
    for way in ("affinity", "irn"):
        run = Path(shutil.copytree(mapped, tmp_path / way))
        with pytest.raises(RunError, match="are free"):
            fit(data, run, refine=way)
        assert not times(run / f"{way}_labels")


def test_labels_need_maps_of_every_image(data, mapped, tmp_path):
    run = Path(shutil.copytree(mapped, tmp_path / "run"))
    cam_path(run / "cams", "scene_00002").unlink()
    with pytest.raises(DataError, match="scene_00002"):
        fit(data, run, "refine.calibrate=off", refine="affinity")
    assert not (run / "walk").exists()


def test_background_of_an_image_without_maps_is_all():
    cam = Cam(np.zeros(0, np.int16), np.zeros((0, 4, 4), np.float32), (4, 4))
    for way in ("none", "affinity", "irn"):
        assert background_scores(cam.maps, RefineConfig(refine=way), 0.3).tolist() == np.ones((1, 4, 4)).tolist()
