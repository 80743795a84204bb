"""The cache of weights: finding, fetching, importing with conversion; all files are made here."""

from __future__ import annotations

import hashlib
import json
import re
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import resnet101
from weight_files import assert_loaded, fake, mxnet_name, shapes, torchvision_file, write_params

from trainer.errors import ConfigError, WeightsError
from trainer.nets import BACKBONES, SHORT, build_backbone
from trainer.nets.deeplab import DeepLabV2ResNet101, LargeFOVResNet38
from trainer.nets.deeplab_v2 import CAFFE, TORCHVISION
from trainer.weights import cache as weight_cache
from trainer.weights.cache import NAMES, fetch_weights, find_weights, import_weights, list_weights
from trainer.weights.deeplab_v2 import layout_of, load_deeplab_v2
from trainer.weights.largefov import load_largefov
from trainer.weights.loading import load_backbone


@pytest.fixture(scope="module")
def resnet18_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return torchvision_file(tmp_path_factory.mktemp("files"), "resnet18")


def no_package(name: str) -> None:
    raise metadata.PackageNotFoundError(name)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, empty caches of torch and Hugging Face, and no package of weights."""
    monkeypatch.setenv("WSSS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("trainer.weights.places.metadata.distribution", no_package)
    return tmp_path / "cache" / "weights"


def test_import_then_find(cache, resnet18_file):
    stored = import_weights(resnet18_file, "resnet18")
    assert stored.path == find_weights("resnet18") == cache / "resnet18.weights"
    assert stored.path.read_bytes() == resnet18_file.read_bytes()
    noted = json.loads((cache / "resnet18.json").read_text())
    assert (
        noted["sha256"] == stored.sha256 == hashlib.sha256(resnet18_file.read_bytes()).hexdigest()
    )
    assert noted["source"] == stored.source == str(resnet18_file)
    assert noted["supervision"] == stored.supervision == "ImageNet tags"
    assert not noted["converted"]
    assert sorted(p.name for p in cache.iterdir()) == ["resnet18.json", "resnet18.weights"]
    listed = {entry.backbone: entry for entry in list_weights()}
    assert listed["resnet18"] == stored
    assert listed["resnet34"].path is None


def test_said_supervision_is_kept_for_that_file_only(cache, tmp_path):
    torch.save(fake("resnet18"), tmp_path / "plain.pth")
    stored = import_weights(tmp_path / "plain.pth", "resnet18", supervision="COCO masks")
    assert load_backbone(build_backbone("resnet18"), stored.path).supervision == "COCO masks"
    torch.save(fake("resnet18") | {"other": torch.zeros(1)}, stored.path)
    assert load_backbone(build_backbone("resnet18"), stored.path).supervision == "unknown"


def test_import_refuses_another_network_and_stores_nothing(cache, resnet18_file):
    with pytest.raises(WeightsError, match="this looks like a torchvision resnet18"):
        import_weights(resnet18_file, "mobilenet_v2")
    assert not cache.exists()


def test_explicit_path_wins(cache, resnet18_file, tmp_path):
    import_weights(resnet18_file, "resnet18")
    assert find_weights("resnet18", resnet18_file) == resnet18_file
    with pytest.raises(WeightsError, match="is not a file"):
        find_weights("resnet18", tmp_path / "nothing.pth")


def test_list_names_every_backbone_and_its_file(cache):
    entries = {entry.backbone: entry for entry in list_weights()}
    assert tuple(entries) == NAMES == (*BACKBONES, "deeplab-v2-r101", "largefov-r38")
    assert all(entry.path is None and entry.sha256 is None for entry in entries.values())
    assert entries["resnet38"].url is entries["largefov-r38"].url is None
    assert entries["deeplab-v2-r101"].url == entries["resnet101"].url
    for name in set(BACKBONES) - {"resnet38", *SHORT}:
        assert entries[name].url.endswith("/" + entries[name].file_name)
        assert re.fullmatch(rf"{name}-[0-9a-f]{{8}}\.pth", entries[name].file_name)


@pytest.mark.parametrize(
    "function", [find_weights, fetch_weights, lambda name: import_weights("x", name)]
)
def test_unknown_backbone(cache, function):
    with pytest.raises(ConfigError) as error:
        function("mobilenetv2")
    assert "did you mean 'mobilenet_v2'" in error.value.expected


def serve(monkeypatch: pytest.MonkeyPatch, file: Path, sha256: str, folder: Path) -> str:
    """A URL of torchvision's form that gives ``file``."""
    target = folder / f"resnet18-{sha256[:8]}.pth"
    target.write_bytes(file.read_bytes())
    monkeypatch.setattr(weight_cache, "url_of", lambda traits: target.as_uri())
    return target.as_uri()


