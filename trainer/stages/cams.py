"""Stage ``cams``: multi-scale, mirrored class activation maps of every training and measured
image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any

import torch

from trainer.context import Context, Stage
from trainer.data.dataset import Record
from trainer.data.pixels import image_size
from trainer.files import is_whole
from trainer.maps.camfile import cam_path, no_maps, read_cam, stride4, write_cam
from trainer.maps.departures import DepartureMaps, departing_classes, learn
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
    departures = partial(_departures, context, output) if config.departures else None
    make_cams(method, context.images, output, protocol, config, device, compact, departures)
    output.metrics.update(
        protocol=name, scales=list(protocol.views.scales), min_cells=config.min_cells
    )


def _departures(context: Context, output: Output, records: Sequence[Record]) -> DepartureMaps:
    """The departures of those of ``records`` that have classes whose maps they are."""
    config, names = context.configs.cams, context.dataset.classes
    if context.initial is None:
        return DepartureMaps()
    network = build_backbone(context.backbone)
    load_backbone(network, context.initial.path)
    # At their own size: smaller images have lost what is fine, larger ones look odd everywhere.
    budget = Budget(config.batch, config.pixels)
    # A stage that was killed learns this again, which takes less than a minute.
    normal = learn(network, context.training, budget, context.device)
    if normal is None:
        return DepartureMaps()
    own = departing_classes(normal, context.tagged, len(names))
    shown = ", ".join(f"{names[k]} (AUROC {value:.2f})" for k, value in own.items())
    say(f"cams: what departs from images without any class is the map of: {shown or 'none'}")
    output.metrics["departures"] = {names[k]: round(value, 3) for k, value in own.items()}
    own_images = [record for record in records if own.keys() & {*record.possible}]
    return DepartureMaps(own, {record.id: cells for record, cells in normal.maps(own_images)})


def make_cams(
    method: Method,
    records: Sequence[Record],
    output: Output,
    protocol: Protocol,
    config: CamsConfig,
    device: str = "auto",
    compact: Sequence[int] = (),
    departures: Callable[[Sequence[Record]], DepartureMaps] | None = None,
) -> None:
    """Write ``<id>.npz`` for every record, with a map of each class that ``classes_of`` names;
    files that exist and load are kept. The maps of the classes ``compact`` are sharpened. Of the
    images that still need maps, ``departures`` makes those that take the place of others.
    """
    own_records = [
        r for r in shard(records) if not is_whole(read_cam, cam_path(output.folder, r.id))
    ]
    classes = classes_of(method, own_records, config, device)
    replacements = departures(own_records) if departures else DepartureMaps()
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
                # SEAM's normalisation can fall just below 0.
                merged = merge(pairs, stride4(batch.size), protocol).clamp(0, 1).numpy()
                replacements.replace(record.id, own, merged)
                path = cam_path(output.folder, record.id)
                write_cam(path, own, merged, batch.size, stability(pairs))
                advance()
    # Of the files and not of the work just done, which is a part of it after a kill.
    values = [read_cam(cam_path(output.folder, r.id)).agreement for r in shard(records)]
    if agreements := gathered([value for value in values if value is not None]):
        output.metrics["stability"] = round(median(agreements), 3)
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
