"""What the exported graphs share: pixels in, views of several scales, one run of the network a
view.

See ``trainer.nets.graphs``. N images, B views (N or 2N), K classes, H W image, h w map.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from trainer.data.transforms import IMAGENET_PIXELS, PixelScale
from trainer.errors import ConfigError
from trainer.nets.resampling import resize_bicubic

OPSET = 18
Results = list[tuple[torch.Tensor, ...]]


class PixelGraph(nn.Module):
    """Base of the two graphs: ``uint8 [N,H,W,3]`` RGB to normalised network inputs at several
    scales.

    Args:
        net: the trained network, put into evaluation mode.
        scales: factors of the image size; fractions with a denominator up to 16.
        flip: also run the mirrored image and merge.
        pixels: how values reach the network.

    Attributes:
        side: longer side to which whoever runs the graph scales every image first; 0: none.

    Raises:
        ConfigError: no scale, or one outside 0.1..4.
    """

    kind = ""
    outputs: dict[str, tuple[str, tuple[str | int, ...]]] = {}  # noqa: RUF012
    merging = ""
    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        net: nn.Module,
        scales: Sequence[float],
        flip: bool,
        pixels: PixelScale = IMAGENET_PIXELS,
    ) -> None:
        super().__init__()
        if not scales or not all(0.1 <= s <= 4 for s in scales) or len(set(scales)) < len(scales):
            raise ConfigError(
                f"scales {tuple(scales)} cannot be exported", "different factors between 0.1 and 4"
            )
        self.net = net.eval()
        self.scales = tuple(float(s) for s in scales)
        self.flip = flip
        self.side = 0
        self.bgr = pixels.bgr
        self.register_buffer("mean", torch.tensor(pixels.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(pixels.std).view(1, 3, 1, 1), persistent=False)

    def views(self, image_NHW3: torch.Tensor) -> list[torch.Tensor]:
        """One ``float32 [B,3,h,w]`` a scale; with ``flip`` the mirrored images follow the plain
        ones.
        """
        pixels = image_NHW3.permute(0, 3, 1, 2).float()
        views = []
        for scale in self.scales:
            # Bicubic overshoots at edges; Pillow clips to 0..255 too.
            x = pixels if scale == 1 else resize_bicubic(pixels, scale).clamp(0, 255)
            x = (x - self.mean) / self.std
            x = torch.cat([x[:, 2:], x[:, 1:2], x[:, :1]], 1) if self.bgr else x
            views.append(torch.cat([x, x.flip(3)]) if self.flip else x)
        return views

    def forward(self, image_NHW3: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The whole graph: ``after(image, run(view) for every view)``. Outputs as in
        ``outputs``.
        """
        return self.after(image_NHW3, [self.run(view) for view in self.views(image_NHW3)])

    def run(self, view_B3hw: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The network on one view: its map, and the image logits if the kind has them."""
        raise NotImplementedError

    def after(self, image_NHW3: torch.Tensor, results: Results) -> tuple[torch.Tensor, ...]:
        """Finished outputs from the results of ``run``, one a scale; of the image only its size is
        read.
        """
        raise NotImplementedError

    def merge_flip(self, maps_BKhw: torch.Tensor, count: int) -> torch.Tensor:
        """Sum of a map and its un-mirrored twin, ``[N,K,h,w]``.

        Done before any resize: a half-pixel bilinear resize commutes with mirroring and costs half
        this way. Slices rather than ``chunk``, which on a free batch becomes a sequence op that
        OpenVINO cannot read.
        """
        if not self.flip:
            return maps_BKhw
        return maps_BKhw[:count] + maps_BKhw[count:].flip(3)

    def shape(self, output: str, classes: int) -> list[str | int]:
        """Axes of an output of a network of K ``classes``: names of the free ones, lengths."""
        return [classes if axis == "K" else axis for axis in self.outputs[output][1]]

    def protocol(self) -> str:
        """One line for the card: which views are run, and how they are merged."""
        views = f"scales {', '.join(f'{s:g}' for s in self.scales)}{' x flip' if self.flip else ''}"
        return f"{views}, Pillow-like bicubic; {self.merging}"
