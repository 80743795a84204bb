"""Class activation maps whose two halves, seen through complementary masks, add up to the whole.

Zhang et al., "Complementary Patch for Weakly Supervised Semantic Segmentation" ("CPN"), ICCV 2021.

An image I and a mask S make the pair I_h = I S and I_h' = I (1 - S); lam is the visible share of
I_h. All three pass through the network of SEAM*. With maps scaled by their share (eq. 17),
L = w_cls (L_cls + R) + w_tcp L_TCP + w_cpcr L_CPCR, see ``cpn_loss``.

Deviations: the term R, the gradient of the pair and the one-hot are knobs and default to the
released code; the sides of the grid and the number of super-pixels default to the paper. Paper and
released trainer hide super-pixels; the default here is the grid, which needs no segmentation before
the training. Hidden pixels have ImageNet's mean colour, as released; in the paper they have that of
the training set. SLIC runs once a photograph instead of once a crop; padding is no super-pixel.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from trainer.config import Range
from trainer.data.loader import Batch
from trainer.data.superpixels import MAX_SUPERPIXELS, make_superpixels, read_superpixels, renumbered
from trainer.errors import ConfigError
from trainer.methods.correlation import (
    Correlated,
    NetworkConfig,
    classification,
    hardest,
    mean,
    present_channels,
    select,
    with_background,
)
from trainer.methods.declaration import Declaration
from trainer.methods.inputs import Input
from trainer.methods.pooling import gap
from trainer.methods.regularizers import adaptive_min_pooling, normalise_cam
from trainer.methods.seam import RELEASED_SCALES, advice_on_regions

PROTOCOL = "seam"
TRAINING: dict[str, dict[str, Any]] = {
    "psa": {"lr": 0.01, "batch": 4, "epochs": 8, "resize": (448, 768)}
}
PRESETS: dict[str, dict[str, Any]] = {
    "code": {
        **RELEASED_SCALES,
        "method.patches": "superpixel",
        "method.segments": 300,
        "method.draw": "replacement",
        "method.grid": (224, 448),
    },
    "paper": {
        **RELEASED_SCALES,
        "method.patches": "superpixel",
        "method.grid": (56, 112),
        "method.min_pooling": False,
        "method.detach_pair": True,
        "method.onehot": False,
        # The paper's text. In its code the momentum is nearly 0, see ``Training.momentum``.
        "classify.momentum": 0.9,
    },
}

GRID, CROP = (56, 112), 448
"""Sides of the paper's best grid, and of the crop that they were chosen for."""

Draw = Literal["independent", "replacement"]


@dataclass(frozen=True)
class Config(NetworkConfig):
    """Knobs of ``cpn``, besides those of ``NetworkConfig``; ``prcm`` is on, as published.

    Attributes:
        patches: what is hidden as a whole: cells of a ``grid``, or a ``superpixel``.
        grid: sides of the cells in pixels of the crop; each image draws one. ``auto`` is the best
            grid of the paper, an eighth and a quarter of the crop: 56 and 112 pixels of 448.
        segments: number of super-pixels that SLIC aims at in each photograph.
        hidden: share of cells or super-pixels to hide, the paper's p_h.
        draw: how super-pixels are drawn: each is hidden with the probability ``hidden``
            (``independent``), or as released this share of them is drawn with ``replacement``,
            which hides 39 % for 0.5.
        detach_pair: no gradient through the pair's refined maps in ``tcp_refined``, as in the
            paper.
        onehot: ``cpcr`` keeps only the largest channel of each pixel of the difference, as in the
            released code.
        alpha: exponent of the background (1 - max)^alpha in ``cpcr``.
        w_cls: weight of the classification losses and of min pooling; 0 leaves them out.
        w_tcp: weight of the losses between the whole and the sum of the halves.
        w_cpcr: weight of the cross regularisation of the halves.
    """

    patches: Literal["grid", "superpixel"] = "grid"
    grid: Annotated[tuple[int, ...] | Literal["auto"], Range(1, 4096, least=1)] = "auto"
    segments: Annotated[int, Range(2, MAX_SUPERPIXELS)] = 200
    hidden: Annotated[float, Range(0, 1, above=True, below=True)] = 0.5
    draw: Draw = "independent"
    prcm: Literal["off", "on", "code", "transposed", "class_softmax"] = "code"
    detach_pair: bool = False
    onehot: bool = True
    alpha: Annotated[float, Range(0, 100, above=True)] = 1.0
    w_cls: Annotated[float, Range(0, 1000)] = 1.0
    w_tcp: Annotated[float, Range(0, 1000)] = 1.0
    w_cpcr: Annotated[float, Range(0, 1000)] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not any((self.w_cls, self.w_tcp, self.w_cpcr)):
            raise ConfigError("w_cls=0 w_tcp=0 w_cpcr=0", "not all of them 0")


