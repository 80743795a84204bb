"""Segmenters as stages of a run: what they start from, keys, resume, labels of supervision, export
and hand-on of weights.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import resnet101
from typer.testing import CliRunner

from trainer.cli import app
from trainer.data.formats.opening import open_dataset
from trainer.errors import ConfigError, RunError, UserError, WeightsError
from trainer.evaluation.measure import current_evaluation
from trainer.export.from_run import export_run
from trainer.export.weights import export_weights
from trainer.files import file_sha256
from trainer.fit import fit as run_plan
from trainer.nets import build_backbone, deeplab_v2
from trainer.nets.deeplab import DeepLabV2ResNet101, LargeFOVResNet38
from trainer.options import Options
from trainer.plan import Plan, make_plan
from trainer.scenes.writing import write_synthetic
from trainer.segmenters import make_segmenter
from trainer.segmenters import prediction as segment
from trainer.segmenters.config import PRESETS
from trainer.segmenters.start import Start, find_start
from trainer.training import loop
from trainer.weights.cache import import_weights

THIN = ("segment.width=0.0625", "segment.batch=4")


def flat(network: nn.Module, value: float = 0.5) -> dict[str, torch.Tensor]:
    """A state that takes no space in a file."""
    return {
        k: torch.tensor(value).expand(v.shape)
        for k, v in network.state_dict().items()
        if "num_batches" not in k
    }


def sketch(network: Any, *arguments: Any) -> nn.Module:
    with torch.device("meta"):
        return network(*arguments)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """Weight files of every kind."""
    folder = tmp_path_factory.mktemp("files")
    base = sketch(DeepLabV2ResNet101, 21).base
    body = {k: v for k, v in flat(base).items() if "aspp" not in k}
    contents = {
        "coco": body | {"fc.weight": torch.zeros(91, 2048), "fc.bias": torch.zeros(91)},
        "vision": flat(sketch(resnet101)),
        "voc": {f"base.{k}": v for k, v in flat(base).items()},
        "fov": flat(sketch(LargeFOVResNet38, 21)),
        "res38": flat(sketch(build_backbone, "resnet38"))
        | {"fc8.weight": torch.zeros(20, 4096, 1, 1)},
        "mobile": flat(sketch(build_backbone, "mobilenet_v2"))
        | {"classifier.1.weight": torch.zeros(1000, 1280)},
    }
    for name, content in contents.items():
        torch.save(content, folder / f"{name}.pth")
    return {name: folder / f"{name}.pth" for name in contents}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache, and no way to fill it."""

    def unreachable(*_: object, **__: object) -> None:
        raise TimeoutError("timed out")

    monkeypatch.setenv("WSSS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("urllib.request.urlopen", unreachable)


def start(
    network: str,
    backbone: str = "mobilenet_v2",
    weights: Path | None = None,
    given: Any = None,
    **knobs: Any,
) -> Start:
    return find_start(
        replace(PRESETS[network], **knobs),
        backbone,
        weights,
        None if given is None else str(given),
        20,
    )


# What training starts from


def test_torchvision_and_caffe_set_the_layout(files):
    vision = start("deeplab-v2-r101", given=files["vision"])
    assert dict(vision.knobs) == {"stride_on": "3x3", "input": "torchvision_rgb"}
    assert (vision.source, vision.supervision("x")) == ("file", "ImageNet tags")
    coco = start("deeplab-v2-r101", given=files["coco"])
    assert dict(coco.knobs) == {"stride_on": "1x1", "input": "caffe_bgr"}
    assert coco.supervision("ImageNet tags") == "COCO masks"
    trained = start("deeplab-v2-r101", given=files["voc"])
    assert dict(trained.knobs) == {"stride_on": "1x1", "input": "caffe_bgr"}
    assert "masks" in trained.supervision("x")


def test_a_layout_that_was_said_and_is_wrong_is_refused(files):
    with pytest.raises(WeightsError, match="Caffe layout") as caught:
        start("deeplab-v2-r101", given=files["coco"], stride_on="3x3", input="torchvision_rgb")
    assert "segment.stride_on=auto" in caught.value.hint
    with pytest.raises(WeightsError, match="torchvision layout"):
        start("deeplab-v2-r101", given=files["vision"], stride_on="1x1", input="caffe_bgr")


def test_the_weights_of_the_run_are_taken_where_they_fit(files):
    assert start("largefov-r38", "resnet38", files["res38"]).path == files["res38"]
    assert start("deeplab-v2-r101", "resnet101", files["vision"]).path == files["vision"]
    assert start("aspp", "mobilenet_v2", files["mobile"]).path == files["mobile"]
    assert start("aspp", "mobilenet_v2").source == "classifier"
    assert start("largefov-r38", "resnet38").source == "classifier"
    assert start("aspp", "mobilenet_v2", files["mobile"], init="classifier").source == "classifier"
    assert dict(start("deeplab-v2-r101", "resnet101").knobs)["input"] == "torchvision_rgb"
    for random in (
        start("largefov-r38", given="none"),
        start("aspp", init="random"),
        start("largefov-r38", width=0.5),
    ):
        assert random == Start("random")


def test_a_network_without_weights_says_what_to_bring(files):
    with pytest.raises(WeightsError, match=r"deeplab-v2-r101: no network\?") as caught:
        start("deeplab-v2-r101", "mobilenet_v2", files["mobile"])
    assert "--segmenter-weights FILE" in caught.value.hint
    assert "resnet101-" in caught.value.expected
    with pytest.raises(
        WeightsError, match="largefov-r38: there are no weights for resnet38"
    ) as caught:
        start("largefov-r38", "mobilenet_v2", files["mobile"])
    assert "ilsvrc-cls_rna" in caught.value.expected
    with pytest.raises(WeightsError, match="is not a file"):
        start("largefov-r38", given="nowhere.pth")


def test_a_classifier_of_another_network_is_refused(files):
    with pytest.raises(
        ConfigError, match="the classifier is a mobilenet_v2, and largefov-r38 is a resnet38"
    ) as caught:
        start("largefov-r38", "mobilenet_v2", files["mobile"], init="classifier")
    assert caught.value.hint == "--segmenter-weights FILE"


@pytest.mark.parametrize(
    ("network", "file", "message"),
    [
        ("deeplab-v2-r101", "res38", "looks like a ResNet-38"),
        ("deeplab-v2-r101", "mobile", "looks like a torchvision mobilenet_v2"),
        ("deeplab-v2-r101", "fov", "looks like a ResNet-38"),
        ("largefov-r38", "coco", "looks like a DeepLab-v2 ResNet-101"),
        ("largefov-r38", "vision", "looks like a torchvision resnet101"),
        ("aspp", "vision", "looks like a torchvision resnet101"),
    ],
)
def test_weights_of_another_network_are_named(files, network, file, message):
    with pytest.raises(WeightsError, match=message):
        start(network, given=files[file])


@pytest.mark.parametrize(("network", "file"), [("deeplab-v2-r101", "voc"), ("largefov-r38", "fov")])
def test_weights_for_another_class_count_are_named(files, network, file):
    with pytest.raises(
        WeightsError, match="a segmenter of 20 classes and background, and this one has 6"
    ):
        find_start(PRESETS[network], "resnet18", None, str(files[file]), 6)


# Runs


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "data"
    write_synthetic(folder, 12, 48, 0, 0.0)
    return folder


def pipeline(data: Path, run: Path, *settings: str, **more: Any) -> Plan:
    fast = [
        "cams.scales=1",
        "refine.refine=none",
        "segment.crf=none",
        "evaluate.threshold_from=label_free",
        *(f"{part}.workers=0" for part in ("classify", "cams", "segment")),
        "classify.precision=fp32",
        "segment.precision=fp32",
    ]
    options: dict[str, Any] = {
        "weights": "none",
        "until": "evaluate",
        "epochs": 1,
        "size": 48,
        **more,
    }
    return make_plan(
        Options(
            data=data,
            run=run,
            backbone="resnet18",
            device="cpu",
            settings=(*fast, *settings),
            **options,
        )
    )


def fitted(data: Path, run: Path, *settings: str, **more: Any) -> list[str]:
    said: list[str] = []
    run_plan(pipeline(data, run, *settings, **more), said.append)
    return said


@pytest.fixture(scope="module", params=["deeplab-v2-r101", "largefov-r38"])
def finished(request, scenes, tmp_path_factory) -> Iterator[tuple[str, Path]]:
    """A whole run; DeepLab-v2 with two blocks a layer, since what an export costs are its
    layers.
    """
    shallow = {name: (2, *rest) for name, (_, *rest) in deeplab_v2.LAYERS.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deeplab_v2, "LAYERS", shallow)
        run = tmp_path_factory.mktemp("runs") / request.param
        fitted(scenes, run, *THIN, segmenter=request.param, supervision="both")
        yield request.param, run


def test_a_run_says_which_segmenter_it_has(finished):
    name, run = finished
    manifest = json.loads((run / "manifest.json").read_text())
    assert (manifest["segmenter"], manifest["segmenter_supervision"]) == (
        name,
        "none (from scratch)",
    )
    assert manifest["config"]["segment"]["network"] == name
    for stage in ("segment", "segment_full"):
        for entry in current_evaluation(run)[stage].values():
            assert f"segmenter {name} trained on" in entry["protocol"]
    assert segment.load(run / "segment" / "model.pt", {})[2]["network"] == name


def test_graphs_equal_the_network(finished, tmp_path):
    name, run = finished
    scales = (1.0,) if name == "deeplab-v2-r101" else (0.5, 1.0)
    (report,) = export_run(run, "x", tmp_path, "segmenter", scales, flip=True)
    assert report["parity"]["equal_pixels"] >= 0.999
    card = json.loads((tmp_path / "x" / "1" / "model.json").read_text())
    assert card["source"]["segmenter"] == name
    assert ("mean logits" in card["protocol"]) == (name == "largefov-r38")
    assert len(card["thresholds"]["scores"]) == len(card["classes"])
    assert card["thresholds"]["score"] == min(card["thresholds"]["scores"])
    assert "score threshold" in card["protocol"]


def test_without_a_verdict_the_graph_is_left_alone(finished, tmp_path):
    _, run = finished
    export_run(run, "x", tmp_path, "segmenter", verdict=False)
    card = json.loads((tmp_path / "x" / "1" / "model.json").read_text())
    assert card["thresholds"] == {"background": None, "score": 0.5}
    assert "score threshold" not in card["protocol"]


def test_the_graph_at_one_scale_is_the_test_of_the_run(finished, tmp_path):
    """At one scale and without mirror the two must agree: nothing is resized."""
    name, run = finished
    config = replace(PRESETS[name], scales=(1.0,), flip=False)
    segmenter, network, _ = segment.load(run / "segment" / "model.pt", {}, config)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 52, 3), dtype=np.uint8)
    graph = segmenter.graph(network, (1.0,), False)
    with torch.no_grad():
        mask, _, confidence = graph(torch.from_numpy(pixels)[None])
        views = [segmenter.views().make(pixels, 1.0)[None]]
        chance = segmenter.probabilities(network, views, (40, 52))[0]
    top, label = chance.max(0)
    assert (mask[0] == label).float().mean() > 0.999
    assert (confidence[0].float() - 255 * top).abs().max() < 1.5


