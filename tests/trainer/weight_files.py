"""Weight files of every layout, made of constants."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from trainer.nets import build_backbone


def shapes(name: str) -> dict[str, torch.Size]:
    """Names and shapes of a backbone without counters, as old files have them."""
    with torch.device("meta"):
        state = build_backbone(name).state_dict()
    return {
        key: tensor.shape
        for key, tensor in state.items()
        if not key.endswith("num_batches_tracked")
    }


def fake(name: str, prefix: str = "") -> dict[str, Tensor]:
    """Constant tensors, a different one for each name; expanded, so that files stay small."""
    return {
        prefix + key: torch.tensor(1 + i / 1000).expand(shape)
        for i, (key, shape) in enumerate(shapes(name).items())
    }


def torchvision_file(folder: Path, name: str, classes: int = 1000) -> Path:
    state = fake(name)
    if name == "mobilenet_v2":
        state |= {
            "classifier.1.weight": torch.zeros(classes, 1280),
            "classifier.1.bias": torch.zeros(classes),
        }
    else:
        width = 512 if name in ("resnet18", "resnet34") else 2048
        state |= {
            "fc.weight": torch.zeros(()).expand(classes, width),
            "fc.bias": torch.zeros(classes),
        }
    path = folder / f"{name}.pth"
    torch.save(state, path)
    return path


def assert_loaded(net: nn.Module, name: str) -> None:
    state = net.state_dict()
    for key, tensor in fake(name).items():
        assert torch.equal(state[key], tensor), key


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


def mxnet_name(name: str) -> str:
    """The MXNet name of a state-dict name."""
    *layers, part = name.split(".")
    part = {"bias": "beta", "running_mean": "moving_mean", "running_var": "moving_var"}.get(
        part, part
    )
    kind = "aux" if part.startswith("moving") else "arg"
    if part == "weight" and "bn" in layers[-1]:
        part = "gamma"
    if len(layers) == 1:
        return f"{kind}:{layers[0]}_{part}"
    block = re.sub(r"^b(\d)$", r"\1a", layers[0])
    block = re.sub(r"^b(\d)_(\d)$", r"\1b\2", block)
    layer, branch = layers[1].split("_")
    return f"{kind}:{'res' if layer == 'conv' else 'bn'}{block}_{branch}_{part}"
