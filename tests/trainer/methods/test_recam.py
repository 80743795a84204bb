"""ReCAM: its loss and maps by hand, and its two trainings as stages of a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from tiny_nets import TinyBackbone

from trainer.errors import ConfigError, WeightsError
from trainer.fit import fit as run_plan
from trainer.methods.recam import Config, Recam, reactivation_loss
from trainer.methods.recipes import IRN
from trainer.methods.second_training import shortened
from trainer.options import Options, make_configs
from trainer.plan import make_plan
from trainer.scenes.writing import write_synthetic
from trainer.training.loop import step_rng
from trainer.weights.released import load_classifier

Float = npt.NDArray[np.float64]
TAGS = [[1.0, 0, 1], [0, 0, 0], [0, 1, 0], [1, 1, 1]]


def method(**knobs: Any) -> Recam:
    torch.manual_seed(0)
    return Recam(Config(**knobs), TinyBackbone(), 3).train()


def images(count: int = 4) -> torch.Tensor:
    return torch.randn(count, 3, 24, 32, generator=torch.Generator().manual_seed(1))


def by_hand(f_BChw: Float, w_KC: Float, head_KC: Float, tags_BK: Float) -> float:
    """The cross-entropy of the maps, image by image and class by class, in float64."""
    total = 0.0
    for f, tags in zip(f_BChw, tags_BK):
        losses = []
        for k in np.flatnonzero(tags):
            a = np.maximum(np.tensordot(w_KC[k], f, 1), 0)
            a = a / (a.max() + 1e-5)
            logits = head_KC @ (a * f).mean((1, 2))
            losses.append(np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[k])
        if losses:
            total += sum(losses) / len(losses)
    return total / len(tags_BK)


def test_the_loss_by_hand():
    module, tags = method(weight=3.0), torch.tensor(TAGS)
    terms = module.loss({"image": images(), "tags": tags}, step_rng(0, 0))
    with torch.no_grad():
        f = module.features(images()).double().numpy()
    w, head = (
        layer.weight.detach().double().flatten(1).numpy()
        for layer in (module.classifier, module.reclassifier)
    )
    assert set(terms) == {"cls", "map"}
    assert terms["map"].item() == pytest.approx(3 * by_hand(f, w, head, np.array(TAGS)), rel=1e-5)
    y = f.mean((2, 3)) @ w.T
    signs = 2 * np.array(TAGS) - 1
    assert terms["cls"].item() == pytest.approx(np.log1p(np.exp(-signs * y)).mean(), rel=1e-5)


def test_images_count_alike_however_many_classes_they_show():
    # A head that always says the first class: the second costs log(1 + e^9) and the first nothing.
    weight = torch.tensor([[9.0], [0.0]])[:, :, None, None]
    f, maps = torch.ones(2, 1, 2, 2), torch.ones(2, 2, 2, 2)
    loss = reactivation_loss(
        maps, f, lambda x: torch.nn.functional.conv2d(x, weight), torch.tensor([[1.0, 1], [0, 1]])
    )
    # The mean over the image's classes first: (0 + 9) / 2 and 9, not 18 / 3.
    assert loss.item() == pytest.approx((9 / 2 + 9) / 2, rel=1e-3)


def test_maps_by_hand():
    module = method().eval()
    with torch.inference_mode():
        maps, logits = module.cams_and_logits(images(1))
        f = module.features(images(1))[0].double().numpy()
    w, head = (
        layer.weight.detach().double().flatten(1).numpy()
        for layer in (module.classifier, module.reclassifier)
    )
    expected = np.maximum(np.einsum("kc,chw->khw", w * head, f), 0)
    np.testing.assert_allclose(maps[0].numpy(), expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(logits[0].numpy(), w @ f.mean((1, 2)), rtol=1e-4, atol=1e-6)


def test_every_layer_trains_on_the_maps():
    module = method()
    terms = module.loss({"image": images(), "tags": torch.tensor(TAGS)}, step_rng(0, 0))
    terms["map"].backward()
    for weight in (
        module.classifier.weight,
        module.reclassifier.weight,
        module.backbone.second.weight,
    ):
        assert weight.grad is not None
        assert weight.grad.any()


def test_rates_of_the_published_training():
    configs = make_configs(
        Options(Path("d"), Path("r"), method="recam", backbone="resnet50", preset="code")
    )
    assert configs.classify.detach_after == "none"
    second = shortened(configs.method, configs.classify)
    assert (second.epochs, second.batch, second.weight_decay) == (4, 16, 1e-4)
    groups = method().param_groups(second.lr, second.weight_decay, second.new_factor)
    assert [(g["name"], pytest.approx(g["lr"])) for g in groups] == [
        ("backbone", 5e-5),
        ("new", 5e-4),
    ]
    assert [p.shape for p in groups[1]["params"]] == [(3, 6, 1, 1)]


@pytest.mark.parametrize(
    ("knobs", "expected"),
    [
        ({"epochs": 5}, (4, 0, 0)),
        ({"epochs": 1, "updates": 500, "warmup": 50}, (1, 400, 40)),
    ],
)
def test_length_of_the_second_training(knobs, expected):
    second = shortened(Config(), replace(IRN, **knobs))
    assert (second.epochs, second.updates, second.warmup) == expected


@pytest.mark.parametrize(
    "knobs", [{"weight": -1}, {"second_lr": 0}, {"second_length": 0}, {"first": "nothing.pt"}]
)
def test_impossible_knobs(knobs):
    with pytest.raises(ConfigError):
        Config(**knobs)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "data"
    write_synthetic(folder, 16, 64, classes=3)
    return folder


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network of two layers, for tests of what is trained when."""
    monkeypatch.setattr(
        "trainer.methods.registry.build_backbone", lambda name, **knobs: TinyBackbone()
    )