def test_fetched_once(cache, resnet18_file, tmp_path, monkeypatch):
    sha256 = hashlib.sha256(resnet18_file.read_bytes()).hexdigest()
    url = serve(monkeypatch, resnet18_file, sha256, tmp_path)
    path = find_weights("resnet18")
    assert path.read_bytes() == resnet18_file.read_bytes()
    assert json.loads((cache / "resnet18.json").read_text())["source"] == url
    (tmp_path / f"resnet18-{sha256[:8]}.pth").unlink()
    assert find_weights("resnet18") == path


def test_a_download_with_another_checksum_is_refused(cache, resnet18_file, tmp_path, monkeypatch):
    serve(monkeypatch, resnet18_file, "0" * 64, tmp_path)
    with pytest.raises(WeightsError, match="gave another file"):
        fetch_weights("resnet18")
    assert list(cache.iterdir()) == []


def test_the_cache_of_torch_is_used(cache, resnet18_file, tmp_path, monkeypatch):
    sha256 = hashlib.sha256(resnet18_file.read_bytes()).hexdigest()
    name = f"resnet18-{sha256[:8]}.pth"
    url = f"https://nowhere.invalid/{name}"
    monkeypatch.setattr("trainer.weights.places.url_of", lambda traits: url)
    hub = tmp_path / "torch" / "hub" / "checkpoints"
    hub.mkdir(parents=True)
    (hub / name).write_bytes(resnet18_file.read_bytes())
    assert find_weights("resnet18") == hub / name
    entry = next(e for e in list_weights() if e.backbone == "resnet18")
    assert (entry.place, entry.path, entry.size) == (
        "torch hub",
        hub / name,
        resnet18_file.stat().st_size,
    )
    assert fetch_weights("resnet18").source == str(hub / name)
    assert find_weights("resnet18") == cache / "resnet18.weights"


def test_no_network_says_what_to_bring(cache, monkeypatch):
    def unreachable(*args: object, **kwargs: object) -> None:
        raise TimeoutError("timed out")

    monkeypatch.setattr("torch.hub.urlopen", unreachable)
    with pytest.raises(WeightsError) as error:
        find_weights("mobilenet_v2")
    assert "could not be fetched: timed out" in error.value.found
    assert re.search(r"mobilenet_v2-[0-9a-f]{8}\.pth", error.value.expected)
    assert "https://" in error.value.expected
    assert "wsss-trainer weights import FILE --as mobilenet_v2" in error.value.hint
    assert list(cache.iterdir()) == []


def test_resnet38_can_only_be_imported(cache):
    with pytest.raises(WeightsError) as error:
        find_weights("resnet38")
    assert "ilsvrc-cls_rna-a1_cls1000_ep-0001.params" in error.value.expected
    assert "wsss-trainer weights import FILE --as resnet38" in error.value.hint


