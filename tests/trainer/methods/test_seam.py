import dataclasses

import numpy as np
import pytest
import torch
from golden import U
from tiny_nets import Staged, TinyBackbone
from torch import nn

from trainer import config as knobs
from trainer.errors import ConfigError
from trainer.maps.protocols import PROTOCOLS
from trainer.methods.correlation import hardest, resized
from trainer.methods.regularizers import adaptive_min_pooling, normalise_cam
from trainer.methods.seam import PROTOCOL, Config, Seam, seam_loss
from trainer.nets.resnet38 import ResNet38

HEADS = {"f8_3.weight", "f8_4.weight", "f9.weight"}
PRCM = ("off", "on", "code", "transposed", "class_softmax")


def make(names: tuple[str, str, str] = ("stage2", "stage3", "stage4"), **changes: object) -> Seam:
    torch.manual_seed(0)
    return Seam(Config(**changes), Staged(names), 3)  # type: ignore[arg-type]


def batch() -> tuple[dict[str, torch.Tensor], np.random.Generator]:
    images = torch.randn(2, 3, 50, 41, generator=torch.Generator().manual_seed(1))
    tags = torch.tensor([[1.0, 0, 1], [0, 1, 0]])
    return {"image": images, "tags": tags}, np.random.default_rng(0)


def reached(method: Seam, *names: str) -> set[str]:
    """Parameters that these terms of the loss move."""
    terms = method.train().loss(*batch())
    method.zero_grad()
    torch.stack([terms[name] for name in names]).sum().backward()
    return {name for name, p in method.named_parameters() if p.grad is not None and p.grad.any()}


def near(value: torch.Tensor, expected: float) -> bool:
    return value.item() == pytest.approx(expected, rel=1e-6)


def test_golden_normalisation_and_min_pooling():
    x = 4 * U((2, 5, 6, 7), 1) - 2
    assert near(normalise_cam(x).mean(), 0.267111476)
    assert near(normalise_cam(x)[0, 0].max(), 0.999989740)
    assert near(normalise_cam(x)[0, 1].max(), 0.999989741)
    assert near(adaptive_min_pooling(x), 0.530079575)


def golden() -> tuple[list[torch.Tensor], torch.Tensor]:
    shapes = [(40, 11), (40, 12), (12, 13), (12, 14)]
    maps = [U((2, 21, side, side), s) for side, s in shapes]
    maps[0], maps[2] = 4 * maps[0] - 2, 4 * maps[2] - 2
    tags = torch.zeros(2, 20, dtype=torch.float64)
    tags[0, [2, 14]] = tags[1, 7] = 1
    return [x.requires_grad_() for x in maps], tags


def test_golden_loss():
    maps, tags = golden()
    terms = seam_loss(*maps, tags)
    assert list(terms) == ["cls", "min", "er", "ecr"]
    assert near(terms["cls"], 0.686932878)
    assert near(terms["min"], 0.227756826)
    assert near(terms["er"], 0.023091656)
    assert near(terms["ecr"], 0.463973497)
    total = torch.stack(list(terms.values())).sum()
    assert near(total, 1.401754856)
    total.backward()
    norms = [x.grad.norm().item() for x in maps]  # type: ignore[union-attr]
    assert norms == pytest.approx([0.002795057, 0.088724015, 0.005485478, 0.128376537], rel=1e-6)
    assert not maps[0].grad[:, 0].any()  # type: ignore[index]
    assert not maps[2].grad[:, 0].any()  # type: ignore[index]


def test_min_pooling_is_off_as_in_the_papers():
    maps, tags = golden()
    terms = seam_loss(*maps, tags, min_pooling=False)
    assert set(terms) == {"cls", "er", "ecr"}
    assert set(make(min_pooling=False).loss(*batch())) == set(terms)


def test_which_term_moves_what():
    method = make()
    backbone = {f"backbone.{name}" for name, _ in method.backbone.named_parameters()}
    assert reached(method, "cls") == reached(method, "er") == backbone | {"fc8.weight"}
    assert reached(method, "ecr") == reached(method, "min") == HEADS
    assert reached(make(prcm="on"), "ecr") == HEADS | {"f10.weight"}


def test_the_background_of_the_head_is_never_used():
    method = make()
    reached(method, "cls", "min", "er", "ecr")
    grad = method.fc8.weight.grad
    assert grad is not None
    assert not grad[0].any()
    assert grad[1:].any()


@pytest.mark.parametrize("prcm", PRCM)
@pytest.mark.parametrize("names", [("conv4", "conv5", "conv6"), ("stage2", "stage3", "stage4")])
def test_loss_is_finite_and_repeats(names, prcm):
    losses = []
    for _ in range(2):
        method = make(names, prcm=prcm).train()
        losses.append({k: v.item() for k, v in method.loss(*batch()).items()})
    assert losses[0] == losses[1]
    assert np.isfinite(list(losses[0].values())).all()


def test_on_is_the_released_code():
    images = batch()[0]["image"]
    maps = {mode: make(prcm=mode).eval().cams(images) for mode in PRCM}
    assert torch.equal(maps["on"], maps["code"])
    assert not torch.equal(maps["on"], maps["off"])
    assert not torch.equal(maps["on"], maps["transposed"])
    assert knobs.replace(Config(), {"prcm": "on"}, "method").prcm == "on"


