"""The contrast of segments: its loss against numpy, its segments, and runs that train with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from golden import U
from PIL import Image
from tiny_nets import TinyBackbone

from trainer.context import results_of
from trainer.data.pixels import image_size
from trainer.data.superpixels import read_ids
from trainer.errors import ConfigError, DataError
from trainer.evaluation.over_seeds import evaluation_of
from trainer.fit import fit as run_plan
from trainer.methods.cam import Cam, Config
from trainer.methods.contrast import contrast_loss, index_map
from trainer.methods.linear import LinearConfig
from trainer.options import Options
from trainer.plan import make_plan
from trainer.scenes.writing import write_synthetic
from trainer.training.loop import step_rng


def expected_loss(features_BDhw: npt.NDArray[Any], segments_Bhw: npt.NDArray[Any]) -> float:
    """S2C's loss in plain loops: mean over cells with a segment, then over images with one."""
    images = []
    for image, ids in zip(features_BDhw, segments_Bhw):
        cells = [
            (image[:, y, x] / max(np.linalg.norm(image[:, y, x]), 1e-12), int(ids[y, x]))
            for y in range(ids.shape[0])
            for x in range(ids.shape[1])
            if ids[y, x]
        ]
        if not cells:
            continue
        numbers = sorted({number for _, number in cells})
        means = [np.mean([f for f, n in cells if n == number], 0) for number in numbers]
        prototypes = [mean / np.linalg.norm(mean) for mean in means]
        losses = []
        for f, number in cells:
            scores = np.array([f @ prototype for prototype in prototypes])
            losses.append(np.log(np.exp(scores).sum()) - scores[numbers.index(number)])
        images.append(np.mean(losses))
    return float(np.mean(images))


def golden() -> tuple[torch.Tensor, torch.Tensor]:
    segments = (8 * U((3, 5, 6), 82)).long()
    # Gaps in the ids, an image without any segment, and one with a single segment.
    segments[0][segments[0] == 3] = 40_000
    segments[1] = 0
    segments[2] = (segments[2] > 4).long()
    return 2 * U((3, 7, 5, 6), 81) - 1, segments


def test_golden_loss():
    features, segments = golden()
    loss = contrast_loss(features, segments).item()
    assert loss == pytest.approx(expected_loss(features.numpy(), segments.numpy()), rel=1e-12)
    alone = contrast_loss(features[:1], segments[:1]).item()
    # The only segment of an image is always named right.
    assert loss == pytest.approx(alone / 2, rel=1e-12)
    assert alone > 1


