"""Loading, refusing, finding, fetching and importing weight files; all files are made here."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from trainer.errors import ConfigError, WeightsError
from trainer.nets import BACKBONES, build_backbone, weights
from trainer.nets.mxnet import read_params, resnet38_name
from trainer.nets.weights import fetch_weights, find_weights, import_weights, list_weights, load_backbone


def shapes(name: str) -> dict[str, torch.Size]:
    """Names and shapes of a backbone without counters, as old files have them."""
    with torch.device("meta"):
        state = build_backbone(name).state_dict()
    return {key: tensor.shape for key, tensor in state.items() if not key.endswith("num_batches_tracked")}


def fake(name: str, prefix: str = "") -> dict[str, Tensor]:
    """Constant tensors, a different one for each name; expanded, so that files stay small."""
    return {
        prefix + key: torch.tensor(1 + i / 1000).expand(shape) for i, (key, shape) in enumerate(shapes(name).items())
    }


def torchvision_file(folder: Path, name: str, classes: int = 1000) -> Path:
    state = fake(name)
    if name == "mobilenet_v2":
        state |= {"classifier.1.weight": torch.zeros(classes, 1280), "classifier.1.bias": torch.zeros(classes)}
    else:
        width = 512 if name in ("resnet18", "resnet34") else 2048
        state |= {"fc.weight": torch.zeros(()).expand(classes, width), "fc.bias": torch.zeros(classes)}
    path = folder / f"{name}.pth"
    torch.save(state, path)
    return path


def assert_loaded(net: nn.Module, name: str) -> None:
    state = net.state_dict()
    for key, tensor in fake(name).items():
        assert torch.equal(state[key], tensor), key


@pytest.fixture(scope="module")
def resnet18_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return torchvision_file(tmp_path_factory.mktemp("files"), "resnet18")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and an empty cache of torch's own."""
    monkeypatch.setenv("WSSS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "cache" / "weights"


# Files that fit


def test_torchvision_file(resnet18_file):
    net = build_backbone("resnet18")
    report = load_backbone(net, resnet18_file)
    assert_loaded(net, "resnet18")
    assert set(report.loaded) == set(shapes("resnet18"))
    assert report.missing == ()
    assert report.unexpected == ("fc.weight", "fc.bias")
    assert (report.kind, report.supervision) == ("torchvision", "ImageNet tags")
    assert report.sha256 == hashlib.sha256(resnet18_file.read_bytes()).hexdigest()
    first, second = str(report).splitlines()
    sha256 = report.sha256[:12]
    assert first == (
        f"resnet18.pth: loaded 100 of 100 tensors (torchvision, supervision: ImageNet tags, sha256 {sha256})"
    )
    assert second == "  not used: fc.weight, fc.bias"


def test_freezing_and_counters_survive_loading(resnet18_file):
    net = build_backbone("resnet18", bn="stats")
    load_backbone(net, resnet18_file)
    assert not net.get_parameter("bn1.weight").requires_grad
    assert net.get_parameter("layer1.0.bn1.weight").requires_grad
    assert net.get_buffer("bn1.num_batches_tracked") == 0


def test_half_precision_becomes_single(tmp_path):
    torch.save({key: tensor.half() for key, tensor in fake("resnet18").items()}, tmp_path / "half.pth")
    net = build_backbone("resnet18")
    load_backbone(net, tmp_path / "half.pth")
    assert net.conv1.weight.dtype == torch.float32
    assert net.get_buffer("bn1.running_var")[0].item() == pytest.approx(1 + 4 / 1000, abs=1e-3)


def test_irn_checkpoint_holds_the_network_three_times(tmp_path):
    state = fake("resnet50", "module.resnet.")
    state |= {f"module.stage2.0.{k.removeprefix('layer2.')}": torch.full((1,), 9.0) for k in shapes("resnet50")}
    state |= {f"module.backbone.{i}.weight": torch.full((1,), 9.0) for i in range(40)}
    state |= {"module.classifier.weight": torch.zeros(20, 2048, 1, 1), "module.fc_a.weight": torch.zeros(20, 256, 1, 1)}
    torch.save(state, tmp_path / "vwe.pth")
    net = build_backbone("resnet50", bn="stats", detach_after="stage2")
    report = load_backbone(net, tmp_path / "vwe.pth")
    assert_loaded(net, "resnet50")
    assert (report.kind, report.supervision) == ("released WSSS checkpoint", "image tags")
    assert "module.classifier.weight" in report.unexpected
    assert len(str(report).splitlines()) == 2


@pytest.mark.parametrize(
    ("prefix", "wrapper"), [("", None), ("module.", None), ("model.", "state_dict"), ("model.module.", "model")]
)
def test_released_resnet38_checkpoints(tmp_path, prefix, wrapper):
    state = {**fake("resnet38", prefix), f"{prefix}fc8.weight": torch.zeros(20, 4096, 1, 1)}
    counter = {f"{prefix}bn7.num_batches_tracked": torch.tensor(7)}
    torch.save({wrapper: {**state, **counter}, "epoch": 3} if wrapper else state, tmp_path / "res38_cls.pth")
    with torch.device("meta"):
        net = build_backbone("resnet38")
    net.to_empty(device="cpu")
    report = load_backbone(net, tmp_path / "res38_cls.pth")
    assert_loaded(net, "resnet38")
    assert len(report.loaded) == 191
    assert report.unexpected == (f"{prefix}fc8.weight",)
    assert (report.kind, report.supervision) == ("released WSSS checkpoint", "image tags")


def test_segmentation_weights_are_named_as_masks(tmp_path):
    heads = {"classifier.4.weight": torch.zeros(21, 256, 1, 1), "aux_classifier.4.weight": torch.zeros(21, 256, 1, 1)}
    torch.save(fake("resnet18", "backbone.") | heads, tmp_path / "coco.pth")
    assert load_backbone(build_backbone("resnet18"), tmp_path / "coco.pth").supervision == "COCO masks"


def test_no_head_means_unknown_supervision(tmp_path):
    torch.save(fake("resnet18"), tmp_path / "plain.pth")
    report = load_backbone(build_backbone("resnet18"), tmp_path / "plain.pth")
    assert (report.kind, report.supervision) == ("state dict", "unknown")
    assert len(str(report).splitlines()) == 1


def test_little_that_is_missing_is_reported(tmp_path):
    state = fake("resnet18")
    del state["layer4.1.conv2.weight"]
    torch.save(state, tmp_path / "gap.pth")
    net = build_backbone("resnet18")
    before = net.get_parameter("layer4.1.conv2.weight").clone()
    report = load_backbone(net, tmp_path / "gap.pth")
    assert report.missing == ("layer4.1.conv2.weight",)
    assert "loaded 99 of 100" in str(report)
    assert "MISSING, still random: layer4.1.conv2.weight" in str(report)
    assert torch.equal(net.get_parameter("layer4.1.conv2.weight"), before)


# Files that do not fit


def refused(net: nn.Module, path: Path) -> WeightsError:
    """The error, after checking that nothing was loaded."""
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(WeightsError) as error:
        load_backbone(net, path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert error.value.expected
    assert error.value.hint
    return error.value


@pytest.mark.parametrize(
    ("file_of", "into"),
    [("resnet50", "mobilenet_v2"), ("mobilenet_v2", "resnet18"), ("resnet18", "resnet34"), ("resnet34", "resnet18")],
)
def test_another_network_is_recognised(tmp_path, file_of, into):
    error = refused(build_backbone(into), torchvision_file(tmp_path, file_of))
    assert f"this looks like a torchvision {file_of}" in error.found
    assert f"a torchvision {into}" in error.expected


@pytest.mark.parametrize(
    ("state", "label"),
    [
        (lambda: fake("resnet38"), "a ResNet-38"),
        (lambda: fake("resnet101"), "a torchvision resnet101"),
        (lambda: {"blocks.0.attn.qkv.weight": torch.zeros(3, 1)}, "a vision transformer"),
        (lambda: {"base.layer2.block1.reduce.conv.weight": torch.zeros(1)}, "a DeepLab-v2 ResNet-101"),
        (lambda: {**fake("resnet18"), "layer1.0.conv2.weight": torch.zeros(128, 4, 3, 3)}, "a wide or grouped"),
    ],
)
def test_other_networks_have_names(tmp_path, state, label):
    torch.save(state(), tmp_path / "other.pth")
    assert f"this looks like {label}" in refused(build_backbone("resnet18"), tmp_path / "other.pth").found


def test_wrong_shape_and_foreign_names(tmp_path):
    net = build_backbone("resnet18")
    torch.save({**fake("resnet18"), "conv1.weight": torch.zeros(64, 1, 7, 7)}, tmp_path / "grey.pth")
    assert "conv1.weight has shape (64, 1, 7, 7) instead of (64, 3, 7, 7)" in refused(net, tmp_path / "grey.pth").found
    torch.save({"encoder.weight": torch.zeros(3)}, tmp_path / "foreign.pth")
    assert "100 of 100 tensors are missing" in refused(net, tmp_path / "foreign.pth").found


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("new_format", [True, False])
def test_code_in_a_pickle_is_never_run(tmp_path, new_format):
    bomb = Bomb(tmp_path / "ran")
    torch.save({**fake("resnet18"), "x": bomb}, tmp_path / "bomb.pth", _use_new_zipfile_serialization=new_format)
    error = refused(build_backbone("resnet18"), tmp_path / "bomb.pth")
    assert "mkdir" in error.found
    assert "nothing of it was run" in error.found
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(bomb))
    refused(build_backbone("resnet18"), tmp_path / "plain.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize("keep", [0.5, 0.99])
def test_truncated_file(tmp_path, new_format, keep):
    path = tmp_path / "cut.pth"
    torch.save({"a": torch.rand(1000)}, path, _use_new_zipfile_serialization=new_format)
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    assert "truncated" in refused(build_backbone("resnet18"), path).found


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "truncated, damaged or not a weight file"),
        (b"hello\n", "truncated, damaged or not a weight file"),
        (bytes(range(256)) * 4, "truncated, damaged or not a weight file"),
        (b"\n<!DOCTYPE html><html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    ],
)
def test_not_a_weight_file(tmp_path, content, found):
    (tmp_path / "file.pth").write_bytes(content)
    assert found in refused(build_backbone("resnet18"), tmp_path / "file.pth").found


@pytest.mark.parametrize("content", [torch.zeros(3), [1, 2], {}, {"state_dict": {"epoch": 3}}])
def test_no_named_tensors(tmp_path, content):
    torch.save(content, tmp_path / "file.pth")
    assert "without named tensors" in refused(build_backbone("resnet18"), tmp_path / "file.pth").found


def test_no_file_or_a_folder(tmp_path):
    assert "is not a file" in refused(build_backbone("resnet18"), tmp_path / "none.pth").found
    assert "is not a file" in refused(build_backbone("resnet18"), tmp_path).found


# MXNet


def write_params(path: Path, arrays: dict[str, np.ndarray], layout: str) -> None:
    """An MXNet file in one of the layouts of spec methods 4.4."""
    flags = {"f4": 0, "f8": 1, "f2": 2, "u1": 3, "i4": 4, "i8": 6}
    out = [struct.pack("<QQQ", 0x112, 0, len(arrays))]
    for array in arrays.values():
        if layout == "storage":
            out.append(struct.pack("<Ii", 0xF993FAC9, 0))
        elif layout == "shape64":
            out.append(struct.pack("<I", 0xF993FAC8))
        if layout == "first":
            out.append(struct.pack(f"<I{array.ndim}I", array.ndim, *array.shape))
        else:
            out.append(struct.pack(f"<i{array.ndim}q", array.ndim, *array.shape))
        out.append(struct.pack("<iii", 1, 0, flags[array.dtype.str[1:]]))
        out.append(array.tobytes())
    out.append(struct.pack("<Q", len(arrays)))
    out.extend(struct.pack("<Q", len(name)) + name.encode() for name in arrays)
    path.write_bytes(b"".join(out))


@pytest.mark.parametrize("layout", ["storage", "shape64", "first"])
def test_three_array_layouts(tmp_path, layout):
    arrays = {
        "arg:a": np.arange(24, dtype="<f4").reshape(2, 3, 4),
        "arg:bytes": np.array([1, 2, 255], dtype="u1"),
        "aux:b": np.linspace(0, 1, 5, dtype="<f8"),
        "arg:half": np.array([[0.5]], dtype="<f2"),
        "arg:int": np.array([-1, 2**31 - 1], dtype="<i4"),
        "arg:long": np.array([-(2**40)], dtype="<i8"),
    }
    write_params(tmp_path / "x.params", arrays, layout)
    read = read_params(tmp_path / "x.params")
    assert list(read) == list(arrays)
    for name, array in arrays.items():
        assert read[name].dtype == array.dtype
        np.testing.assert_array_equal(read[name], array)


@pytest.mark.parametrize("layout", ["storage", "shape64", "first"])
def test_every_truncation_is_an_error(tmp_path, layout):
    write_params(tmp_path / "x.params", {"arg:a": np.ones((2, 3), "<f4"), "aux:b": np.ones(2, "<f4")}, layout)
    content = (tmp_path / "x.params").read_bytes()
    for size in range(8, len(content)):
        (tmp_path / "x.params").write_bytes(content[:size])
        with pytest.raises(WeightsError, match="damaged or truncated MXNet file"):
            read_params(tmp_path / "x.params")


@pytest.mark.parametrize(
    ("at", "value", "found"),
    [
        (28, struct.pack("<i", 1), "storage type 1"),
        (32, struct.pack("<i", 1000), "an array of 1000 dimensions"),
        (36, struct.pack("<q", 2**50), "bytes wanted"),
        (36, struct.pack("<q", -3), "shape \\(-3,\\)"),
        (52, struct.pack("<i", 9), "number type 9"),
    ],
)
def test_damaged_mxnet_fields(tmp_path, at, value, found):
    write_params(tmp_path / "x.params", {"arg:a": np.ones(3, "<f4")}, "storage")
    content = bytearray((tmp_path / "x.params").read_bytes())
    content[at : at + len(value)] = value
    (tmp_path / "x.params").write_bytes(content)
    with pytest.raises(WeightsError, match=found):
        read_params(tmp_path / "x.params")


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("arg:conv1a_weight", "conv1a.weight"),
        ("arg:res2a_branch1_weight", "b2.conv_branch1.weight"),
        ("arg:res4b5_branch2b1_weight", "b4_5.conv_branch2b1.weight"),
        ("arg:bn3a_branch2a_gamma", "b3.bn_branch2a.weight"),
        ("arg:bn5b2_branch2b1_beta", "b5_2.bn_branch2b1.bias"),
        ("aux:bn6a_branch2b2_moving_mean", "b6.bn_branch2b2.running_mean"),
        ("aux:bn7_moving_var", "bn7.running_var"),
        ("arg:linear1000_bias", "linear1000_bias"),
    ],
)
def test_resnet38_names(theirs, ours):
    assert resnet38_name(theirs) == ours


