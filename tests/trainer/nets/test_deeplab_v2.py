"""DeepLab-v2: sizes and golden numbers of spec refine-segment 6 and G12, names, weight files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from golden import U
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import resnet50, resnet101

from trainer.errors import ConfigError, WeightsError
from trainer.nets.deeplab import DeepLabV2ResNet101
from trainer.nets.deeplab_v2 import CAFFE, TORCHVISION, CaffeBottleneck, take_torchvision
from trainer.weights.deeplab_v2 import layout_of, load_deeplab_v2


def sketch(num_classes: int = 21, **knobs) -> DeepLabV2ResNet101:
    """The network without numbers: names, shapes and gradients cost nothing."""
    with torch.device("meta"):
        return DeepLabV2ResNet101(num_classes, **knobs)


def blank(*shape: int) -> torch.Tensor:
    return torch.empty(*shape, device="meta")


@pytest.fixture(scope="module")
def net() -> DeepLabV2ResNet101:
    """Two classes, and batch norms that do something."""
    torch.manual_seed(0)
    network = DeepLabV2ResNet101(2)
    for name, tensor in network.state_dict().items():
        if "bn.running_var" in name:
            tensor.uniform_(0.8, 1.5)
        elif "bn.running_mean" in name or "bn.bias" in name:
            tensor.normal_(0, 0.1)
    return network


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> dict[str, Path]:
    """Files in the layouts of the released ones; an expanded number takes no space until it is
    loaded.
    """
    folder = tmp_path_factory.mktemp("weights")
    with torch.device("meta"):
        vision, vision50 = resnet101(), resnet50()
    state = flat(sketch().base)
    body = {k: v for k, v in state.items() if not k.startswith("aspp.")}
    contents = {
        "coco": body | {"fc.weight": torch.zeros(91, 2048), "fc.bias": torch.zeros(91)},
        "imagenet": body,
        "segmenter": {f"base.{k}": v for k, v in state.items()},
        "parallel": {"state_dict": {f"module.scale.{k}": v for k, v in state.items()}},
        "vision": flat(vision),
        "vision50": flat(vision50),
    }
    paths = {name: folder / f"{name}.pth" for name in contents}
    for name, content in contents.items():
        torch.save(content, paths[name])
    return paths


def flat(network: nn.Module) -> dict[str, torch.Tensor]:
    return {k: torch.tensor(0.5).expand(v.shape) for k, v in network.state_dict().items()}


def test_sizes_and_operations_of_the_training_crop():
    with FlopCounterMode(display=False) as counter:
        outputs = sketch().train()(blank(5, 3, 321, 321))
    assert [tuple(x.shape) for x in outputs] == [(5, 21, side, side) for side in (41, 21, 31, 41)]
    assert counter.get_total_flops() / 5e9 == pytest.approx(276, abs=0.5)


@pytest.mark.parametrize(
    ("size", "cells"),
    [
        ((321, 321), (41, 41)),
        ((160, 160), (21, 21)),
        ((240, 240), (31, 31)),
        ((375, 500), (48, 63)),
        ((513, 513), (65, 65)),
    ],
)
def test_sizes_of_test_images(size, cells):
    network = sketch().eval()
    assert (
        network(blank(1, 3, *size)).shape
        == network.base(blank(1, 3, *size)).shape
        == (1, 21, *cells)
    )


def test_parameters_and_their_groups():
    network = sketch()
    groups = network.param_groups(2.5e-4, 5e-4)
    found = [
        (len(g["params"]), sum(p.numel() for p in g["params"]), g["lr"], g["weight_decay"])
        for g in groups
    ]
    assert found == [
        (104, 42_394_816, 2.5e-4, 5e-4),
        (4, 1_548_288, pytest.approx(2.5e-3), 5e-4),
        (4, 84, pytest.approx(5e-3), 0.0),
    ]
    assert sum(p.numel() for p in network.parameters()) == 44_048_532
    assert all(p.ndim == 4 for g in groups[:2] for p in g["params"])


def test_names():
    names = sketch().state_dict()
    assert len(names) == 632
    assert all(name.startswith("base.") for name in names)
    for name in (
        "layer1.conv1.conv.weight",
        "layer1.conv1.bn.running_var",
        "layer4.block23.increase.bn.bias",
    ):
        assert f"base.{name}" in names
    shortcuts = {name.split(".shortcut")[0] for name in names if "shortcut" in name}
    assert shortcuts == {f"base.layer{i}.block1" for i in (2, 3, 4, 5)}
    assert {n.removeprefix("base.aspp.") for n in names if ".aspp." in n} == {
        f"c{i}.{kind}" for i in range(4) for kind in ("weight", "bias")
    }


@pytest.mark.parametrize(("stride_on", "strides"), [("1x1", (2, 1)), ("3x3", (1, 2))])
def test_stride_is_where_the_weights_expect_it(stride_on, strides):
    block = sketch(stride_on=stride_on).base.layer3.block1
    assert isinstance(block, CaffeBottleneck)
    assert (block.reduce.conv.stride[0], block.conv3x3.conv.stride[0]) == strides
    assert block.shortcut.conv.stride == (2, 2)


def test_layers_rates_and_first_values():
    network = sketch(rates=(3, 6, 9, 12))
    assert [conv.dilation[0] for conv in network.base.aspp.children()] == [3, 6, 9, 12]
    dilations = {
        n.split(".")[1]: m.dilation[0]
        for n, m in network.named_modules()
        if n.endswith("conv3x3.conv")
    }
    assert dilations == {"layer2": 1, "layer3": 1, "layer4": 2, "layer5": 4}
    assert all(m.eps == 1e-5 for m in network.modules() if isinstance(m, nn.BatchNorm2d))
    assert network.base.layer1.pool.ceil_mode
    assert all(
        (c.bias is None) == ("aspp" not in n)
        for n, c in network.named_modules()
        if isinstance(c, nn.Conv2d)
    )


def test_a_block_by_hand():
    torch.manual_seed(1)
    block = (
        CaffeBottleneck(8, 16, stride=2, dilation=2, first=True, stride_on="1x1").double().eval()
    )
    for norm in (m for m in block.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.running_var.uniform_(0.5, 2)
        norm.running_mean.normal_()
    x = 2 * U((1, 8, 9, 11), 3) - 1

    def part(layer, x, relu=True, **options):
        x = layer.bn(F.conv2d(x, layer.conv.weight, **options))
        return x.relu() if relu else x

    with torch.no_grad():
        main = part(block.conv3x3, part(block.reduce, x, stride=2), padding=2, dilation=2)
        expected = (
            part(block.increase, main, False) + part(block.shortcut, x, False, stride=2)
        ).relu()
        torch.testing.assert_close(block(x), expected)


def test_train_gives_every_scale_and_eval_their_maximum(net):
    images = torch.randn(1, 3, 65, 81, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        first, half, three_quarters, largest = net.train()(images)
        only = net.eval()(images)
        torch.testing.assert_close(only, largest)
        views = [
            F.interpolate(images, scale_factor=s, mode="bilinear", align_corners=False)
            for s in (0.5, 0.75)
        ]
        assert [tuple(v.shape[2:]) for v in views] == [(32, 40), (48, 60)]
        torch.testing.assert_close(half, net.base(views[0]))
        torch.testing.assert_close(three_quarters, net.base(views[1]))
    levels = [
        F.interpolate(x, first.shape[2:], mode="bilinear", align_corners=False)
        for x in (half, three_quarters)
    ]
    torch.testing.assert_close(largest, torch.maximum(first, torch.maximum(*levels)))


def test_batch_norms_are_fixed_in_every_mode(net):
    before = {k: v.clone() for k, v in net.state_dict().items() if ".bn." in k}
    for mode in (True, False, True):
        net.train(mode)
        assert net.training == mode
        assert not any(m.training for m in net.modules() if isinstance(m, nn.BatchNorm2d))
    with torch.no_grad():
        net(torch.randn(2, 3, 33, 33))
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items() if k in before)


def test_gradients_reach_what_trains_only():
    network = sketch().train()
    sum(x.sum() for x in network(blank(1, 3, 65, 65))).backward()
    reached = {name for name, p in network.named_parameters() if p.grad is not None}
    assert reached == {name for name, _ in network.named_parameters() if ".bn." not in name}
    assert len(reached) == 112


def test_impossible_knobs_are_named():
    with pytest.raises(ConfigError, match="stride_on='2x2'"):
        DeepLabV2ResNet101(21, stride_on="2x2")
    with pytest.raises(ConfigError, match="input='bgr'"):
        DeepLabV2ResNet101(21, input="bgr")


@pytest.mark.parametrize(("name", "supervision"), [("coco", "COCO masks"), ("imagenet", "unknown")])
def test_weights_to_start_from(net, released, name, supervision):
    head = net.base.aspp.c0.weight.clone()
    report = load_deeplab_v2(net, released[name])
    assert (report.supervision, report.kind) == (supervision, "ResNet-101 in the Caffe layout")
    assert len(report.loaded) == 104 * 5
    assert {n.split(".")[0] for n in report.missing} == {"aspp"}
    assert torch.equal(net.base.aspp.c0.weight, head)
    assert (net.base.layer5.block3.increase.conv.weight == 0.5).all()


@pytest.mark.parametrize("name", ["segmenter", "parallel"])
def test_trained_segmenters_of_any_prefix(released, name):
    network = DeepLabV2ResNet101(21).to_empty(device="cpu")
    report = load_deeplab_v2(network, released[name])
    assert (len(report.loaded), report.missing, report.unexpected) == (528, (), ())
    assert report.kind == "DeepLab-v2"
    assert all((p == 0.5).all() for p in network.parameters())


def test_torchvision_weights_need_a_network_built_for_them(net, released):
    with pytest.raises(WeightsError, match="torchvision layout") as caught:
        load_deeplab_v2(net, released["vision"])
    assert 'stride_on="3x3", input="torchvision_rgb"' in caught.value.hint
    assert "segment.stride_on=auto" in caught.value.hint
    with pytest.raises(WeightsError, match="Caffe layout"):
        load_deeplab_v2(sketch(stride_on="3x3", input="torchvision_rgb"), released["coco"])


def test_torchvision_weights_make_torchvision_features(tmp_path):
    """Stage 2 is the last before the two differ in dilation."""
    torch.manual_seed(0)
    source = resnet101(weights=None).eval()
    torch.save(source.state_dict(), tmp_path / "resnet101.pth")
    network = DeepLabV2ResNet101(2, stride_on="3x3", input="torchvision_rgb").eval()
    report = load_deeplab_v2(network, tmp_path / "resnet101.pth")
    assert (len(report.loaded), report.supervision, report.unexpected) == (
        520,
        "ImageNet tags",
        ("fc.weight", "fc.bias"),
    )
    images = torch.randn(1, 3, 65, 65)
    with torch.no_grad():
        # Ceil mode makes no difference where the size is 4n + 1.
        expected = source.maxpool(source.relu(source.bn1(source.conv1(images))))
        expected = source.layer2(source.layer1(expected))
        found = network.base.layer3(network.base.layer2(network.base.layer1(images)))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    last = network.base.layer5.block3.conv3x3.conv.weight
    assert torch.equal(last, source.layer4[2].conv2.weight)


def test_files_of_other_networks_are_refused_and_nothing_changes(net, released, tmp_path):
    before = {k: v.clone() for k, v in net.state_dict().items() if "aspp" in k or "layer1" in k}
    torch.save({"b5_2.conv_branch2a.weight": torch.zeros(1)}, tmp_path / "38.pth")
    (tmp_path / "page.pth").write_text("<html>")
    wrong = {
        released["vision50"]: "a torchvision resnet50",
        tmp_path / "38.pth": "a ResNet-38",
        released["segmenter"]: (
            r"aspp.c0.weight has shape \(21, 2048, 3, 3\) instead of \(2, 2048, 3, 3\): it is a"
            r" segmenter of "
            "20 classes and background, and this one has 1"
        ),
        tmp_path / "page.pth": "web page",
        tmp_path / "none.pth": "not a file",
    }
    for path, message in wrong.items():
        with pytest.raises(WeightsError, match=message):
            load_deeplab_v2(net, path)
    assert all(torch.equal(net.state_dict()[k], v) for k, v in before.items())


def test_layout_of_files(released, tmp_path):
    assert layout_of(released["coco"]) == layout_of(released["imagenet"]) == CAFFE
    assert layout_of(released["vision"]) == TORCHVISION
    assert layout_of(released["segmenter"]) is layout_of(released["vision50"]) is None
    own = {"stride_on": "3x3", "input": "torchvision_rgb"}
    torch.save({"identity": own, "state": flat(sketch())}, tmp_path / "model.pt")
    assert layout_of(tmp_path / "model.pt") == TORCHVISION


def test_a_file_named_after_coco_without_its_head_is_still_masks(net, released, tmp_path):
    state = torch.load(released["imagenet"], weights_only=True)
    torch.save(state, tmp_path / "deeplabv1_resnet101-COCO-init.pth")
    assert (
        load_deeplab_v2(net, tmp_path / "deeplabv1_resnet101-COCO-init.pth").supervision
        == "COCO masks"
    )


def test_a_trained_segmenter_has_seen_masks(released):
    network = DeepLabV2ResNet101(21).to_empty(device="cpu")
    assert "masks" in load_deeplab_v2(network, released["segmenter"]).supervision


def test_without_further_scales_there_is_one_output():
    network = sketch(scales=())
    assert [tuple(x.shape) for x in network.train()(blank(2, 3, 65, 65))] == [(2, 21, 9, 9)]
    assert network.eval()(blank(2, 3, 65, 65)).shape == (2, 21, 9, 9)


def test_a_thin_network_has_the_same_names_and_sizes():
    thin = sketch(width=1 / 16)
    assert list(thin.state_dict()) == list(sketch().state_dict())
    assert sum(p.numel() for p in thin.parameters()) < 1_000_000
    assert thin.eval()(blank(1, 3, 375, 500)).shape == (1, 21, 48, 63)


def test_the_backbone_of_a_classifier_can_be_taken():
    torch.manual_seed(1)
    source = resnet101(weights=None)
    network = DeepLabV2ResNet101(2, stride_on="3x3", input="torchvision_rgb")
    source.fc = nn.Identity()
    take_torchvision(network, source)
    assert torch.equal(network.base.layer4.block7.reduce.conv.weight, source.layer3[6].conv1.weight)
