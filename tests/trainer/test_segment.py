from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_nets import TinyBackbone, pictures
from torch import nn

from trainer import segment
from trainer.data.dataset import IGNORE, read_image, read_index_png
from trainer.errors import ConfigError, DataError, WeightsError
from trainer.inference import Views
from trainer.nets.deeplab import AsppSegmenter
from trainer.palette import write_index_png
from trainer.refine.crf import DenseCrf, unary_from_softmax
from trainer.run import Metrics, Stage
from trainer.segment import SegmentConfig, parameter_groups, predict, segment_loss

QUICK = SegmentConfig(epochs=1, batch=2, crop=32, workers=0, precision="fp32", rates=(1, 2), momentum=0.9)
RNG = np.random.default_rng(0)


def tiny(classes: int = 3) -> AsppSegmenter:
    torch.manual_seed(0)
    return AsppSegmenter(TinyBackbone(), classes + 1, (1, 2))


class Fixed(nn.Module):
    """Gives its logits whatever it sees."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.logits


def test_ignored_pixels_count_for_nothing():
    labels = torch.randint(0, 4, (2, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels[:, :, 5:] = IGNORE
    net = Fixed(torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)))
    loss = segment_loss(net, labels, labels, RNG, stride=1)["ce"]
    seen = F.cross_entropy(net.logits[..., :5], labels[..., :5].long())
    torch.testing.assert_close(loss, seen)
    loss.backward()
    assert net.logits.grad is not None
    assert not net.logits.grad[..., 5:].any()
    assert net.logits.grad[..., :5].any()


def test_a_batch_of_ignored_pixels_only_is_harmless():
    net = Fixed(torch.randn(2, 4, 8, 8))
    loss = segment_loss(net, net.logits, torch.full((2, 32, 32), IGNORE, dtype=torch.uint8), RNG, stride=4)["ce"]
    assert loss.item() == 0
    loss.backward()
    assert net.logits.grad is not None
    assert not net.logits.grad.any()


def test_labels_are_picked_at_cell_centres():
    labels = torch.zeros(1, 8, 8, dtype=torch.uint8)
    labels[0, 2, 6] = 1
    net = Fixed(torch.zeros(1, 2, 2, 2))
    net.logits.data[0, 0] = 20.0
    right = segment_loss(net, labels, labels, RNG, stride=4)["ce"]
    assert right.item() == pytest.approx(20 / 4)


def test_groups_are_those_of_deeplab():
    net, config = tiny(), replace(QUICK, lr=1e-3, new_factor=10.0, weight_decay=5e-4)
    groups = parameter_groups(net, config)
    assert [(g["lr"], g["weight_decay"], len(g["params"])) for g in groups] == [
        (pytest.approx(1e-3), 5e-4, 2),
        (pytest.approx(1e-2), 5e-4, 2),
        (pytest.approx(2e-2), 0.0, 2),
    ]
    grouped = {id(p) for g in groups for p in g["params"]}
    assert grouped == {id(p) for p in net.parameters() if p.requires_grad}


def test_a_mask_of_another_size_is_refused(tmp_path):
    data = pictures(tmp_path, count=1)
    record = data.subset("all")[0]
    write_index_png(tmp_path / "masks" / "p0.png", np.zeros((5, 9), np.uint8))
    read = partial(segment.read_pseudo_mask, folder=tmp_path / "masks")
    with pytest.raises(DataError, match="mask of 'p0' is 9x5, its image 36x44"):
        segment.make_sample(record, RNG, QUICK, read)


def naive(net: AsppSegmenter, pixels: np.ndarray, config: SegmentConfig) -> np.ndarray:
    """Mean soft-max over scales and the mirror image, one view at a time."""
    chances = []
    for scale in config.scales:
        view = Views(config.scales).make(pixels, scale)[None].contiguous()
        for flipped in (False, True) if config.flip else (False,):
            with torch.no_grad():
                logits = net(view.flip(3) if flipped else view)
            chance = F.interpolate(logits, pixels.shape[:2], mode="bilinear").softmax(1)
            chances.append(chance.flip(3) if flipped else chance)
    return torch.stack(chances).mean(0)[0].numpy()


@pytest.mark.parametrize("flip", [True, False])
def test_predictions_are_the_merged_views_of_one_image_at_a_time(tmp_path, flip):
    data = pictures(tmp_path / "data")
    net, config = tiny(), replace(QUICK, scales=(0.5, 1.0, 1.25), flip=flip)
    net.aspp.c0.weight.data.normal_(std=0.5)
    predict(net, data.subset("all"), tmp_path / "out", config, "test", "cpu")
    assert {p.stem for p in (tmp_path / "out").iterdir()} == set(data.records)
    kinds = set()
    for record in data.subset("all"):
        label, pixels = read_index_png(tmp_path / "out" / f"{record.id}.png"), read_image(record.image)
        assert label.shape == pixels.shape[:2]
        assert (label == naive(net, pixels, config).argmax(0)).mean() > 0.999
        kinds |= set(np.unique(label))
    assert kinds <= {0, 1, 2, 3}
    assert len(kinds) > 1


def test_crf_follows_the_soft_max_of_the_merged_views(tmp_path):
    data = pictures(tmp_path / "data")
    net, config = tiny(), replace(QUICK, scales=(1.0,), flip=False, crf="P3")
    net.aspp.c0.weight.data.normal_(std=0.5)
    predict(net, data.subset("all"), tmp_path / "out", config, "test", "cpu")
    for record in data.subset("all"):
        pixels = read_image(record.image)
        q = DenseCrf(pixels, (3, 1), (4, 67, 3)).infer(unary_from_softmax(naive(net, pixels, config)), 10)
        assert (read_index_png(tmp_path / "out" / f"{record.id}.png") == q.argmax(0)).mean() > 0.999
    with pytest.raises(ConfigError, match="unknown CRF preset 'P9'"):
        replace(QUICK, crf="P9")


def test_predictions_that_are_there_are_kept(tmp_path):
    data, out = pictures(tmp_path / "data"), tmp_path / "out"
    predict(tiny(), data.subset("all"), out, QUICK, "test", "cpu")
    kept = (out / "p1.png").stat().st_mtime_ns
    whole = (out / "p2.png").read_bytes()
    (out / "p2.png").write_bytes(whole[:20])
    predict(tiny(), data.subset("all"), out, QUICK, "test", "cpu")
    assert (out / "p1.png").stat().st_mtime_ns == kept
    assert read_index_png(out / "p2.png").shape == (36, 44)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run's segment stage of one epoch, its identity and what it learnt."""
    root = tmp_path_factory.mktemp("segment")
    data, stage = pictures(root / "data", count=4), Stage(root / "segment")
    stage.folder.mkdir()
    identity = {"method": "cam", "backbone": "resnet18", "classes": list(data.classes)}
    identity |= {"output_stride": QUICK.output_stride, "bn": QUICK.bn, "rates": list(QUICK.rates)}
    module = segment.build("resnet18", QUICK, 3)
    start = {k: v.clone() for k, v in module.state_dict().items()}
    metrics = Metrics(root / "metrics.csv", "segment")
    segment.segment(module, data.subset("all"), data.read_mask, QUICK, stage, metrics, 0, identity, "cpu")
    return root, stage, identity, start, module


def test_training_writes_weights_that_load(trained):
    root, stage, identity, start, module = trained
    assert stage.outputs == {"count": 1, "weights": "model.pt", "images": 4}
    assert stage.metrics["loss"] > 0
    assert [p.name for p in stage.folder.iterdir()] == ["model.pt"]
    assert "segment,1,2,loss_ce" in (root / "metrics.csv").read_text()
    assert not torch.equal(start["aspp.c0.weight"], module.state_dict()["aspp.c0.weight"])
    again = segment.load(stage.folder / "model.pt", {"classes": identity["classes"], "backbone": "resnet18"})
    assert not again.training
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in module.state_dict().items())


@pytest.mark.parametrize(("key", "value"), [("classes", ["c0", "c1"]), ("backbone", "resnet34"), ("method", "seam")])
def test_weights_of_something_else_are_refused(trained, key, value):
    with pytest.raises(WeightsError, match=f"made with {key}") as caught:
        segment.load(trained[1].folder / "model.pt", {key: value})
    assert str(value) in caught.value.expected
