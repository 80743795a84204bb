"""A backbone of two convolutions and pictures to feed it, for tests that are not about networks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from trainer.data.dataset import Dataset, Record
from trainer.data.palette import write_index_png
from trainer.nets.backbone import Backbone


class TinyBackbone(Backbone):
    """``a`` at stride 2, which is frozen, and ``b`` at stride 4."""

    def __init__(self) -> None:
        super().__init__()
        self.channels, self.strides, self.top = {"a": 4, "b": 6}, {"a": 2, "b": 4}, "b"
        self.first = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.second = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.freeze()

    def forward(self, x_B3HW: Tensor) -> dict[str, Tensor]:
        a = torch.relu(self.first(x_B3HW))
        return {"a": a, "b": torch.relu(self.second(a))}

    def freeze(self) -> None:
        self.first.requires_grad_(False)


def pictures(
    folder: Path, count: int = 6, size: tuple[int, int] = (36, 44), classes: int = 3
) -> Dataset:
    """Noise with a bright square whose colour is its class; masks are exact; every image has one
    tag.
    """
    records = {}
    for n in range(count):
        rng = np.random.default_rng(n)
        height, width = size if n % 3 else size[::-1]
        pixels = rng.integers(0, 90, (height, width, 3), dtype=np.uint8)
        mask = np.zeros((height, width), np.uint8)
        k = n % classes
        top, left = 4 + n % 5, 6 + n % 7
        pixels[top : top + 20, left : left + 20, k % 3] = 240
        mask[top : top + 20, left : left + 20] = k + 1
        image, truth = folder / f"p{n}.png", folder / "truth" / f"p{n}.png"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(image)
        write_index_png(truth, mask)
        records[f"p{n}"] = Record(f"p{n}", image, (k,), truth)
    names = tuple(f"c{k}" for k in range(classes))
    return Dataset(
        folder, "voc", names, tuple(range(1, classes + 1)), records, {"all": tuple(records)}, "test"
    )


class Staged(Backbone):
    """Three features of stride 2, 4 and 4, named as in ResNet-38 or as in the others."""

    def __init__(self, names: tuple[str, str, str] = ("conv4", "conv5", "conv6")) -> None:
        super().__init__()
        self.names, self.top = names, names[-1]
        self.channels, self.strides = dict(zip(names, (4, 5, 6))), dict(zip(names, (2, 4, 4)))
        self.convs = nn.ModuleList(
            nn.Conv2d(i, o, 3, s, 1, bias=False) for i, o, s in ((3, 4, 2), (4, 5, 2), (5, 6, 1))
        )

    def forward(self, x_B3HW: torch.Tensor) -> dict[str, torch.Tensor]:
        found = {}
        for name, conv in zip(self.names, self.convs):
            x_B3HW = found[name] = torch.relu(conv(x_B3HW))
        return found

    def freeze(self) -> None:
        pass