def test_cache_that_cannot_be_written(resnet18_file, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("WSSS_CACHE", str(tmp_path / "file"))
    with pytest.raises(WeightsError, match="cannot write to the weight cache") as error:
        import_weights(resnet18_file, "resnet18")
    assert "WSSS_CACHE" in error.value.hint


# Files under other names are converted


def flat(network: nn.Module, value: float = 0.5) -> dict[str, torch.Tensor]:
    return {k: torch.tensor(value).expand(v.shape) for k, v in network.state_dict().items()}


def sketch(network: type[nn.Module], *arguments: object) -> nn.Module:
    with torch.device("meta"):
        return network(*arguments)


def noted(cache: Path, name: str) -> dict[str, object]:
    return json.loads((cache / f"{name}.json").read_text())


def test_mxnet_becomes_names_of_ours_and_keeps_its_head(cache, tmp_path):
    arrays = {
        mxnet_name(n): np.broadcast_to(np.float32(0.5), s).astype("<f4")
        for n, s in shapes("resnet38").items()
    }
    arrays["arg:linear1000_weight"] = np.zeros((1000, 1), "<f4")
    write_params(tmp_path / "imagenet.params", arrays, "storage")
    stored = import_weights(tmp_path / "imagenet.params", "resnet38")
    assert stored.supervision == "ImageNet tags"
    assert set(torch.load(stored.path, weights_only=True)) == {
        *shapes("resnet38"),
        "linear1000_weight",
    }
    said = noted(cache, "resnet38")
    assert (said["converted"], said["kind"]) == (True, "MXNet")
    assert (
        said["source_sha256"]
        == hashlib.sha256((tmp_path / "imagenet.params").read_bytes()).hexdigest()
    )
    report = load_backbone(build_backbone("resnet38"), stored.path)
    assert (report.kind, report.supervision, report.missing) == ("MXNet", "ImageNet tags", ())


def test_a_prefix_goes_and_a_head_stays(cache, tmp_path):
    head = {"model.module.fc8.weight": torch.zeros(20, 512, 1, 1)}
    torch.save(
        {"state_dict": fake("resnet18", "model.module.") | head}, tmp_path / "lightning.ckpt"
    )
    stored = import_weights(tmp_path / "lightning.ckpt", "resnet18")
    assert set(torch.load(stored.path, weights_only=True)) == {
        *shapes("resnet18"),
        "model.module.fc8.weight",
    }
    net = build_backbone("resnet18")
    assert load_backbone(net, stored.path).supervision == "image tags"
    assert_loaded(net, "resnet18")


def test_torchvision_becomes_a_deeplab_that_knows_its_layout(cache, tmp_path):
    torch.save(flat(sketch(resnet101)), tmp_path / "resnet101.pth")
    stored = import_weights(tmp_path / "resnet101.pth", "deeplab-v2-r101")
    names = set(torch.load(stored.path, weights_only=True))
    assert {
        "layer1.conv1.conv.weight",
        "layer5.block3.increase.bn.running_var",
        "fc.weight",
    } <= names
    assert not any("aspp" in n for n in names)
    assert layout_of(stored.path) == TORCHVISION
    network = DeepLabV2ResNet101(2, stride_on="3x3", input="torchvision_rgb")
    report = load_deeplab_v2(network, stored.path)
    assert (len(report.loaded), report.supervision) == (520, "ImageNet tags")
    with pytest.raises(WeightsError, match="torchvision layout"):
        load_deeplab_v2(DeepLabV2ResNet101(2), stored.path)


def test_coco_masks_are_noted(cache, tmp_path):
    body = {
        k: v
        for k, v in flat(sketch(DeepLabV2ResNet101, 21).base).items()
        if "aspp" not in k and "num_batches" not in k
    }
    torch.save(
        body | {"fc.weight": torch.zeros(91, 2048), "fc.bias": torch.zeros(91)},
        tmp_path / "deeplabv1.pth",
    )
    stored = import_weights(tmp_path / "deeplabv1.pth", "deeplab-v2-r101")
    assert (stored.supervision, noted(cache, "deeplab-v2-r101")["converted"]) == (
        "COCO masks",
        False,
    )
    assert layout_of(stored.path) == CAFFE
    assert {entry.backbone: entry for entry in list_weights()}[
        "deeplab-v2-r101"
    ].supervision == "COCO masks"
    assert "EXTRA SUPERVISION" in str(
        load_deeplab_v2(sketch(DeepLabV2ResNet101, 2).to_empty(device="cpu"), stored.path)
    )


def test_supervision_that_is_said_wins(cache, tmp_path):
    body = {k: v for k, v in flat(sketch(DeepLabV2ResNet101, 21).base).items() if "aspp" not in k}
    torch.save(body, tmp_path / "init.pth")
    assert import_weights(tmp_path / "init.pth", "deeplab-v2-r101").supervision == "unknown"
    assert (
        import_weights(
            tmp_path / "init.pth", "deeplab-v2-r101", supervision="COCO masks"
        ).supervision
        == "COCO masks"
    )


@pytest.mark.parametrize("classes", [3, 21])
def test_trained_segmenters_of_any_class_count(cache, tmp_path, classes):
    torch.save(
        {f"module.{k}": v for k, v in flat(sketch(LargeFOVResNet38, classes)).items()},
        tmp_path / "fov.pth",
    )
    stored = import_weights(tmp_path / "fov.pth", "largefov-r38")
    assert "masks" in stored.supervision
    report = load_largefov(sketch(LargeFOVResNet38, classes).to_empty(device="cpu"), stored.path)
    assert (len(report.loaded), report.missing) == (242 - 39, ())


def test_a_classifier_is_a_start_for_largefov(cache, tmp_path):
    torch.save(
        {**fake("resnet38"), "fc8.weight": torch.zeros(20, 4096, 1, 1)}, tmp_path / "res38_cls.pth"
    )
    stored = import_weights(tmp_path / "res38_cls.pth", "largefov-r38")
    assert stored.supervision == "image tags"
    assert (
        load_largefov(sketch(LargeFOVResNet38, 4).to_empty(device="cpu"), stored.path).supervision
        == "image tags"
    )


def test_a_torn_resnet_is_not_converted(cache, tmp_path):
    state = flat(sketch(resnet101))
    del state["layer3.4.conv2.weight"]
    torch.save(state, tmp_path / "torn.pth")
    with pytest.raises(WeightsError, match=r"missing, such as layer3\.4\.conv2\.weight"):
        import_weights(tmp_path / "torn.pth", "deeplab-v2-r101")
    assert not cache.exists()


@pytest.mark.parametrize(
    ("name", "looks"),
    [("deeplab-v2-r101", "a ResNet-38"), ("largefov-r38", "a torchvision resnet18")],
)
def test_files_of_other_networks(cache, tmp_path, resnet18_file, name, looks):
    torch.save({"b5_2.conv_branch2a.weight": torch.zeros(1)}, tmp_path / "38.pth")
    with pytest.raises(WeightsError, match=f"looks like {looks}"):
        import_weights(tmp_path / "38.pth" if "38" in looks else resnet18_file, name)
