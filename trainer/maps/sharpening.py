"""Sharper maps of classes whose objects are smaller than what one cell of the map sees.

Jiang et al., "LayerCAM: Exploring Hierarchical Class Activation Maps for Localization", TIP 2021,
eq. 3 to 6: at a shallow layer with features A, the map of class k is
ReLU(sum_c ReLU(dy_k / dA_c) A_c). Where a deep map has a blob of the size of its receptive field,
the shallow one shows the edge or spot that causes it. Their product is sharp and stays on the
object.

Of large objects, shallow maps show the edges alone. Without masks nobody knows which classes are
small, but the classifier tells: the product shows much less than the deep map, and if that little
is erased from the image, the score falls as far as without everything that the deep map shows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.data.dataset import Record
from trainer.data.pixels import read_image
from trainer.data.sizes import shrunk
from trainer.maps.protocols import CamsConfig
from trainer.methods.base import Method
from trainer.nets.detail import STRIDE
from trainer.training.inference import Views, in_parts, inference
from trainer.training.tiles import in_tiles

Pixels = npt.NDArray[np.uint8]
PIXELS = 1_000_000
"""Of a pass with gradients, at most, but at least one image: it keeps about 5 kB for each."""
IMAGES = 12
"""Images of a class that are erased: it takes seconds."""
LEAST = 3
"""Images in which the classifier has to know a class before its objects are called small."""
SHARP, DEEP = 0.15, 0.5
"""Shares of its maximum from which a product, or a deep map, is erased."""
GROWTH = 4
"""Pixels by which the erased places grow, so that no edge of the object stays."""
SPREAD = 24.0
"""Deviation in pixels of the Gaussian that fills erased places from around them."""
FALL = 0.65
"""Share of the fall by the deep map from which the product is the object."""
PART = 0.5
"""Share of the deep map's place up to which the product's is much less."""


def shallow_depth(method: Method) -> str | None:
    """Name of the backbone's features with 8 pixels a cell; None where it has none."""
    backbone = method.backbone
    return next((name for name in backbone.depths if backbone.strides[name] == STRIDE), None)


def maps_and_layer_cams(
    method: Method, depth: str, classes: Sequence[int], images_BCHW: Tensor
) -> Tensor:
    """The method's maps and, of ``classes``, LayerCAM at the features ``depth``, of one pass.

    Call it where gradients can be switched on: not in inference mode.

    Returns:
        ``[B,K+C,h,w] >= 0`` at the size of the method's maps: first those of all K classes.
    """
    features: list[Tensor] = []

    def keep(x_BChw: Tensor) -> Tensor:
        # What lies before needs no gradient, and it is most of the work.
        features.append(x_BChw.detach().requires_grad_())
        return features[-1]

    handle = method.backbone.hook(depth, keep)
    try:
        with torch.enable_grad():
            maps, logits = method.cams_and_logits(images_BCHW)
            layers = [
                _layer_cam(features[-1], logits[:, k].sum(), k != classes[-1]) for k in classes
            ]
    finally:
        handle.remove()
    maps = maps.detach()
    same = [
        F.interpolate(layer, maps.shape[2:], mode="bilinear", align_corners=False)
        for layer in layers
    ]
    return torch.cat([maps, *same], 1)


def _layer_cam(features_BChw: Tensor, score: Tensor, keep_graph: bool) -> Tensor:
    (slopes,) = torch.autograd.grad(score, features_BChw, retain_graph=keep_graph)
    return F.relu((F.relu(slopes) * features_BChw.detach()).sum(1, keepdim=True))


