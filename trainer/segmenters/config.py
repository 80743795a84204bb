"""Knobs of the stage ``segment``, and what each ``--segmenter`` sets them to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from trainer.config import Range
from trainer.data.sizes import PIXEL_RANGE, PIXELS, SIDE_RANGE, check_tile
from trainer.errors import ConfigError
from trainer.nets import Detail
from trainer.refine.crf import preset
from trainer.training.devices import Precision
from trainer.training.optimiser import Training

Network = Literal["aspp", "deeplab-v2-r101", "largefov-r38"]

TEST_KNOBS = {"scales", "flip", "pixels", "tile", "crf", "crf_image", "test_precision"}
"""Knobs that change predictions and no weights."""

VERDICT = {"verdict"}
"""Changes predictions too, but only with the images that trained."""

ROUND_KNOBS = {"rounds", "round_confidence", "round_crf"}
"""Knobs of self-training. The number of rounds decides which trainings there are, and so changes
the key of none that stays.
"""

MASK_KNOBS = {"mask_precision", "mask_centred"}
"""Knobs that mean nothing without true masks that train."""

NETWORK_KNOBS = (
    "network",
    "output_stride",
    "detail",
    "side",
    "bn",
    "rates",
    "msc",
    "stride_on",
    "input",
    "width",
)
"""Knobs that weights depend on by their shape or meaning: they stand in ``model.pt``."""


@dataclass(frozen=True)
class SegmentConfig(Training):
    """Knobs of the segmenter, besides those of ``Training``. Each segmenter refuses those that it
    does not have.

    Attributes:
        network: ``aspp``, DeepLab-v2's head on the run's backbone; ``deeplab-v2-r101``;
            ``largefov-r38``. ``--segmenter`` sets it together with the column of that name.
        init: what the backbone starts from: ``weights`` (the file given as ``--segmenter-weights``
            or ``--weights``), ``classifier`` (this run's own, where it is the same network),
            ``random``, or ``auto``: ``weights`` where there are some.
        scale: of the random resize: the ends of a range, or a set to draw from.
        scale_draw: ``range`` or ``set``.
        crop: side of the training crop.
        side: longer side, pixels, of the size in which all images are looked at, in training, test
            and export; 0: their own size.
        jitter: colour jitter.
        upright: see ``classify.upright``.
        hsv: largest shift of hue (of 180), saturation and value (of 255), each by a whole number; 0
            is off.
        output_stride: of the backbone.
        detail: ``coarse`` or ``fine``, see ``classify.detail``.
        bn: batch norm: of the backbone under ``aspp`` as ``classify.bn``; of
            ``largefov-r38`` ``batch`` as released by accident, or ``frozen``.
        rates: dilation rates of the ASPP head; 3, 6, 9, 12 is DeepLab-v2's small variant.
        msc: further scales that DeepLab-v2 looks at in training and test, merged by the largest
            logit; empty for none.
        stride_on: the convolution of a ResNet-101 block that has the stride: ``1x1`` in Caffe's
            weights, ``3x3`` in torchvision's; ``auto`` is what the weights want.
        input: ``caffe_bgr`` or ``torchvision_rgb`` pixels; ``auto`` is what the weights want.
        width: share of the published channels; below 1 to try things out, and no published weights
            fit.
        label_stride: the loss is taken on a grid of this many pixels a cell.
        balanced: the mean loss over background plus the mean over the rest, as RIB trains, instead
            of one mean.
        tag_loss: weight of a loss that asks each class to show somewhere in the images that have
            its tag, and nowhere in those that have not; 0 is off.
        verdict: the test leaves a class out of a mask where its best pixel is less sure than its
            best pixels in training images with and without its tag ask for, as exported models do.
        teacher: what happens to pixels whose label the averaged network (``ema``) contradicts with
            confidence: ``none``, ``weigh`` them by ``teacher_weight``, ``replace`` their label by
            its own, or ``fill``: replace, and label open pixels (255) too. Classes that are not
            among the image's tags are impossible for it.
        teacher_confidence: from which probability on it is heard.
        teacher_after: share of the training before it is heard.
        teacher_weight: of contradicted pixels under ``weigh``; 0 ignores them.
        scales: of the test.
        flip: whether the test also sees the mirror image.
        pixels: of a forward pass of the test, and of its CRFs at work, at most. An image whose
            largest view has more is looked at in a smaller size, and its mask is enlarged.
        tile: side of the tiles in which the test looks at larger views, pixels; an image may then
            have four times as many ``pixels``. 0: no tiles.
        crf: dense CRF after the test's soft-max: a preset (DeepLab-v2's is ``P3``, LargeFOV's
            ``P4``), or ``none``.
        crf_image: what the CRF sees: ``raw``, the image; ``meansub_wrap``, the image minus Caffe's
            mean cast to 8 bits modulo 256, as deeplab-pytorch has it; ``denormalised``, up to
            one grey level darker, as LargeFOV has it.
        test_precision: of the test.
        rounds: of self-training. Each round after the first predicts the training images with the
            network of the round before, leaves out the classes that the tags exclude, and trains on
            that anew. No true mask is used.
        round_confidence: pixels of these predictions whose probability is lower become 255.
        round_crf: dense CRF of these predictions: a preset, ``none``, or ``auto``, the CRF of the
            pseudo masks where they have one.
        mask_precision: with true masks that train: the precision that the pixels of pseudo masks
            must reach on them, class by class; less sure pixels become 255.
        mask_centred: with true masks that train: share of their crops that are taken around an
            object.
    """

    section: ClassVar[str] = "segment"
    later: ClassVar[Mapping[str, Any]] = {"side": 0, "tag_loss": 0.0, "verdict": False}

    network: Network = "aspp"
    epochs: Annotated[int, Range(1, 10_000)] = 12
    batch: Annotated[int, Range(1, 4096)] = 16
    lr: Annotated[float, Range(0, 100, above=True)] = 1e-3
    momentum: Annotated[float | Literal["code"], Range(0, 1, below=True)] = 0.9
    init: Literal["auto", "weights", "classifier", "random"] = "auto"
    scale: Annotated[tuple[float, ...], Range(0.05, 8, least=1)] = (0.7, 1.5)
    scale_draw: Literal["range", "set"] = "range"
    crop: Annotated[int, Range(8, 4096)] = 256
    side: Annotated[int, SIDE_RANGE] = 0
    jitter: bool = False
    upright: bool = True
    hsv: Annotated[int, Range(0, 180)] = 0
    output_stride: Annotated[int, Range(8, 32)] = 16
    detail: Detail = "coarse"
    bn: str = "frozen"
    rates: Annotated[tuple[int, ...], Range(1, 128, least=1)] = (6, 12, 18, 24)
    msc: Annotated[tuple[float, ...], Range(0.05, 8)] = (0.5, 0.75)
    stride_on: Literal["auto", "1x1", "3x3"] = "auto"
    input: Literal["auto", "caffe_bgr", "torchvision_rgb"] = "auto"
    width: Annotated[float, Range(0.01, 1)] = 1.0
    label_stride: Annotated[int, Range(1, 64)] = 4
    balanced: bool = False
    tag_loss: Annotated[float, Range(0, 100)] = 0.0
    verdict: bool = False
    teacher: Literal["none", "weigh", "replace", "fill"] = "none"
    teacher_confidence: Annotated[float, Range(0, 1)] = 0.8
    teacher_after: Annotated[float, Range(0, 1)] = 0.3
    teacher_weight: Annotated[float, Range(0, 1)] = 0.0
    scales: Annotated[tuple[float, ...], Range(0.05, 8, least=1)] = (0.75, 1.0, 1.25)
    flip: bool = True
    pixels: Annotated[int, PIXEL_RANGE] = PIXELS
    tile: Annotated[int, Range(0, 65_536)] = 0
    crf: str = "none"
    crf_image: Literal["raw", "meansub_wrap", "denormalised"] = "raw"
    test_precision: Precision = "fp32"
    rounds: Annotated[int, Range(1, 20)] = 1
    round_confidence: Annotated[float, Range(0, 1, below=True)] = 0.7
    round_crf: str = "auto"
    mask_precision: Annotated[float, Range(0, 1)] = 0.9
    mask_centred: Annotated[float, Range(0, 1)] = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_tile("segment.tile", self.tile)
        rounds_crf = "none" if self.round_crf == "auto" else self.round_crf
        for name in (self.crf, rounds_crf):
            if name != "none":
                preset(name)
        if self.scale_draw == "range" and (len(self.scale) != 2 or self.scale[0] > self.scale[1]):
            raise ConfigError(
                f"segment.scale={_text(self.scale)}",
                "the two ends of a range",
                "or segment.scale_draw=set",
            )
        if self.label_stride > self.crop:
            raise ConfigError(
                f"segment.label_stride={self.label_stride} crop={self.crop}",
                "a crop of one cell at least",
            )
        if self.teacher != "none" and not self.ema:
            problem = f"segment.teacher={self.teacher} without averaged weights"
            raise ConfigError(problem, "a decay", "--set segment.ema=0.99")


SCRATCH = SegmentConfig(
    epochs=24,
    lr=1.5e-3,
    ema=0.97,
    new_factor=1.0,
    optimizer="adam",
    weight_decay=1e-4,
    crop=112,
    bn="train",
    scale=(0.8, 1.3),
    output_stride=8,
    # A crop of 112 has maps of 14 cells: at the usual rates of 18 and 24 a convolution would see
    # little but padding.
    rates=(1, 2, 4, 6),
    label_stride=1,
    crf="P3",
)
"""``aspp`` for a backbone that only this run's classifier has trained, on small images."""

