"""Stage ``cams``: multi-scale, mirrored class activation maps of every training and measured
image.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

import torch

from trainer.context import Context, Stage
from trainer.data.dataset import Record
from trainer.data.pixels import image_size
from trainer.files import is_whole
from trainer.maps.camfile import cam_path, no_maps, read_cam, stride4, write_cam
from trainer.maps.departures import Departed, departing, learn
from trainer.maps.protocols import CamsConfig, Protocol, key_knobs, merge, protocol_of, usable_views
from trainer.maps.sharpening import compact_classes, sharpened
from trainer.maps.stability import stability
from trainer.methods.base import Method
from trainer.nets import build_backbone
from trainer.progress import progress_bar, say
from trainer.ranks import shard
from trainer.run import Output
from trainer.stages.classify import trained_method
from trainer.training.collectives import gathered
from trainer.training.inference import (
    Budget,
    finite,
    image_logits,
    inference,
    iterate_views,
    with_mirror,
)
from trainer.weights.loading import load_backbone

NONE = Departed()


def stage() -> Stage:
    """The stage after ``classify``."""
    return Stage("cams", ("classify",), _knobs, _work)


def _knobs(context: Context) -> Any:
    config = context.configs.cams
    protocol, _ = protocol_of(config, context.backbone, context.method)
    ids = [record.id for record in context.images]
    initial = [context.initial_sha256] if config.departures else []
    return [protocol, *key_knobs(config), *initial, ids]


def _work(context: Context, output: Output) -> None:
    config, method, device = context.configs.cams, trained_method(context), context.device
    name, protocol = protocol_of(config, context.backbone, context.method)
    compact: list[int] = []
    if config.sharpen:
        compact = compact_classes(method, context.tagged, config, device)
        names = [context.dataset.classes[k] for k in compact]
        say(f"cams: small objects, whose maps are sharpened: {', '.join(names) or 'none'}")
        output.metrics["sharpened"] = names
    departed = _departures(context, output) if config.departures else NONE
    make_cams(method, context.images, output, protocol, config, device, compact, departed)
    output.metrics.update(
        protocol=name, scales=list(protocol.views.scales), min_cells=config.min_cells
    )


def _departures(context: Context, output: Output) -> Departed:
    """The departures of the images that have classes whose maps they are."""
    config, names = context.configs.cams, context.dataset.classes
    if context.initial is None:
        return NONE
    network = build_backbone(context.backbone)
    load_backbone(network, context.initial.path)
    # At their own size: smaller images have lost what is fine, larger ones look odd everywhere.
    budget = Budget(config.batch, config.pixels)
    normal = learn(network, context.training, budget, context.device)
    if normal is None:
        return NONE
    own = departing(normal, context.tagged, len(names))
    shown = ", ".join(f"{names[k]} (AUROC {value:.2f})" for k, value in own.items())
    say(f"cams: what departs from images without any class is the map of: {shown or 'none'}")
    output.metrics["departures"] = {names[k]: round(value, 3) for k, value in own.items()}
    records = [record for record in shard(context.images) if own.keys() & {*record.tags}]
    return Departed(own, {record.id: cells for record, cells in normal.maps(records)})


def make_cams(
    method: Method,
    records: Sequence[Record],
    output: Output,
    protocol: Protocol,
    config: CamsConfig,
    device: str = "auto",
    compact: Sequence[int] = (),
    departed: Departed = NONE,
) -> None:
    """Write ``<id>.npz`` for every record, with a map of each class that ``classes_of`` names;
    files that exist and load are kept. The maps of the classes ``compact`` are sharpened, and
    departures take the place of the maps of their classes.
    """
    own_records = [
        r for r in shard(records) if not is_whole(read_cam, cam_path(output.folder, r.id))
    ]
    classes = classes_of(method, own_records, config, device)
    looks = usable_views(protocol.views, config.min_cells, method.backbone)
    with (
        inference(method, config.precision, device, gradients=bool(compact)) as target,
        progress_bar("cams", len(own_records)) as advance,
    ):
        # The network works only for images that get a map. Of a conveyor's parts few do.
        for record in own_records:
            if not classes[record.id]:
                write_cam(cam_path(output.folder, record.id), *no_maps(image_size(record.image)))
                advance()
        mapped = [record for record in own_records if classes[record.id]]
        stable: list[float | None] = []
        for batch in iterate_views(mapped, looks, config.budget, config.workers):
            owns = [classes[record.id] for record in batch.records]
            views = []
            for images in batch.images:
                pair = with_mirror(images.to(target))
                maps = sharpened(method, compact, owns * 2, pair, config)
                views.append(finite(maps.float().cpu(), "maps"))
            for i, (record, own) in enumerate(zip(batch.records, owns)):
                # The mirror images are the second half of each batch.
                pairs = [(v[i, own], v[len(batch.records) + i, own]) for v in views]
                stable.append(stability(pairs))
                # SEAM's normalisation can fall just below 0.
                merged = merge(pairs, stride4(batch.size), protocol).clamp(0, 1).numpy()
                departed.replace(record.id, own, merged)
                write_cam(cam_path(output.folder, record.id), own, merged, batch.size)
                advance()
    shares = gathered([share for share in stable if share is not None])
    if shares:
        output.metrics["stability"] = round(median(shares), 3)
    output.outputs.update(count=len(records), made=sum(gathered([len(own_records)])))


def classes_of(
    method: Method, records: Sequence[Record], config: CamsConfig, device: str
) -> dict[str, list[int]]:
    """Classes that each image gets a map of, by id, ascending: those of its tags, and of the
    unknown ones those whose score, for the image at its own size, is at least ``config.unknown``.
    """
    classes = {record.id: list(record.tags) for record in records}
    # Images that may show a class are looked at once more before their maps: each map is over its
    # own maximum, so the map alone would find every class somewhere.
    open_records = [record for record in records if record.unknown]
    if open_records:
        logits = image_logits(
            method,
            open_records,
            config.precision,
            device,
            budget=config.whole,
            workers=config.workers,
            title="scores of unknown tags",
        )
        for record, scores in zip(open_records, torch.from_numpy(logits).sigmoid()):
            sure = [k for k in record.unknown if scores[k] >= config.unknown]
            classes[record.id] = sorted([*record.tags, *sure])
    return classes
