"""Backbones of timm: the same features as timm's own, its weight files, freezing, refusals, export.

The ``test_`` networks are timm's own miniatures of its families.
"""

from __future__ import annotations

import math
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import FeatureListNet
from torch import nn

from trainer.errors import ConfigError, WeightsError
from trainer.export.publish import export_model
from trainer.methods.registry import build_method, method_classes
from trainer.nets import build_backbone, traits_of
from trainer.nets.backbone import Backbone, batch_norms
from trainer.nets.folding import FoldingConv2d, unfold
from trainer.nets.graphs import CamGraph
from trainer.nets.timm_layers import fold_adjacent
from trainer.weights.cache import fetch_weights, find_weights, import_weights, list_weights
from trainer.weights.loading import load_backbone

CHAINS = (
    "test_resnet",
    "test_efficientnet",
    "test_convnext",
    "mobilenetv3_small_050",
    "tf_efficientnet_lite0",
    "test_nfnet",
)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever opens a connection fails."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("a test opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def build(name: str, **knobs: Any) -> Backbone:
    torch.manual_seed(0)
    return build_backbone(f"timm/{name}", **knobs)


def images(height: int = 64, width: int = 96) -> torch.Tensor:
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("stride", [8, 16, 32])
@pytest.mark.parametrize("name", CHAINS)
def test_features_are_those_of_timm(name: str, stride: int) -> None:
    net = build(name, output_stride=stride).eval()
    theirs = timm.create_model(name, features_only=True, output_stride=stride).eval()
    own = net.state_dict()
    # A list of features writes the first dot of a name as an underscore.
    names = {key.replace(".", "_", 1): key for key in own} | {key: key for key in own}
    if not isinstance(theirs, FeatureListNet):
        names = {key: key for key in own}
    theirs.load_state_dict({key: own[names[key]] for key in theirs.state_dict()})
    with torch.no_grad():
        ours, expected = net(images()), theirs(net.rescale(images()))[-4:]
    assert list(ours) == ["stage1", "stage2", "stage3", "stage4"] == list(net.strides)
    for (stage, feature), other in zip(ours.items(), expected):
        # Folded batch norms round in another way.
        torch.testing.assert_close(feature, other, rtol=1e-4, atol=1e-4)
        assert feature.shape[1] == net.channels[stage]
        assert feature.shape[2] == 64 // net.strides[stage]