def test_a_size_for_all_images_and_a_verdict_go_from_run_to_server(scenes, tmp_path):
    run = tmp_path / "run"
    settings = ("segment.side=40", "cams.side=40", "segment.verdict=on", "segment.tag_loss=1")
    fitted(scenes, run, *settings, "segment.rates=1,2")
    metrics = json.loads((run / "manifest.json").read_text())["stages"]["segment"]["metrics"]
    assert len(metrics["least"]) == len(open_dataset(scenes).classes)
    export_run(run, "x", tmp_path, "all", (1.0,), flip=False)
    for name in ("x", "x-cam"):
        card = json.loads((tmp_path / name / "1" / "model.json").read_text())
        assert card["input"]["side"] == 40


def test_another_test_needs_no_other_training(finished, scenes):
    name, run = finished
    before = (run / "segment" / "model.pt").stat().st_mtime_ns
    flip = "off" if PRESETS[name].flip else "on"
    said = fitted(scenes, run, *THIN, f"segment.flip={flip}", segmenter=name, supervision="both")
    assert {line for line in said if "kept" in line} >= {
        "segment_train: done, kept",
        "segment_full_train: done, kept",
    }
    changed = {line.split(":")[0] for line in said if "changed" in line}
    assert changed == {"segment", "segment_full", "evaluate"}
    assert (run / "segment" / "model.pt").stat().st_mtime_ns == before
    fitted(scenes, run, *THIN, segmenter=name, supervision="both")


