"""Read any weight file into named tensors without running code from it, and say what it seems to
be.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.errors import WeightsError
from trainer.weights.efficientnet import is_efficientnet, timm_names
from trainer.weights.foreign_files import EXPECTED, not_weights
from trainer.weights.mxnet import is_mxnet, read_params, resnet38_name
from trainer.weights.numbers import check_finite
from trainer.weights.safetensors import is_safetensors, read_safetensors
from trainer.weights.supervision import UNKNOWN, chained
from trainer.weights.wrappers import state_dict

SEGMENTER_HEADS = ("aspp.c0.weight", "cls_conv.weight")
WSSS_HEADS = (
    "fc8.weight",
    "fc8_20.weight",
    "f8_3.weight",
    "newly_added.0.weight",
    "VWE.centroid",
    "fc_a.weight",
)
CAFFE_STEM = "layer1.conv1.conv.weight"
IMAGENET_HEADS = ("fc.weight", "classifier.1.weight", "linear1000_weight")
TIMM_HEADS = ("classifier.weight", "head.weight", "head.fc.weight", "last_linear.weight")
IMAGENET_CLASSES = (1000, 11821, 21841, 21843)
"""Of ImageNet-1k, and the counts in use for 12k and 21k."""
SHELLS = re.compile(r"^((module|_orig_mod)\.)+")
"""What DataParallel and torch.compile put before every name."""
# Whether its blocks are bottlenecks, and how many of them each layer has.
RESNET_DEPTHS: dict[tuple[bool, tuple[int, ...]], int] = {
    (False, (2, 2, 2, 2)): 18,
    (False, (3, 4, 6, 3)): 34,
    (True, (3, 4, 6, 3)): 50,
    (True, (3, 4, 23, 3)): 101,
    (True, (3, 8, 36, 3)): 152,
}


@dataclass(frozen=True)
class Checkpoint:
    """Tensors of a weight file.

    Attributes:
        tensors: by name; MXNet names already translated to those of ResNet-38, and
            EfficientNet-PyTorch names to timm's.
        kind: ``torchvision``, ``timm``, ``EfficientNet-PyTorch``, ``released WSSS checkpoint``,
            ``wsss run``, ``MXNet`` or ``state dict``.
        supervision: what trained it, as far as the file tells: ``ImageNet tags``, ``image tags``,
            ``COCO masks`` or ``unknown``.
        classes: of a run's own classifier; other files do not say theirs.
        identity: what a run's own file says of itself; empty for other files.
        choice: what was taken of it, where it holds more than one group of weights.
    """

    tensors: dict[str, Tensor]
    kind: str
    supervision: str
    classes: list[str] = field(default_factory=list)
    identity: dict[str, Any] = field(default_factory=dict)
    choice: str = ""


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a PyTorch, safetensors or MXNet weight file.

    Raises:
        WeightsError: no such file, damaged, not a weight file (it is named as what it is), NaN or
            inf in a tensor, or a pickle that would run code (it is not run).
    """
    if not path.is_file():
        raise WeightsError(f"{path} is not a file", EXPECTED, "wsss-trainer weights list")
    if is_mxnet(path):
        arrays = {
            resnet38_name(name): torch.from_numpy(array)
            for name, array in read_params(path).items()
        }
        check_finite(path, arrays)
        return Checkpoint(arrays, "MXNet", _supervision(arrays, "MXNet", path.name))
    content = read_safetensors(path) if is_safetensors(path) else _unpickle(path)
    tensors, choice = state_dict(path, content)
    check_finite(path, tensors)
    identity = content.get("identity") if isinstance(content, dict) else None
    if isinstance(identity, dict):
        # A segmenter's file says which labels trained it.
        labels = {"true masks": "masks"}.get(str(identity.get("supervision")), "image tags")
        labels = chained(labels, str(identity.get("initial", "")))
        classes = [str(name) for name in identity.get("classes", [])]
        return Checkpoint(tensors, "wsss run", labels, classes, identity)
    if _ends(tensors, WSSS_HEADS):
        kind = "released WSSS checkpoint"
    elif _head_size(tensors, IMAGENET_HEADS) is not None:
        kind = "torchvision"
    # Other networks have heads of these names too, so the number of classes decides.
    elif _head_size(tensors, TIMM_HEADS) in IMAGENET_CLASSES:
        kind = "timm"
    elif is_efficientnet(tensors):
        kind, tensors = "EfficientNet-PyTorch", timm_names(tensors)
    else:
        kind = "state dict"
    return Checkpoint(tensors, kind, _supervision(tensors, kind, path.name), choice=choice)


