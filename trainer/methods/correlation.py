"""Maps refined by the similarity of their cells: PCM (Wang et al., "SEAM", CVPR 2020) and PRCM
(Zhang et al., "CPN", ICCV 2021).

Shapes: B images, K channels of the map with the background first, C feature channels, h w map, n =
h w cells.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import nn

from trainer.config import Knobs, Range
from trainer.errors import ConfigError
from trainer.methods.base import Method, at_least_float32, full_precision
from trainer.methods.pooling import gap
from trainer.methods.tag_loss import present, tag_loss
from trainer.nets.backbone import Backbone

# The released code's, in all three places.
EPS = 1e-5
LARGEST_AFFINITY = 2**26
"""Largest part of a similarity matrix in memory, in values: 256 MiB in float32."""
RegionMode = Literal["code", "transposed", "class_softmax"]
# ResNet-38's as published; the other pair is ours, for backbones of stages.
TAPS = (("conv4", "conv5"), ("stage2", "stage3"))


def strongest_foreground(y_BKhw: torch.Tensor) -> torch.Tensor:
    """At each pixel the largest foreground channel, with ties, and 0 in the others; channel 0, the
    background, unchanged.
    """
    foreground = y_BKhw[:, 1:]
    strongest = foreground.amax(1, keepdim=True)
    return torch.cat(
        [y_BKhw[:, :1], foreground * (foreground == strongest).to(foreground.dtype)], 1
    )


def with_background(y_BKhw: torch.Tensor, alpha: float = 1.0) -> torch.Tensor:
    """Channel 0 replaced by (1 - the largest foreground channel)^alpha (CPN, eq. 16)."""
    foreground = y_BKhw[:, 1:]
    background = 1 - foreground.amax(1, keepdim=True)
    return torch.cat([background if alpha == 1 else background**alpha, foreground], 1)


def normalised_seed(cam_BKhw: torch.Tensor) -> torch.Tensor:
    """Normalised class map e of SEAM's released code, ``[B,K,h,w]`` in 0..1, without gradient.

    With d = ReLU(cam): e = ReLU(d - 1e-5) / (max d + 1e-5), e_0 = 1 - max_c e_c. Then each pixel
    keeps only its largest foreground channel. Channel 0 of the map does not count.
    """
    d = F.relu(cam_BKhw.detach())
    e = F.relu(d - EPS) / (d.amax((2, 3), keepdim=True) + EPS)
    return strongest_foreground(with_background(e))


def pixel_correlation(seed_BKhw: torch.Tensor, embedding_BChw: torch.Tensor) -> torch.Tensor:
    """PCM: a map refined by the similarity of its cells, ``[B,K,h,w]`` (SEAM, eq. 6).

    With theta the embedding over its norm at each cell and A = ReLU(theta^T theta), [n,n]:
    refined_j = sum_i e_i A_ij / (sum_i A_ij + 1e-5). This is the released code of both papers; the
    CPN paper prints a double sum as the denominator.

    Args:
        seed_BKhw: e, see ``normalised_seed``.
        embedding_BChw: theta before its normalisation.
    """
    theta = embedding_BChw / (embedding_BChw.norm(dim=1, keepdim=True) + EPS)
    seed, theta = seed_BKhw.flatten(2), theta.flatten(2)
    # An exported graph takes any number of images, so it cannot loop over them.
    if torch.compiler.is_compiling():
        result = correlate(seed, theta, theta)
    else:
        # One image at a time: A of one photograph at twice its size takes half a gigabyte.
        result = torch.cat([_in_columns(e[None], t[None]) for e, t in zip(seed, theta)])
    return result.view_as(seed_BKhw)


def _in_columns(seed_BKn: torch.Tensor, theta_BCn: torch.Tensor) -> torch.Tensor:
    """``correlate`` with some columns of A at a time: A of 4 megapixels takes 16 GB."""
    count = max(1, LARGEST_AFFINITY // theta_BCn.shape[2])
    parts = [correlate(seed_BKn, theta_BCn, part) for part in torch.split(theta_BCn, count, 2)]
    return torch.cat(parts, 2)


def correlate(
    seed_BKn: torch.Tensor, theta_BCn: torch.Tensor, columns_BCm: torch.Tensor
) -> torch.Tensor:
    """e A with the columns of A = ReLU(theta^T columns) over their sum + 1e-5, ``[B,K,m]``.

    ``columns_BCm`` are cells of theta: all of them, or a part.
    """
    affinity = torch.bmm(theta_BCn.transpose(1, 2), columns_BCm).relu_()
    # Dividing the product instead of A saves a second matrix of its size.
    return torch.bmm(seed_BKn, affinity) / (affinity.sum(1, keepdim=True) + EPS)


def pixel_region_correlation(
    seed_BKhw: torch.Tensor,
    features_BChw: torch.Tensor,
    f9: Callable[[torch.Tensor], torch.Tensor],
    f10: Callable[[torch.Tensor], torch.Tensor],
    mode: RegionMode = "code",
    spread: float = 0.0,
) -> torch.Tensor:
    """PRCM: weight P of each class at each cell, ``[B,K,h,w]``; the refined map is PCM + P e.

    Z are class means of F, weighted by the spatial soft-max of e; key = ReLU(f10(Z)), query =
    ReLU(f9(F)); P = soft-max(scale key query).

    The released code deviates from the paper: it reads the key ``[C',K]`` in memory order as
    ``[K,C']``, and its soft-max runs over space, which the paper does not say.

    Args:
        seed_BKhw: e.
        features_BChw: F, what ``f9`` and ``f10`` take.
        f9: 1x1 convolution of the query, C to C' channels, the one of PCM.
        f10: 1x1 convolution of the key, C to C' channels.
        mode: ``code`` as released, scale K^(-1/2); ``transposed`` the same with the key
            transposed; ``class_softmax`` transposed, with scale C'^(-1/2) and the soft-max over
            classes at each cell.
        spread: standard deviation that the scores get before the soft-max; 0 leaves the published
            scale.
    """
    weights_BKn = seed_BKhw.flatten(2).softmax(2)
    z_BCK = torch.bmm(features_BChw.flatten(2), weights_BKn.transpose(1, 2))
    key_BcK = F.relu(f10(z_BCK[..., None])).squeeze(3)
    query_Bcn = F.relu(f9(features_BChw)).flatten(2)
    _, channels, classes = key_BcK.shape
    key_BKc = key_BcK.reshape(-1, classes, channels) if mode == "code" else key_BcK.transpose(1, 2)
    scale = (channels if mode == "class_softmax" else classes) ** -0.5
    scores: torch.Tensor = scale * torch.bmm(key_BKc, query_Bcn)
    axis = 1 if mode == "class_softmax" else 2
    if spread:
        deviation = (scores.var(axis, correction=0, keepdim=True) + EPS).sqrt()
        scores = spread * scores / deviation
    return scores.softmax(axis).view_as(seed_BKhw)


@dataclass(frozen=True)
class NetworkConfig(Knobs):
    """Knobs that SEAM and CPN share.

    Attributes:
        prcm: ``off`` is SEAM, ``on`` or ``code`` SEAM* as CPN's code has it; ``transposed`` and
            ``class_softmax`` are readings of the paper.
        prcm_spread: standard deviation that the scores of PRCM get before their soft-max; 0 leaves
            the released scale, at which the soft-max of small networks takes a single cell.
        min_pooling: adaptive min pooling of the refined maps, in the released code but not in the
            papers.
        dropout: channel dropout before the head; ``auto`` is 0.5 on ResNet-38, as released, and 0
            elsewhere.
        ohem: how many of the hardest entries the cross regularisation counts, in whole maps. 4.2 is
            the published fifth of 21 maps and holds for any number of classes.
        loss_stride: pixels of the view for one cell of the maps that the losses compare; 1 is
            published. ``auto`` is 1 on ResNet-38 and 4 elsewhere, where maps at full size would
            cost more than the network.
    """

    later: ClassVar[Mapping[str, Any]] = {"prcm_spread": 0.0}

    prcm: Literal["off", "on", "code", "transposed", "class_softmax"] = "off"
    prcm_spread: Annotated[float, Range(0, 100)] = 0.0
    min_pooling: bool = True
    dropout: Annotated[float | Literal["auto"], Range(0, 1, below=True)] = "auto"
    ohem: Annotated[float, Range(0, 1000, above=True)] = 4.2
    loss_stride: Annotated[int | Literal["auto"], Range(1, 64)] = "auto"


class Correlated(Method):
    """The network of SEAM and CPN: a classifier whose maps go through pixel correlation. Heads have
    the released names.
    """

    config: NetworkConfig

    def __init__(self, config: NetworkConfig, backbone: Backbone, num_classes: int) -> None:
        super().__init__(config, backbone, num_classes)
        self.taps = taps_of(backbone)
        low, high = (backbone.channels[tap] for tap in self.taps)
        top = backbone.channels[backbone.top]
        is_psa = backbone.traits.recipe == "psa"
        rate = backbone.traits.dropout if config.dropout == "auto" else config.dropout
        self.dropout = nn.Dropout2d(rate)
        self.loss_stride = (
            (1 if is_psa else 4) if config.loss_stride == "auto" else config.loss_stride
        )
        # No loss uses channel 0, the background, but released files have it.
        self.fc8 = nn.Conv2d(top, num_classes + 1, 1, bias=False)
        self.f8_3 = nn.Conv2d(low, 64, 1, bias=False)
        self.f8_4 = nn.Conv2d(high, 128, 1, bias=False)
        self.f9 = nn.Conv2d(3 + 64 + 128, 192, 1, bias=False)
        self.f10 = None if config.prcm == "off" else nn.Conv2d(3 + 64 + 128, 192, 1, bias=False)
        # Initial values as released.
        nn.init.xavier_uniform_(self.fc8.weight)
        nn.init.kaiming_normal_(self.f8_3.weight)
        nn.init.kaiming_normal_(self.f8_4.weight)
        nn.init.xavier_uniform_(self.f9.weight, gain=4)
        if self.f10 is not None:
            nn.init.xavier_uniform_(self.f10.weight, gain=4)

    def maps(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Class map before the ReLU, and refined map >= 0, both ``[B,K+1,h,w]`` with the background
        first.
        """
        features = self.backbone(images)
        with full_precision(images.device.type):
            # In half precision, pixels and classes would tie that the seed and the loss compare.
            top, low, high = (
                at_least_float32(features[name]) for name in (self.backbone.top, *self.taps)
            )
            cam: torch.Tensor = self.fc8(self.dropout(top))
            # As released, the refinement does not train the backbone.
            return cam, self.refine(cam, at_least_float32(images), low.detach(), high.detach())

    def refine(
        self,
        cam: torch.Tensor,
        images: torch.Tensor,
        low_BChw: torch.Tensor,
        high_BChw: torch.Tensor,
    ) -> torch.Tensor:
        """Refined map of a class map and the tapped features; its gradient reaches ``f8_3``,
        ``f8_4``, ``f9``, ``f10``.
        """
        strides = self.backbone.strides
        size = (cam.shape[2], cam.shape[3])
        inputs = [resized(images, size)]
        for tap, layer, feature in zip(self.taps, (self.f8_3, self.f8_4), (low_BChw, high_BChw)):
            same = strides[tap] == strides[self.backbone.top]
            inputs.append(F.relu(layer(feature if same else resized(feature, size))))
        inputs_BChw = torch.cat(inputs, 1)
        seed = normalised_seed(cam)
        result = pixel_correlation(seed, self.f9(inputs_BChw))
        if self.f10 is None or self.config.prcm == "off":
            return result
        mode = "code" if self.config.prcm == "on" else self.config.prcm
        weights = pixel_region_correlation(
            seed, inputs_BChw, self.f9, self.f10, mode, self.config.prcm_spread
        )
        return result + weights * seed

    def cams_and_logits(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``Method``: the refined maps without the background, and the average of the class
        map.
        """
        cam, rv = self.maps(images)
        return rv[:, 1:], gap(cam[:, 1:])

    def compared(
        self, images: torch.Tensor, channels_BP: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Logits ``[B,K]`` of a view, and its class map and refined map at the size of the losses,
        ``[B,P,H',W']``.

        Losses compare channels of present classes only, so only these are resized.
        """
        height, width = images.shape[2:]
        cam, rv = self.maps(images)
        size = (-(-height // self.loss_stride), -(-width // self.loss_stride))
        large = [resized(select(x, channels_BP), size) for x in (cam, rv)]
        return gap_of_resized(cam[:, 1:], (height, width)), large[0], large[1]


def classification(logits: Sequence[torch.Tensor], tags: torch.Tensor) -> torch.Tensor:
    """Mean soft margin loss of the views."""
    return mean([tag_loss(x, tags) for x in logits])


def present_channels(tags_BK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Channels of background and present classes, ``int64 [B,P+1]``, and a label for each: 1, or 0
    for the padding of images with fewer classes. Unknown classes count as absent.
    """
    tags_BK = present(tags_BK)
    # One channel at least: a batch without any class still trains on the background.
    most = max(1, int(tags_BK.sum(1).max()))
    # topk takes one number for the whole batch, so images with fewer classes get others with label
    # 0.
    label, classes = tags_BK.topk(most, dim=1)
    return F.pad(classes + 1, (1, 0), value=0), F.pad(label, (1, 0), value=1.0)


def select(x_BChw: torch.Tensor, channels_BP: torch.Tensor) -> torch.Tensor:
    """Each image's own channels, ``[B,P,h,w]``."""
    return x_BChw.gather(1, channels_BP[:, :, None, None].expand(-1, -1, *x_BChw.shape[2:]))


def hardest(
    difference_BChw: torch.Tensor, share: float, channels: int | None = None
) -> torch.Tensor:
    """Mean over the batch of the largest absolute entries of each image, at least one.

    ``share`` of ``channels`` maps decides how many entries count. Missing channels are 0 and never
    among the hardest.
    """
    _, own, height, width = difference_BChw.shape
    error = difference_BChw.abs().flatten(1)
    count = max(1, int(share * (channels or own) * height * width))
    if count < error.shape[1]:
        error = error.topk(count, dim=1).values
    return error.sum() / (count * len(error))


def mean(terms: Sequence[torch.Tensor]) -> torch.Tensor:
    """Mean of scalars."""
    return torch.stack(list(terms)).mean()


def resized(x_BChw: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Bilinear with aligned corners, as every resize of SEAM."""
    return F.interpolate(x_BChw, size, mode="bilinear", align_corners=True)


def gap_of_resized(x_BChw: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """``gap(resized(x, size))`` as a weighted mean of the small map: ``[B,C]``."""
    weights = []
    for old, new in zip(x_BChw.shape[2:], size):
        # The resized identity is the matrix of the resize. Its mean over the new pixels says how
        # much each old cell counts.
        each = torch.eye(old, dtype=x_BChw.dtype, device=x_BChw.device)[None]
        weights.append(F.interpolate(each, new, mode="linear", align_corners=True).mean(2)[0])
    return torch.einsum("bchw,h,w->bc", x_BChw, *weights)


def taps_of(backbone: Backbone) -> tuple[str, str]:
    """Names of the two features that the pixel correlation sees.

    Raises:
        ConfigError: the backbone has none of the known pairs.
    """
    for taps in TAPS:
        if all(tap in backbone.channels for tap in taps):
            return taps
    pairs = " or ".join(f"{low} and {high}" for low, high in TAPS)
    raise ConfigError(
        f"seam finds no features to correlate in {type(backbone).__name__}",
        f"a backbone with {pairs}",
    )
