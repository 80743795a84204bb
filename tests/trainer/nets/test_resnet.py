"""Golden value G0c, striding, freezing and names of the torchvision ResNets; ``build_backbone``."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from trainer.errors import ConfigError
from trainer.nets import BACKBONES, build_backbone
from trainer.nets.resnet import ResNet


def u(shape: tuple[int, ...], seed: int) -> Tensor:
    """The deterministic generator of spec methods 2."""
    i = torch.arange(1, math.prod(shape) + 1, dtype=torch.float64)
    value = torch.sin(12.9898 * i + 78.233 * seed) * 43758.5453
    return (value - torch.floor(value)).reshape(shape)


def test_irn_body_golden_values():
    net = ResNet(50, output_stride=16).eval()
    state = {k: t for k, t in net.state_dict().items() if not k.endswith("num_batches_tracked")}
    assert len(state) == 265
    for i, name in enumerate(sorted(state)):
        tensor = state[name]
        v = u(tuple(tensor.shape), 2000 + i)
        if tensor.ndim == 4:
            v = (v - 0.5) * math.sqrt(12 / tensor[0].numel())
        elif name.endswith("running_var"):
            v = 0.5 + v
        elif name.endswith("weight"):
            v = 0.8 + 0.4 * v
        else:
            v = (v - 0.5) * 0.2
        tensor.copy_(v)
    with torch.no_grad():
        features = net((4 * u((1, 3, 65, 81), 1) - 2).float())
    expected = {
        "stage1": ((1, 256, 17, 21), 1.261230032),
        "stage2": ((1, 512, 9, 11), 1.531443577),
        "stage3": ((1, 1024, 5, 6), 2.153970694),
        "stage4": ((1, 2048, 5, 6), 2.071754114),
    }
    for name, (shape, mean) in expected.items():
        assert features[name].shape == shape
        assert features[name].mean().item() == pytest.approx(mean, rel=1e-4)
    assert features["stage3"][0, 1, 2, 2].item() == pytest.approx(1.004409551, rel=1e-4)
    assert features["stage4"][0, 1, 2, 2].item() == pytest.approx(1.681692482, rel=1e-4)
    assert sum(p.numel() for p in net.parameters()) + 2048 * 20 == 23_548_992


@pytest.mark.parametrize("depth", [18, 34, 50, 101])
def test_names_are_those_of_torchvision(depth):
    with torch.device("meta"):
        ours = ResNet(depth).state_dict()
        theirs = getattr(models, f"resnet{depth}")(weights=None).state_dict()
    theirs = {name: tensor for name, tensor in theirs.items() if not name.startswith("fc.")}
    assert list(ours) == list(theirs)
    assert [t.shape for t in ours.values()] == [t.shape for t in theirs.values()]


def randomise(net: nn.Module) -> None:
    """Statistics that make every batch norm do something."""
    generator = torch.Generator().manual_seed(0)
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.uniform_(-0.1, 0.1, generator=generator)
            norm.running_var.uniform_(0.5, 1.5, generator=generator)


@pytest.mark.parametrize(
    ("stride", "replace"), [(16, (False, False, True)), (8, (False, True, True))]
)
def test_dilated_network_equals_that_of_torchvision(stride, replace):
    theirs = models.resnet50(weights=None, replace_stride_with_dilation=replace).eval()
    randomise(theirs)
    ours = ResNet(50, output_stride=stride, dilate=True).eval()
    ours.load_state_dict({k: v for k, v in theirs.state_dict().items() if not k.startswith("fc.")})
    body = nn.Sequential(*list(theirs.children())[:-2])
    with torch.no_grad():
        x = torch.randn(1, 3, 49, 65, generator=torch.Generator().manual_seed(1)).double()
        torch.testing.assert_close(ours.double()(x)["stage4"], body.double()(x))


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize(("stride", "steps"), [(16, 2), (8, 4)])
def test_dilated_output_contains_the_strided_output(depth, stride, steps):
    plain = ResNet(depth).eval()
    randomise(plain)
    dilated = ResNet(depth, output_stride=stride, dilate=True).eval()
    dilated.load_state_dict(plain.state_dict())
    with torch.no_grad():
        x = torch.randn(1, 3, 70, 97, generator=torch.Generator().manual_seed(1)).double()
        fine, coarse = dilated.double()(x)["stage4"], plain.double()(x)["stage4"]
    torch.testing.assert_close(fine[..., ::steps, ::steps], coarse)


@pytest.mark.parametrize(("depth", "width"), [(18, 512), (50, 2048)])
@pytest.mark.parametrize("stride", [8, 16, 32])
@pytest.mark.parametrize("dilate", [False, True])
def test_attributes_tell_the_truth(depth, width, stride, dilate):
    net = ResNet(depth, output_stride=stride, dilate=dilate).eval()
    with torch.no_grad():
        features = net(torch.zeros(1, 3, 33, 50))
    assert list(features) == list(net.channels) == list(net.strides)
    for name, feature in features.items():
        assert feature.shape[1] == net.channels[name]
        assert feature.shape[2:] == (
            math.ceil(33 / net.strides[name]),
            math.ceil(50 / net.strides[name]),
        )
    assert net.top == "stage4"
    assert net.channels["stage4"] == width
    assert net.strides["stage4"] == stride


def test_no_dilation_unless_asked():
    assert all(
        m.dilation == (1, 1)
        for m in ResNet(18, output_stride=8).modules()
        if isinstance(m, nn.Conv2d)
    )


def trainable(net: nn.Module) -> set[str]:
    return {name for name, p in net.named_parameters() if p.requires_grad}


def running_norms(net: nn.Module) -> set[str]:
    return {name for name, m in net.named_modules() if isinstance(m, nn.BatchNorm2d) and m.training}


def is_norm(name: str) -> bool:
    return "bn" in name or "downsample.1" in name


def test_frozen_batch_norms():
    net = ResNet(18, bn="frozen").train()
    assert trainable(net) == {name for name, _ in net.named_parameters() if not is_norm(name)}
    assert not running_norms(net)


def test_fixed_statistics_with_trainable_affine():
    net = ResNet(18, bn="stats").train()
    assert {name for name, _ in net.named_parameters()} - trainable(net) == {
        "bn1.weight",
        "bn1.bias",
    }
    assert not running_norms(net)


def test_trained_batch_norms():
    net = ResNet(18, bn="train").train()
    assert trainable(net) == {name for name, _ in net.named_parameters()}
    assert len(running_norms(net)) == 20
    assert not running_norms(net.eval())


def test_cut_after_stage_2_trains_layers_3_and_4_only():
    net = ResNet(18, output_stride=16, bn="stats", detach_after="stage2").train()
    assert trainable(net) == {
        n for n, _ in net.named_parameters() if n.startswith(("layer3.", "layer4."))
    }
    image = torch.rand(1, 3, 32, 32, requires_grad=True)
    net(image)["stage4"].sum().backward()
    assert image.grad is None
    assert {n for n, p in net.named_parameters() if p.grad is not None} == trainable(net)
    net.eval()(image)["stage4"].sum().backward()
    assert image.grad is not None


def test_cut_stages_do_not_move_their_statistics():
    net = ResNet(18, bn="train", detach_after="stage2").train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    net(torch.rand(2, 3, 64, 64))
    changed = {k for k, v in net.state_dict().items() if not torch.equal(v, before[k])}
    assert changed
    assert all(k.startswith(("layer3.", "layer4.")) for k in changed)


def test_train_freezes_again():
    net = ResNet(18, bn="stats", detach_after="stage1").train()
    expected = trainable(net)
    net.requires_grad_(True)
    assert trainable(net) != expected
    nn.Sequential(net).train()
    assert trainable(net) == expected
    assert not running_norms(net)


def test_build_backbone_knows_its_names():
    with torch.device("meta"):
        for name in BACKBONES:
            net = build_backbone(name)
            assert net.strides[net.top] == (8 if name == "resnet38" else 16)
            assert list(net.channels)[-1] == net.top
        assert build_backbone("resnet18", 32, bn="train").strides["stage4"] == 32


@pytest.mark.parametrize(
    ("name", "knobs", "found", "expected"),
    [
        ("resnet5", {}, "unknown backbone 'resnet5'", "did you mean 'resnet50'?"),
        ("resnet18", {"dilated": True}, "no knob 'dilated'", "did you mean 'dilate'?"),
        ("resnet18", {"depth": 50}, "no knob 'depth'", "known: "),
        ("resnet18", {"bn": "stat"}, "batch norm mode 'stat'", "did you mean 'stats'?"),
        ("resnet18", {"output_stride": 4}, "output stride 4", "8, 16 or 32"),
        ("resnet18", {"detach_after": "layer2"}, "cannot detach after 'layer2'", "stage2"),
    ],
)
def test_bad_settings_are_named(name, knobs, found, expected):
    with pytest.raises(ConfigError) as error:
        build_backbone(name, **knobs)
    assert found in error.value.found
    assert expected in error.value.expected


def test_bad_depth_is_named():
    with pytest.raises(ConfigError, match="depth 20"):
        ResNet(20)
