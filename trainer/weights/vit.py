"""Weights of vision transformers, under torchvision's or timm's names."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from trainer.errors import ConfigError, WeightsError, nearest
from trainer.files import file_sha256
from trainer.nets.vit import SIZES, Vit, VitShape
from trainer.weights.checkpoints import architecture, best_prefix, read_checkpoint
from trainer.weights.loading import LoadReport

EXPECTED = (
    "weights of a plain vision transformer with a class token, under torchvision's or timm's names"
)


HOW_TO_GET = (
    "bring torchvision's vit_b_16-c867db91.pth (ViT_B_16_Weights.IMAGENET1K_V1), or where timm is"
    " installed: torch.save(timm.create_model('vit_base_patch16_224.orig_in21k_ft_in1k',"
    " pretrained=True).state_dict(), FILE)"
)


HEADS = re.compile(r"(heads?|pre_logits|classifier|fc)\.")


# ImageNet-1k, and the two counts in use for ImageNet-21k.
IMAGENET_CLASSES = (1000, 21841, 21843)


# What relatives of the plain net have in their names, and why the file cannot be used.
RELATIVES = {
    "dist_token": "a distilled one (DeiT) with a second token",
    "head_dist": "a distilled one (DeiT) with a second head",
    "relative_position": "one with relative positions (BEiT, Swin)",
    "rel_pos": "one with relative positions",
    "fc_norm": "one that averages its patches instead of using a class token",
    "attn_pool": "one that pools by attention instead of using a class token",
    "reg_token": "one with register tokens",
    "gamma": "one with layer scale (DINOv2, CaiT, BEiT)",
    "norm_pre": "one with a layer norm before its blocks (CLIP)",
    "patch_embed.backbone": "a hybrid with a convolutional stem",
}


@dataclass(frozen=True)
class Naming:
    """Names of a library's state dicts.

    Attributes:
        kind: the library.
        landmarks: names that tell that it is this one.
        renames: patterns and what replaces them to get timm's names.
        mean: of R, G and B in 0..1, that its published nets expect to be subtracted.
        std: likewise, to divide by.
    """

    kind: str
    landmarks: tuple[str, ...]
    renames: tuple[tuple[str, str], ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


TORCHVISION = Naming(
    "torchvision",
    ("conv_proj.weight", "encoder.pos_embedding"),
    (
        (r"^class_token$", "cls_token"),
        (r"^encoder\.pos_embedding$", "pos_embed"),
        (r"^conv_proj\.", "patch_embed.proj."),
        (r"^encoder\.ln\.", "norm."),
        (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
        (r"\.ln_([12])\.", r".norm\1."),
        (r"\.self_attention\.in_proj_", ".attn.qkv."),
        (r"\.self_attention\.out_proj\.", ".attn.proj."),
        # The released files were written before torchvision numbered the perceptron's layers.
        (r"\.mlp\.(0|linear_1)\.", ".mlp.fc1."),
        (r"\.mlp\.(3|linear_2)\.", ".mlp.fc2."),
    ),
    (0.485, 0.456, 0.406),
    (0.229, 0.224, 0.225),
)


TIMM = Naming(
    "timm",
    ("patch_embed.proj.weight", "blocks.0.attn.qkv.weight"),
    (),
    (0.5, 0.5, 0.5),
    (0.5, 0.5, 0.5),
)


@dataclass(frozen=True)
class VitReport(LoadReport):
    """What ``load_vit`` did.

    Attributes:
        mean: of R, G and B in 0..1, that the file's net expects to be subtracted.
        std: likewise, to divide by.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def build_vit(
    name: str = "vit_b_16",
    weights: Path | None = None,
    dropout: float = 0.0,
    attention_dropout: float = 0.0,
) -> Vit:
    """The net ``name`` of ``SIZES``, random or with the weights of a file.

    Args:
        name: key of ``SIZES``.
        weights: anything that ``load_vit`` reads; it may be for another image size, which is then
            the net's.
        dropout: see ``Vit``.
        attention_dropout: see ``Vit``.

    Raises:
        ConfigError: unknown name.
        WeightsError: the file does not fit.
    """
    if name not in SIZES:
        raise ConfigError(
            f"unknown vision transformer {name!r}", nearest(name, SIZES), "use one of these names"
        )
    if weights is None:
        return Vit(SIZES[name], dropout, attention_dropout)
    net, _ = load_vit(weights, dropout, attention_dropout)
    if net.shape != replace(SIZES[name], image_size=net.image_size):
        raise WeightsError(
            f"{weights} is for another net than {name}: {net.shape}", str(SIZES[name]), HOW_TO_GET
        )
    return net


