"""Visual words: the classifier must also name the patterns of a learned codebook that an image
shows.

Ru et al., "Learning Visual Words for Weakly-Supervised Semantic Segmentation", IJCAI 2021 ("VWE").

With f the deepest features [C,h,w], D the codebook (J words of C numbers), W three linear heads
without bias, g and t:

    cos_ji = <f_i / |f_i|, D_j / |D_j|>      P_ji = softmax over j of cos_ji   (i: cell)
    v_j = 1 if j is the argmax of P_i in at least one cell i, else 0   (word labels, no gradient)
    L = soft margin(W_img pool(f), t) + word_weight * soft margin(W_word gap(f), v) + soft
    margin(W_w2i g(P), t)
    M = ReLU(W_img f);      with ``word_branch``: M = max(ReLU(W_img f), ReLU(W_w2i P))  (eq. 12)

t are the tags, and g(P), the frequency of each word, is its sum over the cells (paper, eq. 4: its
mean).

Deviations: where code and paper differ, defaults are those of the released code: sum for mean, no
gradient from the encoder to the features, no maps of the words. ``PRESETS`` has both. Equation 8
lacks the leading minus of the loss, a misprint. Ours are ``pooling=gap``, where code and paper pool
with ``hspp``, and the small weight of the word loss on small networks. With ``frequency=sum``,
W_w2i learns on sums over an image and is applied to single cells, so the maps of the words need
``word_scale=own_maximum``, which is ours too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from trainer.config import Range
from trainer.data.loader import Batch
from trainer.methods.base import Method, at_least_float32, full_precision
from trainer.methods.declaration import Declaration
from trainer.methods.pooling import PoolingConfig, gap, pooled_logits
from trainer.methods.tag_loss import tag_loss
from trainer.nets.backbone import Backbone

PROTOCOL = "vwe"
TRAINING: dict[str, dict[str, Any]] = {"irn": {"lr": 0.01, "epochs": 6}}
PRESETS: dict[str, dict[str, Any]] = {
    "code": {"method.pooling": "hspp"},
    "paper": {
        "method.pooling": "hspp",
        "method.frequency": "mean",
        "method.detach_encoder": False,
        "method.word_branch": True,
        "method.word_scale": "none",
    },
}


@dataclass(frozen=True)
class Config(PoolingConfig):
    """Knobs of ``vwe``, besides those of ``PoolingConfig``.

    Attributes:
        pooling: of the image branch: ``gap`` average, ``gmp`` maximum, ``hspp`` hybrid spatial
            pyramid, which is the full method.
        words: entries of the codebook, 2 or more.
        frequency: of a word in an image: ``sum`` over the cells as released, ``mean`` as in the
            paper.
        detach_encoder: no gradient from the encoder to the backbone, as released; the paper does
            not say so.
        word_weight: weight of the word loss. ``auto`` is 1 on ResNet-50 and -101, as published, and
            0.1 elsewhere, where the names of random words would outweigh the classes in a short
            training.
        word_branch: maps are the maximum of image branch and words, as in the paper; off as
            released.
        word_scale: scale of both maps before the maximum: ``none`` as printed, which fits
            ``frequency=mean``, or each over its ``own_maximum``.
    """

    words: Annotated[int, Range(2, 65_536)] = 256
    frequency: Literal["sum", "mean"] = "sum"
    detach_encoder: bool = True
    word_weight: Annotated[float | Literal["auto"], Range(0, 1000)] = "auto"
    word_branch: bool = False
    word_scale: Literal["none", "own_maximum"] = "own_maximum"


def encode(f: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """Share of each word in each cell: features ``[B,C,h,w]``, codebook ``[J,C]`` -> P
    ``[B,J,h,w]``, 1 over the words.
    """
    # As released, without a temperature: cosines lie in -1..1, so the shares are nearly even.
    cosines = torch.einsum("jc,bchw->bjhw", F.normalize(codebook, dim=1), F.normalize(f, dim=1))
    return cosines.softmax(dim=1)


def word_labels(p: torch.Tensor) -> torch.Tensor:
    """1 for each word that is the likeliest of at least one cell, else 0: ``[B,J,h,w] -> [B,J]``,
    without gradient.
    """
    # An arg-max has no gradient anyway; a label must not hold the graph.
    best = p.detach().argmax(dim=1).flatten(1)
    return torch.zeros_like(p[:, :, 0, 0]).scatter_(1, best, 1.0)


def frequencies(p: torch.Tensor, kind: Literal["sum", "mean"]) -> torch.Tensor:
    """How often an image shows each word, ``[B,J,h,w] -> [B,J]``."""
    return p.sum(dim=(2, 3)) if kind == "sum" else gap(p)


def by_own_maximum(maps: torch.Tensor) -> torch.Tensor:
    """Maps ``[B,K,h,w] >= 0`` over the maximum of each image and class; maps near 0 are noise and
    stay near 0.
    """
    return maps / maps.amax(dim=(2, 3), keepdim=True).clamp_min(1e-5)


class Vwe(Method):
    """Classifier with a second task on word labels and a third that predicts tags from words."""

    config: Config
    released = MappingProxyType(
        {
            "word.weight": ("fc_b.weight",),
            "w2i.weight": ("fc_a.weight",),
            "codebook": ("VWE.centroid",),
        }
    )

    def __init__(self, config: Config, backbone: Backbone, num_classes: int) -> None:
        super().__init__(config, backbone, num_classes)
        channels = self.backbone.channels[self.backbone.top]
        is_irn = self.backbone.traits.recipe == "irn"
        self.word_weight = (
            (1.0 if is_irn else 0.1) if config.word_weight == "auto" else config.word_weight
        )
        # All three heads keep torch's initial values, as released.
        self.classifier = nn.Conv2d(channels, num_classes, 1, bias=False)
        self.word = nn.Conv2d(channels, config.words, 1, bias=False)
        self.w2i = nn.Conv2d(config.words, num_classes, 1, bias=False)
        self.codebook = nn.Parameter(torch.empty(config.words, channels))
        # The released start of the codebook: small numbers, whose scale the cosine ignores.
        nn.init.kaiming_normal_(self.codebook, a=math.sqrt(5))

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Deepest features ``[B,C,h,w]``."""
        f: torch.Tensor = self.backbone(images)[self.backbone.top]
        return f

    def logits(self, f: torch.Tensor) -> torch.Tensor:
        """Image logits ``[B,K]`` of features ``[B,C,h,w]``."""
        return pooled_logits(self.config, f, self.classifier)

    def cams_and_logits(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``Method``. With ``hspp``, logits come from average pooling: its pyramid fails on
        maps smaller than 4x4.
        """
        f = self.features(images)
        scores: torch.Tensor = self.classifier(f)
        is_average = self.config.pooling in ("gap", "hspp")
        logits = gap(scores) if is_average else self.logits(f)
        maps = F.relu(scores)
        if self.config.word_branch:
            words = F.relu(self.w2i(encode(f, self.codebook)))
            if self.config.word_scale == "own_maximum":
                maps, words = by_own_maximum(maps), by_own_maximum(words)
            maps = torch.maximum(maps, words)
        return maps, logits

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Image logits ``[B,K]``."""
        return self.logits(self.features(images))

    def loss(self, batch: Batch, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        """Soft margin losses of the image: ``cls``, of its words: ``word``, of tags from words:
        ``w2i``.
        """
        f, tags = at_least_float32(self.features(batch["image"])), batch["tags"]
        with full_precision(f.device.type):
            p = encode(f.detach() if self.config.detach_encoder else f, self.codebook)
            pairs = {
                "cls": (self.logits(f), tags),
                "word": (linear(self.word, gap(f)), word_labels(p)),
                "w2i": (linear(self.w2i, frequencies(p, self.config.frequency)), tags),
            }
            terms = {name: tag_loss(y, target) for name, (y, target) in pairs.items()}
            return {**terms, "word": self.word_weight * terms["word"]}


def linear(head: nn.Conv2d, vector: torch.Tensor) -> torch.Tensor:
    """A 1x1 convolution as a linear layer, ``[B,C] -> [B,K]``."""
    scores: torch.Tensor = head(vector[:, :, None, None])
    return scores.flatten(1)


METHOD = Declaration(Vwe, Config, presets=PRESETS, training=TRAINING, protocol=PROTOCOL)