class Cpn(Correlated):
    """The correlation network trained on an image and a complementary pair of it."""

    config: Config

    def needs(self, run: Path) -> dict[str, Input]:
        """Super-pixels ``segments`` for ``patches=superpixel``: ids 1, 2, ... ``int64 [H,W]``, 0
        outside of the image.
        """
        if self.config.patches == "grid":
            return {}
        count = self.config.segments
        # Beside the stages' folders: super-pixels outlive a change of the training.
        folder = run / "superpixels" / str(count)
        make = partial(make_superpixels, folder=folder, count=count, progress=True)
        reader = partial(read_superpixels, folder=folder)
        # Numbered anew after the crop, so that only super-pixels that are left are drawn.
        return {"segments": Input(reader, follows_image=True, finish=renumbered, make=make)}

    def loss(self, batch: Batch, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        """Terms of ``cpn_loss``."""
        knobs = self.config
        images, tags = batch["image"], batch["tags"]
        mask, lam = self.masks(images, rng, batch.get("segments"))
        channels, label = present_channels(tags)
        views = [
            self.compared(view, channels) for view in (images, images * mask, images * (1 - mask))
        ]
        maps = [(cam, rv) for _, cam, rv in views]
        terms = complement(
            maps,
            lam,
            label,
            self.num_classes,
            knobs.min_pooling,
            knobs.detach_pair,
            knobs.onehot,
            knobs.ohem,
            knobs.alpha,
        )
        terms = {"cls": classification([logits for logits, _, _ in views], tags), **terms}
        weights = {
            "cls": knobs.w_cls,
            "min": knobs.w_cls,
            "tcp": knobs.w_tcp,
            "tcp_refined": knobs.w_tcp,
            "cpcr": knobs.w_cpcr,
        }
        return {name: weights[name] * term for name, term in terms.items() if weights[name]}

    def masks(
        self, images: torch.Tensor, rng: np.random.Generator, segments: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Masks ``[B,1,H,W]``, 1 where visible, and lam ``[B]``.

        ``segments`` are super-pixels, int64 ``[B,H,W]`` with ids from 1 on; a grid needs none.
        """
        knobs, size = self.config, (images.shape[2], images.shape[3])
        if knobs.patches == "grid":
            sides = grid_sides(size[0]) if knobs.grid == "auto" else knobs.grid
            drawn = [random_grid_mask(size, sides, rng, knobs.hidden) for _ in images]
            mask = torch.from_numpy(np.stack([m for m, _ in drawn]))
            lam = torch.tensor([share for _, share in drawn])
        elif segments is None:
            raise ConfigError("no super-pixels", "segments of every image for patches=superpixel")
        else:
            counts = segments.amax((1, 2)).tolist()
            hidden = [hidden_segments(n, knobs.draw, rng, knobs.hidden) for n in counts]
            mask, lam = segment_masks(segments, hidden)
        return mask.to(images)[:, None], lam.to(images)


def cpn_loss(
    maps: list[tuple[torch.Tensor, torch.Tensor]],
    lam: torch.Tensor,
    tags: torch.Tensor,
    min_pooling: bool = True,
    detach_pair: bool = False,
    onehot: bool = True,
    ohem: float = 4.2,
    alpha: float = 1.0,
) -> dict[str, torch.Tensor]:
    """Terms of CPN's loss (eq. 17 and R); their sum is L.

    Args:
        maps: class map before the ReLU and refined map, ``[B,K+1,H,W]`` with the background first,
            of the image, of its visible part I_h and of the rest.
        lam: visible share of I_h, ``[B]``.
        tags: 0/1 ``[B,K]``, NaN where unknown.
        min_pooling: with the term ``min``.
        detach_pair: ``tcp_refined`` trains through the refined map of the whole image only.
        onehot: ``cpcr`` compares with the largest channel of each pixel instead of with all.
        ohem: how many of the hardest entries of each image ``cpcr`` counts, in maps of ``[H,W]``.
        alpha: exponent of the background (1 - max)^alpha in ``cpcr``.
    """
    channels, label = present_channels(tags)
    present = [(select(cam, channels), select(rv, channels)) for cam, rv in maps]
    terms = complement(
        present, lam, label, tags.shape[1], min_pooling, detach_pair, onehot, ohem, alpha
    )
    return {"cls": classification([gap(cam[:, 1:]) for cam, _ in maps], tags), **terms}


def complement(
    maps: list[tuple[torch.Tensor, torch.Tensor]],
    lam: torch.Tensor,
    label: torch.Tensor,
    num_classes: int,
    min_pooling: bool,
    detach_pair: bool,
    onehot: bool,
    ohem: float,
    alpha: float,
) -> dict[str, torch.Tensor]:
    """All terms of ``cpn_loss`` except ``cls``, from the channels ``[B,P+1,H,W]`` of present
    classes, see ``present_channels``.

    This is exact: channels of absent classes are 0 in every term and only count in the means.
    """
    label = label.to(maps[0][0].dtype)[:, :, None, None]
    share = lam[:, None, None, None]
    shares = (torch.ones_like(share), share, 1 - share)
    y_o, y_1, y_2 = (s * normalise_cam(cam) * label for s, (cam, _) in zip(shares, maps))
    r_o, r_1, r_2 = (s * normalise_cam(rv) * label for s, (_, rv) in zip(shares, maps))
    terms = {}
    if min_pooling:
        terms["min"] = mean([adaptive_min_pooling((rv * label)[:, 1:]) for _, rv in maps])
    # As released, classes absent from an image count in the mean.
    entries = num_classes * y_o[:, 0].numel()
    # The halves are fixed targets of the whole, as released and as in the paper.
    terms["tcp"] = (y_1.detach() + y_2.detach() - y_o)[:, 1:].abs().sum() / entries
    both = (r_1 + r_2).detach() if detach_pair else r_1 + r_2
    terms["tcp_refined"] = (r_o - both)[:, 1:].abs().sum() / entries
    # Here the class maps are fixed targets: this term trains the refinement only.
    y_o, y_1, y_2 = (with_background(y.detach(), alpha) for y in (y_o, y_1, y_2))
    r_1, r_2 = with_background(r_1, alpha), with_background(r_2, alpha)
    absent = y_o.shape[1] <= num_classes
    rests = [strongest(y_o - y, absent) if onehot else y_o - y for y in (y_1, y_2)]
    terms["cpcr"] = hardest(rests[0] - r_2, ohem, 1) + hardest(rests[1] - r_1, ohem, 1)
    return terms


def strongest(y_BChw: torch.Tensor, absent: bool) -> torch.Tensor:
    """At each pixel the largest channel, background included, with ties; 0 in the others.

    With ``absent``, further channels were left out because they are 0. Where all channels here are
    negative, one of those is the largest.
    """
    highest = y_BChw.amax(1, keepdim=True)
    highest = highest.clamp(min=0) if absent else highest
    return y_BChw * (y_BChw == highest).to(y_BChw.dtype)


def grid_sides(crop: int) -> tuple[int, ...]:
    """The paper's best sides of cells, in proportion to the crop."""
    return tuple(max(1, round(side * crop / CROP)) for side in GRID)


def grid_cells(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Rows and columns of cells, the last ones clipped."""
    return -(-size[0] // side), -(-size[1] // side)


def grid_mask(
    size: tuple[int, int], side: int, draws: npt.NDArray[np.float64], hidden: float = 0.5
) -> tuple[npt.NDArray[np.float32], float]:
    """Mask ``[H,W]``, 1 where visible, and lam, the share of visible cells.

    Args:
        size: H and W.
        side: of a cell.
        draws: a number in 0..1 for each cell, row by row.
        hidden: draws of at most this hide.
    """
    rows, columns = grid_cells(size, side)
    visible = (np.asarray(draws).reshape(rows, columns) > hidden).astype(np.float32)
    mask = visible.repeat(side, 0)[: size[0]].repeat(side, 1)[:, : size[1]]
    return mask, float(visible.mean())


def random_grid_mask(
    size: tuple[int, int], sides: tuple[int, ...], rng: np.random.Generator, hidden: float = 0.5
) -> tuple[npt.NDArray[np.float32], float]:
    """``grid_mask`` of a random side, each cell hidden with the probability ``hidden``."""
    side = int(rng.choice(sides))
    rows, columns = grid_cells(size, side)
    return grid_mask(size, side, rng.random(rows * columns), hidden)


def hidden_segments(
    count: int, draw: Draw, rng: np.random.Generator, share: float = 0.5
) -> npt.NDArray[np.bool_]:
    """Which of the ids 0..``count`` are hidden, ``[count + 1]``; id 0, the padding, never is."""
    hidden = np.zeros(count + 1, np.bool_)
    if draw == "independent":
        hidden[1:] = rng.random(count) <= share
    else:
        # The released code draws id 0 too, which no super-pixel has.
        hidden[rng.integers(0, count + 1, int((count + 1) * share))] = True
        hidden[0] = False
    return hidden


def segment_masks(
    segments_BHW: torch.Tensor, hidden: list[npt.NDArray[np.bool_]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Masks ``[B,H,W]``, 1 where visible, and lam ``[B]``, the share of visible pixels among those
    of super-pixels.

    Args:
        segments_BHW: ids, int64.
        hidden: of each image, whether an id is hidden.
    """
    table = np.zeros((len(hidden), max(map(len, hidden))), np.bool_)
    for row, flags in zip(table, hidden):
        row[: len(flags)] = flags
    invisible = torch.from_numpy(table).to(segments_BHW.device).gather(1, segments_BHW.flatten(1))
    pixels = (segments_BHW > 0).flatten(1).sum(1).clamp(min=1)
    lam = 1 - invisible.sum(1) / pixels
    return (~invisible).view_as(segments_BHW).float(), lam


METHOD = Declaration(
    Cpn, Config, presets=PRESETS, training=TRAINING, protocol=PROTOCOL, advice=advice_on_regions
)
