"""The vision transformer of Sub-category Teaching: what it computes, and which files it takes."""

from __future__ import annotations

import hashlib
import math
import re
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor
from torchvision.models import resnet18
from torchvision.models.vision_transformer import VisionTransformer

from trainer.errors import ConfigError, WeightsError
from trainer.nets.vit import SIZES, Vit, VitShape
from trainer.weights.vit import TIMM, build_vit, load_vit, timm_name

TINY = VitShape(layers=2, heads=2, width=128, mlp=160, patch=4, image_size=12)
IMAGES = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(5)) * 4 - 2


def timm_tensors(shape: VitShape = TINY, classes: int | None = 1000) -> dict[str, Tensor]:
    """A random state dict as timm writes it, every tensor far from its initial value."""
    width, patches = shape.width, (shape.image_size // shape.patch) ** 2
    sizes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, patches + 1, width),
        "patch_embed.proj.weight": (width, 3, shape.patch, shape.patch),
        "patch_embed.proj.bias": (width,),
    }
    for i in range(shape.layers):
        for name, out, into in (
            ("norm1", width, 0),
            ("attn.qkv", 3 * width, width),
            ("attn.proj", width, width),
            ("norm2", width, 0),
            ("mlp.fc1", shape.mlp, width),
            ("mlp.fc2", width, shape.mlp),
        ):
            sizes[f"blocks.{i}.{name}.weight"] = (out, into) if into else (out,)
            sizes[f"blocks.{i}.{name}.bias"] = (out,)
    sizes |= {"norm.weight": (width,), "norm.bias": (width,)}
    if classes is not None:
        sizes |= {"head.weight": (classes, width), "head.bias": (classes,)}
    rng = torch.Generator().manual_seed(1)
    scale = {1: 0.3, 2: 2 / math.sqrt(width), 3: 0.5, 4: 0.2}
    tensors = {
        name: torch.randn(size, generator=rng) * scale[len(size)] for name, size in sizes.items()
    }
    return {
        name: tensor + (1 if "norm" in name and "weight" in name else 0)
        for name, tensor in tensors.items()
    }


def torchvision_name(name: str) -> str:
    """torchvision's name for timm's, written for itself as the inverse of ``timm_name``."""
    fixed = {"cls_token": "class_token", "pos_embed": "encoder.pos_embedding"}
    if name in fixed:
        return fixed[name]
    name = re.sub(r"^blocks\.", "encoder.layers.encoder_layer_", name)
    name = re.sub(r"^norm\.", "encoder.ln.", name).replace("patch_embed.proj", "conv_proj")
    name = name.replace("attn.qkv.", "self_attention.in_proj_")
    return (
        name.replace("attn.proj", "self_attention.out_proj")
        .replace("norm1", "ln_1")
        .replace("norm2", "ln_2")
        .replace("mlp.fc1", "mlp.0")
        .replace("mlp.fc2", "mlp.3")
    )


def by_hand(tensors: dict[str, Tensor], images: Tensor, shape: VitShape = TINY) -> Tensor:
    """The class token in float64, from timm's names and the paper's equations."""
    w = {name: tensor.double() for name, tensor in tensors.items()}
    side, patch = shape.image_size // shape.patch, shape.patch

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return (
            centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * w[name + ".weight"]
            + w[name + ".bias"]
        )

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[name + ".weight"].T + w[name + ".bias"]

    result = []
    for image in images.double():
        rows = [
            image[:, r * patch : (r + 1) * patch, c * patch : (c + 1) * patch].flatten()
            for r in range(side)
            for c in range(side)
        ]
        patches = (
            torch.stack(rows) @ w["patch_embed.proj.weight"].flatten(1).T
            + w["patch_embed.proj.bias"]
        )
        x = torch.cat([w["cls_token"][0], patches]) + w["pos_embed"][0]
        for i in range(shape.layers):
            q, k, v = linear(norm(x, f"blocks.{i}.norm1"), f"blocks.{i}.attn.qkv").chunk(3, dim=-1)
            heads = []
            for h in range(shape.heads):
                cut = slice(64 * h, 64 * (h + 1))
                heads.append((q[:, cut] @ k[:, cut].T / 8).softmax(-1) @ v[:, cut])
            x = x + linear(torch.cat(heads, -1), f"blocks.{i}.attn.proj")
            hidden = linear(norm(x, f"blocks.{i}.norm2"), f"blocks.{i}.mlp.fc1")
            x = x + linear(
                hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2, f"blocks.{i}.mlp.fc2"
            )
        result.append(norm(x, "norm")[0])
    return torch.stack(result)


def torchvision_net(classes: int = 1000) -> VisionTransformer:
    torch.manual_seed(3)
    net = VisionTransformer(
        TINY.image_size,
        TINY.patch,
        TINY.layers,
        TINY.heads,
        TINY.width,
        TINY.mlp,
        num_classes=classes,
    )
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return net.eval()


