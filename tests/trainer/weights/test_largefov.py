"""DeepLab-LargeFOV on ResNet-38: spec refine-segment 7: sizes, names, batch norms by accident,
weight files.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from trainer.errors import ConfigError, WeightsError
from trainer.nets.deeplab import LargeFOVResNet38
from trainer.weights.largefov import load_largefov


def sketch(num_classes: int = 21, bn: str = "batch") -> LargeFOVResNet38:
    """The network without numbers: names, shapes and gradients cost nothing."""
    with torch.device("meta"):
        return LargeFOVResNet38(num_classes, bn)


def blank(*shape: int) -> torch.Tensor:
    return torch.empty(*shape, device="meta")


def flat(network: nn.Module) -> dict[str, torch.Tensor]:
    """The state of a network in files that take no space."""
    return {k: torch.tensor(0.5).expand(v.shape) for k, v in network.state_dict().items()}


def norms(network: nn.Module) -> list[nn.BatchNorm2d]:
    return [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]


@pytest.fixture(scope="module")
def net() -> LargeFOVResNet38:
    torch.manual_seed(0)
    return LargeFOVResNet38(3)


def test_size_operations_and_parameters():
    network = sketch()
    with FlopCounterMode(display=False) as counter:
        assert network(blank(2, 3, 448, 448)).shape == (2, 21, 448, 448)
    assert counter.get_total_flops() / 2e9 == pytest.approx(918, abs=0.5)
    assert sum(p.numel() for p in network.parameters()) == 124_220_245
    assert len(network.state_dict()) == 242
    assert network.eval()(blank(1, 3, 33, 50)).shape == (1, 21, 33, 50)
    assert network.backbone(blank(1, 3, 375, 500))["conv6"].shape == (1, 4096, 47, 63)


def test_names():
    names = list(sketch().state_dict())
    assert {name.split(".")[0] for name in names} == {
        "backbone",
        "conv_fov",
        "bn_fov",
        "conv_fov2",
        "bn_fov2",
        "cls_conv",
    }
    assert "backbone.b5_2.conv_branch2a.weight" in names
    assert [name for name in names if name.endswith(".bias") and "bn" not in name] == [
        "cls_conv.bias"
    ]


def test_parameter_groups():
    found = [
        (len(g["params"]), sum(p.numel() for p in g["params"]), g["lr"], g["weight_decay"])
        for g in sketch().param_groups(1e-3, 5e-4)
    ]
    assert found == [
        (43, 105_023_168, 1e-3, 5e-4),
        (3, 19_147_264, pytest.approx(1e-2), 5e-4),
        (1, 21, pytest.approx(2e-2), 0.0),
    ]


def test_layers_and_first_values(net):
    assert (net.conv_fov.dilation, net.conv_fov.padding) == ((12, 12), (12, 12))
    for conv in (net.conv_fov, net.conv_fov2, net.cls_conv):
        fan_out = conv.out_channels * conv.kernel_size[0] ** 2
        assert conv.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)
    assert all((m.momentum, m.eps) == (3e-4, 1e-5) for m in norms(net))
    assert len(norms(net)) == 39
    assert net.dropout.p == 0.5


def test_logits_by_hand(net):
    """Eval: running statistics, no dropout; from the backbone's last feature on."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, 33, 41, generator=generator)
    net.eval()
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    for norm in (net.bn_fov, net.bn_fov2):
        norm.running_mean.normal_(0, 0.2, generator=generator)
        norm.running_var.uniform_(0.5, 2, generator=generator)

    def normed(norm, x):
        shift, scale = (t[:, None, None] for t in (norm.running_mean, norm.running_var))
        return ((x - shift) / (scale + 1e-5).sqrt()).relu()

    with torch.no_grad():
        x = net.backbone(images)["conv6"]
        assert x.shape == (2, 4096, 5, 6)
        x = normed(net.bn_fov, F.conv2d(x, net.conv_fov.weight, padding=12, dilation=12))
        x = normed(net.bn_fov2, F.conv2d(x, net.conv_fov2.weight))
        x = F.conv2d(x, net.cls_conv.weight, net.cls_conv.bias)
        expected = F.interpolate(x, (33, 41), mode="bilinear", align_corners=True)
        torch.testing.assert_close(net(images), expected, rtol=1e-3, atol=1e-4)
    net.load_state_dict(before, strict=False)


