"""Trained AffinityNets and IRNets by the names of the released files, and what is no such file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainer.errors import WeightsError
from trainer.nets import build_backbone
from trainer.refine.affinitynet import AffinityNet
from trainer.refine.irnet import IrNet
from trainer.weights.released import load_refiner

CLASSES = ("fox", "owl")
STAGES = {
    "conv1": "stage1.0",
    "bn1": "stage1.1",
    "layer1": "stage2.0",
    "layer2": "stage3.0",
    "layer3": "stage4.0",
}


def affinity_net(seed: int = 0, backbone: str = "resnet18") -> AffinityNet:
    torch.manual_seed(seed)
    return AffinityNet(build_backbone(backbone)).eval()


def ir_net(seed: int = 0, backbone: str = "resnet18", displacement: bool = True) -> IrNet:
    torch.manual_seed(seed)
    net = IrNet(build_backbone(backbone, output_stride=16, dilate=False), displacement)
    net.mean_shift.copy_(torch.randn(2))
    return net.eval()


def outputs(net: nn.Module) -> list[Tensor]:
    with torch.inference_mode():
        found = net(torch.randn(1, 3, 48, 64, generator=torch.Generator().manual_seed(9)))
    return [x for x in ([found] if isinstance(found, Tensor) else found) if x is not None]


def split(net: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Tensors of backbone and heads by our names."""
    state = net.state_dict()
    backbone = {
        n.removeprefix("backbone."): t for n, t in state.items() if n.startswith("backbone.")
    }
    return backbone, {n: t for n, t in state.items() if not n.startswith("backbone.")}


def psa_file(net: AffinityNet) -> dict[str, Tensor]:
    """``res38_aff.pth``: heads beside the backbone, without a prefix."""
    backbone, heads = split(net)
    return backbone | heads


def irn_file(net: IrNet) -> dict[str, Tensor]:
    """``res50_irn.pth``: the backbone under two names, every branch under two, and the indices of
    the training's pairs.
    """
    backbone, heads = split(net)
    tensors = {}
    for name, tensor in backbone.items():
        first, rest = name.split(".", 1)
        tensors[f"resnet50.{name}"] = tensors[f"{STAGES.get(first, 'stage5.0')}.{rest}"] = tensor
    for i in range(1, 6):
        for branch, layers in (("edge", "lifts"), ("displacement", "lifts")):
            theirs = {"edge": "fc_edge", "displacement": "fc_dp"}[branch]
            for part in ("0.weight", "1.weight", "1.bias"):
                tensors[f"{theirs}{i}.{part}"] = heads[f"{branch}.{layers}.{i - 1}.{part}"]
                tensors[f"{theirs[3:]}_layers.{i - 1}.{part}"] = heads[
                    f"{branch}.{layers}.{i - 1}.{part}"
                ]
    tensors |= {f"fc_edge6.{part}": heads[f"edge.head.{part}"] for part in ("weight", "bias")}
    for part in ("0.weight", "1.weight", "1.bias"):
        tensors[f"fc_dp6.{part}"] = heads[f"displacement.deep.{part}"]
        tensors[f"fc_dp7.{part}"] = heads[f"displacement.head.0.{part}"]
    tensors["fc_dp7.3.weight"] = heads["displacement.head.1.weight"]
    tensors |= {"fc_dp7.4.running_mean": heads["mean_shift"], "fc_dp7.4.running_var": torch.ones(2)}
    return tensors | {"path_indices0": torch.zeros(2, 2, 90), "ind_from": torch.zeros(1, 90)}


def own_file(net: nn.Module, classes: tuple[str, ...] = CLASSES) -> dict[str, Any]:
    return {
        "identity": {"method": "cam", "backbone": "resnet18", "classes": list(classes)},
        "state": net.state_dict(),
    }


def saved(folder: Path, content: Any) -> Path:
    torch.save(content, folder / "file.pth")
    return folder / "file.pth"


