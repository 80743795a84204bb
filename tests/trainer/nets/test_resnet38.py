"""Golden values G0 and G0b of the specification, freezing, dropout, names."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from trainer.errors import ConfigError
from trainer.nets import build_backbone
from trainer.nets.resnet38 import BasicBlock, Bottleneck, ResNet38


def u(shape: tuple[int, ...], seed: int) -> Tensor:
    """The deterministic generator of spec methods 2."""
    i = torch.arange(1, math.prod(shape) + 1, dtype=torch.float64)
    value = torch.sin(12.9898 * i + 78.233 * seed) * 43758.5453
    return (value - torch.floor(value)).reshape(shape)


def fill(module: nn.Module, base: int) -> int:
    """Fill as spec G0 says; the number of tensors."""
    state = {k: t for k, t in module.state_dict().items() if not k.endswith("num_batches_tracked")}
    for i, name in enumerate(sorted(state)):
        tensor = state[name]
        v = u(tuple(tensor.shape), base + i)
        if tensor.ndim == 4:
            v = (v - 0.5) * math.sqrt(12 / tensor[0].numel())
        elif name.endswith("running_var"):
            v = 0.5 + v
        elif name.endswith("weight"):
            v = 0.8 + 0.4 * v
        else:
            v = (v - 0.5) * 0.2
        tensor.copy_(v)
    return len(state)


@pytest.fixture(scope="module")
def net() -> ResNet38:
    return ResNet38()


@pytest.mark.parametrize(
    ("block", "shape", "mean", "element"),
    [
        (lambda: BasicBlock(4, 6, 8, stride=2), (1, 8, 5, 6), -0.051137893408, 0.397521833763),
        (
            lambda: BasicBlock(4, 6, 8, first_dilation=1, dilation=2),
            (1, 8, 9, 11),
            -0.050346440691,
            0.789957387130,
        ),
        (lambda: BasicBlock(4, 6, 4), (1, 4, 9, 11), 0.073426838563, -0.595993575162),
        (lambda: Bottleneck(4, 16, dilation=4), (1, 16, 9, 11), -0.074527238236, -0.969346870194),
    ],
    ids=["stride 2", "dilation 1 then 2", "identity", "bottleneck"],
)
def test_block_golden_values(block, shape, mean, element):
    module = block().double().eval()
    fill(module, 300)
    with torch.no_grad():
        out = module(2 * u((1, 4, 9, 11), 299) - 1)
    assert out.shape == shape
    assert out.mean().item() == pytest.approx(mean, rel=1e-6)
    assert out[0, 3, 2, 4].item() == pytest.approx(element, rel=1e-6)


class Classifier(ResNet38):
    """The released network: backbone and head in one state dict."""

    def __init__(self) -> None:
        super().__init__()
        self.fc8 = nn.Conv2d(4096, 20, 1, bias=False)


def test_whole_network_golden_values():
    net = Classifier().eval()
    assert sum(p.numel() for p in net.parameters()) == 105_152_832
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == 104_284_160
    assert fill(net, 1000) == 192
    with torch.no_grad():
        features = net((4 * u((1, 3, 65, 81), 1) - 2).float())
        maps = net.fc8(features["conv6"])
    assert {k: tuple(v.shape) for k, v in features.items()} == {
        "conv4": (1, 512, 9, 11),
        "conv5": (1, 1024, 9, 11),
        "conv6": (1, 4096, 9, 11),
    }
    expected = {
        "conv4": (0.798214308, 11.211739553),
        "conv5": (0.849164736, 12.533391345),
        "conv6": (0.576252865, 8.076528351),
    }
    for name, values in expected.items():
        assert (features[name].mean().item(), features[name].max().item()) == pytest.approx(
            values, rel=1e-4
        )
    logits = maps.mean(dim=(2, 3))[0, :4].tolist()
    assert logits == pytest.approx(
        [-0.095526353, -0.801268638, -0.316954604, -0.546706983], rel=1e-4
    )
    cam = maps.relu()
    assert (cam.mean().item(), cam.max().item()) == pytest.approx(
        (0.565092709, 3.872040288), rel=1e-4
    )


def test_counters_are_the_only_extra_entries(net):
    names = net.state_dict()
    assert len(names) == 229 - 1
    assert sum(name.endswith("num_batches_tracked") for name in names) == 37


def test_attributes_describe_the_features(net):
    assert net.channels == {"conv4": 512, "conv5": 1024, "conv6": 4096}
    assert net.strides == {"conv4": 8, "conv5": 8, "conv6": 8}
    assert net.top == "conv6"


def test_frozen_in_every_mode(net):
    for mode in (True, False, True):
        net.requires_grad_(True)
        net.train(mode)
        frozen = {name for name, p in net.named_parameters() if not p.requires_grad}
        for name, _ in net.named_parameters():
            block = name.split(".")[0]
            assert (name in frozen) == (
                "bn" in name or block in ("conv1a", "b2", "b2_1", "b2_2")
            ), name
        assert not any(m.training for m in net.modules() if isinstance(m, nn.BatchNorm2d))


def test_35_pretrained_convolutions_train(net):
    net.train()
    convs = [p for p in net.parameters() if p.ndim == 4]
    assert (len(convs), sum(p.requires_grad for p in convs)) == (43, 35)


def test_dropout_drops_whole_maps_in_train_mode_only():
    block = Bottleneck(4, 16, dilation=4, dropout=0.5)
    assert [m.p for m in block.modules() if isinstance(m, nn.Dropout2d)] == [0.5, 0.5]
    x = torch.ones(2, 4, 3, 3)
    block.train()
    dropped = block.dropout_2b1(torch.ones(1, 400, 2, 2))
    assert set(dropped.mean(dim=(2, 3)).unique().tolist()) == {0.0, 2.0}
    block.eval()
    assert torch.equal(block(x), block(x))


def test_dropout_rates_and_activity(net):
    rates = {name: m.p for name, m in net.named_modules() if isinstance(m, nn.Dropout2d)}
    assert rates == {
        "b6.dropout_2b1": 0.3,
        "b6.dropout_2b2": 0.3,
        "b7.dropout_2b1": 0.5,
        "b7.dropout_2b2": 0.5,
    }
    net.train()
    assert all(m.training for m in net.modules() if isinstance(m, nn.Dropout2d))


def test_training_leaves_frozen_tensors_alone(net):
    before = {k: v.clone() for k, v in net.state_dict().items()}
    net.train()
    optimiser = torch.optim.SGD(
        [p for p in net.parameters() if p.requires_grad], lr=0.01, weight_decay=0.1
    )
    net(torch.rand(1, 3, 17, 17))["conv6"].mean().backward()
    optimiser.step()
    changed = {k for k, v in net.state_dict().items() if not torch.equal(v, before[k])}
    assert changed
    assert not any("bn" in k or k.startswith(("conv1a", "b2.", "b2_")) for k in changed)


@pytest.mark.parametrize(("size", "cells"), [((33, 50), (5, 7)), ((16, 24), (2, 3))])
def test_output_is_an_eighth_rounded_up(net, size, cells):
    net.eval()
    with torch.no_grad():
        assert net(torch.zeros(1, 3, *size))["conv6"].shape[2:] == cells


def test_impossible_settings_are_named():
    with pytest.raises(ConfigError, match="output stride 16"):
        build_backbone("resnet38", output_stride=16)
    with pytest.raises(ConfigError, match="batch norm mode 'train'"):
        build_backbone("resnet38", bn="train")
    with pytest.raises(ConfigError, match="no knob 'dilate'"):
        build_backbone("resnet38", dilate=True)
