from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_nets import TinyBackbone, pictures

from trainer.data.transforms import sample_rng
from trainer.errors import ConfigError, WeightsError
from trainer.methods import recipes
from trainer.methods.cam import Cam, Config
from trainer.methods.recipes import RECIPES, ClassifyConfig, make_config, recipe
from trainer.methods.registry import build_method, load_method
from trainer.methods.samples import make_sample
from trainer.options import Options, make_configs
from trainer.run import Metrics, Output
from trainer.stages import classify
from trainer.stages.classify import mean_average_precision

QUICK = ClassifyConfig(
    epochs=2, batch=2, crop=32, resize=(32, 48), workers=0, precision="fp32", lr=1e-2, momentum=0.9
)


@pytest.mark.parametrize(
    ("backbone", "weights", "name"),
    [
        ("resnet38", None, "psa"),
        ("resnet50", "file.pth", "irn"),
        ("resnet101", None, "irn"),
        ("mobilenet_v2", None, "small"),
        ("resnet18", None, "small"),
        ("resnet50", "none", "scratch"),
    ],
)
def test_the_recipe_follows_the_backbone(backbone, weights, name):
    assert recipe(backbone, weights) == name


def test_published_recipes():
    psa, irn = RECIPES["psa"], RECIPES["irn"]
    assert (psa.lr, psa.new_factor, psa.weight_decay, psa.batch, psa.epochs) == (
        0.1,
        10.0,
        5e-4,
        16,
        15,
    )
    assert (psa.resize, psa.crop, psa.jitter, psa.momentum) == ((256, 512), 448, True, "code")
    assert (irn.lr, irn.new_factor, irn.weight_decay, irn.batch, irn.epochs) == (
        0.1,
        10.0,
        1e-4,
        16,
        5,
    )
    assert (irn.resize, irn.crop, irn.jitter, irn.momentum) == ((320, 640), 512, False, "code")
    assert (irn.output_stride, irn.dilate, irn.bn, irn.detach_after) == (
        16,
        False,
        "stats",
        "stage2",
    )


def test_an_unknown_recipe_or_knob_shows_the_nearest():
    with pytest.raises(ConfigError, match="no recipe 'iron'") as caught:
        make_config("iron", {})
    assert "did you mean 'irn'?" in caught.value.expected
    with pytest.raises(ConfigError, match="no knob 'epoch'"):
        make_config("irn", {"epoch": 3})


def test_backbones_are_built_as_the_recipe_says():
    assert recipes.backbone_knobs("resnet38", RECIPES["psa"]) == {}
    assert recipes.backbone_knobs("resnet50", RECIPES["irn"]) == {
        "bn": "stats",
        "dilate": False,
        "detach_after": "stage2",
        "output_stride": 16,
    }
    assert "output_stride" not in recipes.backbone_knobs("resnet18", ClassifyConfig())


def options(**changes) -> Options:
    return Options(Path("data"), Path("run"), **changes)


def test_size_scales_crop_and_resize_together():
    plain = make_configs(options(backbone="resnet38"))
    small = make_configs(options(backbone="resnet38", size=224))
    assert (plain.classify.crop, plain.classify.resize) == (448, (256, 512))
    assert (small.classify.crop, small.classify.resize) == (224, (128, 256))
    assert small.segment.crop == 224
    assert make_configs(options(backbone="resnet50", size=100)).classify.resize == (62, 125)


def test_settings_win_over_short_options_and_these_over_the_recipe():
    made = make_configs(
        options(backbone="resnet50", epochs=3, size=256, settings=("classify.resize=100,200",))
    )
    assert (made.classify.epochs, made.classify.crop, made.classify.resize) == (3, 256, (100, 200))
    assert made.segment.epochs == 3
    assert made.classify.bn == "stats"
    own = make_configs(
        options(epochs=3, settings=("segment.epochs=7", "method.pooling=gmp", "classify.epochs=4"))
    )
    assert (own.classify.epochs, own.segment.epochs, own.method.pooling) == (4, 7, "gmp")
    other = make_configs(options(backbone="resnet50", recipe="small"))
    assert other.classify == RECIPES["small"]


@pytest.mark.parametrize(
    ("setting", "nearest"),
    [
        ("clasify.lr=1", "classify"),
        ("classify.learning_rat=1", "lr"),
        ("method.pool=gap", "pooling"),
    ],
)
def test_unknown_settings_of_a_run(setting, nearest):
    with pytest.raises(ConfigError) as caught:
        make_configs(options(settings=(setting,)))
    assert nearest in caught.value.expected