def mxnet_name(name: str) -> str:
    """The MXNet name of a state-dict name."""
    *layers, part = name.split(".")
    part = {"bias": "beta", "running_mean": "moving_mean", "running_var": "moving_var"}.get(part, part)
    kind = "aux" if part.startswith("moving") else "arg"
    if part == "weight" and "bn" in layers[-1]:
        part = "gamma"
    if len(layers) == 1:
        return f"{kind}:{layers[0]}_{part}"
    block = re.sub(r"^b(\d)$", r"\1a", layers[0])
    block = re.sub(r"^b(\d)_(\d)$", r"\1b\2", block)
    layer, branch = layers[1].split("_")
    return f"{kind}:{'res' if layer == 'conv' else 'bn'}{block}_{branch}_{part}"


def small_resnet38() -> nn.Module:
    """Every tensor of ResNet-38 by name with two numbers in it, so that its file is small."""
    net = nn.Module()
    for name in shapes("resnet38"):
        *path, last = name.split(".")
        module = net
        for part in path:
            if part not in dict(module.named_children()):
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        module.register_buffer(last, torch.full((2, 1), -1.0))
    return net


def test_imagenet_resnet38_file(tmp_path):
    net = small_resnet38()
    numbers = {name: i for i, name in enumerate(net.state_dict())}
    arrays = {mxnet_name(name): np.full((2, 1), i, "<f4") for name, i in numbers.items()}
    arrays["arg:linear1000_weight"] = np.zeros((1000, 1), "<f4")
    write_params(tmp_path / "imagenet.params", arrays, "first")
    report = load_backbone(net, tmp_path / "imagenet.params")
    assert (report.kind, report.supervision) == ("MXNet", "ImageNet tags")
    assert len(report.loaded) == 191
    assert report.missing == ()
    assert report.unexpected == ("linear1000_weight",)
    for name, tensor in net.state_dict().items():
        assert tensor.tolist() == [[numbers[name]]] * 2, name


