"""Loading and refusing weight files; all files are made here."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from weight_files import assert_loaded, fake, mxnet_name, shapes, torchvision_file, write_params

from trainer.errors import WeightsError
from trainer.nets import build_backbone
from trainer.weights.checkpoints import read_checkpoint
from trainer.weights.loading import load_backbone
from trainer.weights.mxnet import read_params, resnet38_name


@pytest.fixture(scope="module")
def resnet18_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return torchvision_file(tmp_path_factory.mktemp("files"), "resnet18")


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
    assert (
        first == "resnet18.pth: loaded 100 of 100 tensors (torchvision, supervision: ImageNet tags,"
        f" sha256 {sha256})"
    )
    assert second == "  not used: fc.weight, fc.bias"


def test_freezing_and_counters_survive_loading(resnet18_file):
    net = build_backbone("resnet18", bn="stats")
    load_backbone(net, resnet18_file)
    assert not net.get_parameter("bn1.weight").requires_grad
    assert net.get_parameter("layer1.0.bn1.weight").requires_grad
    assert net.get_buffer("bn1.num_batches_tracked") == 0


def test_half_precision_becomes_single(tmp_path):
    torch.save(
        {key: tensor.half() for key, tensor in fake("resnet18").items()}, tmp_path / "half.pth"
    )
    net = build_backbone("resnet18")
    load_backbone(net, tmp_path / "half.pth")
    assert net.conv1.weight.dtype == torch.float32
    assert net.get_buffer("bn1.running_var")[0].item() == pytest.approx(1 + 4 / 1000, abs=1e-3)


def test_irn_checkpoint_holds_the_network_three_times(tmp_path):
    state = fake("resnet50", "module.resnet.")
    state |= {
        f"module.stage2.0.{k.removeprefix('layer2.')}": torch.full((1,), 9.0)
        for k in shapes("resnet50")
    }
    state |= {f"module.backbone.{i}.weight": torch.full((1,), 9.0) for i in range(40)}
    state |= {
        "module.classifier.weight": torch.zeros(20, 2048, 1, 1),
        "module.fc_a.weight": torch.zeros(20, 256, 1, 1),
    }
    torch.save(state, tmp_path / "vwe.pth")
    net = build_backbone("resnet50", bn="stats", detach_after="stage2")
    report = load_backbone(net, tmp_path / "vwe.pth")
    assert_loaded(net, "resnet50")
    assert (report.kind, report.supervision) == ("released WSSS checkpoint", "image tags")
    assert "module.classifier.weight" in report.unexpected
    assert len(str(report).splitlines()) == 2


@pytest.mark.parametrize(
    ("prefix", "wrapper"),
    [("", None), ("module.", None), ("model.", "state_dict"), ("model.module.", "model")],
)
def test_released_resnet38_checkpoints(tmp_path, prefix, wrapper):
    state = {**fake("resnet38", prefix), f"{prefix}fc8.weight": torch.zeros(20, 4096, 1, 1)}
    counter = {f"{prefix}bn7.num_batches_tracked": torch.tensor(7)}
    torch.save(
        {wrapper: {**state, **counter}, "epoch": 3} if wrapper else state,
        tmp_path / "res38_cls.pth",
    )
    with torch.device("meta"):
        net = build_backbone("resnet38")
    net.to_empty(device="cpu")
    report = load_backbone(net, tmp_path / "res38_cls.pth")
    assert_loaded(net, "resnet38")
    assert len(report.loaded) == 191
    assert report.unexpected == (f"{prefix}fc8.weight",)
    assert (report.kind, report.supervision) == ("released WSSS checkpoint", "image tags")


def test_segmentation_weights_are_named_as_masks(tmp_path):
    heads = {
        "classifier.4.weight": torch.zeros(21, 256, 1, 1),
        "aux_classifier.4.weight": torch.zeros(21, 256, 1, 1),
    }
    torch.save(fake("resnet18", "backbone.") | heads, tmp_path / "coco.pth")
    assert (
        load_backbone(build_backbone("resnet18"), tmp_path / "coco.pth").supervision == "COCO masks"
    )


def test_no_head_means_unknown_supervision(tmp_path):
    torch.save(fake("resnet18"), tmp_path / "plain.pth")
    report = load_backbone(build_backbone("resnet18"), tmp_path / "plain.pth")
    assert (report.kind, report.supervision) == ("state dict", "unknown")
    assert len(str(report).splitlines()) == 1
    assert "unknown (perhaps more than image tags)" in str(report)


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
    [
        ("resnet50", "mobilenet_v2"),
        ("mobilenet_v2", "resnet18"),
        ("resnet18", "resnet34"),
        ("resnet34", "resnet18"),
    ],
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
        (
            lambda: {"base.layer2.block1.reduce.conv.weight": torch.zeros(1)},
            "a DeepLab-v2 ResNet-101",
        ),
        (
            lambda: {**fake("resnet18"), "layer1.0.conv2.weight": torch.zeros(128, 4, 3, 3)},
            "a wide or grouped",
        ),
    ],
)
def test_other_networks_have_names(tmp_path, state, label):
    torch.save(state(), tmp_path / "other.pth")
    assert (
        f"this looks like {label}"
        in refused(build_backbone("resnet18"), tmp_path / "other.pth").found
    )


def test_wrong_shape_and_foreign_names(tmp_path):
    net = build_backbone("resnet18")
    torch.save(
        {**fake("resnet18"), "conv1.weight": torch.zeros(64, 1, 7, 7)}, tmp_path / "grey.pth"
    )
    assert (
        "conv1.weight has shape (64, 1, 7, 7) instead of (64, 3, 7, 7)"
        in refused(net, tmp_path / "grey.pth").found
    )
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
    torch.save(
        {**fake("resnet18"), "x": bomb},
        tmp_path / "bomb.pth",
        _use_new_zipfile_serialization=new_format,
    )
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


def test_a_single_tensor_that_is_missing_is_an_error(tmp_path):
    state = fake("resnet18")
    del state["layer4.1.conv2.weight"]
    torch.save(state, tmp_path / "gap.pth")
    error = refused(build_backbone("resnet18"), tmp_path / "gap.pth")
    assert "1 of 100 tensors are missing, such as layer4.1.conv2.weight" in error.found


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path, value):
    state = fake("resnet18") | {"layer1.0.conv1.weight": torch.full((64, 64, 3, 3), value)}
    torch.save(state, tmp_path / "nan.pth")
    error = refused(build_backbone("resnet18"), tmp_path / "nan.pth")
    assert "layer1.0.conv1.weight holds NaN or inf" in error.found


@pytest.mark.parametrize("content", [torch.zeros(3), [1, 2], {}, {"state_dict": {"epoch": 3}}])
def test_no_named_tensors(tmp_path, content):
    torch.save(content, tmp_path / "file.pth")
    assert (
        "without named tensors" in refused(build_backbone("resnet18"), tmp_path / "file.pth").found
    )


def archive(path: Path, kind: str) -> None:
    """A file of the kind, with something harmless in it."""
    inside = path.with_name("inside.pth")
    inside.write_bytes(b"weights")
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as made:
            made.write(inside, "folder/weights.pth")
    elif kind in ("npz", "npy"):
        with path.open("wb") as file:
            (np.savez if kind == "npz" else np.save)(file, np.zeros(3))
    else:
        modes = {"tar": "w", "gz": "w:gz", "bz2": "w:bz2", "xz": "w:xz"}
        with tarfile.open(path, modes[kind]) as made:  # type: ignore[call-overload]
            made.add(inside, "weights.pth")


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        ("zip", "a zip archive of 1 files (folder/weights.pth)"),
        ("npz", "a NumPy archive"),
        ("npy", "a NumPy array"),
        ("tar", "a tar archive"),
        ("gz", "a gzip archive"),
        ("bz2", "a bzip2 archive"),
        ("xz", "an xz archive"),
    ],
)
def test_archives_are_named(tmp_path, kind, found):
    archive(tmp_path / "file.pth", kind)
    assert found in refused(build_backbone("resnet18"), tmp_path / "file.pth").found


@pytest.mark.parametrize(
    ("start", "found"),
    [
        (b"\x89HDF\r\n\x1a\n" + bytes(64), "HDF5"),
        (b"\x08\x08\x12\x07pytorch\x1a\x052.4.0" + bytes(64), "an ONNX graph"),
        (b'{"error": "Access denied"}', "JSON text"),
        (b"Rar!\x1a\x07\x00" + bytes(64), "a RAR archive"),
        (b"7z\xbc\xaf\x27\x1c" + bytes(64), "a 7z archive"),
        (b"GGUF" + bytes(64), "GGUF"),
        (b"%PDF-1.7", "a PDF"),
    ],
)
def test_other_formats_are_named(tmp_path, start, found):
    (tmp_path / "file.pth").write_bytes(start)
    assert found in refused(build_backbone("resnet18"), tmp_path / "file.pth").found


# Wrappers


@pytest.mark.parametrize(
    ("wrap", "said"),
    [
        (lambda s: {"state_dict": s}, ""),
        (lambda s: {"params": s}, ""),
        (lambda s: {"model": {"state_dict": s}, "optimizer": {"state": {0: s}}}, ""),
        (lambda s: {"module": s, "step": torch.tensor(3)}, ""),
        (lambda s: {"state_dict_ema": s}, "taken: state_dict_ema, averaged weights (EMA)"),
        (lambda s: {"model_ema": {"module": s}}, "taken: model_ema.module, averaged weights"),
        (lambda s: {"ema": {"module": s, "decay": 0.9}, "epoch": 3}, "taken: ema.module"),
        (lambda s: {"teacher": s}, "taken: teacher"),
        (lambda s: {"backbone_weights": s}, "taken: backbone_weights"),
        (
            lambda s: {"state_dict": s, "state_dict_ema": {k: 2 * v for k, v in s.items()}},
            "taken: state_dict; not taken: state_dict_ema (averaged weights, EMA; to take them:",
        ),
    ],
)
def test_wrappers_are_taken_off_and_the_choice_is_said(tmp_path, wrap, said):
    torch.save(wrap(fake("resnet18")), tmp_path / "file.pth")
    net = build_backbone("resnet18")
    report = load_backbone(net, tmp_path / "file.pth")
    assert_loaded(net, "resnet18")
    assert report.choice.startswith(said)
    assert bool(report.choice) == bool(said)
    assert report.choice in str(report)


def test_groups_under_unknown_names_are_named(tmp_path):
    state = fake("resnet18")
    torch.save({"generator": state, "critic": state}, tmp_path / "file.pth")
    error = refused(build_backbone("resnet18"), tmp_path / "file.pth")
    assert "several groups of tensors: generator, critic" in error.found
    assert "['generator']" in error.hint


def test_keys_without_tensors_are_named(tmp_path):
    torch.save({"epoch": 3, "best": 0.5}, tmp_path / "file.pth")
    error = refused(build_backbone("resnet18"), tmp_path / "file.pth")
    assert "its keys: epoch, best" in error.found


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_what_parallel_training_puts_before_names_changes_no_supervision(tmp_path, prefix):
    state = fake("resnet18", prefix) | {f"{prefix}fc.weight": torch.zeros(1000, 512)}
    torch.save(state, tmp_path / "file.pth")
    report = load_backbone(build_backbone("resnet18"), tmp_path / "file.pth")
    assert (report.kind, report.supervision) == ("torchvision", "ImageNet tags")


# safetensors


def safetensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    header, body = {"__metadata__": {"format": "pt"}}, b""
    names = {torch.float32: "F32", torch.float16: "F16", torch.int64: "I64"}
    for name, tensor in tensors.items():
        data = tensor.contiguous().numpy().tobytes()
        header[name] = {
            "dtype": names[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [len(body), len(body) + len(data)],
        }
        body += data
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def test_safetensors_are_read(tmp_path):
    state = {"a.weight": torch.rand(3, 4), "b": torch.rand(5).half(), "n": torch.tensor(7)}
    safetensors(tmp_path / "file.safetensors", state)
    found = read_checkpoint(tmp_path / "file.safetensors").tensors
    assert list(found) == list(state)
    assert all(torch.equal(found[name], state[name]) for name in state)
    assert all(found[name].dtype == state[name].dtype for name in state)


def test_a_network_from_safetensors(tmp_path):
    safetensors(tmp_path / "resnet18.safetensors", fake("resnet18"))
    net = build_backbone("resnet18")
    load_backbone(net, tmp_path / "resnet18.safetensors")
    assert_loaded(net, "resnet18")


@pytest.mark.parametrize(
    "about",
    [
        {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]},
        {"dtype": "F9", "shape": [1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": 1, "data_offsets": [0, 4]},
        {"dtype": "F32"},
        [],
        None,
    ],
)
def test_a_damaged_safetensors_file(tmp_path, about):
    text = json.dumps({"a": about}).encode()
    path = tmp_path / "file.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    with pytest.raises(WeightsError, match="damaged or truncated safetensors"):
        read_checkpoint(path)


def test_no_file_or_a_folder(tmp_path):
    assert "is not a file" in refused(build_backbone("resnet18"), tmp_path / "none.pth").found
    assert "is not a file" in refused(build_backbone("resnet18"), tmp_path).found


# MXNet


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
    write_params(
        tmp_path / "x.params", {"arg:a": np.ones((2, 3), "<f4"), "aux:b": np.ones(2, "<f4")}, layout
    )
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
