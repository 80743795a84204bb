"""Knobs of a classifier's training, and the named sets of them: recipes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from trainer import config as knobs
from trainer.config import Range
from trainer.errors import ConfigError, nearest
from trainer.nets import Detail, traits_of, usable_knobs
from trainer.training.optimiser import Training


@dataclass(frozen=True)
class ClassifyConfig(Training):
    """Knobs of the classifier's training, besides those of ``Training``.

    Attributes:
        resize: range of the longer side of the image, before the crop.
        crop: side of the training crop.
        jitter: colour jitter.
        upright: images have an up, so training mirrors them from left to right only; ``off`` also
            mirrors them from top to bottom.
        output_stride: of the backbone; 0 is the backbone's usual one.
        dilate: keep the field of view with dilation where stride was taken away.
        bn: batch norm of the backbone: ``frozen``; ``stats`` (fixed statistics, trained affine);
            ``adapt`` (the same, with statistics of the training images, measured before); or
            ``train``.
        detach_after: feature behind which the gradient is cut (IRN cuts after stage 2), or
            ``none``.
        detail: ``coarse`` takes the deepest features, ``fine`` joins those of several depths at 8
            pixels a cell, for objects of a few pixels.
        validate: measure mAP on the validation list's tags after each epoch.
    """

    resize: Annotated[tuple[int, int], Range(16, 8192)] = (256, 512)
    crop: Annotated[int, Range(16, 4096)] = 448
    jitter: bool = True
    upright: bool = True
    output_stride: Annotated[int, Range(0, 32)] = 0
    dilate: bool = True
    bn: str = "frozen"
    detach_after: str = "none"
    detail: Detail = "coarse"
    validate: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.resize[0] > self.resize[1]:
            raise ConfigError(
                f"classify.resize={self.resize[0]},{self.resize[1]}", "the smaller side first"
            )


# psa's released training of ResNet-38.
PSA = ClassifyConfig()


# IRN's released training of ResNet-50.
IRN = ClassifyConfig(
    epochs=5,
    weight_decay=1e-4,
    resize=(320, 640),
    crop=512,
    jitter=False,
    output_stride=16,
    dilate=False,
    bn="stats",
    detach_after="stage2",
)


# Ours, for small networks with ImageNet's weights.
SMALL = ClassifyConfig(
    epochs=5,
    lr=1e-3,
    momentum=0.9,
    weight_decay=1e-4,
    resize=(256, 448),
    crop=256,
    output_stride=16,
    detach_after="stage2",
)


# Ours, for networks without weights and small images.
SCRATCH = ClassifyConfig(
    epochs=16,
    lr=1e-3,
    new_factor=1.0,
    optimizer="adam",
    weight_decay=1e-4,
    resize=(112, 160),
    crop=112,
    output_stride=16,
    bn="train",
    jitter=False,
)


RECIPES = {"psa": PSA, "irn": IRN, "small": SMALL, "scratch": SCRATCH}


def recipe(backbone: str, weights: str | None) -> str:
    """Name of the recipe that a backbone learns with."""
    return "scratch" if weights == "none" else traits_of(backbone).recipe


def make_config(name: str, changes: dict[str, Any]) -> ClassifyConfig:
    """The named recipe with changes.

    Raises:
        ConfigError: an unknown recipe or knob.
    """
    if name not in RECIPES:
        raise ConfigError(f"there is no recipe {name!r}", nearest(name, RECIPES))
    return knobs.replace(RECIPES[name], changes, "classify")


def backbone_knobs(backbone: str, config: ClassifyConfig) -> dict[str, Any]:
    """Constructor arguments of the backbone."""
    detach = None if config.detach_after == "none" else config.detach_after
    options: dict[str, Any] = {"bn": config.bn, "dilate": config.dilate, "detach_after": detach}
    if config.output_stride:
        options["output_stride"] = config.output_stride
    # Left out where it is the default, so that models of earlier versions are still the run's.
    if config.detail != "coarse":
        options["detail"] = config.detail
    return usable_knobs(backbone, options)