# The cache


def test_import_then_find(cache, resnet18_file):
    stored = import_weights(resnet18_file, "resnet18")
    assert stored.path == find_weights("resnet18") == cache / "resnet18.weights"
    assert stored.path.read_bytes() == resnet18_file.read_bytes()
    noted = json.loads((cache / "resnet18.json").read_text())
    assert noted["sha256"] == stored.sha256 == hashlib.sha256(resnet18_file.read_bytes()).hexdigest()
    assert noted["source"] == stored.source == str(resnet18_file)
    assert noted["supervision"] == stored.supervision == "ImageNet tags"
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
    assert tuple(entries) == BACKBONES
    assert all(entry.path is None and entry.sha256 is None for entry in entries.values())
    assert entries["resnet38"].url is None
    for name in set(BACKBONES) - {"resnet38"}:
        assert entries[name].url.endswith("/" + entries[name].file_name)
        assert re.fullmatch(rf"{name}-[0-9a-f]{{8}}\.pth", entries[name].file_name)


@pytest.mark.parametrize("function", [find_weights, fetch_weights, lambda name: import_weights("x", name)])
def test_unknown_backbone(cache, function):
    with pytest.raises(ConfigError) as error:
        function("mobilenetv2")
    assert "did you mean 'mobilenet_v2'" in error.value.expected


def serve(monkeypatch: pytest.MonkeyPatch, file: Path, sha256: str, folder: Path) -> str:
    """A URL of torchvision's form that gives ``file``."""
    target = folder / f"resnet18-{sha256[:8]}.pth"
    target.write_bytes(file.read_bytes())
    monkeypatch.setattr(weights, "_url", lambda name: target.as_uri())
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
    monkeypatch.setattr(weights, "_url", lambda backbone: f"https://nowhere.invalid/{name}")
    hub = tmp_path / "torch" / "hub" / "checkpoints"
    hub.mkdir(parents=True)
    (hub / name).write_bytes(resnet18_file.read_bytes())
    assert fetch_weights("resnet18").source == str(hub / name)


def test_no_network_says_what_to_bring(cache, monkeypatch):
    def unreachable(*args: object, **kwargs: object) -> None:
        raise TimeoutError("timed out")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
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