def test_without_segments_it_is_0_and_has_a_gradient():
    features = golden()[0].requires_grad_()
    loss = contrast_loss(features, torch.zeros(3, 5, 6, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0
    assert not features.grad.any()


def test_means_of_segments_are_fixed_targets():
    features, segments = (x[:1] for x in golden())
    free = features.clone().requires_grad_()
    contrast_loss(free, segments).backward()
    inside = (segments > 0)[0]
    assert free.grad[0][:, inside].abs().sum(0).all()
    assert not free.grad[0][:, ~inside].any()
    # A step of a single cell changes the loss as its own gradient says: its mean stays.
    unit = torch.nn.functional.normalize(features, dim=1)[0].flatten(1).T
    ids = segments.flatten()
    numbers = [n for n in ids.unique().tolist() if n]
    means = torch.stack([unit[ids == n].mean(0) for n in numbers])
    prototypes = torch.nn.functional.normalize(means, dim=1)
    cell = int(inside.flatten().nonzero()[0])
    own = features[0].flatten(1)[:, cell].clone().requires_grad_()
    scores = torch.nn.functional.normalize(own, dim=0) @ prototypes.T
    target = numbers.index(int(ids[cell]))
    (scores.logsumexp(0) - scores[target]).div(int(inside.sum())).backward()
    torch.testing.assert_close(free.grad[0].flatten(1)[:, cell], own.grad)


def test_training_pulls_segments_together_and_apart():
    torch.manual_seed(0)
    features = torch.randn(1, 8, 6, 6, requires_grad=True)
    segments = torch.ones(1, 6, 6, dtype=torch.int64)
    segments[:, :, 3:] = 2
    optimiser = torch.optim.SGD([features], 50.0)
    before = contrast_loss(features, segments).item()
    for _ in range(200):
        optimiser.zero_grad()
        loss = contrast_loss(features, segments)
        loss.backward()
        optimiser.step()
    unit = torch.nn.functional.normalize(features.detach(), dim=1)[0]
    left, right = unit[:, :, :3].flatten(1), unit[:, :, 3:].flatten(1)
    assert loss.item() < before - 0.3
    assert (left.T @ left).min() > 0.9
    assert (left.T @ right).max() < 0


def test_smaller_segments_lie_over_larger_ones():
    large, small = np.arange(12), np.array([1, 2, 5])
    ids = index_map([small, large], (3, 4))
    assert ids.tolist() == [[1, 2, 2, 1], [1, 2, 1, 1], [1, 1, 1, 1]]
    assert not index_map([], (2, 2)).any()


def cam(**knobs: Any) -> Cam:
    torch.manual_seed(0)
    return Cam(Config(**knobs), TinyBackbone(), 3).train()


def batch() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    return {
        "image": torch.randn(2, 3, 32, 48, generator=draw),
        "tags": torch.tensor([[1.0, 0, 1], [0, 1, 0]]),
        "segments": torch.randint(0, 5, (2, 32, 48), generator=draw),
    }


def test_cam_has_the_contrast_beside_the_loss_of_the_tags():
    plain, module = cam(), cam(contrast=2.0)
    terms = module.loss(batch(), step_rng(0, 0))
    assert set(plain.loss(batch(), step_rng(0, 0))) == {"cls"}
    assert set(terms) == {"cls", "contrast"}
    small = module.embedding(module.features(batch()["image"]))
    large = torch.nn.functional.interpolate(small, (8, 12), mode="bilinear", align_corners=False)
    ids = batch()["segments"][:, ::4, ::4]
    value = 2 * expected_loss(large.detach().double().numpy(), ids.numpy())
    assert terms["contrast"].item() == pytest.approx(value, rel=1e-5)
    terms["contrast"].backward()
    assert module.embedding.weight.grad.any()
    assert module.backbone.second.weight.grad.any()
    assert module.classifier.weight.grad is None


def test_without_contrast_nothing_changes():
    assert set(cam().state_dict()) == {k for k in cam(contrast=1.0).state_dict() if "emb" not in k}
    # Keys of stages of earlier versions stay.
    assert results_of(Config()) == results_of(LinearConfig())
    assert "contrast" in results_of(Config(contrast=1.0))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "data"
    write_synthetic(folder, 12, 64, classes=3)
    return folder


def options(data: Path, run: Path, *settings: str, until: str = "classify") -> Options:
    knobs = ("classify.workers=0", "classify.precision=fp32", "classify.validate=off")
    return Options(
        data,
        run,
        weights="none",
        epochs=1,
        size=48,
        device="cpu",
        until=until,
        settings=(*knobs, "method.contrast=1", *settings),
    )


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "trainer.methods.registry.build_backbone", lambda name, **knobs: TinyBackbone()
    )


def fit(given: Options) -> dict[str, str]:
    lines: list[str] = []
    run_plan(make_plan(given), lines.append)
    return {line.split(": ")[0]: line.split(": ")[1].split(",")[0][:8].strip() for line in lines}


def test_a_run_contrasts_super_pixels(data, tmp_path, tiny):
    run = tmp_path / "run"
    superpixels = ("method.superpixels=20",)
    assert fit(options(data, run, *superpixels)) == {"segments": "to do", "classify": "to do"}
    rows = (run / "metrics.csv").read_text()
    assert "loss_contrast" in rows
    images = json.loads((run / "manifest.json").read_text())["stages"]["segments"]["outputs"]
    assert images["count"] == len(list((run / "segments").glob("*.png")))
    assert set(fit(options(data, run, *superpixels)).values()) == {"done"}
    again = fit(options(data, run, "method.superpixels=30"))
    assert again == {"segments": "settings", "classify": "settings"}


def test_segments_of_the_user_train_and_are_named_in_the_protocol(data, tmp_path, tiny):
    folder, run = tmp_path / "given", tmp_path / "run"
    folder.mkdir()
    for image in (data / "JPEGImages").glob("*.jpg"):
        ids = np.zeros(image_size(image), np.uint8)
        ids[:20], ids[30:40, 10:20] = 3, 9
        Image.fromarray(ids).save(folder / f"{image.stem}.png")
    given = options(data, run, f"method.segments={folder}", until="cams")
    assert list(fit(given)) == ["segments", "classify", "cams"]
    written = read_ids(next((run / "segments").glob("*.png")))
    assert np.unique(written[:20]).tolist() == [1]
    assert np.unique(written[30:40, 10:20]).tolist() == [2]
    assert (written == 0).sum() == written.size - written[:20].size - 100
    lines = [entry["protocol"] for entry in evaluation_of(run)["cam"].values()]
    assert lines
    assert all("tags" in line and "and segments given by the user" in line for line in lines)


def test_segments_that_are_not_there(data, tmp_path, tiny):
    with pytest.raises(ConfigError, match="is no folder"):
        make_plan(options(data, tmp_path / "run", "method.segments=nowhere"))
    (tmp_path / "empty").mkdir()
    plan = make_plan(options(data, tmp_path / "run", f"method.segments={tmp_path / 'empty'}"))
    with pytest.raises(DataError, match="images have no segments") as caught:
        run_plan(plan, lambda line: None)
    assert "method.segments=superpixels" in caught.value.hint