def test_weights_go_out_and_come_back_in(finished, tmp_path):
    name, run = finished
    note = export_weights(run, tmp_path / "out.pth")
    assert (note["network"], note["supervision"]) == (name, "image tags")
    assert json.loads((tmp_path / "out.json").read_text()) == note
    with torch.device("meta"):
        published = (DeepLabV2ResNet101 if name == "deeplab-v2-r101" else LargeFOVResNet38)(7)
    state = torch.load(tmp_path / "out.pth", weights_only=True)
    assert list(state) == list(published.state_dict())
    segmenter, network, _ = segment.load(run / "segment" / "model.pt", {})
    again = make_segmenter(segmenter.config, "resnet18", 6).build()
    report = segmenter.load(again, tmp_path / "out.pth")
    assert (report.missing, report.supervision) == ((), "image tags")
    assert all(
        torch.equal(v, network.state_dict()[k])
        for k, v in again.state_dict().items()
        if "num_batches" not in k
    )
    assert "masks" in export_weights(run, tmp_path / "full.pth", "segment_full")["supervision"]


def test_the_commands_of_weights(finished, files, tmp_path):
    _, run = finished
    said = CliRunner().invoke(
        app, ["weights", "export", str(run), "--out", str(tmp_path / "a.pth"), "--json"]
    )
    assert json.loads(said.stdout)["sha256"] == file_sha256(tmp_path / "a.pth")
    said = CliRunner().invoke(
        app, ["weights", "import", str(files["coco"]), "--as", "deeplab-v2-r101"]
    )
    assert "supervision COCO masks (EXTRA SUPERVISION" in said.stderr
    assert Path(said.stdout.strip()).is_file()
    said = CliRunner().invoke(app, ["weights", "list", "--json"])
    assert {row["backbone"]: row["supervision"] for row in json.loads(said.stdout)}[
        "deeplab-v2-r101"
    ] == "COCO masks"


