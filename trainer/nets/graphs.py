"""What an exported graph computes: pixels in, finished maps and masks out.

Wrappers around a trained method or segmenter, separate from it. Constants are buffers, every size
is symbolic, and only operators are used that onnxruntime, OpenVINO and TensorRT share: the bicubic
resize is a pair of matrix products because antialiased ``Resize`` is ignored by OpenVINO, refused
by TensorRT and, without antialiasing, slow in onnxruntime. So is the resize of a segmenter's
logits, which is most of what a small network's mask costs (bench/export_head.py).

Shapes: N images, B views (N or 2N), K classes, L = K + 1 labels, H W image, h w map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import nn

from trainer.data.transforms import IMAGENET_PIXELS, PixelScale
from trainer.errors import ConfigError
from trainer.nets.pixel_graph import PixelGraph, Results
from trainer.nets.planes import add_up, largest_of, planes_of, softmax
from trainer.nets.resampling import (
    bilinear_weights,
    resize_aligned,
    resize_bilinear,
)

# The stride of stored maps, which is IRN's.
CAM_STRIDE = 4
# Far below any logit, and a number that float16 holds.
EXCLUDED = -1e4
DOUBT_STRIDE = 4
"""``doubt`` looks at every fourth pixel of every fourth row. Confidences come from logits of a
coarser grid, so the other pixels would add work and memory, but nothing to a mean."""


class CamGraph(PixelGraph):
    """Class activation maps with the multi-scale merge of IRN (Ahn et al., CVPR 2019), at its
    stride-4 output.

    ``image uint8 [N,H,W,3]`` -> ``cam float32 [N,K,h,w]`` with h = (H-1)//4+1 and w = (W-1)//4+1,
    ``scores float32 [N,K]`` = sigmoid of the image logits of the plain image at scale 1. Every map
    is the sum over scales and mirrored views of ReLU maps resized bilinearly, divided by its own
    maximum + 1e-5, so 0 <= cam < 1; VWE takes the maximum of the two mirrored views, SEAM also
    subtracts the map's minimum. Which classes are present is for the caller to say (``scores`` or
    known tags).

    Deviation from the released IRN code: maps go straight to stride 4, without its padding to a
    multiple of 16.

    Views with too few cells add nothing, as in ``trainer.stages.cams``: they are computed, since
    the size of the image is only known when the graph runs, and multiplied by 0.

    Args:
        method: ``cams_and_logits(images_B3hw) -> (cams_BKhw, logits_BK)``.
        scales: must hold 1, where the scores come from.
        flip: also run the mirrored image.
        mirror_max: the two mirrored views merge by their maximum (``vwe``) instead of by their sum.
        minmax: maps lie between their own minimum and maximum (``seam``) instead of below their
            maximum.
        min_cells: views whose map has fewer cells on its longer side are left out, but never the
            largest view.
    """

    kind = "cam"
    outputs = {"cam": ("float32", ("N", "K", "h", "w")), "scores": ("float32", ("N", "K"))}  # noqa: RUF012

    def __init__(
        self,
        method: nn.Module,
        scales: Sequence[float] = (1, 0.5, 1.5, 2),
        flip: bool = True,
        mirror_max: bool = False,
        minmax: bool = False,
        min_cells: int = 0,
    ) -> None:
        super().__init__(method, scales, flip)
        self.mirror_max, self.minmax, self.min_cells = mirror_max, minmax, min_cells
        twins = ", of mirrored views the maximum" if mirror_max else ""
        range_ = (
            "set between its minimum and maximum" if minmax else "divided by its maximum + 1e-5"
        )
        fewer = f", without views of under {min_cells} cells" if min_cells > 1 else ""
        self.merging = (
            f"sum of ReLU maps at stride 4{twins}{fewer}, each {range_}; scores at scale 1"
        )
        if 1.0 not in self.scales:
            raise ConfigError(
                f"scales {self.scales} lack 1",
                "scale 1 among them: the image scores come from there",
            )

    def run(self, view_B3hw: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Map ``[B,K,h,w]`` and logits ``[B,K]``."""
        cams_BKhw, logits_BK = self.net.cams_and_logits(view_B3hw)  # type: ignore[operator]
        return cams_BKhw.relu(), logits_BK

    def after(self, image_NHW3: torch.Tensor, results: Results) -> tuple[torch.Tensor, ...]:
        """``cam`` and ``scores``."""
        merged_NKhw = self.merged(image_NHW3, results)
        logits_NK = results[self.scales.index(1.0)][1][: image_NHW3.shape[0]]
        high, low = merged_NKhw.amax((2, 3), keepdim=True), merged_NKhw.amin((2, 3), keepdim=True)
        if not self.minmax:
            return merged_NKhw / (high + 1e-5), logits_NK.sigmoid()
        above = torch.where(merged_NKhw < low + 1e-5, torch.zeros_like(merged_NKhw), merged_NKhw)
        return ((above - low - 1e-5) / (high - low + 1e-5)).clamp_min(0), logits_NK.sigmoid()

    def merge_flip(self, maps_BKhw: torch.Tensor, count: int) -> torch.Tensor:
        """See ``PixelGraph``; the maximum instead of the sum with ``mirror_max``."""
        if not (self.flip and self.mirror_max):
            return super().merge_flip(maps_BKhw, count)
        return torch.maximum(maps_BKhw[:count], maps_BKhw[count:].flip(3))

    def merged(self, image_NHW3: torch.Tensor, results: Results) -> torch.Tensor:
        """Sum of the maps of all views ``[N,K,h,w]``, before each is divided by its maximum."""
        count, height, width = image_NHW3.shape[:3]
        size = ((height - 1) // CAM_STRIDE + 1, (width - 1) // CAM_STRIDE + 1)
        views = []
        for scale, (maps_BKhw, _) in zip(self.scales, results):
            maps_NKhw = self.merge_flip(maps_BKhw, count)
            if self.min_cells > 1 and scale < max(self.scales):
                maps_NKhw = maps_NKhw * self.counts(maps_NKhw)
            views.append(resize_bilinear(maps_NKhw, size))
        return add_up(views)

    def counts(self, maps_NKhw: torch.Tensor) -> int:
        """1, or 0 where the longer side of a map has fewer than ``min_cells`` cells."""
        longer = torch.sym_max(maps_NKhw.shape[2], maps_NKhw.shape[3])
        enough = torch.sym_min(torch.sym_max(longer - self.min_cells + 1, 0), 1)
        return cast(int, enough)


class SegmenterGraph(PixelGraph):
    """Label map, image scores, confidence and, after ``add_doubt``, doubt of a segmenter.

    ``image uint8 [N,H,W,3]`` -> ``mask uint8 [N,H,W]`` in 0..K; ``scores float32 [N,K]``: the
    highest merged probability of each foreground class, at the feature resolution of the largest
    scale; ``confidence uint8 [N,H,W]``: round(255 * merged probability of the winning label);
    ``doubt float32 [N,1]``: the estimated share of wrong pixels.

    Every view's logits go bilinearly to (H, W) and through the soft-max;
    several views merge as the **mean of their probabilities**, then arg-max: what
    ``trainer.segmenters.prediction.predict`` does. With one view the soft-max is not needed for the
    arg-max, and only the winner's probability is computed.

    Args:
        segmenter: ``forward(images_B3hw) -> logits_BLhw`` at any stride.
        scales: factors of the image size.
        flip: also run the mirrored image.
        pixels: how values reach the network.
        merge: ``logits`` takes the mean of the resized logits before the soft-max, as
            SEAM's segmentation code does.
        align_corners: how logits are resized to the image.
    """

    kind = "segmenter"
    least: torch.Tensor | None
    wrong: torch.Tensor | None
    outputs = {  # noqa: RUF012
        "mask": ("uint8", ("N", "H", "W")),
        "scores": ("float32", ("N", "K")),
        "confidence": ("uint8", ("N", "H", "W")),
    }

    def __init__(
        self,
        segmenter: nn.Module,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        pixels: PixelScale = IMAGENET_PIXELS,
        merge: Literal["probabilities", "logits"] = "probabilities",
        align_corners: bool = False,
    ) -> None:
        super().__init__(segmenter, scales, flip, pixels)
        self.merge, self.align_corners = merge, align_corners
        mean = (
            "soft-max of the mean logits" if merge == "logits" else "mean of soft-max probabilities"
        )
        self.merging = f"bilinear to the image size, {mean}, arg-max"
        self.register_buffer("least", None, persistent=False)
        self.register_buffer("wrong", None, persistent=False)

    def require_scores(self, thresholds_K: Sequence[float]) -> None:
        """Keep classes out of the mask of an image whose score for them is under the threshold.

        The arg-max is then over the other labels, and ``confidence`` is the winner's share among
        them. Without this call all labels may win.
        """
        self.least = torch.tensor(thresholds_K, dtype=torch.float32)
        self.merging += ", among the classes that reach their score threshold"

    def add_doubt(self, wrong_256: Sequence[float]) -> None:
        """Give the graph the output ``doubt``: the mean, over the pixels, of the share of wrong
        pixels at each confidence 0..255.
        """
        self.wrong = torch.tensor(wrong_256, dtype=torch.float32)
        # Of this graph only: the class attribute belongs to all.
        self.outputs = {**self.outputs, "doubt": ("float32", ("N", 1))}

    def run(self, view_B3hw: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Logits ``[B,L,h,w]``."""
        return (self.net(view_B3hw),)

    def after(self, image_NHW3: torch.Tensor, results: Results) -> tuple[torch.Tensor, ...]:
        """``mask``, ``scores``, ``confidence`` and perhaps ``doubt``."""
        logits = [result[0] for result in results]
        return self.finished(image_NHW3, logits, self.scores(logits, image_NHW3.shape[0]))

    def finished(
        self, image_NHW3: torch.Tensor, logits: Sequence[torch.Tensor], scores_NK: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """The outputs for image scores, which say what classes may win."""
        mask_NHW, levels_NHW = self.mask(image_NHW3, logits, scores_NK)
        outputs = mask_NHW, scores_NK, levels_NHW.to(torch.uint8)
        return outputs if self.wrong is None else (*outputs, self.doubt(levels_NHW, self.wrong))

    def doubt(self, levels_NHW: torch.Tensor, wrong_256: torch.Tensor) -> torch.Tensor:
        """``float32 [N,1]`` of confidences 0..255, as floats: TensorRT has bytes as inputs and
        outputs only.
        """
        levels_Nhw = levels_NHW[:, ::DOUBT_STRIDE, ::DOUBT_STRIDE].long()
        return nn.functional.embedding(levels_Nhw, wrong_256[:, None]).mean((1, 2))

    def mask(
        self, image_NHW3: torch.Tensor, logits: Sequence[torch.Tensor], scores_NK: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """``mask``, and ``confidence`` in float32, for image scores."""
        count, *size = image_NHW3.shape[:3]
        count_views = len(logits) * (2 if self.flip else 1)
        # Before the resize, where maps are small; every view leaves out the same classes.
        logits = [self.allowed(x, scores_NK) for x in logits]
        if self.merge == "logits" or count_views == 1:
            views = []
            for x, scale in zip(logits, self.scales):
                pair = self.merge_flip(x, count)
                # The same value from all labels changes no soft-max, and no power can overflow
                # then.
                below = (pair - pair.amax(1, keepdim=True)) / count_views
                views.append(self.to_image(planes_of(below), size, scale))
            planes = [add_up(list(same)) for same in zip(*views)]
            peak_NHW, mask_NHW = largest_of(planes)
            top_NHW = peak_NHW.exp() / add_up([plane.exp() for plane in planes]).clamp_min(1e-38)
        else:
            large = [self.to_image([x], size, scale)[0] for x, scale in zip(logits, self.scales)]
            total_NLHW = add_up([self.merge_flip(softmax(x), count) for x in large])
            peak_NHW, mask_NHW = largest_of(planes_of(total_NLHW))
            top_NHW = peak_NHW / count_views
        return mask_NHW, (top_NHW * 255).round()

    def scores(self, logits: Sequence[torch.Tensor], count: int) -> torch.Tensor:
        """Image scores ``[N,K]`` of the logits of all views, one ``[B,L,h,w]`` a scale."""
        largest = self.scales.index(max(self.scales))
        finest = logits[largest].shape[2:]
        small = [self.merge_flip(softmax(x)[:, 1:], count) for x in logits]
        small = [x if i == largest else resize_bilinear(x, finest) for i, x in enumerate(small)]
        return add_up(small).amax((2, 3)) / (len(logits) * (2 if self.flip else 1))

    def allowed(self, logits_BLhw: torch.Tensor, scores_NK: torch.Tensor) -> torch.Tensor:
        """The logits, those of classes under their score threshold so low that none can win."""
        if self.least is None:
            return logits_BLhw
        fall_NK = (scores_NK < self.least).to(logits_BLhw.dtype) * EXCLUDED
        fall_NL = torch.cat([torch.zeros_like(fall_NK[:, :1]), fall_NK], 1)
        fall_BL = torch.cat([fall_NL, fall_NL]) if self.flip else fall_NL
        return logits_BLhw + fall_BL[:, :, None, None]

    def to_image(
        self, logits: list[torch.Tensor], size: Sequence[int], scale: float
    ) -> list[torch.Tensor]:
        """Each of the logits ``[B,L,h,w]`` or ``[B,h,w]`` of one view at the size of the image;
        aligned ones have the view's.
        """
        if self.align_corners:
            return logits if scale == 1 else [resize_aligned(x, size) for x in logits]
        height, width = logits[0].shape[-2:]
        rows = bilinear_weights(height, size[0], logits[0])
        columns = bilinear_weights(width, size[1], logits[0]).T
        return [rows @ (x @ columns) for x in logits]