def best_prefix(names: Iterable[str], own: Iterable[str]) -> str:
    """The prefix under which most of ``wanted`` are found among ``names``, the shortest of equals.

    Released checkpoints carry ``module.``, ``model.``, ``resnet50.``, ``backbone.`` and
    combinations, some of them a network more than once.
    """
    targets = set(own)
    counts: Counter[str] = Counter()
    for name in names:
        cuts = [0, *(match.end() for match in re.finditer(r"\.", name))]
        counts.update(name[:cut] for cut in cuts if name[cut:] in targets)
    return max(counts, key=lambda prefix: (counts[prefix], -len(prefix)), default="")


def architecture(tensors: Mapping[str, Tensor]) -> str | None:
    """What network the names and shapes belong to, in words, or None when nothing known fits."""
    for ending, label in (
        ("b5_2.conv_branch2a.weight", "a ResNet-38"),
        ("features.18.0.weight", "a torchvision mobilenet_v2"),
        ("layer2.block1.reduce.conv.weight", "a DeepLab-v2 ResNet-101"),
        ("attn.qkv.weight", "a vision transformer"),
        ("encoder.layers.encoder_layer_0.ln_1.weight", "a torchvision vision transformer"),
        ("classifier.6.weight", "a torchvision VGG or AlexNet"),
    ):
        if _ends(tensors, (ending,)):
            return label
    return _resnet(tensors)


def _resnet(tensors: Mapping[str, Tensor]) -> str | None:
    """Which torchvision ResNet, or None."""
    first = next(
        (name for name in tensors if ("." + name).endswith(".layer1.0.conv2.weight")), None
    )
    if first is None:
        return None
    prefix = first.removesuffix("layer1.0.conv2.weight")
    blocks = tuple(
        sum(f"{prefix}layer{i}.{j}.conv1.weight" in tensors for j in range(64))
        for i in (1, 2, 3, 4)
    )
    depth = RESNET_DEPTHS.get((f"{prefix}layer1.0.conv3.weight" in tensors, blocks))
    if depth is None:
        return None
    if tuple(tensors[first].shape[:2]) != (64, 64):
        return f"a wide or grouped relative of torchvision's resnet{depth}"
    return f"a torchvision resnet{depth}"


def _ends(tensors: Mapping[str, Tensor], endings: tuple[str, ...]) -> bool:
    """Whether a name is one of ``endings``, or has one of them after a dot."""
    suffixes = tuple("." + ending for ending in endings)
    return any(("." + name).endswith(suffixes) for name in tensors)


def _head_size(tensors: Mapping[str, Tensor], heads: Iterable[str]) -> int | None:
    """Classes of the first of these heads, or None."""
    bare = {SHELLS.sub("", name): tensor for name, tensor in tensors.items()}
    return next((len(bare[head]) for head in heads if head in bare and bare[head].ndim), None)


def _supervision(tensors: Mapping[str, Tensor], kind: str, file_name: str) -> str:
    heads = (*IMAGENET_HEADS, *TIMM_HEADS)
    if _head_size(tensors, heads) in IMAGENET_CLASSES:
        return "ImageNet tags"
    if _ends(tensors, SEGMENTER_HEADS):
        return "masks, true or pseudo ones (it is a segmenter)"
    if kind == "released WSSS checkpoint":
        return "image tags"
    # deeplab-pytorch's file has COCO's 91 labels; copies of it without that head are known by their
    # name only.
    coco = _head_size(tensors, heads) == 91 or (
        _ends(tensors, (CAFFE_STEM,)) and "coco" in file_name.lower()
    )
    if coco or _ends(tensors, ("aux_classifier.4.weight",)):
        return "COCO masks"
    return UNKNOWN


def _unpickle(path: Path) -> Any:
    """What ``torch.load`` makes of the file, with nothing but tensors and containers allowed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    # Arbitrary bytes make the unpickler fail in arbitrary ways, and each of them means the same to
    # the user.
    except Exception as error:
        raise _unreadable(path, str(error)) from error


def _unreadable(path: Path, reason: str) -> WeightsError:
    if "TorchScript" in reason:
        return WeightsError(
            f"{path} is a TorchScript program", EXPECTED, "torch.save(model.state_dict(), FILE)"
        )
    match = re.search(r"GLOBAL (\S+)", reason)
    if match:
        return WeightsError(
            f"{path} holds objects or code ({match[1]}), not only tensors; nothing of it was run",
            EXPECTED,
            "where you trust the file, save only its state dict:"
            " torch.save(checkpoint['state_dict'], NEW_FILE)",
        )
    return not_weights(path)