def test_a_name_of_the_cache_is_a_start(files):
    with pytest.raises(WeightsError, match=r"no network\?"):
        start("deeplab-v2-r101", given="deeplab-v2-r101")
    import_weights(files["coco"], "deeplab-v2-r101")
    assert start("deeplab-v2-r101", given="deeplab-v2-r101").supervision("x") == "COCO masks"
    # Without being named it is not taken: masks would come in by themselves.
    with pytest.raises(WeightsError, match=r"no network\?"):
        start("deeplab-v2-r101")


def test_impossible_segmenters_end_before_the_work(scenes, files, tmp_path):
    fit = ["fit", str(scenes), "--run", str(tmp_path / "run"), "--weights", "none"]
    for more, message in (
        (["--segmenter", "deeplab-v2"], "there is no segmenter 'deeplab-v2'"),
        (
            ["--segmenter", "largefov-r38", "--segmenter-weights", str(files["vision"])],
            "looks like a torchvision resnet101",
        ),
        (["--segmenter-weights", "nowhere.pth"], "nowhere.pth is not a file"),
        (
            ["--segmenter", "largefov-r38", "--set", "segment.init=classifier"],
            "the classifier is a mobilenet_v2",
        ),
        (
            [
                "--segmenter",
                "largefov-r38",
                "--set",
                "segment.bn=train",
                "--segmenter-weights",
                "none",
            ],
            "batch norm mode 'train'",
        ),
    ):
        error = CliRunner().invoke(app, [*fit, *more]).exception
        assert isinstance(error, UserError), error
        assert message in error.found
        assert error.expected
    assert not (tmp_path / "run" / "manifest.json").exists()


