"""Knobs that follow the data: what ``fit`` chooses where nobody typed a knob, and why.

Only our own recipes follow the data. Published ones (``psa``, ``irn``) stay as published.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from PIL import Image, ImageOps

from trainer.data.dataset import Record
from trainer.data.pixels import image_size, read_image
from trainer.data.sampling import epoch_length
from trainer.data.tables.training_masks import LIST
from trainer.data.transforms import normalise, to_tensor
from trainer.files import file_sha256
from trainer.nets.backbone import Backbone
from trainer.nets.detail import STRIDE
from trainer.nets.statistics import statistics_distance
from trainer.options import Configs, Layer, Options, detail_layer, typed_layer
from trainer.run import stage_key
from trainer.training.optimiser import Training
from trainer.weights.loading import load_backbone

UNLIKE = 0.1
"""Nats from which images count as unlike those of ImageNet. Photographs of animals have 0.005,
synthetic scenes 0.02, grey photographs of magnetic tiles 0.21.
"""
LOOKS = 24
SIDE = 224
"""Images, and their side, that the distance is measured on: it takes seconds."""
SIZES = 200
"""Images whose size is read: the header of each."""
SMALL = 480
"""Longer side, pixels, up to which a training view shows the whole image."""
CROP = 352
"""Side of the training views of larger images."""
UNEVEN = 2.0
"""How many times as many images as the rarest class the most frequent one has, to be uneven."""
UPDATES = {"classify": 500, "segment": 500}
"""With fewer, batch norms and heads do not settle."""
ADAPTING_UPDATES = {"classify": 400, "segment": 200}
"""The same where all layers train by AdamW, and the segmenter starts from the classifier."""

LONG = ("updates", "warmup", "ema")
"""Knobs that need a long training: whoever types its length may want a short one."""

ADAPTING: dict[str, Any] = {
    "bn": "adapt",
    "upright": False,
    "optimizer": "adamw",
    "lr": 5e-4,
    "new_factor": 4.0,
    "weight_decay": 0.01,
    "warmup": 50,
    "ema": 0.99,
}
UNLIKE_LAYER: Layer = {
    # Statistics of other images leave features that tell little apart, and the early layers must
    # learn too.
    "classify": ADAPTING | {"detach_after": "none"},
    "method": {"pooling": "lse"},
    "segment": ADAPTING
    | {
        # The classifier has learned from these images already.
        "init": "classifier",
        "warmup": 25,
        "ema": 0.975,
        # Of defects in a hundredth of the pixels, one mean over all pixels learns nothing.
        "balanced": True,
        # And most images show none, where no pixel may win.
        "tag_loss": 1.0,
        "verdict": True,
        "scales": (1.0,),
    },
    "cams": {"departures": True},
    # Dense CRFs are tuned to photographs. Of the maps of small objects they leave nothing.
    "refine": {"refine": "none"},
}


class Looks(NamedTuple):
    """What the images look like to a backbone that starts from weights.

    Attributes:
        distance: from the images of its weights, in nats; see ``statistics_distance``. None for a
            network without batch norms.
        longer: median of the longer sides, pixels.
        fine: whether the backbone has the features that ``--detail fine`` joins.
    """

    distance: float | None
    longer: int
    fine: bool


class Choice(NamedTuple):
    """Knobs that the data ask for, and the reason in words."""

    layer: Layer
    reason: str


def choices(
    options: Options, configs: Configs, records: Sequence[Record], looks: Looks | None
) -> list[Choice]:
    """What the data ask for; knobs that were typed are left out.

    Args:
        options: as typed.
        configs: the knobs as they are without it.
        records: training images.
        looks: see ``looks_of``; None for a network that starts from no weights, which learns from
            the data alone anyhow.
    """
    reasons = [*_about_classes(records)]
    if looks is not None:
        reasons += _about_looks(configs, looks)
        reasons += _about_length(configs, records, reasons)
    own = [_free(choice, options) for choice in reasons]
    return [choice for choice in own if choice.layer]


def _free(choice: Choice, options: Options) -> Choice:
    """A choice without the knobs that were typed, and without those that a segmenter lacks."""
    layer: Layer = {}
    for section, changes in choice.layer.items():
        if section == "segment" and options.segmenter != "aspp":
            continue
        typed = _typed_knobs(options, section)
        if free := {knob: value for knob, value in changes.items() if knob not in typed}:
            layer[section] = free
    return Choice(layer, choice.reason)


def _typed_knobs(options: Options, section: str) -> set[str]:
    """Knobs of a section that an option says something about."""
    typed = {*typed_layer(options)[section]}
    if options.epochs is not None or typed & {"epochs", "updates"}:
        typed |= {*LONG}
    if options.detail != "auto":
        typed |= {"detail", "tile", "sharpen", *(("scales",) if section == "cams" else ())}
    if options.size is not None:
        typed |= {"resize", "crop", "side"}
    if options.refine is not None:
        typed.add("refine")
    if options.cams or options.segmenter_weights:
        # There is no classifier to start from, or something better was named.
        typed.add("init")
    return typed


def looks_of(
    manifest: dict[str, Any],
    backbone: str,
    network: Backbone,
    file: Path,
    records: Sequence[Record],
) -> Looks:
    """See ``Looks``. It is a function of the files alone, so a resumed run finds the same.

    Args: as of ``stored_distance``.
    """
    sizes = [max(image_size(r.image)) for r in records[:: len(records) // SIZES + 1]]
    return Looks(
        stored_distance(manifest, backbone, network, file, records),
        round(median(sizes)),
        STRIDE in network.strides.values(),
    )


def stored_distance(
    manifest: dict[str, Any],
    backbone: str,
    network: Backbone,
    file: Path,
    records: Sequence[Record],
) -> float | None:
    """``distance_of`` some of the training images, measured again only for other images or weights.

    Args:
        manifest: of the run, which keeps the distance when it is saved.
        backbone: name of the network.
        network: to measure with.
        file: its weights.
        records: training images.
    """
    looks = records[:: max(1, len(records) // LOOKS)][:LOOKS]
    images = [_content(record) for record in looks]
    key = stage_key("distance", [backbone, file_sha256(file), images], [])
    entry = manifest.get("distance", {})
    if entry.get("key") != key:
        entry = {"key": key, "nats": distance_of(network, file, looks)}
        manifest["distance"] = entry
    distance: float | None = entry["nats"]
    return distance


def _content(record: Record) -> str:
    try:
        return file_sha256(record.image)
    except OSError:
        # Whoever decodes the image says what is wrong.
        return ""


def distance_of(network: Backbone, file: Path, looks: Sequence[Record]) -> float | None:
    """How far images are from those that the backbone's weights were trained on, in nats.

    See ``statistics_distance``. It is a function of the files alone, so a resumed run finds the
    same.
    """
    load_backbone(network, file)
    views = [ImageOps.fit(Image.fromarray(read_image(r.image)), (SIDE, SIDE)) for r in looks]
    return statistics_distance(network, torch.stack([to_tensor(normalise(v)) for v in views]))


def choice_of_masks(
    options: Options, configs: Configs, records: Sequence[Record], count: int
) -> Choice:
    """What ``count`` true masks beside pseudo masks ask for; knobs that were typed are left out.

    The values of the teacher are those of UniMatch V2 (Yang et al., 2024).
    """
    config = configs.segment
    updates = config.total(epoch_length(records, config.negatives, config.balance))
    # The average looks back over a twentieth of a short training: the published decay would keep
    # the initial weights.
    ema = round(min(0.996, max(0.5, 1 - 20 / updates)), 3)
    teacher = {"teacher": "fill", "teacher_confidence": 0.95, "teacher_after": 0.33, "ema": ema}
    layer: Layer = {"refine": {"threshold_from": LIST, "crf": LIST}, "segment": teacher}
    if options.refine is None and configs.refine.refine == "none":
        # True masks tell whether a CRF helps; looks of images only suggest it.
        layer["refine"]["refine"] = "crf"
    typed = typed_layer(options)
    free = {
        section: {knob: value for knob, value in changes.items() if knob not in typed[section]}
        for section, changes in layer.items()
    }
    reason = (
        f"true masks of {count} images choose how pseudo masks are made, and train the segmenter in"
        " half of each batch; an averaged network labels the other half where it is sure"
    )
    return Choice(free, reason)


def _about_classes(records: Sequence[Record]) -> Iterator[Choice]:
    counts = Counter(k for record in records for k in record.tags)
    negatives = any(record.is_negative for record in records)
    # Without negatives the classes of photographs balance each other: one image shows several.
    if not negatives or not counts:
        return
    least, most = min(counts.values()), max(counts.values())
    if most > UNEVEN * least:
        layer: Layer = {section: {"balance": True} for section in ("classify", "segment")}
        yield Choice(
            layer, f"classes have {least} to {most} images: rare ones are drawn more often"
        )


def _about_looks(configs: Configs, looks: Looks) -> Iterator[Choice]:
    if looks.distance is None or looks.distance < UNLIKE:
        return
    layer = {section: dict(changes) for section, changes in UNLIKE_LAYER.items()}
    if not hasattr(configs.method, "pooling"):
        del layer["method"]
    pooling = "" if "method" not in layer else ", log-sum-exp pooling"
    yield Choice(
        layer,
        f"the images are unlike those of ImageNet (distance {looks.distance:.2f}, photographs have"
        f" about 0.01): batch norms adapt, all layers train by AdamW{pooling}, masks without a CRF",
    )
    if looks.fine:
        # Deep features of photographs know objects that these images do not show.
        layer = detail_layer("fine", "aspp")
        # In views of half the size, small objects are gone.
        layer["cams"]["scales"] = (1.0, 2.0)
        yield Choice(layer, "detail=fine: features of several depths, joined at 8 pixels a cell")
    yield Choice(*_views(looks.longer))


def _views(longer: int) -> tuple[Layer, str]:
    """Sizes of the training views for images with such a longer side, and the reason."""
    if longer <= SMALL:
        # Smaller than the images themselves, which maps and tests look at: a crop shows objects
        # larger than the whole image does (Touvron et al., NeurIPS 2019).
        low, high = max(16, round(0.7 * longer)), max(16, round(0.93 * longer))
        # A cell or two less than the largest view: what lies at a border is rarely lost.
        crop = max(64, 32 * round(0.8 * longer / 32))
        why = (
            f"training views show whole images at {low} to {high} pixels, and maps and masks are"
            f" made at {high}"
        )
    else:
        # Smaller ones would lose small objects, larger ones need more memory.
        high = min(longer, 3 * CROP)
        low, crop = round(0.75 * high), min(CROP, 32 * (longer // 32))
        why = f"training views are tiles of {crop} pixels of images of {low} to {high}"
    layer: Layer = {"classify": {"resize": (low, high), "crop": crop}}
    if longer <= SMALL:
        # Images of many sizes are looked at as the training saw them.
        layer |= {"cams": {"side": high}, "segment": {"side": high}}
    return layer, f"the longer side of the images is {longer} pixels: {why}"


def _about_length(
    configs: Configs, records: Sequence[Record], others: Sequence[Choice]
) -> Iterator[Choice]:
    for section in UPDATES:
        config: Training = getattr(configs, section)
        changes: dict[str, Any] = {}
        for choice in others:
            changes |= choice.layer.get(section, {})
        adapts = changes.keys() >= ADAPTING.keys()
        least = (ADAPTING_UPDATES if adapts else UPDATES)[section]
        images = epoch_length(records, config.negatives, changes.get("balance", config.balance))
        updates = config.total(images)
        if updates < least:
            yield Choice(
                {section: {"updates": least}},
                f"{section}: {least} updates, because {config.epochs} passes would be {updates}",
            )