def test_batch_statistics_move_the_running_ones_a_little(net):
    seen = {}
    layers = {
        name: net.get_submodule(name)
        for name in ("backbone.b2.bn_branch2a", "backbone.bn7", "bn_fov2")
    }
    hooks = [
        layer.register_forward_pre_hook(
            lambda _, args, name=name: seen.update({name: args[0].clone()})
        )
        for name, layer in layers.items()
    ]
    before = {name: (m.running_mean.clone(), m.running_var.clone()) for name, m in layers.items()}
    with torch.no_grad():
        net.train()(torch.randn(2, 3, 33, 33))
    for hook in hooks:
        hook.remove()
    for name, layer in layers.items():
        batch = seen[name].transpose(0, 1).flatten(1)
        mean, var = before[name]
        torch.testing.assert_close(layer.running_mean, mean + 3e-4 * (batch.mean(1) - mean))
        torch.testing.assert_close(layer.running_var, var + 3e-4 * (batch.var(1) - var))
    assert all((m.weight == 1).all() and (m.bias == 0).all() for m in layers.values())


@pytest.mark.parametrize("bn", ["batch", "frozen"])
def test_modes_of_batch_norm(bn):
    network = sketch(bn=bn)
    for mode in (True, False, True):
        network.train(mode)
        assert {m.training for m in norms(network.backbone)} == {mode and bn == "batch"}
        assert (
            network.bn_fov.training == network.bn_fov2.training == network.dropout.training == mode
        )
        assert all(m.training == mode for m in network.modules() if isinstance(m, nn.Dropout2d))
    assert not any(p.requires_grad for m in norms(network) for p in m.parameters())


@pytest.mark.parametrize("bn", ["batch", "frozen"])
def test_gradients_reach_everything_but_batch_norms(bn):
    network = sketch(bn=bn).train()
    network(blank(2, 3, 33, 33)).sum().backward()
    reached = {name for name, p in network.named_parameters() if p.grad is not None}
    assert reached == {name for name, _ in network.named_parameters() if "bn" not in name}
    assert "backbone.conv1a.weight" in reached
    assert len(reached) == sum(len(g["params"]) for g in network.param_groups()) == 47


def test_unknown_mode_is_named():
    with pytest.raises(ConfigError, match="batch norm mode 'train'"):
        LargeFOVResNet38(21, bn="train")


@pytest.mark.parametrize("prefix", ["", "module."])
def test_trained_files(tmp_path: Path, prefix: str):
    torch.save({prefix + k: v for k, v in flat(sketch()).items()}, tmp_path / "fov.pth")
    network = sketch().to_empty(device="cpu")
    report = load_largefov(network, tmp_path / "fov.pth")
    assert (len(report.loaded), report.missing, report.unexpected) == (242 - 39, (), ())
    assert all(p.flatten()[0] == p.flatten()[-1] == 0.5 for p in network.parameters())


def test_backbone_to_start_from(net, tmp_path):
    state = {f"module.{k}": v for k, v in flat(sketch().backbone).items()}
    torch.save(
        {**state, "module.fc8.weight": torch.zeros(20, 4096, 1, 1)}, tmp_path / "res38_cls.pth"
    )
    head = net.conv_fov.weight.clone()
    before = {k: v.clone() for k, v in net.backbone.state_dict().items()}
    report = load_largefov(net, tmp_path / "res38_cls.pth")
    assert (len(report.loaded), report.supervision) == (191, "image tags")
    assert report.unexpected == ("module.fc8.weight",)
    assert torch.equal(net.conv_fov.weight, head)
    assert (net.backbone.b7.conv_branch2b2.weight == 0.5).all()
    net.backbone.load_state_dict(before)


def test_files_of_other_networks_are_refused(net, tmp_path):
    torch.save({"layer2.block1.reduce.conv.weight": torch.zeros(1)}, tmp_path / "v2.pth")
    half = {k: v for k, v in flat(sketch(3)).items() if "b7" not in k and "b6" not in k}
    torch.save(half, tmp_path / "half.pth")
    torch.save(flat(sketch(21)), tmp_path / "voc.pth")
    wrong = {
        "v2": "a DeepLab-v2 ResNet-101",
        "half": "of 203 tensors are missing",
        "voc": "it is a segmenter of 20 classes and background, and this one has 2",
        "none": "not a file",
    }
    for name, message in wrong.items():
        with pytest.raises(WeightsError, match=message):
            load_largefov(net, tmp_path / f"{name}.pth")


def test_a_thin_network_has_the_same_names_and_sizes():
    with torch.device("meta"):
        thin = LargeFOVResNet38(21, width=1 / 16)
    assert list(thin.state_dict()) == list(sketch().state_dict())
    assert sum(p.numel() for p in thin.parameters()) < 1_000_000
    assert thin.eval()(blank(1, 3, 33, 50)).shape == (1, 21, 33, 50)
