"""Refinement as stages of a run: files, keys, resume, protocol, presets."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from refined import PLAIN, again, fit, names, pipeline, times

from trainer.data.dataset import Record, read_index_png
from trainer.data.formats.opening import open_dataset
from trainer.errors import ConfigError
from trainer.evaluation.measure import current_evaluation
from trainer.evaluation.threshold import calibration
from trainer.maps.camfile import Cam, cam_path, read_cam, upsample_cam, write_cam
from trainer.options import Options, make_configs
from trainer.refine import affinitynet, irnet
from trainer.refine.affinitynet import AffinityConfig, walk_scores
from trainer.refine.irnet import IrnConfig
from trainer.refine.presets import named_refinement
from trainer.refine.pseudo_masks import RefineConfig, background_scores, refine_scores
from trainer.stages import affinity as affinity_stage
from trainer.stages.refine import power

pytestmark = pytest.mark.usefixtures("one_process")


def test_affinity_makes_labels_weights_maps_and_masks(bare, affinity):
    dataset = open_dataset(bare)
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
    assert (
        names(affinity / "walk", ".npz")
        == names(affinity / "masks", ".png")
        == set(dataset.records)
    )
    manifest = json.loads((affinity / "manifest.json").read_text())
    order = ["classify", "cams", "affinity_labels", "affinity", "walk", "refine"]
    assert {name: stage["status"] for name, stage in manifest["stages"].items()} == dict.fromkeys(
        order, "done"
    )
    assert manifest["stages"]["walk"]["metrics"]["power"] > 0


def test_walked_shares_leave_the_rest_to_the_background(bare, affinity):
    for record in open_dataset(bare).records.values():
        cam = read_cam(cam_path(affinity / "walk", record.id))
        assert cam.classes.tolist() == sorted(record.tags)
        assert cam.maps.sum(0).max(initial=0) <= 1 + 2e-3
        mask = read_index_png(affinity / "masks" / f"{record.id}.png")
        assert mask.shape == cam.size
        shares = (
            upsample_cam(cam.maps, cam.size)
            if record.tags
            else np.zeros((0, *cam.size), np.float32)
        )
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


def test_irn_makes_labels_weights_maps_masks_and_instances(bare, irn):
    dataset = open_dataset(bare)
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
        ("affinity", "refine.crf_after_walk=off", "refine"),
        ("affinity", "refine.background=soft", "refine"),
        ("affinity", "affinity.workers=1", None),
        ("affinity", "irn.beta=3", None),
        ("irn", "irn.foreground=0.4", "irn_labels"),
        ("irn", "irn.background=0.1", "irn_labels"),
        ("irn", "irn.rescale=0.9,1.1", "irn"),
        ("irn", "irn.beta=4", "walk"),
        ("irn", "irn.canvas=80", "walk"),
        ("irn", "irn.instances=off", "walk"),
        ("irn", "refine.threshold_from=train", "irn_labels"),
        ("irn", "refine.threshold_from=label_free", "refine"),
        ("irn", "refine.threshold=0.3", "refine"),
        ("irn", "refine.crf_after_walk=off", "refine"),
        ("irn", "irn.tensorboard=on", None),
    ],
)
def test_a_knob_makes_its_own_stage_and_those_after_it_again(bare, tmp_path, way, setting, first):
    before = pipeline(bare, tmp_path / "run", refine=way).keys
    after = pipeline(bare, tmp_path / "run", setting, refine=way).keys
    order = ["data", "classify", "cams", f"{way}_labels", way, "walk", "refine"]
    assert list(before) == list(after) == order
    stale = order[order.index(first) :] if first else []
    assert [name for name in order if before[name] != after[name]] == stale


def test_a_changed_beta_walks_again_on_the_same_weights(bare, finished):
    run = finished("affinity")
    before = {name: times(run / name) for name in ("affinity_labels", "affinity", "walk", "masks")}
    assert again(fit(bare, run, "affinity.beta=1", refine="affinity")) == {"walk", "refine"}
    after = {name: times(run / name) for name in before}
    assert [after[name] == before[name] for name in before] == [True, True, False, False]


def test_a_changed_alpha_keeps_the_old_weights_aside(bare, finished):
    run = finished("affinity")
    said = fit(bare, run, "affinity.low_alpha=2", refine="affinity")
    assert again(said) == {"affinity_labels", "affinity", "walk", "refine"}
    assert [path.name for path in (run / "stale").glob("affinity-*/*")] == ["model.pt"]
    assert (run / "affinity" / "model.pt").exists()


def test_a_second_fit_makes_nothing_again(bare, finished):
    run = finished("irn")
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*.??g")}
    assert again(fit(bare, run, refine="irn")) == set()
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*.??g")} == before


class Fixed(torch.nn.Module):
    """A network whose features are a ramp, as if the right half of every image were another
    thing.
    """

    def forward(self, images_B3HW):
        batch, _, height, width = images_B3HW.shape
        ramp = torch.linspace(0, 3, width // 8).round()
        return ramp.expand(batch, 5, height // 8, width // 8)


def test_the_arg_max_of_the_stored_shares_is_that_of_the_walk(tmp_path):
    size = (90, 122)
    image = tmp_path / "a.png"
    Image.fromarray(np.zeros((*size, 3), np.uint8)).save(image)
    y, x = np.mgrid[:23, :31]
    blobs = [
        np.exp(-((y - 6) ** 2 + (x - 7) ** 2) / 40),
        0.9 * np.exp(-((y - 15) ** 2 + (x - 24) ** 2) / 40),
    ]
    write_cam(cam_path(tmp_path / "cams", "a"), [1, 4], np.stack(blobs), size)
    config = AffinityConfig(borders="full", steps=4, walk_alpha=10)
    affinity_stage.walk(
        Fixed(),
        [Record("a", image, (1, 4))],
        tmp_path / "cams",
        tmp_path / "walk",
        config,
        1.3,
        "cpu",
    )
    stored = torch.from_numpy(read_cam(cam_path(tmp_path / "walk", "a")).maps)
    maps = torch.from_numpy(
        upsample_cam(read_cam(cam_path(tmp_path / "cams", "a")).maps, size) ** np.float32(1.3)
    )
    scores = walk_scores(Fixed()(torch.zeros(1, 3, 96, 128))[0], maps, config)
    small = F.interpolate(scores[None], stored.shape[1:], mode="bilinear")[0]
    shares = small / small.sum(0)
    top = shares.sort(0).values
    sure = top[-1] - top[-2] > 0.02
    found = torch.cat([1 - stored.sum(0, keepdim=True), stored]).argmax(0)
    assert len(found.unique()) == 3
    assert sure.float().mean() > 0.8
    assert (found == small.argmax(0))[sure].all()


def test_the_protocol_names_the_walk_and_the_crf(bare, finished):
    runs = {"affinity": "walk of AffinityNet, dense CRF P7", "irn": "walk of IRNet, dense CRF P7"}
    for way, walk in runs.items():
        lines = current_evaluation(finished(way))["refined"]
        assert set(lines) == {"train", "val"}
        assert all(
            f"pseudo masks from true tags, {walk}, " in line["protocol"] for line in lines.values()
        )


def test_a_crf_after_the_walk_makes_only_the_masks_again(bare, finished):
    run = finished("affinity")
    assert again(fit(bare, run, "refine.crf_after_walk=off", refine="affinity")) == {"refine"}
    protocol = current_evaluation(run)["refined"]["val"]["protocol"]
    assert (
        "walk of AffinityNet, no CRF, no threshold: (1 - max)^16 walks along as background"
        in protocol
    )


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("none", {"refine": {"refine": "none"}}),
        ("crf", {"refine": {"refine": "crf"}}),
        ("affinity", {"refine": {"refine": "affinity"}}),
        ("irn", {"refine": {"refine": "irn"}, "irn": {}}),
        ("psa", {"refine": {"refine": "affinity"}, "affinity": {"beta": 8.0, "steps": 256}}),
        (
            "seam",
            {
                "refine": {"refine": "affinity"},
                "affinity": {"high_alpha": 24.0, "beta": 8.0, "steps": 64, "walk_alpha": 6.0},
            },
        ),
        (
            "irn-coco",
            {"refine": {"refine": "irn"}, "irn": {"foreground": 0.35, "background": 0.10}},
        ),
        (
            "irn-recam",
            {
                "refine": {"refine": "irn", "threshold": 0.28},
                "irn": {"foreground": 0.35, "background": 0.10},
            },
        ),
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
    configs = make_configs(Options(tmp_path, tmp_path, recipe=recipe, refine="affinity"))
    assert configs.refine == RefineConfig(refine="affinity", calibrate=True, crf_after_walk=True)
    assert {k: getattr(configs.affinity, k) for k in affinitynet.SMALL} == affinitynet.SMALL
    assert {k: getattr(configs.irn, k) for k in irnet.SMALL} == irnet.SMALL
    seam = make_configs(Options(tmp_path, tmp_path, recipe=recipe, refine="seam")).affinity
    assert (seam.high_alpha, seam.beta, seam.steps, seam.walk_alpha, seam.borders) == (
        24.0,
        8.0,
        64,
        6.0,
        "full",
    )


@pytest.mark.parametrize("options", [{"refine": "irn"}, {"settings": ("refine.refine=irn",)}])
@pytest.mark.parametrize(
    ("recipe", "small"), [("small", True), ("scratch", True), ("psa", False), ("irn", False)]
)
def test_maps_after_irnets_walk_have_the_published_threshold(tmp_path, recipe, small, options):
    configs = make_configs(Options(tmp_path, tmp_path, recipe=recipe, **options))
    assert configs.refine == RefineConfig(
        refine="irn", calibrate=small, crf_after_walk=small, threshold_from="fixed", threshold=0.25
    )


def test_maps_of_recam_have_another_threshold_after_the_walk(tmp_path):
    refine = make_configs(Options(tmp_path, tmp_path, refine="irn-recam")).refine
    assert (refine.threshold_from, refine.threshold) == ("fixed", 0.28)


def test_maps_are_calibrated_by_their_own_threshold_and_not_by_that_after_the_walk(
    bare, mapped, tmp_path
):
    found = {}
    for source in ("fixed", "label_free", "train"):
        plan = pipeline(bare, mapped, f"refine.threshold_from={source}", refine="irn")
        found[source] = power(plan.context)
    assert found["fixed"] == found["label_free"] != found["train"]
    assert found["fixed"] != pytest.approx(calibration(0.25))


@pytest.mark.parametrize("recipe", ["psa", "irn"])
def test_published_networks_get_published_knobs(tmp_path, recipe):
    configs = make_configs(
        Options(tmp_path, tmp_path, backbone="resnet50", recipe=recipe, refine="irn-coco")
    )
    assert configs.refine == RefineConfig(
        refine="irn", calibrate=False, threshold_from="fixed", threshold=0.25
    )
    assert configs.affinity == AffinityConfig()
    assert configs.irn == IrnConfig(foreground=0.35, background=0.10)


def test_settings_win_over_presets(tmp_path):
    changes = ("affinity.steps=8", "refine.calibrate=off", "refine.refine=crf")
    configs = make_configs(
        Options(tmp_path, tmp_path, recipe="small", refine="seam", settings=changes)
    )
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
def test_what_scores_the_background_and_whether_a_crf_follows(
    refine, after, background, score, crf
):
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


def test_background_of_an_image_without_maps_is_all():
    cam = Cam(np.zeros(0, np.int16), np.zeros((0, 4, 4), np.float32), (4, 4))
    for way in ("none", "affinity", "irn"):
        assert (
            background_scores(cam.maps, RefineConfig(refine=way), 0.3).tolist()
            == np.ones((1, 4, 4)).tolist()
        )


@pytest.mark.parametrize(
    ("backbone", "refine", "words"),
    [
        ("resnet38", "irn", "IRNet cannot use ResNet38"),
        ("timm/test_vit", "affinity", "stage3 with stride 16"),
    ],
)
def test_a_backbone_that_cannot_walk_is_refused_before_anything_trains(
    bare, tmp_path, backbone, refine, words
):
    with pytest.raises(ConfigError, match=words):
        pipeline(bare, tmp_path / "run", backbone=backbone, refine=refine)