def saved(path: Path, tensors: object) -> Path:
    torch.save(tensors, path)
    return path


def refused(path: Path) -> str:
    with pytest.raises(WeightsError) as caught:
        load_vit(path)
    assert "vision transformer with a class token" in caught.value.expected
    assert "vit_b_16-c867db91.pth" in caught.value.hint
    assert "vit_base_patch16_224.orig_in21k_ft_in1k" in caught.value.hint
    return caught.value.found


def test_a_timm_file_computes_the_paper_s_equations(tmp_path: Path) -> None:
    tensors = timm_tensors()
    net, report = load_vit(saved(tmp_path / "vit.pth", tensors))
    assert net.shape == TINY
    assert (net.embedding, net.image_size) == (128, 12)
    expected = by_hand(tensors, IMAGES)
    with torch.inference_mode():
        torch.testing.assert_close(
            net.double().eval()(IMAGES.double()), expected, rtol=1e-9, atol=1e-9
        )
    assert (report.kind, report.supervision) == ("timm", "ImageNet tags")
    assert report.mean == report.std == (0.5, 0.5, 0.5)
    assert report.missing == ()
    assert report.unexpected == ("head.weight", "head.bias")
    assert report.sha256 == hashlib.sha256((tmp_path / "vit.pth").read_bytes()).hexdigest()
    assert "not used: head.weight" in str(report)


def test_a_torchvision_file_computes_what_torchvision_does(tmp_path: Path) -> None:
    theirs = torchvision_net()
    net, report = load_vit(saved(tmp_path / "vit.pth", theirs.state_dict()))
    theirs.heads = torch.nn.Sequential()
    with torch.inference_mode():
        torch.testing.assert_close(net.eval()(IMAGES), theirs(IMAGES), rtol=1e-5, atol=5e-6)
    assert net.shape == TINY
    assert (report.kind, report.supervision) == ("torchvision", "ImageNet tags")
    assert report.mean == (0.485, 0.456, 0.406)
    assert report.std == (0.229, 0.224, 0.225)
    assert report.unexpected == ("heads.head.weight", "heads.head.bias")


def test_names_are_timm_s_without_its_head() -> None:
    assert set(Vit(TINY).state_dict()) == set(timm_tensors(classes=None))


def test_names_go_round_both_ways() -> None:
    ours = set(Vit(TINY).state_dict())
    theirs = {name for name in torchvision_net().state_dict() if not name.startswith("heads.")}
    assert {timm_name(name) for name in theirs} == ours
    assert {torchvision_name(name) for name in ours} == theirs
    assert all(torchvision_name(timm_name(name)) == name for name in theirs)
    assert all(timm_name(name, TIMM) == name for name in ours)


def test_names_of_torchvision_s_released_files(tmp_path: Path) -> None:
    """vit_b_16-c867db91.pth was written before the perceptron's layers were numbered."""
    tensors = torchvision_net().state_dict()
    old = {
        n.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): t
        for n, t in tensors.items()
    }
    assert "encoder.layers.encoder_layer_1.mlp.linear_2.bias" in old
    net, _ = load_vit(saved(tmp_path / "vit.pth", old))
    assert all(
        torch.equal(tensor, tensors[torchvision_name(name)])
        for name, tensor in net.state_dict().items()
    )


@pytest.mark.parametrize(
    "shape",
    [
        VitShape(layers=1, heads=1, width=64, mlp=32, patch=2, image_size=8),
        VitShape(layers=3, heads=3, width=192, mlp=48, patch=14, image_size=14),
        VitShape(layers=1, heads=16, width=1280, mlp=16, patch=2, image_size=4),
    ],
)
def test_the_size_follows_from_the_file(tmp_path: Path, shape: VitShape) -> None:
    path = saved(tmp_path / "vit.pth", timm_tensors(shape, classes=7))
    net, report = load_vit(path)
    assert net.shape == shape
    assert net(torch.zeros(1, 3, shape.image_size, shape.image_size)).shape == (1, shape.width)
    assert report.supervision == "unknown"


@pytest.mark.parametrize("prefix", ["module.", "model.", "vit.backbone."])
def test_prefix_and_wrapper(tmp_path: Path, prefix: str) -> None:
    tensors = timm_tensors(classes=None)
    content = {
        "state_dict": {prefix + n: t for n, t in tensors.items()}
        | {"classifier.weight": torch.zeros(20, 128)}
    }
    net, report = load_vit(saved(tmp_path / "vit.pth", content))
    assert torch.equal(net.blocks[1].mlp.fc2.bias, tensors["blocks.1.mlp.fc2.bias"])
    assert report.unexpected == ("classifier.weight",)
    assert report.supervision == "unknown"


def test_half_precision_files_fill_a_float_net(tmp_path: Path) -> None:
    tensors = {name: tensor.half() for name, tensor in timm_tensors().items()}
    net, _ = load_vit(saved(tmp_path / "vit.pth", tensors))
    assert net.cls_token.dtype == torch.float32
    assert torch.equal(net.cls_token, tensors["cls_token"].float())


