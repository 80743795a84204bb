"""DeepLab-v2: sizes and golden numbers of spec refine-segment 6 and G12, names, weight files, losses, schedule."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden import U
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import resnet50, resnet101

from trainer.errors import ConfigError, WeightsError
from trainer.nets.deeplab import DeepLabV2ResNet101
from trainer.nets.deeplab_v2 import (
    CaffeBottleneck,
    full_size_probabilities,
    held_poly,
    label_loss,
    load_deeplab_v2,
    multi_scale_loss,
    normalise,
    resize_labels,
)


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
    """Files in the layouts of the released ones; an expanded number takes no space until it is loaded."""
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


def test_size_of_a_test_image():
    assert sketch().eval()(blank(1, 3, 375, 500)).shape == (1, 21, 48, 63)


def test_parameters_and_their_groups():
    network = sketch()
    groups = network.param_groups(2.5e-4, 5e-4)
    found = [(len(g["params"]), sum(p.numel() for p in g["params"]), g["lr"], g["weight_decay"]) for g in groups]
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
    for name in ("layer1.conv1.conv.weight", "layer1.conv1.bn.running_var", "layer4.block23.increase.bn.bias"):
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
    dilations = {n.split(".")[1]: m.dilation[0] for n, m in network.named_modules() if n.endswith("conv3x3.conv")}
    assert dilations == {"layer2": 1, "layer3": 1, "layer4": 2, "layer5": 4}
    assert all(m.eps == 1e-5 for m in network.modules() if isinstance(m, nn.BatchNorm2d))
    assert network.base.layer1.pool.ceil_mode
    assert all((c.bias is None) == ("aspp" not in n) for n, c in network.named_modules() if isinstance(c, nn.Conv2d))


def test_a_block_by_hand():
    torch.manual_seed(1)
    block = CaffeBottleneck(8, 16, stride=2, dilation=2, first=True, stride_on="1x1").double().eval()
    for norm in (m for m in block.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.running_var.uniform_(0.5, 2)
        norm.running_mean.normal_()
    x = 2 * U((1, 8, 9, 11), 3) - 1

    def part(layer, x, relu=True, **options):
        x = layer.bn(F.conv2d(x, layer.conv.weight, **options))
        return x.relu() if relu else x

    with torch.no_grad():
        main = part(block.conv3x3, part(block.reduce, x, stride=2), padding=2, dilation=2)
        expected = (part(block.increase, main, False) + part(block.shortcut, x, False, stride=2)).relu()
        torch.testing.assert_close(block(x), expected)


def test_train_gives_every_scale_and_eval_their_maximum(net):
    images = torch.randn(1, 3, 65, 81, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        first, half, three_quarters, largest = net.train()(images)
        only = net.eval()(images)
        torch.testing.assert_close(only, largest)
        views = [F.interpolate(images, scale_factor=s, mode="bilinear", align_corners=False) for s in (0.5, 0.75)]
        assert [tuple(v.shape[2:]) for v in views] == [(32, 40), (48, 60)]
        torch.testing.assert_close(half, net.base(views[0]))
        torch.testing.assert_close(three_quarters, net.base(views[1]))
    levels = [F.interpolate(x, first.shape[2:], mode="bilinear", align_corners=False) for x in (half, three_quarters)]
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
    with pytest.raises(ConfigError, match="input='rgb'"):
        normalise(torch.zeros(1, 3, 1, 1), "rgb")


def test_input_of_caffe_and_of_torchvision():
    pixel = torch.tensor([255, 128, 0], dtype=torch.uint8)[None, :, None, None]
    assert normalise(pixel).flatten().tolist() == pytest.approx([-104.008, 128 - 116.669, 255 - 122.675], rel=1e-6)
    expected = [(1 - 0.485) / 0.229, (128 / 255 - 0.456) / 0.224, -0.406 / 0.225]
    assert normalise(pixel.double(), "torchvision_rgb").flatten().tolist() == pytest.approx(expected, rel=1e-12)


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
        released["segmenter"]: r"aspp.c0.weight has shape \(21, 2048, 3, 3\) instead of \(2,",
        tmp_path / "page.pth": "web page",
        tmp_path / "none.pth": "not a file",
    }
    for path, message in wrong.items():
        with pytest.raises(WeightsError, match=message):
            load_deeplab_v2(net, path)
    assert all(torch.equal(net.state_dict()[k], v) for k, v in before.items())


@pytest.mark.parametrize(("old", "new"), [(321, 41), (321, 21), (321, 31), (512, 128), (513, 65), (375, 94), (448, 56)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_labels_are_resized_as_by_pillow(old, new, dtype):
    labels = np.random.default_rng(old).integers(0, 256, (old, old), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(labels).resize((new, new), Image.Resampling.NEAREST))
    found = resize_labels(torch.from_numpy(labels).to(dtype)[None], (new, new))
    assert found.dtype == dtype
    assert np.array_equal(found[0].numpy(), expected)


@settings(max_examples=60, deadline=None)
@given(*(st.integers(1, 400) for _ in range(4)))
def test_labels_are_resized_as_by_nearest_exact(height, width, h, w):
    labels = torch.arange(height * width).reshape(1, height, width)
    expected = F.interpolate(labels[None].double(), (h, w), mode="nearest-exact")[0].long()
    assert torch.equal(resize_labels(labels, (h, w)), expected)


def test_pillow_differs_on_the_edge_of_two_pixels_only():
    for old, new in ((680, 509), (246, 33), (448, 748), (108, 14)):
        line = np.arange(old, dtype=np.int32)[None]
        pillow = np.asarray(Image.fromarray(line).resize((new, 1), Image.Resampling.NEAREST))[0]
        found = resize_labels(torch.from_numpy(line), (1, new))[0].numpy()
        other = np.flatnonzero(pillow != found)
        assert ((2 * other + 1) * old % (2 * new) == 0).all()
        assert (np.abs(pillow - found) <= 1).all()


def test_loss_is_the_sum_over_outputs_of_means_over_known_pixels():
    labels = (4 * U((2, 33, 41), 1)).long()
    labels[labels == 3] = 255
    sizes = ((5, 6), (3, 4), (4, 5), (5, 6))
    logits = [4 * U((2, 3, *size), 2 + i) - 2 for i, size in enumerate(sizes)]
    expected = 0.0
    for level in logits:
        small = F.interpolate(labels[:, None].double(), level.shape[2:], mode="nearest-exact")[:, 0].long()
        expected += F.cross_entropy(level, small, ignore_index=255).item()
    assert multi_scale_loss(logits, labels).item() == pytest.approx(expected, rel=1e-12)
    assert multi_scale_loss(logits, labels.to(torch.uint8)).item() == pytest.approx(expected, rel=1e-12)


def test_balanced_loss_is_background_and_foreground_apart():
    logits, labels = 4 * U((1, 3, 4, 5), 1) - 2, (3 * U((1, 4, 5), 2)).long()
    labels[0, 0] = 255
    chance = -logits.log_softmax(1).gather(1, labels.clamp(max=2)[:, None])[:, 0]
    expected = chance[labels == 0].mean() + chance[(labels == 1) | (labels == 2)].mean()
    torch.testing.assert_close(label_loss(logits, labels, balanced=True), expected)


@pytest.mark.parametrize("balanced", [False, True])
def test_nothing_but_ignored_pixels_is_no_loss(balanced):
    logits = torch.randn(1, 3, 2, 2, dtype=torch.bfloat16, requires_grad=True)
    loss = label_loss(logits, torch.full((1, 2, 2), 255), balanced)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == 0
    assert not logits.grad.any()


def test_rate_changes_every_ten_updates():
    factors = [held_poly(step) for step in range(20_000)]
    for i in (1, 10, 11, 12_345, 20_000):
        assert factors[i - 1] == pytest.approx((1 - 10 * ((i - 1) // 10) / 20_000) ** 0.9, rel=1e-12)
    assert len(set(factors)) == 2000
    assert factors[0] == factors[9] == 1
    assert 2.5e-4 * factors[10] == pytest.approx(2.4988749718e-04, rel=1e-9)
    assert 2.5e-4 * factors[-1] == pytest.approx(2.6730846869e-07, rel=1e-9)


def test_probabilities_are_made_at_full_size():
    logits = 4 * U((1, 3, 6, 8), 5) - 2
    found = full_size_probabilities(logits, (48, 63))
    expected = F.interpolate(logits, (48, 63), mode="bilinear", align_corners=False).softmax(1)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found.sum(1), torch.ones(1, 48, 63).double())
    assert full_size_probabilities(logits.bfloat16(), (48, 63)).dtype == torch.float32
