"""MobileNetV2: names of torchvision, strides, dilation, freezing."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torchvision.models import mobilenet_v2

from trainer.errors import ConfigError
from trainer.nets.mobilenet import MobileNetV2


def randomise(net: nn.Module) -> None:
    """Statistics that make every batch norm do something."""
    generator = torch.Generator().manual_seed(0)
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.uniform_(-0.1, 0.1, generator=generator)
            norm.running_var.uniform_(0.5, 1.5, generator=generator)


def image(height: int, width: int) -> torch.Tensor:
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(1))


def test_same_network_as_torchvision_at_stride_32():
    theirs = mobilenet_v2(weights=None).eval()
    randomise(theirs)
    ours = MobileNetV2(output_stride=32).eval()
    body = {
        name: tensor for name, tensor in theirs.state_dict().items() if name.startswith("features.")
    }
    assert list(ours.state_dict()) == list(body)
    ours.load_state_dict(body)
    with torch.no_grad():
        features = ours(image(64, 96))
        for name, last in (("stage1", 3), ("stage2", 6), ("stage3", 13), ("stage4", 18)):
            torch.testing.assert_close(features[name], theirs.features[: last + 1](image(64, 96)))


@pytest.mark.parametrize("stride", [8, 16, 32])
@pytest.mark.parametrize("dilate", [False, True])
def test_attributes_tell_the_truth(stride, dilate):
    net = MobileNetV2(output_stride=stride, dilate=dilate).eval()
    with torch.no_grad():
        features = net(torch.zeros(1, 3, 33, 50))
    assert net.channels == {"stage1": 24, "stage2": 32, "stage3": 96, "stage4": 1280}
    assert net.strides == {
        f"stage{i}": min(s, stride) for i, s in ((1, 4), (2, 8), (3, 16), (4, 32))
    }
    assert net.top == "stage4"
    assert list(features) == list(net.channels)
    for name, feature in features.items():
        cells = (math.ceil(33 / net.strides[name]), math.ceil(50 / net.strides[name]))
        assert feature.shape == (1, net.channels[name], *cells)


def depthwise(net: MobileNetV2, block: int) -> nn.Conv2d:
    (conv,) = [
        m for m in net.features[block].modules() if isinstance(m, nn.Conv2d) and m.groups > 1
    ]
    return conv


def test_stride_16_dilates_the_last_blocks():
    net = MobileNetV2()
    assert net.strides["stage4"] == 16
    assert [depthwise(net, b).stride[0] for b in (7, 14, 15)] == [2, 1, 1]
    assert [depthwise(net, b).dilation[0] for b in (13, 14, 15, 16, 17)] == [1, 1, 2, 2, 2]
    assert net.features[18][0].dilation == (1, 1)


def test_stride_8_dilates_twice():
    net = MobileNetV2(output_stride=8)
    assert [depthwise(net, b).dilation[0] for b in (6, 7, 8, 13, 14, 15, 17)] == [
        1,
        1,
        2,
        2,
        2,
        4,
        4,
    ]


@pytest.mark.parametrize(("stride", "steps"), [(16, 2), (8, 4)])
def test_dilated_output_contains_the_strided_output(stride, steps):
    plain = MobileNetV2(output_stride=32).eval()
    randomise(plain)
    dilated = MobileNetV2(output_stride=stride).eval()
    dilated.load_state_dict(plain.state_dict())
    with torch.no_grad():
        fine, coarse = dilated(image(70, 97))["stage4"], plain(image(70, 97))["stage4"]
    torch.testing.assert_close(fine[..., ::steps, ::steps], coarse)


def test_frozen_batch_norms_survive_a_training_step():
    net = MobileNetV2(output_stride=32, bn="frozen").train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    weights = [p for p in net.parameters() if p.requires_grad]
    assert {p.ndim for p in weights} == {4}
    net(image(32, 32))["stage4"].mean().backward()
    torch.optim.SGD(weights, lr=1.0, weight_decay=0.1).step()
    changed = {k for k, v in net.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {name for name, p in net.named_parameters() if p.ndim == 4}


def test_fixed_statistics_keep_only_the_first_affine():
    net = MobileNetV2(bn="stats").train()
    fixed = {name for name, p in net.named_parameters() if not p.requires_grad}
    assert fixed == {"features.0.1.weight", "features.0.1.bias"}
    assert not any(m.training for m in net.modules() if isinstance(m, nn.BatchNorm2d))


def test_cut_after_stage_2_freezes_the_first_seven_blocks():
    net = MobileNetV2(bn="train", detach_after="stage2").train()
    fixed = {name.split(".")[1] for name, p in net.named_parameters() if not p.requires_grad}
    assert fixed == {str(block) for block in range(7)}
    assert all(
        m.training == (int(n.split(".")[1]) >= 7)
        for n, m in net.named_modules()
        if isinstance(m, nn.BatchNorm2d)
    )


def test_bad_stride_is_named():
    with pytest.raises(ConfigError, match="output stride 24"):
        MobileNetV2(output_stride=24)