def test_a_sample_is_a_view_and_its_tags(tmp_path):
    record = pictures(tmp_path).subset("all")[2]
    sample = make_sample(record, sample_rng(0, 0, 0), QUICK, 5)
    assert sample["image"].shape == (3, 32, 32)
    assert sample["tags"].tolist() == [0, 0, 1, 0, 0]


class Oracle(Cam):
    """Reads the class from the colour of the square, with classes ``wrong`` mixed up."""

    def __init__(self, wrong: bool) -> None:
        super().__init__(Config(), TinyBackbone(), 3)
        self.wrong = wrong

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = images.mean((2, 3))
        return logits.roll(1, 1) if self.wrong else logits


def test_mean_average_precision(tmp_path):
    data = pictures(tmp_path)
    records = data.subset("all")
    assert mean_average_precision(Oracle(False), data, records, QUICK, "cpu") == 1.0
    assert mean_average_precision(Oracle(True), data, records, QUICK, "cpu") < 0.6
    # A class that no image has is left out.
    assert (
        mean_average_precision(
            Oracle(False), data, [r for r in records if r.tags != (1,)], QUICK, "cpu"
        )
        == 1.0
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A classify stage of two epochs."""
    root = tmp_path_factory.mktemp("classify")
    data, stage = pictures(root / "data"), Output(root / "classify")
    stage.folder.mkdir()
    knobs = recipes.backbone_knobs("resnet18", replace(QUICK, output_stride=16))
    module = build_method("cam", Config(pooling="gmp"), "resnet18", knobs, 3)
    identity = {
        "method": "cam",
        "method_config": {f.name: getattr(module.config, f.name) for f in fields(Config)},
        "backbone": "resnet18",
        "backbone_knobs": knobs,
        "classes": list(data.classes),
    }
    records, metrics = data.subset("all"), Metrics(root / "metrics.csv", "classify")
    classify.classify(module, data, records, records[:3], QUICK, stage, metrics, 0, identity, "cpu")
    return root, stage, identity, module


def test_training_writes_weights_that_load(trained):
    root, stage, identity, module = trained
    assert stage.outputs == {"count": 1, "weights": "model.pt", "images": 6}
    assert 0 <= stage.metrics["val_map"] <= 1
    assert [p.name for p in stage.folder.iterdir()] == ["model.pt"]
    assert (root / "metrics.csv").read_text().count("val_map") == 2
    again = load_method(
        stage.folder / "model.pt", {k: identity[k] for k in ("method", "backbone", "classes")}
    )
    assert not again.training
    assert isinstance(again, Cam)
    assert again.config == Config(pooling="gmp")
    image = torch.randn(1, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(
            again.cams(image), module.eval().cams(image)
        )  # not equal: the trained one is channels-last


def test_images_without_tags_cannot_be_validated_on(tmp_path):
    data, stage = pictures(tmp_path / "data", count=4), Output(tmp_path / "classify")
    stage.folder.mkdir()
    module = Cam(Config(), TinyBackbone(), 3)
    untagged = [replace(r, tags=()) for r in data.subset("all")]
    metrics = Metrics(tmp_path / "metrics.csv", "classify")
    classify.classify(
        module, data, data.subset("all"), untagged, QUICK, stage, metrics, 0, {}, "cpu"
    )
    assert "val_map" not in stage.metrics
    assert np.isfinite(stage.metrics["loss"])


@pytest.mark.parametrize(
    ("key", "value"), [("classes", ["c0", "c1"]), ("method", "seam"), ("backbone", "resnet34")]
)
def test_weights_of_something_else_are_refused(trained, key, value):
    with pytest.raises(WeightsError, match=f"was made with {key}") as caught:
        load_method(trained[1].folder / "model.pt", {key: value})
    assert caught.value.expected == f"{key} = {value}"
    assert "another --run" in caught.value.hint


def test_missing_and_damaged_weights(trained, tmp_path):
    with pytest.raises(WeightsError, match="is missing") as caught:
        load_method(tmp_path / "model.pt", {})
    assert "fit again" in caught.value.hint
    (tmp_path / "model.pt").write_bytes((trained[1].folder / "model.pt").read_bytes()[:-100])
    with pytest.raises(WeightsError, match="cannot be read"):
        load_method(tmp_path / "model.pt", {})
    torch.save({"state_dict": {}}, tmp_path / "model.pt")
    with pytest.raises(WeightsError, match="cannot be read"):
        load_method(tmp_path / "model.pt", {})
