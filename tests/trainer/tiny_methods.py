"""Every method on a small backbone, and a batch for it."""

import dataclasses
from typing import Any

import torch

from trainer.methods.base import Method
from trainer.methods.registry import build_method, method_classes

CLASSES = 4


KNOBS = {"bn": "frozen", "detach_after": "stage1", "output_stride": 16, "dilate": True}


def config_of(name: str) -> Any:
    """Defaults; where the run fills in sub-categories, two of each class."""
    config = method_classes(name)[1]()
    if hasattr(config, "subcategories"):
        return dataclasses.replace(config, subcategories=(2,) * CLASSES)
    return config


def make(name: str) -> Method:
    torch.manual_seed(0)
    return build_method(name, config_of(name), "resnet18", KNOBS, CLASSES)


def own_inputs() -> dict[str, torch.Tensor]:
    """Values of the methods' own inputs for one sample, by name: add that of a new method here."""
    label = torch.ones(64, 64, dtype=torch.int64)
    label[8:40, 16:48], label[:4] = 2, 0
    return {"subcategories": torch.eye(2 * CLASSES)[0], "label": label}


def batch(size: tuple[int, int] = (64, 64)) -> dict[str, torch.Tensor]:
    """Images, tags and own inputs."""
    draw = torch.Generator().manual_seed(1)
    tags = torch.tensor([[1.0, 0, 0, 1], [0, 1, 0, 0]])
    images = torch.randn(2, 3, *size, generator=draw)
    own = {name: torch.stack([value, value]) for name, value in own_inputs().items()}
    return {"image": images, "tags": tags, **own}