def test_a_file_of_our_own_is_read_again(tmp_path: Path) -> None:
    first = Vit(TINY)
    second, report = load_vit(
        saved(tmp_path / "vit.pth", first.state_dict()), dropout=0.25, attention_dropout=0.5
    )
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )
    assert second.pos_drop.p == 0.25
    assert second.blocks[0].attn.attn_drop.p == 0.5
    assert report.unexpected == ()


def test_a_missing_file(tmp_path: Path) -> None:
    assert "is not a file" in refused(tmp_path / "absent.pth")


def test_a_truncated_file(tmp_path: Path) -> None:
    path = saved(tmp_path / "vit.pth", timm_tensors())
    path.write_bytes(path.read_bytes()[:-5000])
    assert "truncated" in refused(path)


def test_files_of_other_networks(tmp_path: Path) -> None:
    assert "looks like a torchvision resnet18" in refused(
        saved(tmp_path / "a.pth", resnet18().state_dict())
    )
    assert "it holds weight" in refused(
        saved(tmp_path / "b.pth", torch.nn.Linear(2, 2).state_dict())
    )


@pytest.mark.parametrize(
    ("name", "size", "words"),
    [
        ("dist_token", (1, 1, 128), "DeiT"),
        ("blocks.0.attn.relative_position_bias_table", (4, 2), "relative positions"),
        ("blocks.1.ls1.gamma", (128,), "layer scale"),
        ("norm_pre.weight", (128,), "CLIP"),
        ("mask_token", (1, 128), "a plain one has no mask_token"),
    ],
)
def test_relatives_are_refused_by_name(
    tmp_path: Path, name: str, size: tuple[int, ...], words: str
) -> None:
    found = refused(saved(tmp_path / "vit.pth", timm_tensors() | {name: torch.zeros(size)}))
    assert "looks like a vision transformer" in found
    assert words in found


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"norm.weight": None}, "norm.weight is missing"),
        ({"blocks.0.attn.qkv.bias": None}, "attn.qkv.bias is missing"),
        ({"blocks.0.norm1.weight": None}, "a plain one has no blocks.0"),
        ({"pos_embed": None}, "no pos_embed of 3 dimensions"),
        ({"pos_embed": torch.zeros(1, 9, 128)}, "9 positions"),
        ({"norm.bias": torch.zeros(64)}, "norm.bias has shape (64,), not (128,)"),
        (
            {"patch_embed.proj.weight": torch.zeros(128, 1, 4, 4)},
            "proj.weight has shape",
        ),
    ],
)
def test_damaged_content_is_named(
    tmp_path: Path, changes: dict[str, Tensor | None], words: str
) -> None:
    tensors = {
        name: tensor for name, tensor in (timm_tensors() | changes).items() if tensor is not None
    }
    assert words in refused(saved(tmp_path / "vit.pth", tensors))


def test_safetensors_are_read_and_damaged_ones_refused(tmp_path: Path) -> None:
    path = tmp_path / "vit.safetensors"
    safetensors.torch.save_file(timm_tensors(), path)
    assert load_vit(path)[0].shape == TINY
    path.write_bytes(path.read_bytes()[:-5000])
    assert "safetensors" in refused(path)


@pytest.mark.parametrize("size", [(2, 3, 12, 8), (2, 3, 16, 16), (2, 1, 12, 12), (3, 12, 12)])
def test_images_of_another_size_are_refused(size: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"\(B, 3, 12, 12\)") as caught:
        Vit(TINY)(torch.zeros(size))
    assert str(size) in caught.value.found
    assert "12 x 12" in caught.value.hint


def test_gradients_reach_every_weight() -> None:
    net = Vit(TINY)
    net(IMAGES).square().sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_named_sizes(tmp_path: Path) -> None:
    net = build_vit("vit_tiny", dropout=0.1)
    assert (net.embedding, net.image_size, len(net.blocks), net.shape.heads) == (
        192,
        224,
        12,
        3,
    )
    # timm's count for vit_tiny_patch16_224 without its head.
    assert sum(parameter.numel() for parameter in net.parameters()) == 5_524_416
    assert all(64 * shape.heads == shape.width for shape in SIZES.values())
    tiny = saved(tmp_path / "tiny.pth", net.state_dict())
    again = build_vit("vit_tiny", tiny)
    assert torch.equal(again.patch_embed.proj.weight, net.patch_embed.proj.weight)
    with pytest.raises(WeightsError, match="another net than vit_small"):
        build_vit("vit_small", tiny)
    with pytest.raises(ConfigError, match="did you mean 'vit_b_16'"):
        build_vit("vit_b16")


def test_a_named_size_takes_another_image_size(tmp_path: Path) -> None:
    shape = VitShape(12, 3, 192, 768, image_size=32)
    assert build_vit("vit_tiny", saved(tmp_path / "vit.pth", timm_tensors(shape))).image_size == 32