@pytest.mark.parametrize("name", ["test_vit", "test_vit3", "vit_tiny_patch16_224"])
def test_patches_are_those_of_timm(name: str) -> None:
    net = build(name).eval()
    theirs = timm.create_model(name, num_classes=0, dynamic_img_size=True).eval()
    theirs.load_state_dict(net.state_dict(), strict=False)
    with torch.no_grad():
        own_size = net(images(*theirs.patch_embed.img_size))["patches"]
        other_size = net(images())["patches"]
        for ours, side in ((own_size, theirs.patch_embed.img_size), (other_size, (64, 96))):
            tokens = theirs.forward_features(net.rescale(images(*side)))
            if isinstance(theirs.norm, torch.nn.Identity):
                tokens = theirs.fc_norm(tokens)
            patches = tokens[:, theirs.num_prefix_tokens :].transpose(1, 2)
            torch.testing.assert_close(ours.flatten(2), patches, atol=2e-5, rtol=1e-4)
    assert other_size.shape[2:] == (64 // net.strides["patches"], 96 // net.strides["patches"])


@pytest.mark.parametrize(
    "name",
    [
        "vit_small_patch14_dinov2",
        "vit_small_patch14_reg4_dinov2",
        "vit_small_patch16_224.dino",
        "vit_base_patch16_224.mae",
    ],
)
def test_self_supervised_transformers_make_maps_of_their_patches(name: str) -> None:
    method = build_method("cam", method_classes("cam")[1](), f"timm/{name}", {}, 3).eval()
    # Two blocks are enough: what differs are the tokens and their positions.
    method.backbone.blocks = method.backbone.blocks[:2]
    theirs = timm.create_model(name, num_classes=0, dynamic_img_size=True).eval()
    theirs.blocks = theirs.blocks[:2]
    theirs.load_state_dict(method.backbone.state_dict(), strict=False)
    patch = method.backbone.strides["patches"]
    with torch.no_grad():
        pixels = images(4 * patch, 6 * patch)
        ours = method.backbone(pixels)["patches"]
        tokens = theirs.forward_features(method.backbone.rescale(pixels))
        if isinstance(theirs.norm, torch.nn.Identity):
            tokens = theirs.fc_norm(tokens)
        patches = tokens[:, theirs.num_prefix_tokens :].transpose(1, 2)
        torch.testing.assert_close(ours.flatten(2), patches, atol=2e-5, rtol=1e-4)
        # Sides that are no multiples of a patch get a cell more.
        assert method.cams(images(3 * patch + 1, 5 * patch)).shape == (1, 3, 4, 5)


@pytest.mark.parametrize("name", ["test_vit", "test_vit3", "vit_tiny_patch16_224"])
def test_stages_of_a_transformer_are_intermediate_layers_of_timm(name: str) -> None:
    net = build(name).eval()
    theirs = timm.create_model(name, num_classes=0, dynamic_img_size=True).eval()
    theirs.load_state_dict(net.state_dict(), strict=False)
    count = len(net.blocks)
    ends = [math.ceil(count * i / 4) - 1 for i in (1, 2, 3, 4)]
    with torch.no_grad():
        ours = net(images())
        layers = theirs.forward_intermediates(
            net.rescale(images()), indices=ends, norm=True, intermediates_only=True
        )
    assert list(ours) == ["stage1", "stage2", "stage3", "patches"] == list(net.channels)
    if not isinstance(theirs.norm, torch.nn.Identity):
        for feature, layer in zip(ours.values(), layers, strict=True):
            torch.testing.assert_close(feature, layer, atol=2e-5, rtol=1e-4)


def test_a_hook_of_a_transformer_changes_what_comes_after_it() -> None:
    net = build("test_vit").eval()
    with torch.no_grad():
        plain = net(images())
        handle = net.hook("stage2", lambda x_BCN1: 2 * x_BCN1)
        doubled = net(images())
        handle.remove()
        again = net(images())
    assert torch.equal(doubled["stage1"], plain["stage1"])
    # The last layer norm takes out the factor of the hooked layer itself, but for its epsilon.
    torch.testing.assert_close(doubled["stage2"], plain["stage2"], atol=1e-2, rtol=1e-2)
    assert (doubled["patches"] - plain["patches"]).abs().max() > 0.1
    assert torch.equal(again["patches"], plain["patches"])


@pytest.mark.parametrize(
    ("method", "knobs"),
    [("seam", {"prcm": "on"}), ("cpn", {}), ("manifold_mixup_cam", {}), ("vwe", {}), ("recam", {})],
)
def test_every_method_learns_on_a_transformer(method: str, knobs: dict[str, object]) -> None:
    config = method_classes(method)[1](**knobs)
    module = build_method(method, config, "timm/test_vit", {}, 3).train()
    batch = {"image": images(64, 64).expand(2, -1, -1, -1), "tags": torch.eye(3)[:2]}
    terms = module.loss(batch, np.random.default_rng(0))
    sum(terms.values()).backward()
    gradient = module.backbone.blocks[0].attn.qkv.weight.grad
    assert gradient.isfinite().all()
    assert gradient.any()
    maps = module.eval().cams(images(48, 80))
    assert maps.shape == (1, 3, 3, 5)
    assert (maps >= 0).all()


@pytest.mark.parametrize("name", [*CHAINS, "test_vit"])
def test_sizes_are_rounded_up(name: str) -> None:
    net = build(name).eval()
    stride = net.strides[net.top]
    assert net(images(75, 50))[net.top].shape[2:] == (-(-75 // stride), -(-50 // stride))


def test_images_reach_the_network_in_the_scale_of_its_weights() -> None:
    assert not build("resnet18").rescale.needed
    rescale = build("test_vit").rescale
    black = (0 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(rescale(black.view(1, 3, 1, 1)), torch.full((1, 3, 1, 1), -1.0))


def test_what_is_frozen() -> None:
    net = build("test_efficientnet", bn="stats", detach_after="stage2").train()
    net(images())["stage4"].mean().backward()
    free = {name for name, p in net.named_parameters() if p.requires_grad}
    assert free == {name for name, p in net.named_parameters() if p.grad is not None}
    assert not any(name.startswith(("conv_stem", "bn1", "blocks.0")) for name in free)
    assert any(name.endswith("bn1.weight") for name in free)
    assert not any(norm.training for norm in batch_norms([net]))
    assert all(p.requires_grad for p in build("test_efficientnet", bn="train").parameters())


def test_dilation_can_be_left_out() -> None:
    assert [c.dilation for c in build("test_resnet").modules() if is_dilated(c)]
    plain = build("test_resnet", dilate=False)
    assert not [c for c in plain.modules() if is_dilated(c)]
    assert plain(images())["stage4"].shape[2:] == (4, 6)


def is_dilated(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.Conv2d) and module.dilation != (1, 1)


@pytest.mark.parametrize(
    "name", ["densenet121", "vgg11_bn", "swin_tiny_patch4_window7_224", "dla34"]
)
def test_a_network_without_a_stride_to_keep_is_refused(name: str) -> None:
    with pytest.raises(
        ConfigError, match=f"timm/{name} is a network that cannot keep a stride of 16"
    ):
        build(name)


def test_unknown_names_show_the_nearest() -> None:
    with pytest.raises(ConfigError, match="no network 'resnet19'") as caught:
        traits_of("timm/resnet19")
    assert "timm/resnet18" in caught.value.expected
    with pytest.raises(ConfigError, match="no plain vision transformer"):
        build("deit_tiny_distilled_patch16_224")
    with pytest.raises(ConfigError, match="has no knob 'bn'"):
        build("test_vit", bn="frozen")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("name", ["test_efficientnet", "test_convnext", "test_vit"])
def test_files_of_timm_load(tmp_path: Path, name: str, suffix: str) -> None:
    theirs = timm.create_model(name).state_dict()
    path = tmp_path / f"weights{suffix}"
    save_file(theirs, path) if suffix == ".safetensors" else torch.save(theirs, path)
    net = build(name)
    report = load_backbone(net, path)
    assert (report.missing, report.supervision) == ((), "ImageNet tags")
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in net.state_dict().items())


def test_a_file_of_torchvision_loads_into_the_resnet_of_timm(tmp_path: Path) -> None:
    from torchvision.models import resnet18

    torch.save(resnet18().state_dict(), tmp_path / "resnet18.pth")
    assert load_backbone(build("resnet18"), tmp_path / "resnet18.pth").missing == ()
    with pytest.raises(WeightsError, match="looks like a torchvision resnet18"):
        load_backbone(build("resnet34"), tmp_path / "resnet18.pth")


def test_the_cache_knows_weights_of_timm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WSSS_CACHE", str(tmp_path / "cache"))
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "file.pth")
    stored = import_weights(tmp_path / "file.pth", "timm/test_resnet")
    assert find_weights("timm/test_resnet") == stored.path
    assert list_weights()[-1] == stored
    assert find_weights("timm/test_vit", tmp_path / "file.pth") == tmp_path / "file.pth"
    with pytest.raises(WeightsError, match="no network") as caught:
        fetch_weights("timm/test_vit")
    address = "https://huggingface.co/timm/test_vit.r160_in1k/resolve/main/model.safetensors"
    assert address in caught.value.expected
    assert "--as timm/test_vit; or --weights none" in caught.value.hint


@pytest.mark.parametrize("name", ["test_efficientnet", "test_convnext", "test_vit", "test_vit2"])
def test_the_exported_graph_agrees_with_pytorch(tmp_path: Path, name: str) -> None:
    method = build_method("cam", method_classes("cam")[1](), f"timm/{name}", {}, 3)
    graph = CamGraph(method, scales=(1,), flip=False)
    draw = np.random.default_rng(0)
    pictures = [draw.integers(0, 256, (*size, 3), np.uint8) for size in ((75, 98), (64, 80))]
    card = {
        "classes": ["a", "b", "c"],
        "palette": [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]],
        "input": {"min_side": 32, "max_side": 4096, "max_pixels": 1 << 22},
        "thresholds": {"background": 0.3, "score": 0.5},
        "supervision": "ImageNet tags",
        "source": {"run": "r", "method": "cam", "backbone": name, "seed": 0},
        "metrics": {},
    }
    report = export_model(graph, card, tmp_path, "model", pictures)
    assert (report.path / "model.onnx").is_file()


@pytest.mark.parametrize(("name", "pairs"), [("efficientnet_lite0", 48), ("timm/resnet18", 20)])
def test_batch_norms_are_folded_with_their_activations(name, pairs):
    torch.manual_seed(0)
    network = build_backbone(name).eval()
    for norm in batch_norms([network]):
        norm.running_mean.uniform_(-0.2, 0.2)
        norm.running_var.uniform_(0.5, 1.5)
    images = torch.rand(2, 3, 64, 96)
    assert sum(isinstance(m, FoldingConv2d) and m.folds for m in network.modules()) == pairs
    features = network(images)
    features["stage4"].square().sum().backward()
    gradients = [p.grad.clone() for p in network.parameters() if p.grad is not None]
    network.zero_grad()
    unfold(network)
    assert not any(isinstance(m, FoldingConv2d) and m.folds for m in network.modules())
    plain = network(images)
    plain["stage4"].square().sum().backward()
    for stage, feature in features.items():
        torch.testing.assert_close(feature, plain[stage], rtol=1e-3, atol=1e-4)
    for ours, p in zip(gradients, (p for p in network.parameters() if p.grad is not None)):
        # Norms: where the backward pass sums in another order, single weights may differ by more.
        assert torch.norm(ours - p.grad) <= 1e-2 * torch.norm(p.grad)


def test_only_layers_that_follow_each_other_are_folded():
    class Swapped(nn.Module):
        """Its batch norm stands behind the convolution and works before it."""

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, bias=False)
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(self.norm(x))

    network = Swapped()
    fold_adjacent(network)
    assert type(network.conv) is nn.Conv2d