def test_maps_and_logits():
    method = make().eval()
    maps, logits = method.cams_and_logits(batch()[0]["image"])
    assert maps.shape == (2, 3, 13, 11)
    assert maps.min() >= 0
    assert maps.max() <= 1
    cam, refined = method.maps(batch()[0]["image"])
    assert torch.equal(maps, refined[:, 1:])
    torch.testing.assert_close(logits, cam[:, 1:].mean((2, 3)))


def test_heads_are_those_of_the_released_checkpoint():
    with torch.device("meta"):
        seam, star = (Seam(Config(prcm=prcm), ResNet38(), 20) for prcm in ("off", "on"))  # type: ignore[arg-type]
    shapes = {
        name: tuple(p.shape[:2])
        for name, p in star.named_parameters()
        if not name.startswith("backbone.")
    }
    assert shapes == {
        "fc8.weight": (21, 4096),
        "f8_3.weight": (64, 512),
        "f8_4.weight": (128, 1024),
        "f9.weight": (192, 195),
        "f10.weight": (192, 195),
    }
    assert sum(p.numel() for p in seam.parameters()) == 105_358_208
    assert sum(p.numel() for p in star.parameters()) == 105_395_648
    assert seam.dropout.p == 0.5
    assert make().dropout.p == 0
    assert {g["name"]: (g["lr"], len(g["params"])) for g in seam.param_groups(0.01, 5e-4)} == {
        "backbone": (0.01, 35),
        "new": (pytest.approx(0.1), 4),
    }


def test_initial_weights():
    method = make(prcm="on")
    bound = 4 * (6 / (195 + 192)) ** 0.5
    for layer in (method.f9, method.f10):
        assert layer is not None
        assert layer.weight.abs().max().item() == pytest.approx(bound, rel=0.01)
    assert method.f8_4.weight.std().item() == pytest.approx((2 / 5) ** 0.5, rel=0.1)


@pytest.mark.parametrize("prcm", ["off", "code", "class_softmax"])
def test_the_traced_graph_is_the_method(prcm):
    class Maps(nn.Module):
        def __init__(self, method: Seam) -> None:
            super().__init__()
            self.method = method

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.method.cams_and_logits(images)

    method = make(prcm=prcm).eval()
    free = torch.export.Dim.DYNAMIC
    with torch.no_grad():
        program = torch.export.export(
            Maps(method),
            (torch.randn(2, 3, 48, 64),),
            dynamic_shapes=({0: free, 2: free, 3: free},),
        )
        images = torch.randn(3, 3, 50, 41)
        for got, expected in zip(program.module()(images), method.cams_and_logits(images)):
            torch.testing.assert_close(got, expected)


def test_impossible_settings_are_user_errors():
    with pytest.raises(ConfigError, match="no features to correlate in TinyBackbone") as caught:
        Seam(Config(), TinyBackbone(), 3)
    assert "stage2 and stage3" in caught.value.expected
    for knob, value in (
        ("second_scale", 0.0),
        ("second_scale", 1.5),
        ("ohem", 0.0),
        ("loss_stride", 0),
    ):
        with pytest.raises(ConfigError, match=knob):
            Seam(dataclasses.replace(Config(), **{knob: value}), Staged(), 3)  # type: ignore[arg-type]


def test_the_protocol_is_known():
    assert PROTOCOLS[PROTOCOL].views.scales == (0.5, 1, 1.5, 2)
    assert PROTOCOLS[PROTOCOL].normalise == "minmax"


def test_maps_of_absent_classes_need_not_be_enlarged():
    """``loss`` enlarges maps of present classes only; with every map enlarged first it gives the
    same.
    """
    net = make(dropout=0.0, loss_stride=1, second_scale=0.3).train()
    sample, rng = batch()
    images, tags = sample["image"], sample["tags"]
    views = (images, resized(images, (15, 12)))
    large = [resized(x, (view.shape[2], view.shape[3])) for view in views for x in net.maps(view)]
    gradients = []
    for terms in (net.loss(sample, rng), seam_loss(*large, tags)):
        assert list(terms) == ["cls", "min", "er", "ecr"]
        net.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        gradients.append(
            {
                **terms,
                **{
                    name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None
                },
            }
        )
    for name, value in gradients[0].items():
        torch.testing.assert_close(value, gradients[1][name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("stride", "size"), [(1, (50, 41)), (4, (13, 11)), ("auto", (13, 11))])
def test_losses_compare_maps_of_this_stride(stride, size):
    net = make(loss_stride=stride)
    logits, cam, refined = net.compared(torch.randn(2, 3, 50, 41), torch.tensor([[0, 1], [0, 3]]))
    assert logits.shape == (2, 3)
    assert cam.shape == refined.shape == (2, 2, *size)


def test_the_hardest_of_channels_left_out_are_zeros():
    some = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    whole = torch.cat([some, torch.zeros(2, 7, 4, 5)], 1)
    for share in (0.1, 0.2, 0.9):
        torch.testing.assert_close(hardest(some, share, 10), hardest(whole, share))


def test_few_classes_count_as_many_entries_as_published():
    """The classes that a data set of six lacks are zeros in one of twenty: the loss is the same."""
    maps = [U((2, 21, 20, 20), n) for n in (1, 2)] + [U((2, 21, 9, 9), n) for n in (3, 4)]
    tags = torch.zeros(2, 20, dtype=torch.float64)
    tags[0, 2] = tags[1, 4] = tags[1, 5] = 1
    six = seam_loss(*(x[:, :7] for x in maps), tags[:, :6])
    twenty = seam_loss(*maps, tags)
    torch.testing.assert_close(six["ecr"], twenty["ecr"])
