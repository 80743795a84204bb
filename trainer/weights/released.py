"""Trained networks, ours and the released ones of the papers, loaded by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from trainer.errors import WeightsError
from trainer.weights.checkpoints import architecture, read_checkpoint
from trainer.weights.loading import COUNTER, LoadReport, load_backbone


class Headed(Protocol):
    """A backbone with heads: a classifier, an AffinityNet or an IRNet.

    Attributes:
        released: head -> the names that it has in released files.
        unused: tensors of released files that this network does without.
    """

    released: Mapping[str, tuple[str, ...]]
    unused: tuple[str, ...]

    @property
    def backbone(self) -> Any:
        """The network below the heads."""

    def state_dict(self) -> dict[str, Any]:
        """As of ``nn.Module``."""

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> Any:
        """As of ``nn.Module``."""


class Classifier(Headed, Protocol):
    """A method: its maps and scores are of ``num_classes`` classes."""

    num_classes: int


# Told apart by what only they have, the most special first. Each is a (method, tensor whose name
# ends so).
TELLTALES = (
    ("a classifier with adapt_conv", "adapt.weight"),
    ("vwe", "VWE.centroid"),
    ("vwe", "codebook"),
    ("cpn, or seam with prcm=on", "f10.weight"),
    ("an AffinityNet, which refines maps and makes none", "f8_5.weight"),
    ("an IRNet, which refines maps and makes none", "fc_edge1.0.weight"),
    ("an IRNet, which refines maps and makes none", "edge.lifts.0.0.weight"),
    ("seam", "f8_3.weight"),
    ("sc_cam", "fc8_200.weight"),
    ("recam", "reclassifier.weight"),
    ("amn", "segmenter.tags.weight"),
    ("sc_cam or subcategory_teaching", "subcategory_classifier.weight"),
    ("cam on ResNet-50 (IRN)", "newly_added.0.weight"),
    ("cam, or a mixing method, on ResNet-38", "fc8.weight"),
)


def load_classifier(method: Classifier, path: Path, classes: Sequence[str] = ()) -> LoadReport:
    """Copy a whole trained classifier, backbone and heads, into ``method``.

    Reads ``model.pt`` of a run, and the released files of PSA, IRN, MVA, SC-CAM, SEAM, CPN and VWE,
    whatever prefix their names carry.

    Args:
        method: on the backbone that the file is for.
        path: the file.
        classes: of the data set; a run's own file must have the same. Released files have VOC's, in
        VOC's order.

    Raises:
        WeightsError: another network, method (it is named), preset or class table, or a backbone
        that is not whole.
    """
    hint = (
        "choose the --method, --preset and data that the file was made with; wsss-trainer methods"
        " lists them"
    )
    return _load_whole(
        method, path, classes, f"a {type(method).__name__} of {method.num_classes} classes", hint
    )


def load_refiner(net: Headed, path: Path, classes: Sequence[str] = ()) -> LoadReport:
    """Copy a whole trained AffinityNet or IRNet, backbone and heads, into ``net``.

    Reads ``model.pt`` of a run, and the released files of PSA, SEAM (``res38_aff.pth``) and IRN
    (``res50_irn.pth``).

    Args:
        net: on the backbone that the file is for.
        path: the file.
        classes: of the data set; a run's own file must have the same. Released files do not depend
        on them.

    Raises:
        WeightsError: another network (it is named), backbone or class table, or a file that is not
        whole.
    """
    hint = (
        "choose the --refine and --backbone that the file was made with, or train one: leave the"
        " checkpoint out"
    )
    return _load_whole(net, path, classes, f"an {type(net).__name__}", hint)


def _load_whole(
    net: Headed, path: Path, classes: Sequence[str], kind: str, hint: str
) -> LoadReport:
    checkpoint = read_checkpoint(path)
    if classes and checkpoint.classes and list(classes) != checkpoint.classes:
        raise WeightsError(
            f"{path} was trained for the {len(checkpoint.classes)} classes"
            f" {', '.join(checkpoint.classes)}",
            f"the {len(classes)} classes {', '.join(classes)}",
            hint,
        )
    heads, sources = find_heads(net, checkpoint.tensors)
    shapes = head_shapes(net)
    lines = [f"{name} {tuple(shape)}" for name, shape in shapes.items()]
    correct = f"{kind}: " + ", ".join(lines[:8]) + (", ..." if len(lines) > 8 else "")
    looks, telltale = looks_like(checkpoint.tensors)
    missing = [name for name in shapes if name not in heads]
    # A telltale without a place means another network, even where no head is missing.
    if missing or (telltale and telltale not in (*sources, *net.unused)):
        lacking = (
            f"it has no {', '.join(missing[:8])}" if missing else f"its {telltale} has no place"
        )
        raise WeightsError(f"{path} does not fit: {lacking}; it looks like {looks}", correct, hint)
    for name, tensor in heads.items():
        if tensor.shape != shapes[name]:
            other = f"{name} has shape {tuple(tensor.shape)}"
            raise WeightsError(
                f"{path} does not fit: {other}; it looks like {looks}", correct, hint
            )
    report = load_backbone(net.backbone.pretrained, path, checkpoint)
    net.load_state_dict(heads, strict=False)
    return with_heads(report, heads, sources)


def load_start(method: Classifier, path: Path) -> LoadReport:
    """Copy what a file has for ``method``: the backbone, and the heads where they are of this
    method and class count.

    Raises:
        WeightsError: another network.
    """
    checkpoint = read_checkpoint(path)
    report = load_backbone(method.backbone.pretrained, path, checkpoint)
    heads, sources = find_heads(method, checkpoint.tensors)
    if heads and {name: tensor.shape for name, tensor in heads.items()} == head_shapes(method):
        method.load_state_dict(heads, strict=False)
        report = with_heads(report, heads, sources)
    return report


def find_heads(net: Headed, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors of a file by the names of the network's heads, and the names that they have in the
    repository's code.
    """
    heads: dict[str, Tensor] = {}
    sources = []
    for name, shape in head_shapes(net).items():
        for other in (*net.released.get(name, ()), name):
            key = named(tensors, other)
            if key is not None:
                # VWE keeps its codebook as a 1x1 convolution.
                tensor = tensors[key]
                heads[name] = tensor.flatten(1) if tensor.ndim == 4 and len(shape) == 2 else tensor
                sources.append(other)
                break
    return heads, sources