LAYOUTS = {
    "psa": (affinity_net, psa_file),
    "psa from DataParallel": (
        affinity_net,
        lambda net: {"module." + n: t for n, t in psa_file(net).items()},
    ),
    "our AffinityNet": (affinity_net, own_file),
    "irn": (ir_net, irn_file),
    "irn from DataParallel": (
        ir_net,
        lambda net: {"module." + n: t for n, t in irn_file(net).items()},
    ),
    "our IRNet": (ir_net, own_file),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_trained_network_gives_the_same_outputs(tmp_path, layout):
    build, write = LAYOUTS[layout]
    source, target = build(), build(seed=1)
    before = outputs(target)
    report = load_refiner(target, saved(tmp_path, write(source)), CLASSES)
    for one, other, old in zip(outputs(target), outputs(source), before, strict=True):
        assert torch.equal(one, other)
        assert not torch.equal(one, old)
    assert report.missing == ()
    assert set(split(target)[1]) <= set(report.loaded)


def test_an_irnet_without_displacement_takes_the_edge_of_a_whole_file(tmp_path):
    source, target = ir_net(), ir_net(seed=1, displacement=False)
    load_refiner(target, saved(tmp_path, irn_file(source)), CLASSES)
    assert torch.equal(outputs(target)[0], outputs(source)[0])


def without(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {n: t for n, t in tensors.items() if not n.endswith(name)}


REFUSED = {
    "IRNet for AffinityNet": (
        affinity_net,
        lambda: irn_file(ir_net()),
        "has no f8_3.weight, .*; it looks like an IRNet, which refines",
    ),
    "our IRNet for AffinityNet": (
        affinity_net,
        lambda: own_file(ir_net()),
        "it looks like an IRNet, which refines",
    ),
    "AffinityNet for IRNet": (
        ir_net,
        lambda: psa_file(affinity_net()),
        "has no .*; it looks like an AffinityNet, which refines",
    ),
    "a bare backbone": (
        affinity_net,
        lambda: split(affinity_net())[0],
        "has no f8_3.weight, .*; it looks like a torchvision resnet18",
    ),
    "another backbone": (
        affinity_net,
        lambda: psa_file(affinity_net(backbone="resnet34")),
        "looks like a torchvision resnet34",
    ),
    "another depth of IRNet": (
        ir_net,
        lambda: irn_file(ir_net(backbone="resnet34")),
        "looks like a torchvision resnet34",
    ),
    "MobileNetV2": (
        affinity_net,
        lambda: psa_file(affinity_net(backbone="mobilenet_v2")),
        r"f8_3.weight has shape \(64, 32, 1, 1\)",
    ),
    "a head is missing": (
        affinity_net,
        lambda: without(psa_file(affinity_net()), "f9.weight"),
        "has no f9.weight",
    ),
    "no edge branch": (
        ir_net,
        lambda: without(irn_file(ir_net()), "fc_edge6.bias"),
        "has no edge.head.bias",
    ),
    "another class table": (
        ir_net,
        lambda: own_file(ir_net(), ("cat", "cow", "dog")),
        "was trained for the 3 classes cat, cow, dog",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_file_is_named_and_changes_nothing(tmp_path, case):
    build, content, words = REFUSED[case]
    target, path = build(seed=1), saved(tmp_path, content())
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    with pytest.raises(WeightsError, match=words) as caught:
        load_refiner(target, path, CLASSES)
    assert str(path) in caught.value.found
    assert caught.value.expected
    assert caught.value.hint
    assert all(torch.equal(tensor, before[name]) for name, tensor in target.state_dict().items())


def test_a_backbone_that_is_not_whole_is_refused(tmp_path):
    path = saved(tmp_path, without(psa_file(affinity_net()), "layer4.1.conv2.weight"))
    with pytest.raises(WeightsError, match=r"tensors are missing, such as layer4.1.conv2.weight"):
        load_refiner(affinity_net(), path)


@pytest.mark.parametrize(
    ("content", "words"), [(None, "is not a file"), (b"PK\x03\x04 cut", "truncated, damaged")]
)
def test_a_file_that_is_missing_or_truncated(tmp_path, content, words):
    path = tmp_path / "res38_aff.pth"
    if content:
        path.write_bytes(content)
    with pytest.raises(WeightsError, match=words):
        load_refiner(affinity_net(), path)


def test_names_and_shapes_are_those_of_the_published_files():
    with torch.device("meta"):
        affinity = AffinityNet(build_backbone("resnet38"))
    names = set(psa_file(affinity))
    assert {
        "conv1a.weight",
        "b7.conv_branch1.weight",
        "bn7.running_mean",
        "f8_3.weight",
        "f9.weight",
    } <= names
    # Sizes as in IRN's code for ResNet-50 (spec refine-segment 4.1).
    heads = split(IrNet(build_backbone("resnet50", output_stride=16, dilate=False)))[1]
    theirs = {IrNet.released[name][0]: tuple(tensor.shape) for name, tensor in heads.items()}
    assert theirs["fc_edge5.0.weight"] == (32, 2048, 1, 1)
    assert theirs["fc_edge6.weight"] == (1, 160, 1, 1)
    assert theirs["fc_dp6.0.weight"] == (256, 768, 1, 1)
    assert theirs["fc_dp7.0.weight"] == (256, 448, 1, 1)
    assert theirs["fc_dp7.3.weight"] == (2, 256, 1, 1)
    assert theirs["fc_dp7.4.running_mean"] == (2,)
    assert len(theirs) == 15 + 2 + 15 + 3 + 3 + 1 + 1