def sharpened(
    method: Method,
    compact: Sequence[int],
    owns: Sequence[Sequence[int]],
    images_BCHW: Tensor,
    config: CamsConfig,
) -> Tensor:
    """The method's maps; those of the classes ``compact``, in images that have them, times the
    shallow ones.

    Args:
        method: trained, on a backbone with features of 8 pixels a cell.
        compact: classes.
        owns: classes of each of the B images.
        images_BCHW: normalised.
        config: knobs of the maps, for the size of a pass.

    Returns:
        ``[B,K,h,w] >= 0`` at the network's stride.
    """
    depth = shallow_depth(method)
    classes = sorted({*compact} & {k for own in owns for k in own})
    if not classes or depth is None:
        look = partial(in_parts, method.cams, pixels=config.pixels)
        return in_tiles(look, images_BCHW, config.tile)
    with_layers = partial(maps_and_layer_cams, method, depth, classes)
    look = partial(in_parts, with_layers, pixels=min(PIXELS, config.pixels))
    both = in_tiles(look, images_BCHW, config.tile).float()
    maps, layers = both[:, : -len(classes)], both[:, -len(classes) :]
    for layer, k in enumerate(classes):
        rows = [row for row, own in enumerate(owns) if k in own]
        shallow = layers[rows, layer]
        # Only the product's shape counts: views are added up, and gradients differ between them.
        maps[rows, k] *= shallow / (shallow.amax((1, 2), keepdim=True) + 1e-12)
    return maps


def compact_classes(
    method: Method, records: Sequence[Record], config: CamsConfig, device: str
) -> list[int]:
    """Classes whose objects are small, ascending; see the module.

    Args:
        method: trained.
        records: training images; those with one tag are looked at.
        config: knobs.
        device: ``auto``, ``cpu`` or ``cuda``.
    """
    if shallow_depth(method) is None:
        return []
    with inference(method, "fp32", device, gradients=True) as target:
        shares = {
            k: [*_shares(method, k, _sample(records, k), config, target)]
            for k in range(method.num_classes)
        }
    medians = {k: np.median(v, 0) for k, v in shares.items() if len(v) >= LEAST}
    return [k for k, (fall, part) in medians.items() if fall >= FALL and part <= PART]


def _sample(records: Sequence[Record], k: int) -> list[Record]:
    # Several classes in one image keep each other's score up.
    own = [record for record in records if record.tags == (k,)]
    return own[:: len(own) // IMAGES + 1]


def _shares(
    method: Method,
    k: int,
    records: Sequence[Record],
    config: CamsConfig,
    target: torch.device,
) -> Iterator[tuple[float, float]]:
    """Of each image the shares of the product's place in what the deep map's has: in the fall of
    the score without it, and in its area.
    """
    budget = config.budget
    for record in records:
        pixels = read_image(record.image)
        pixels = shrunk(pixels, budget.working((pixels.shape[0], pixels.shape[1]), Views((1.0,))))

        def score(image: Pixels) -> float:
            return float(method(_view(image, target))[0, k])

        view, before = _view(pixels, target), score(pixels)
        deep = in_tiles(method.cams, view, config.tile)[:, k]
        sharp = sharpened(method, [k], [[k]], view, config)[:, k]
        places = [_place(sharp, pixels, SHARP), _place(deep, pixels, DEEP)]
        falls = [before - score(erased(pixels, place)) for place in places]
        # An image whose class is not recognised says nothing about it.
        if before > 0 and falls[1] > 0:
            yield falls[0] / falls[1], places[0].sum() / places[1].sum()


def _view(pixels: Pixels, target: torch.device) -> Tensor:
    return Views().make(pixels, 1.0)[None].to(target)


def _place(maps_1hw: Tensor, pixels: Pixels, share: float) -> npt.NDArray[np.bool_]:
    from scipy.ndimage import binary_dilation

    large = F.interpolate(maps_1hw[None], pixels.shape[:2], mode="bilinear", align_corners=False)
    values = large[0, 0].float().cpu().numpy()
    place: npt.NDArray[np.bool_] = binary_dilation(values > share * values.max(), iterations=GROWTH)
    return place


def erased(pixels_HW3: Pixels, place_HW: npt.NDArray[np.bool_]) -> Pixels:
    """The image with a place filled from what lies around it, without an edge of its own."""
    from scipy.ndimage import gaussian_filter

    weights = (~place_HW).astype(np.float32)
    total = gaussian_filter(weights, SPREAD) + 1e-4
    ground = np.stack(
        [
            gaussian_filter(plane * weights, SPREAD) / total
            for plane in pixels_HW3.transpose(2, 0, 1)
        ],
        axis=-1,
    )
    share = gaussian_filter(place_HW.astype(np.float32), GROWTH / 2)[..., None]
    mixed = pixels_HW3 * (1 - share) + ground * share
    return np.asarray(mixed.clip(0, 255), np.uint8)