def head_shapes(net: Headed) -> dict[str, torch.Size]:
    """Everything of a network but the pretrained part of its backbone."""
    prefix = "backbone." if net.backbone.pretrained is net.backbone else "backbone.network."
    return {
        name: tensor.shape
        for name, tensor in net.state_dict().items()
        if not name.startswith(prefix) and not name.endswith(COUNTER)
    }


def looks_like(tensors: Mapping[str, Tensor]) -> tuple[str, str]:
    """What a file seems to be, in words, and the name of the tensor that tells; empty when none
    does.
    """
    for kind, telltale in TELLTALES:
        key = named(tensors, telltale)
        if key is not None:
            return f"{kind} with {telltale} {tuple(tensors[key].shape)}", telltale
    return architecture(tensors) or "no network known here", ""


def named(tensors: Mapping[str, Tensor], name: str) -> str | None:
    """The shortest name in a file that is ``name``, or ends so after a dot."""
    return min((key for key in tensors if ("." + key).endswith("." + name)), key=len, default=None)


def with_heads(
    report: LoadReport, heads: Mapping[str, Tensor], sources: Sequence[str]
) -> LoadReport:
    """The report of the backbone, with the heads, which the file calls ``sources`` after some
    prefix.
    """
    unused = tuple(
        n
        for n in report.unexpected
        if not any(("." + n).endswith("." + source) for source in sources)
    )
    return replace(report, loaded=(*report.loaded, *heads), unexpected=unused)
