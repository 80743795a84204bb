"""Knobs that follow the data: what ``fit`` chooses where nobody typed a knob, and why.

Only our own recipes follow the data. Published ones (``psa``, ``irn``) stay as published.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image, ImageOps

from trainer.data.dataset import Record
from trainer.data.pixels import read_image
from trainer.data.sampling import epoch_length
from trainer.data.tables.training_masks import LIST
from trainer.data.transforms import normalise, to_tensor
from trainer.files import file_sha256
from trainer.nets.backbone import Backbone
from trainer.nets.statistics import statistics_distance
from trainer.options import Configs, Layer, Options, typed_layer
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
UNEVEN = 2.0
"""How many times as many images as the rarest class the most frequent one has, to be uneven."""
UPDATES = {"classify": 500, "segment": 500}
"""With fewer, batch norms and heads do not settle."""

LONG = ("updates", "warmup", "ema")
"""Knobs that need a long training: whoever types its length may want a short one."""

ADAPTING: dict[str, Any] = {
    "bn": "train",
    "optimizer": "adamw",
    "lr": 5e-4,
    "new_factor": 4.0,
    "weight_decay": 0.01,
    "warmup": 50,
    "ema": 0.99,
}
UNLIKE_LAYER: Layer = {
    # Frozen statistics of other images leave features that tell little apart, and the early layers
    # must learn too.
    "classify": ADAPTING | {"detach_after": "none"},
    "method": {"pooling": "lse"},
    "segment": ADAPTING,
}


class Choice(NamedTuple):
    """Knobs that the data ask for, and the reason in words."""

    layer: Layer
    reason: str


def choices(
    options: Options, configs: Configs, records: Sequence[Record], distance: float | None
) -> list[Choice]:
    """What the data ask for; knobs that were typed are left out.

    Args:
        options: as typed.
        configs: the knobs as they are without it.
        records: training images.
        distance: see ``distance_of``; None for a network that starts from no weights, which learns
            from the data alone anyhow.
    """
    reasons = [*_about_classes(records), *_about_looks(configs, distance)]
    if distance is not None:
        reasons += _about_length(configs, records, reasons)
    own = [_free(choice, options) for choice in reasons]
    return [choice for choice in own if choice.layer]


def _free(choice: Choice, options: Options) -> Choice:
    """A choice without the knobs that were typed, and without those that a segmenter lacks."""
    typed = typed_layer(options)
    layer: Layer = {}
    for section, changes in choice.layer.items():
        free = {knob: value for knob, value in changes.items() if knob not in typed[section]}
        if options.epochs is not None or {"epochs", "updates"} & {*typed[section]}:
            for knob in LONG:
                free.pop(knob, None)
        if section == "segment" and options.segmenter != "aspp":
            free = {}
        if free:
            layer[section] = free
    return Choice(layer, choice.reason)


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


def _about_looks(configs: Configs, distance: float | None) -> Iterator[Choice]:
    if distance is None or distance < UNLIKE:
        return
    layer = {section: dict(changes) for section, changes in UNLIKE_LAYER.items()}
    if not hasattr(configs.method, "pooling"):
        del layer["method"]
    pooling = "" if "method" not in layer else ", log-sum-exp pooling"
    yield Choice(
        layer,
        f"the images are unlike those of ImageNet (distance {distance:.2f}, photographs have about"
        f" 0.01): batch norms adapt, all layers train by AdamW{pooling}",
    )


def _about_length(
    configs: Configs, records: Sequence[Record], others: Sequence[Choice]
) -> Iterator[Choice]:
    for section, least in UPDATES.items():
        config: Training = getattr(configs, section)
        changes: dict[str, Any] = {}
        for choice in others:
            changes |= choice.layer.get(section, {})
        images = epoch_length(records, config.negatives, changes.get("balance", config.balance))
        updates = config.total(images)
        if updates < least:
            yield Choice(
                {section: {"updates": least}},
                f"{section}: {least} updates, because {config.epochs} passes would be {updates}",
            )