def test_nothing_to_hand_on_is_said(scenes, tmp_path):
    fitted(scenes, tmp_path / "run", until="classify")
    with pytest.raises(RunError, match="no finished stage 'segment'"):
        export_weights(tmp_path / "run", tmp_path / "x.pth")
    with pytest.raises(ConfigError, match=r"--out .*x\.json"):
        export_weights(tmp_path / "run", tmp_path / "x.json")


@pytest.mark.parametrize("network", ["aspp", "deeplab-v2-r101", "largefov-r38"])
def test_a_broken_training_goes_on_to_the_same_weights(scenes, tmp_path, monkeypatch, network):
    knobs = [
        "segment.checkpoint_minutes=0",
        "segment.ema=0.9",
        "segment.teacher=replace",
        "segment.teacher_after=0",
    ]
    knobs += ["segment.teacher_confidence=0.2", "segment.batch=3"]
    more = {
        "segmenter": network,
        "epochs": 2,
        "until": "segment",
        "supervision": "full",
        "segmenter_weights": "none",
    }
    knobs += THIN[:1] if network != "aspp" else []
    fitted(scenes, tmp_path / "whole", *knobs, **more)
    update, steps = loop.Trainer.update, []

    def fail_once(self, *arguments):
        steps.append(self.step)
        if len(steps) == 4:
            raise KeyboardInterrupt
        update(self, *arguments)

    monkeypatch.setattr(loop.Trainer, "update", fail_once)
    with pytest.raises(KeyboardInterrupt):
        fitted(scenes, tmp_path / "broken", *knobs, **more)
    assert list((tmp_path / "broken" / "segment_full").glob("checkpoint-*.pt"))
    fitted(scenes, tmp_path / "broken", *knobs, **more)
    paths = (tmp_path / name / "segment_full" / "model.pt" for name in ("whole", "broken"))
    first, second = (torch.load(path, weights_only=True)["state"] for path in paths)
    assert all(torch.equal(v, second[k]) for k, v in first.items())


def test_masks_in_the_start_are_said_wherever_numbers_stand(scenes, tmp_path):
    weights = tmp_path / "coco.pth"
    torch.save(build_backbone("resnet18").state_dict(), weights)
    note = {"sha256": file_sha256(weights), "supervision": "COCO masks", "kind": "state dict"}
    weights.with_suffix(".json").write_text(json.dumps(note))
    more = {"segmenter_weights": str(weights), "supervision": "both", "until": "report"}
    small = ("segment.rates=1,2", "segment.scales=1", "classify.validate=off")
    line = pipeline(scenes, tmp_path / "run", *small, **more)
    assert "EXTRA SUPERVISION" in str(line.context.start.report)
    run_plan(line, lambda text: None)
    run = tmp_path / "run"
    evaluation = current_evaluation(run)
    for stage, extra in {
        "cam": False,
        "refined": False,
        "segment": True,
        "segment_full": True,
    }.items():
        for entry in evaluation[stage].values():
            assert ("COCO masks (EXTRA SUPERVISION" in entry["protocol"]) == extra
            assert ("EXTRA SUPERVISION" in entry["conditions"]["initial_weights"]) == extra
    assert (run / "report.html").read_text().count("EXTRA SUPERVISION") >= 3
    export_run(run, "x", tmp_path / "exported", "segmenter")
    card = json.loads((tmp_path / "exported" / "x" / "1" / "model.json").read_text())
    assert "EXTRA SUPERVISION" in card["supervision"]
    assert all("EXTRA SUPERVISION" in entry["protocol"] for entry in card["metrics"].values())
    assert export_weights(run, tmp_path / "out.pth")["supervision"] == "image tags, from COCO masks"
