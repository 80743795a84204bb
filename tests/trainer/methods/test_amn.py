"""AMN: its loss and maps by hand, its labels, and its stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from tiny_nets import TinyBackbone

from trainer.data.dataset import Record, read_index_png
from trainer.data.formats.opening import open_dataset
from trainer.data.palette import write_index_png
from trainer.data.pixels import image_size
from trainer.errors import ConfigError
from trainer.fit import fit as run_plan
from trainer.methods.amn import Amn, Config, as_target, gentle, label_loss, read_label
from trainer.options import Options, make_configs
from trainer.plan import make_plan
from trainer.scenes.writing import write_synthetic
from trainer.training.loop import step_rng

Float = npt.NDArray[np.float64]


def method(**knobs: Any) -> Amn:
    torch.manual_seed(0)
    return Amn(Config(tag_dropout=0, **knobs), TinyBackbone(), 3).train()


def images(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, 24, 32, generator=torch.Generator().manual_seed(1))


def by_hand(logits_BLhw: Float, label_Bhw: npt.NDArray[Any], smoothing: float) -> float:
    """Half the mean over background and half that over classes, pixel by pixel."""
    losses: dict[bool, list[float]] = {True: [], False: []}
    count = logits_BLhw.shape[1]
    for logits, label in zip(logits_BLhw, label_Bhw):
        for (row, column), value in np.ndenumerate(label):
            if value == 0:
                continue
            z = logits[:, row, column]
            log_p = z - z.max() - np.log(np.exp(z - z.max()).sum())
            target = np.full(count, smoothing / (count - 1))
            target[value - 1] = 1 - smoothing
            losses[value == 1].append(-float(target @ log_p))
    return sum(sum(kind) / len(kind) for kind in losses.values() if kind) / 2


@pytest.mark.parametrize("smoothing", [0.0, 0.4])
def test_the_loss_by_hand(smoothing):
    rng = np.random.default_rng(0)
    logits, label = rng.normal(size=(2, 4, 5, 6)), rng.integers(0, 5, (2, 5, 6))
    loss = label_loss(torch.from_numpy(logits), torch.from_numpy(label), smoothing)
    assert loss.item() == pytest.approx(by_hand(logits, label, smoothing), rel=1e-9)


def test_open_pixels_and_absent_halves_cost_nothing():
    logits = torch.randn(1, 4, 2, 2, requires_grad=True)
    loss = label_loss(logits, torch.zeros(1, 2, 2, dtype=torch.int64), 0.4)
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()
    ground = label_loss(logits, torch.ones(1, 2, 2, dtype=torch.int64), 0.0)
    assert ground.item() == pytest.approx(-logits.log_softmax(1)[:, 0].mean().item() / 2, rel=1e-5)


def test_scores_of_labels_by_hand():
    module, tags = method(), torch.tensor([[1.0, 0, 1], [0, 1, 0]])
    with torch.no_grad():
        f = module.features(images())
        z = module.label_logits(f, tags).double().numpy()
    layers = {k: p.detach().double().numpy() for k, p in module.segmenter.named_parameters()}
    wanted = tags.double().numpy() @ layers["tags.weight"].T + layers["tags.bias"]
    x = f.double().numpy() * wanted[:, :, None, None]
    expected = np.zeros_like(z)
    height, width = x.shape[2:]
    for n, rate in enumerate((6, 12, 18, 24)):
        padded = np.pad(x, ((0, 0), (0, 0), (rate, rate), (rate, rate)))
        for i in range(3):
            for j in range(3):
                part = padded[:, :, i * rate : i * rate + height, j * rate : j * rate + width]
                expected += np.einsum(
                    "lc,bchw->blhw", layers[f"aspp.c{n}.weight"][:, :, i, j], part
                )
    np.testing.assert_allclose(z, expected, rtol=1e-4, atol=1e-6)


def test_terms_and_maps():
    module, tags = method(), torch.tensor([[1.0, 0, 1], [0, 1, 0]])
    label = torch.ones(2, 24, 32, dtype=torch.int64)
    label[0, :, 16:] = 4
    terms = module.loss({"image": images(), "tags": tags, "label": label}, step_rng(0, 0))
    assert set(terms) == {"cls", "label"}
    with torch.no_grad():
        z = module.label_logits(module.features(images()), tags).double().numpy()
    # Every fourth pixel: the network has stride 4.
    small = label[:, ::4, ::4].numpy()
    assert terms["label"].item() == pytest.approx(by_hand(z, small, 0.4), rel=1e-5)
    maps, logits = module.eval().cams_and_logits(images())
    with torch.no_grad():
        z = module.label_logits(module.features(images()), logits.sigmoid())
    torch.testing.assert_close(maps, z.softmax(1)[:, 1:])


def test_labels_of_the_samples(tmp_path):
    label = np.array([[0, 255], [2, 0]], np.uint8)
    write_index_png(tmp_path / "a.png", label)
    plain = read_label(Record("a", Path(), (1,)), tmp_path)
    assert plain.dtype == np.uint16
    assert plain.tolist() == [[1, 0], [3, 1]]
    # The background may be a class of which nobody said whether it is there.
    partly = read_label(Record("a", Path(), (1,), unknown=(0,)), tmp_path)
    assert partly.tolist() == [[0, 0], [3, 0]]
    assert as_target(plain).dtype == np.int64


def test_the_published_training():
    configs = make_configs(
        Options(Path("d"), Path("r"), method="amn", backbone="resnet50", preset="code")
    )
    second = gentle(configs.method, configs.classify)
    assert (second.epochs, second.optimizer, second.weight_decay) == (5, "adam", 1e-4)
    groups = method().param_groups(second.lr, second.weight_decay, second.new_factor)
    assert [(g["name"], pytest.approx(g["lr"])) for g in groups] == [
        ("backbone", 5e-6),
        ("new", 1e-4),
    ]
    assert len(groups[1]["params"]) == 2 + 2 * 4


@pytest.mark.parametrize(
    "knobs", [{"smoothing": 1}, {"foreground": 0.1, "background": 0.2}, {"first": "nothing.pt"}]
)
def test_impossible_knobs(knobs):
    with pytest.raises(ConfigError):
        Config(**knobs)


def test_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "trainer.methods.registry.build_backbone", lambda name, **knobs: TinyBackbone()
    )
    monkeypatch.setattr("trainer.pool.cores", lambda: 1)
    data, run = tmp_path / "data", tmp_path / "run"
    write_synthetic(data, 12, 64, classes=3)

    def fit(*settings: str) -> dict[str, str]:
        always = ("classify.workers=0", "classify.validate=off", "cams.workers=0", "cams.scales=1")
        lines: list[str] = []
        given = Options(
            data,
            run,
            method="amn",
            weights="none",
            epochs=2,
            size=64,
            device="cpu",
            until="cams",
            settings=(*always, *settings),
        )
        run_plan(make_plan(given), lines.append)
        return {line.split(": ")[0]: line.split(": ")[1][:5].strip(", ") for line in lines}

    assert fit() == {"first": "to do", "labels": "to do", "classify": "to do", "cams": "to do"}
    dataset = open_dataset(data)
    tagged = [record for record in dataset.subset("train") if record.tags]
    for record in tagged:
        label = read_index_png(run / "labels" / "labels" / f"{record.id}.png")
        assert label.shape == image_size(record.image)
        assert set(np.unique(label)) <= {0, 255, *(k + 1 for k in record.tags)}
    rows = (run / "metrics.csv").read_text()
    assert "first,2,2,loss_label" not in rows
    assert "loss_label" in rows
    state = torch.load(run / "classify" / "model.pt", weights_only=True)["state"]
    assert state["segmenter.tags.weight"].shape == (6, 3)
    assert len(list((run / "cams").rglob("*.npz"))) == len(dataset.records)
    assert set(fit().values()) == {"done"}
    changed = fit("method.background=0.1")
    assert changed["first"] == "done"
    assert all(changed[name] != "done" for name in ("labels", "classify", "cams"))