DEEPLAB_V2_R101 = SegmentConfig(
    network="deeplab-v2-r101",
    updates=20_000,
    batch=10,
    # Two parts of five images, as released.
    accumulate=2,
    lr=2.5e-4,
    schedule="poly_held",
    scale=(0.5, 0.75, 1.0, 1.25, 1.5),
    scale_draw="set",
    crop=321,
    output_stride=8,
    scales=(1.0,),
    flip=False,
    crf="P3",
)
"""The training and test of deeplab-pytorch."""

LARGEFOV_R38 = SegmentConfig(
    network="largefov-r38",
    updates=20_000,
    batch=10,
    accumulate=2,
    lr=1e-3,
    schedule="poly_open",
    scale=(0.5, 1.5),
    crop=448,
    hsv=10,
    output_stride=8,
    bn="batch",
    label_stride=1,
    scales=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75),
    crf="P4",
)
"""The training and test of SEAM's segmentation code. A batch is two parts of five images, because
its batch norms saw five on each of two GPUs.
"""

PRESETS = {
    "aspp": SegmentConfig(),
    "deeplab-v2-r101": DEEPLAB_V2_R101,
    "largefov-r38": LARGEFOV_R38,
}


def _text(values: tuple[Any, ...]) -> str:
    return ",".join(f"{value:g}" for value in values)
