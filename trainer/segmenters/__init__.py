"""Segmenters, one file each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainer.errors import one_of

if TYPE_CHECKING:
    from trainer.segmenters.base import Segmenter
    from trainer.segmenters.config import SegmentConfig

NAMES = ("aspp", "deeplab-v2-r101", "largefov-r38")


def make_segmenter(config: SegmentConfig, backbone: str, num_classes: int) -> Segmenter:
    """The segmenter that ``config.network`` names, for a run on ``backbone`` with ``num_classes``
    classes.
    """
    return segmenter_class(config.network)(config, backbone, num_classes)


def segmenter_class(network: str) -> type[Segmenter]:
    """The class of a segmenter by name.

    Raises:
        ConfigError: there is no such segmenter.
    """
    one_of(network, NAMES, "the segmenter")
    if network == "aspp":
        from trainer.segmenters.aspp import Aspp

        return Aspp
    if network == "deeplab-v2-r101":
        from trainer.segmenters.deeplab_v2_r101 import DeepLabV2

        return DeepLabV2
    from trainer.segmenters.largefov_r38 import LargeFOV

    return LargeFOV
