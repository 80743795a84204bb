"""Protocols: which views of an image are looked at, and how their maps become one map a class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F

from trainer.config import Knobs, Range
from trainer.data.sizes import PIXEL_RANGE, PIXELS, SIDE_RANGE, check_tile, tiled_pixels
from trainer.methods.registry import declaration
from trainer.nets import traits_of
from trainer.nets.backbone import Backbone
from trainer.training.devices import Precision
from trainer.training.inference import Budget, Views


@dataclass(frozen=True)
class Protocol:
    """How maps of several views become one map a class.

    Attributes:
        views: scales, rounding, filter.
        mirror: ``add`` (up-sample, un-mirror, add), ``add_small`` (add at map resolution),
            ``max_small``.
        pad: up-sample to the size padded to a multiple of 16, then crop, for full-size maps (IRN).
        normalise: ``max``: S / (max S + 1e-5); ``minmax``: SEAM's.
    """

    views: Views = field(default_factory=Views)
    mirror: Literal["add", "add_small", "max_small"] = "add"
    pad: bool = False
    normalise: Literal["max", "minmax"] = "max"


PROTOCOLS = {
    "psa": Protocol(),
    "irn": Protocol(mirror="add_small", pad=True),
    "vwe": Protocol(mirror="max_small"),
    "seam": Protocol(Views(scales=(0.5, 1.0, 1.5, 2.0)), normalise="minmax"),
    "mva": Protocol(Views(rounding="trunc", filter="lanczos"), pad=True),
}


@dataclass(frozen=True)
class CamsConfig(Knobs):
    """Knobs of the maps.

    Attributes:
        protocol: ``psa``, ``irn``, ``vwe``, ``seam`` or ``mva``; ``auto`` is the method's own, or
            else ``irn`` on ResNet-50/101 and ``psa`` on the others.
        scales: other scales than the protocol's; empty for its own.
        min_cells: views whose map has fewer cells on its longer side are left out: on so few cells
            a map of an object covers everything around it. The largest view always stays; 0 keeps
            all, as published.
        precision: ``fp32`` keeps maps equal to the released protocol within 1e-4.
        batch: images of equal size that are looked at together, at most.
        pixels: pixels of a forward pass, at most. An image whose largest view has more is looked at
            in a smaller size; its maps have the size that they always have.
        side: longer side, pixels, of the size in which all images are looked at, by maps and scores
            alike; 0: their own size.
        tile: side of the tiles in which larger views are looked at, pixels; an image may then have
            four times as many ``pixels`` before it is looked at in a smaller size. 0: no tiles.
        sharpen: multiply the maps of classes with small objects by those of shallower features;
            which classes these are is found on the training images.
        departures: make the maps of classes whose objects depart from all images without any class
            of these departures; which classes these are is found on the training images.
        workers: loader processes; -1 chooses by cores.
        bad: maps of ``--cams`` that are missing or damaged: ``stop``, or ``skip`` those images.
        unknown: least score of the classifier for an image at which it has a map of a class whose
            tag is unknown. Below it the class counts as absent from the masks.
    """

    section: ClassVar[str] = "cams"

    protocol: Literal["auto", "psa", "irn", "vwe", "seam", "mva"] = "auto"
    scales: Annotated[tuple[float, ...], Range(0.05, 8)] = ()
    min_cells: Annotated[int, Range(0, 1000)] = 16
    precision: Precision = "fp32"
    batch: Annotated[int, Range(1, 1024)] = 4
    pixels: Annotated[int, PIXEL_RANGE] = PIXELS
    side: Annotated[int, SIDE_RANGE] = 0
    tile: Annotated[int, Range(0, 65_536)] = 0
    sharpen: bool = False
    departures: bool = False
    workers: Annotated[int, Range(-1, 128)] = -1
    bad: Literal["stop", "skip"] = "stop"
    unknown: Annotated[float, Range(0, 1)] = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_tile("cams.tile", self.tile)

    @property
    def budget(self) -> Budget:
        """How much is viewed at once."""
        return Budget(self.batch, tiled_pixels(self.pixels, self.tile), side=self.side)

    @property
    def whole(self) -> Budget:
        """The same for work that takes no tiles."""
        return Budget(self.batch, self.pixels, side=self.side)


def protocol_of(config: CamsConfig, backbone: str, method: str) -> tuple[str, Protocol]:
    """Name and protocol; ``auto`` as in ``CamsConfig``."""
    name: str = config.protocol
    if name == "auto":
        name = declaration(method).protocol or traits_of(backbone).protocol
    protocol = PROTOCOLS[name]
    if config.scales:
        protocol = replace(protocol, views=replace(protocol.views, scales=config.scales))
    return name, protocol


def key_knobs(config: CamsConfig) -> list[Any]:
    """The knobs that the maps depend on, besides the protocol."""
    # Defaults add nothing to the key, so that runs of earlier versions keep theirs.
    larger = [] if config.pixels == PIXELS else [config.pixels]
    tiles = [["tile", config.tile]] if config.tile else []
    switches = [[name, True] for name in ("sharpen", "departures") if getattr(config, name)]
    sizes = [["side", config.side]] if config.side else []
    other = [] if config.unknown == CamsConfig.unknown else [["unknown", config.unknown]]
    return [
        config.scales,
        config.min_cells,
        config.precision,
        *larger,
        *tiles,
        *sizes,
        *switches,
        *other,
    ]


def usable_views(views: Views, min_cells: int, backbone: Backbone) -> Views:
    """The same views without those whose map has fewer than ``min_cells`` cells on its longer
    side.
    """
    stride = backbone.strides[backbone.top]
    # A side is rounded up to whole cells, so one pixel beyond the last full cell is enough.
    return replace(views, min_side=(min_cells - 1) * stride + 1)


def merge(
    maps: Sequence[tuple[torch.Tensor, torch.Tensor]],
    size: tuple[int, int],
    protocol: Protocol,
    full: bool = False,
) -> torch.Tensor:
    """Merge the maps of all views of one image.

    Args:
        maps: for each scale the maps ``[k,h,w] >= 0`` of the image and of its mirror (still
            mirrored).
        size: target (height, width).
        protocol: how.
        full: ``size`` is the image's own, so that IRN's padding applies.

    Returns:
        ``[k,height,width]`` in 0..1 (SEAM's may reach just below 0 for an empty map and is cut at
        0).
    """
    total = torch.zeros(())
    for straight, mirror in maps:
        if protocol.mirror == "add":
            total = (
                total
                + _resize(straight, size, full and protocol.pad)
                + _resize(mirror, size, full and protocol.pad, True)
            )
            continue
        back = mirror.flip(-1)
        small = straight + back if protocol.mirror == "add_small" else torch.maximum(straight, back)
        total = total + _resize(small, size, full and protocol.pad)
    if protocol.normalise == "max":
        return total / (total.amax((1, 2), keepdim=True) + 1e-5)
    total = total.clamp_min(0)
    high, low = total.amax((1, 2), keepdim=True), total.amin((1, 2), keepdim=True)
    total = torch.where(total < low + 1e-5, torch.zeros_like(total), total)
    return (total - low - 1e-5) / (high - low + 1e-5)


def _resize(
    maps: torch.Tensor, size: tuple[int, int], pad: bool, mirror: bool = False
) -> torch.Tensor:
    target = tuple((side - 1) // 16 * 16 + 16 for side in size) if pad else size
    large = F.interpolate(maps[None], target, mode="bilinear", align_corners=False)[0]
    large = large[:, : size[0], : size[1]]
    return large.flip(-1) if mirror else large