def load_vit(
    path: Path | str, dropout: float = 0.0, attention_dropout: float = 0.0
) -> tuple[Vit, VitReport]:
    """The net that a weight file is for, with its weights; size and image size follow from the
    file.

    Reads state dicts with torchvision's or timm's names under any prefix, offline and without
    running code from them, as PyTorch's files or as safetensors. Heads are left out. Statistics and
    supervision are those of the library's published classifiers: nets that only borrow timm's names
    (DeiT, DINO) may expect ImageNet statistics.

    Raises:
        WeightsError: no such file, damaged, or not of a plain vision transformer with a class
        token.
    """
    path = Path(path)
    tensors = _read(path)
    naming, prefix = _naming(path, tensors)
    names = {timm_name(n.removeprefix(prefix), naming): n for n in tensors if n.startswith(prefix)}
    own = {name: tensors[original] for name, original in names.items() if not HEADS.match(name)}
    net = Vit(_shape(path, tensors, own), dropout, attention_dropout)
    _check_fit(path, tensors, own, net.state_dict())
    net.load_state_dict(own)
    sources = {names[name] for name in own}
    return net, VitReport(
        path=path,
        sha256=file_sha256(path),
        kind=naming.kind,
        supervision=_supervision({name: tensors[original] for name, original in names.items()}),
        loaded=tuple(own),
        missing=(),
        unexpected=tuple(name for name in tensors if name not in sources),
        mean=naming.mean,
        std=naming.std,
    )


def timm_name(name: str, naming: Naming = TORCHVISION) -> str:
    """timm's name for a tensor that ``naming`` calls ``name``; other names stay as they are."""
    for pattern, replacement in naming.renames:
        name = re.sub(pattern, replacement, name)
    return name


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise WeightsError(f"{path} is not a file", EXPECTED, HOW_TO_GET)
    try:
        return read_checkpoint(path).tensors
    except WeightsError as error:
        raise WeightsError(error.found, EXPECTED, f"{error.hint}; or {HOW_TO_GET}") from error


def _naming(path: Path, tensors: Mapping[str, Tensor]) -> tuple[Naming, str]:
    """Whose names the file has, and under which prefix."""
    for naming in (TORCHVISION, TIMM):
        prefix = best_prefix(tensors, naming.landmarks)
        if all(prefix + name in tensors for name in naming.landmarks):
            return naming, prefix
    raise _misfit(path, tensors, f"it holds {', '.join(list(tensors)[:4])}")


def _shape(path: Path, tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> VitShape:
    """Size of the net that the tensors ``own`` under timm's names belong to."""
    block = "blocks.{}."
    sizes = {}
    for name, dimensions in (
        ("patch_embed.proj.weight", 4),
        ("pos_embed", 3),
        (block.format(0) + "mlp.fc1.weight", 2),
    ):
        if name not in own or own[name].ndim != dimensions:
            raise _misfit(path, tensors, f"it has no {name} of {dimensions} dimensions")
        sizes[name] = own[name].shape
    (width, _, patch, _), (_, tokens, _), (mlp, _) = sizes.values()
    side = math.isqrt(max(tokens - 1, 0))
    if width % 64 or side * side != tokens - 1 or side == 0:
        raise _misfit(path, tensors, f"its width is {width} and it has {tokens} positions")
    layers = 0
    while block.format(layers) + "norm1.weight" in own:
        layers += 1
    # Heads leave no trace in the shapes. They are 64 wide, except that the published plain nets
    # stop at 16 of them.
    heads = width // 64 if width <= 1024 else 16
    return VitShape(layers, heads, width, mlp, patch, side * patch)


def _check_fit(
    path: Path,
    tensors: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    slots: Mapping[str, Tensor],
) -> None:
    """Every tensor of the net must be there and nothing else: a relative's leftovers would change
    what it computes.
    """
    for name, tensor in slots.items():
        if name not in own:
            raise _misfit(path, tensors, f"{name} is missing")
        if own[name].shape != tensor.shape:
            raise _misfit(
                path,
                tensors,
                f"{name} has shape {tuple(own[name].shape)}, not {tuple(tensor.shape)}",
            )
    extra = [name for name in own if name not in slots]
    if extra:
        raise _misfit(path, tensors, f"a plain one has no {extra[0]}")


def _misfit(path: Path, tensors: Mapping[str, Tensor], reason: str) -> WeightsError:
    relatives = (
        f"{kind} ({word})"
        for word, kind in RELATIVES.items()
        if any(word in name for name in tensors)
    )
    seen = architecture(tensors)
    if seen is None:
        verdict = reason
    elif "vision transformer" in seen:
        verdict = f"this looks like {', '.join([seen, *relatives])}; {reason}"
    else:
        verdict = f"this looks like {seen}"
    return WeightsError(f"{path} does not fit: {verdict}", EXPECTED, HOW_TO_GET)


def _supervision(tensors: Mapping[str, Tensor]) -> str:
    """``ImageNet tags`` where the head has as many classes. Without a head the net may have been
    trained in any way.
    """
    heads = [tensors[name] for name in ("heads.head.weight", "head.weight") if name in tensors]
    return "ImageNet tags" if heads and len(heads[0]) in IMAGENET_CLASSES else "unknown"
