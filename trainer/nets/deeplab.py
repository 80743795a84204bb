"""Segmenters of the DeepLab family."""

from __future__ import annotations

from trainer.nets.aspp import Aspp, AsppSegmenter
from trainer.nets.deeplab_v2 import DeepLabV2ResNet101
from trainer.nets.largefov import LargeFOVResNet38

__all__ = ["Aspp", "AsppSegmenter", "DeepLabV2ResNet101", "LargeFOVResNet38"]
