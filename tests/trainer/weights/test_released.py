"""Trained classifiers by the names that the released files of each repository have, and what is no
such file.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from trainer.cli import main
from trainer.errors import WeightsError
from trainer.methods.base import Method
from trainer.methods.registry import method_classes
from trainer.nets import build_backbone
from trainer.scenes.writing import write_synthetic
from trainer.weights.released import load_classifier, load_start

CLASSES = ("fox", "panda", "deer", "owl")
STAGE_OF = {
    "conv1": "0.0",
    "bn1": "0.1",
    "layer1": "0.4",
    "layer2": "1.0",
    "layer3": "2.0",
    "layer4": "3.0",
}


def build(
    name: str, seed: int = 0, backbone: str = "resnet18", classes: int = 4, **knobs: Any
) -> Method:
    torch.manual_seed(seed)
    method, config = method_classes(name)
    made: Method = method(config(**knobs), build_backbone(backbone), classes)  # type: ignore[call-arg, arg-type]
    return made.eval()


def maps(method: Method) -> Tensor:
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(9))
    with torch.inference_mode():
        return method.cams(images)


def parts(method: Method) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Tensors of the backbone without counters, and of the heads, by our names."""
    state = {
        name: tensor
        for name, tensor in method.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    backbone = {
        n.removeprefix("backbone."): t for n, t in state.items() if n.startswith("backbone.")
    }
    return backbone, {n: t for n, t in state.items() if not n.startswith("backbone.")}


def renamed(method: Method, **names: str) -> dict[str, Tensor]:
    """Backbone without a prefix, as in files on ResNet-38; dots of the heads' names are written
    ``__``.
    """
    backbone, heads = parts(method)
    chosen = {name.replace("__", "."): other for name, other in names.items()}
    return backbone | {chosen.get(name, name): tensor for name, tensor in heads.items()}


def thrice(method: Method, net: str) -> dict[str, Tensor]:
    """The backbone as IRN's and VWE's modules hold it: under three names each."""
    tensors = {}
    for name, tensor in parts(method)[0].items():
        first, rest = name.split(".", 1)
        block, place = STAGE_OF[first].split(".")
        tensors[f"{net}.{name}"] = tensor
        tensors[f"stage{int(block) + 1}.{place}.{rest}"] = tensor
        tensors[f"backbone.{block}.{place}.{rest}"] = tensor
    return tensors


def irn(method: Method) -> dict[str, Tensor]:
    head = method.state_dict()["classifier.weight"]
    return thrice(method, "resnet50") | {"classifier.weight": head, "newly_added.0.weight": head}


def vwe(method: Method) -> dict[str, Tensor]:
    heads = parts(method)[1]
    own = {
        "classifier.weight": heads["classifier.weight"],
        "fc_a.weight": heads["w2i.weight"],
        "fc_b.weight": heads["word.weight"],
        "VWE.centroid": heads["codebook"][:, :, None, None],
    }
    return {"module." + name: tensor for name, tensor in (thrice(method, "resnet") | own).items()}


def mva(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """What a Lightning checkpoint has around the tensors."""
    state = {"model." + name: tensor for name, tensor in tensors.items()}
    return {
        "epoch": 14,
        "global_step": 2745,
        "state_dict": state,
        "optimizer_states": [{}],
        "lr_schedulers": [],
    }


def psa_file(**knobs: Any) -> dict[str, Tensor]:
    return renamed(build("cam", **knobs), classifier__weight="fc8.weight")


def sc_cam_file() -> dict[str, Tensor]:
    names = {
        "classifier__weight": "fc8_20.weight",
        "subcategory_classifier__weight": "fc8_200.weight",
    }
    return renamed(build("sc_cam", subcategories=(3, 3, 3, 3)), **names)


def affinity_file() -> dict[str, Tensor]:
    return renamed(build("seam"), fc8__weight="f8_5.weight")


def irnet_file() -> dict[str, Tensor]:
    heads = {
        "fc_edge1.0.weight": torch.zeros(32, 64, 1, 1),
        "fc_dp1.0.weight": torch.zeros(64, 64, 1, 1),
    }
    return thrice(build("cam"), "resnet50") | heads


def imagenet_file() -> dict[str, Tensor]:
    return parts(build("cam"))[0] | {
        "fc.weight": torch.zeros(1000, 512),
        "fc.bias": torch.zeros(1000),
    }


def own_file(name: str = "cam", classes: tuple[str, ...] = CLASSES, **knobs: Any) -> dict[str, Any]:
    identity = {
        "method": name,
        "method_config": {},
        "backbone": "resnet18",
        "classes": list(classes),
    }
    return {"identity": identity, "state": build(name, **knobs).state_dict()}


LAYOUTS = {
    "PSA": ("cam", {}, lambda m: renamed(m, classifier__weight="fc8.weight")),
    "PSA from DataParallel": (
        "cam",
        {},
        lambda m: {"module." + n: t for n, t in psa_file().items()},
    ),
    "IRN": ("cam", {}, irn),
    "MVA": ("fmix_cam", {}, lambda m: mva(renamed(m, classifier__weight="fc8.weight"))),
    "SEAM": ("seam", {}, renamed),
    "CPN": ("cpn", {"prcm": "on"}, renamed),
    "SEAM* from CPN's network": ("seam", {"prcm": "code"}, renamed),
    "VWE": ("vwe", {"words": 16, "word_branch": True}, vwe),
    "ours": (
        "vwe",
        {"words": 16},
        lambda m: {"state": m.state_dict(), "identity": {"classes": list(CLASSES)}},
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_released_classifier_makes_the_same_maps(tmp_path, layout):
    name, knobs, write = LAYOUTS[layout]
    source, target = build(name, **knobs), build(name, seed=1, **knobs)
    torch.save(write(source), tmp_path / "file.pth")
    assert not torch.equal(maps(target), maps(source))
    report = load_classifier(target, tmp_path / "file.pth", CLASSES)
    assert torch.equal(maps(target), maps(source))
    assert report.missing == ()
    assert {n for n in report.loaded if not n.startswith(("conv1", "bn1", "layer"))} == set(
        parts(target)[1]
    )


@pytest.mark.parametrize(
    ("method", "weight"),
    [("sc_cam", "fc8_200"), ("subcategory_teaching", "subcategory_classifier")],
)
def test_files_with_subcategories_need_no_clusters(tmp_path, method, weight):
    source, target = build(method, subcategories=(3, 3, 3, 3)), build(method, seed=1)
    names = {"classifier__weight": "fc8_20.weight" if method == "sc_cam" else "fc8.weight"}
    tensors = renamed(source, **names, subcategory_classifier__weight=f"{weight}.weight")
    torch.save(tensors if method == "sc_cam" else mva(tensors), tmp_path / "file.pth")
    load_classifier(target, tmp_path / "file.pth", CLASSES)
    assert torch.equal(maps(target), maps(source))


def test_sc_cam_begins_with_psas_classifier(tmp_path):
    torch.save(psa_file(), tmp_path / "res38_cls.pth")
    target = build("sc_cam", seed=1)
    load_classifier(target, tmp_path / "res38_cls.pth")
    assert torch.equal(maps(target), maps(build("cam")))


REFUSED = {
    "SEAM is not cam": (
        lambda: renamed(build("seam")),
        "cam",
        {},
        "its f8_3.weight has no place; it looks like seam",
    ),
    "CPN is not plain SEAM": (
        lambda: renamed(build("cpn", prcm="on")),
        "seam",
        {},
        "f10.weight has no place; .* cpn, or seam with prcm=on",
    ),
    "SEAM has no region head": (
        lambda: renamed(build("seam")),
        "seam",
        {"prcm": "on"},
        "no f10.weight; it looks like seam",
    ),
    "AffinityNet": (
        affinity_file,
        "seam",
        {},
        "it has no fc8.weight; it looks like an AffinityNet",
    ),
    "IRNet": (irnet_file, "cam", {}, "it has no classifier.weight; it looks like an IRNet"),
    "ImageNet": (
        imagenet_file,
        "cam",
        {},
        "it has no classifier.weight; it looks like a torchvision resnet18",
    ),
    "class count": (
        lambda: psa_file(classes=5),
        "cam",
        {},
        r"classifier.weight has shape \(5, 512, 1, 1\)",
    ),
    "class count of SEAM": (
        lambda: renamed(build("seam", classes=5)),
        "seam",
        {},
        r"fc8.weight has shape \(6, 512",
    ),
    "VWE is not cam": (
        lambda: vwe(build("vwe", words=16)),
        "cam",
        {},
        "its VWE.centroid has no place; it looks like vwe",
    ),
    "our vwe is not cam": (
        lambda: own_file("vwe", words=16),
        "cam",
        {},
        "its codebook has no place; it looks like vwe",
    ),
    "cam is not vwe": (psa_file, "vwe", {"words": 16}, "it has no codebook, .*; it looks like cam"),
    "words": (lambda: vwe(build("vwe", words=8)), "vwe", {"words": 16}, r"has shape \(8"),
    "SC-CAM is not cam": (sc_cam_file, "cam", {}, "it looks like sc_cam with fc8_200.weight"),
    "SC-CAM is not seam": (
        sc_cam_file,
        "seam",
        {},
        "it has no fc8.weight, .*; it looks like sc_cam",
    ),
    "adapt_conv": (
        lambda: own_file(adapt_conv=512),
        "cam",
        {},
        "its adapt.weight has no place; .* with adapt_conv",
    ),
    "no adapt_conv": (
        psa_file,
        "cam",
        {"adapt_conv": 512},
        "it has no adapt.weight; it looks like cam",
    ),
    "class table": (
        lambda: own_file(classes=("a", "b", "c", "d")),
        "cam",
        {},
        "was trained for the 4 classes a, b, c, d",
    ),
    "backbone": (
        lambda: psa_file(backbone="resnet34"),
        "cam",
        {},
        "this looks like a torchvision resnet34",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_file_is_named_and_changes_nothing(tmp_path, case):
    content, name, knobs, words = REFUSED[case]
    torch.save(content(), tmp_path / "file.pth")
    target = build(name, seed=1, **knobs)
    before = {key: tensor.clone() for key, tensor in target.state_dict().items()}
    with pytest.raises(WeightsError, match=words) as caught:
        load_classifier(target, tmp_path / "file.pth", CLASSES)
    assert str(tmp_path / "file.pth") in caught.value.found
    assert caught.value.expected
    assert all(torch.equal(tensor, before[key]) for key, tensor in target.state_dict().items())


def test_a_start_takes_heads_that_fit(tmp_path):
    source = build("seam")
    torch.save(renamed(source), tmp_path / "file.pth")
    target = build("seam", seed=1)
    report = load_start(target, tmp_path / "file.pth")
    assert torch.equal(maps(target), maps(source))
    assert {"fc8.weight", "f9.weight"} <= set(report.loaded)
    assert report.unexpected == ()


@pytest.mark.parametrize(("name", "classes"), [("cam", 4), ("seam", 7), ("cpn", 4)])
def test_a_start_takes_only_the_backbone_from_other_methods_and_classes(tmp_path, name, classes):
    torch.save(renamed(build("seam")), tmp_path / "file.pth")
    target = build(name, seed=1, classes=classes, **({"prcm": "on"} if name == "cpn" else {}))
    heads = {key: tensor.clone() for key, tensor in parts(target)[1].items()}
    report = load_start(target, tmp_path / "file.pth")
    assert all(torch.equal(tensor, parts(target)[1][key]) for key, tensor in heads.items())
    expected = parts(build("seam"))[0]
    assert all(torch.equal(tensor, expected[key]) for key, tensor in parts(target)[0].items())
    assert "fc8.weight" in report.unexpected


def count(method: Method, trained: bool = False) -> int:
    return sum(p.numel() for p in method.parameters() if p.requires_grad or not trained)


def test_parameters_are_as_many_as_published():
    with torch.device("meta"):
        cam = build("cam", backbone="resnet38", classes=20)
        assert (count(cam), count(cam, trained=True)) == (105_152_832, 104_284_160)
        assert len(cam.state_dict()) == 229
        assert sum(map(len, parts(cam))) == 192
        assert count(build("seam", backbone="resnet38", classes=20)) == 105_358_208
        assert count(build("cpn", backbone="resnet38", classes=20, prcm="on")) == 105_395_648
        assert count(build("cam", backbone="resnet50", classes=20)) == 23_548_992
        assert count(build("vwe", backbone="resnet50", classes=20)) == 24_602_688


def test_a_whole_resnet38(tmp_path):
    method = build("cam", backbone="resnet38", classes=20)
    expected, file = maps(method), tmp_path / "res38_cls.pth"
    torch.save(renamed(method, classifier__weight="fc8.weight"), file)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.zero_()
    report = load_classifier(method, file)
    file.unlink()
    assert torch.equal(maps(method), expected)
    assert len(report.loaded) == 192
    assert report.unexpected == ()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "data"
    write_synthetic(folder, 8, 64, classes=4)
    return folder


def command(monkeypatch: pytest.MonkeyPatch, data: Path, run: Path, *more: str | Path) -> None:
    words = [
        "fit",
        data,
        "--run",
        run,
        "--backbone",
        "resnet18",
        "--size",
        "64",
        "--device",
        "cpu",
        "--until",
        "cams",
        "--set",
        "cams.scales=1",
        "--set",
        "cams.workers=0",
        *more,
    ]
    monkeypatch.setattr(sys, "argv", ["wsss-trainer", *map(str, words)])
    try:
        main()
    except SystemExit as stop:
        if stop.code:
            raise


def test_fit_uses_a_classifier_as_it_is(tmp_path, data, monkeypatch, capsys):
    # Nothing is cached and nothing can be fetched: a classifier needs no other weights.
    monkeypatch.setenv("WSSS_CACHE", str(tmp_path / "empty"))
    source, run, file = build("cam"), tmp_path / "run", tmp_path / "file.pth"
    torch.save(renamed(source, classifier__weight="fc8.weight"), file)
    command(monkeypatch, data, run, "--classifier", file)
    assert "classify: to do" in capsys.readouterr().err
    assert not (run / "metrics.csv").exists()
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["stages"]["classify"]["outputs"]["taken_from"] == str(file)
    assert manifest["supervision"] == "image tags"
    state = torch.load(run / "classify" / "model.pt", weights_only=True)["state"]
    assert all(torch.equal(tensor, state[name]) for name, tensor in source.state_dict().items())
    assert len(list((run / "cams").rglob("*.npz"))) == 8
    command(monkeypatch, data, run, "--classifier", file)
    assert capsys.readouterr().err.count("done, kept") == 2
    torch.save(renamed(build("cam", seed=2), classifier__weight="fc8.weight"), file)
    command(monkeypatch, data, run, "--classifier", file)
    assert "classify: settings or inputs changed" in capsys.readouterr().err


def test_fit_refuses_a_wrong_classifier(tmp_path, data, monkeypatch, capsys):
    torch.save(renamed(build("seam")), tmp_path / "seam.pth")
    with pytest.raises(SystemExit) as caught:
        command(monkeypatch, data, tmp_path / "run", "--classifier", tmp_path / "seam.pth")
    assert caught.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert [line.split(":")[0] for line in lines] == ["error", "expected", "try"]
    assert "it looks like seam" in lines[0]
    assert not (tmp_path / "run").exists()