def fit(data: Path, run: Path, *settings: str, **changes: Any) -> dict[str, str]:
    """What was said of each stage: ``done``, ``to do`` or ``settings``."""
    always = ("classify.workers=0", "classify.precision=fp32", "classify.validate=off")
    given: dict[str, Any] = {"method": "recam", "weights": "none", "epochs": 2, "size": 64}
    given |= {"device": "cpu", "until": "classify", **changes}
    lines: list[str] = []
    run_plan(make_plan(Options(data, run, settings=(*always, *settings), **given)), lines.append)
    return {line.split(": ")[0]: line.split(": ")[1].split(",")[0][:8].strip() for line in lines}


def state(run: Path, stage: str) -> dict[str, torch.Tensor]:
    content = torch.load(run / stage / "model.pt", weights_only=True)
    return content["state"]


def test_two_trainings_of_a_run(data, tmp_path):
    run = tmp_path / "run"
    assert fit(data, run) == {"first": "to do", "classify": "to do"}
    first, second = state(run, "first"), state(run, "classify")
    assert "reclassifier.weight" not in first
    assert second["reclassifier.weight"].shape == (3, 6, 1, 1)
    rows = (run / "metrics.csv").read_text()
    assert "first,2,2,loss_cls" in rows
    assert "first,2,2,loss_map" not in rows
    assert "classify,2,2,loss_map" in rows
    # It goes on from the first: at such a rate nothing but the new head is new.
    fit(data, tmp_path / "slow", "method.second_lr=1e-6")
    slow = state(tmp_path / "slow", "classify")
    torch.testing.assert_close(slow["classifier.weight"], first["classifier.weight"])
    assert not torch.equal(second["classifier.weight"], first["classifier.weight"])
    assert fit(data, run, "method.weight=2") == {"first": "done", "classify": "settings"}
    assert fit(data, run, "method.dropout=0.1") == {"first": "settings", "classify": "settings"}


def test_the_first_training_is_cam_and_may_come_from_a_file(data, tmp_path):
    fit(data, tmp_path / "cam", method="cam")
    fit(data, tmp_path / "both")
    plain, first = (
        state(tmp_path / run, stage) for run, stage in (("cam", "classify"), ("both", "first"))
    )
    assert all(torch.equal(first[key], plain[key]) for key in plain)
    assert fit(data, tmp_path / "off", "method.second=off") == {"classify": "to do"}
    off = state(tmp_path / "off", "classify")
    assert all(torch.equal(off[key], plain[key]) for key in plain)
    file = tmp_path / "cam" / "classify" / "model.pt"
    fit(data, tmp_path / "taken", f"method.first={file}")
    taken, both = (state(tmp_path / run, "classify") for run in ("taken", "both"))
    assert all(torch.equal(taken[key], both[key]) for key in both)


def test_a_file_of_recam_is_not_one_of_cam(data, tmp_path):
    fit(data, tmp_path / "run")
    file = tmp_path / "run" / "classify" / "model.pt"
    with pytest.raises(WeightsError, match="looks like recam"):
        load_classifier(method(second=False), file)
    with pytest.raises(WeightsError, match=r"it has no reclassifier\.weight"):
        load_classifier(method(), tmp_path / "run" / "first" / "model.pt")
