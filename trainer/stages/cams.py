"""Stage ``cams``: multi-scale, mirrored class activation maps of every training and measured
image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from trainer.context import Context, Stage
from trainer.data.dataset import Record
from trainer.files import is_whole
from trainer.maps.camfile import cam_path, read_cam, stride4, write_cam
from trainer.maps.protocols import CamsConfig, Protocol, key_knobs, merge, protocol_of, usable_views
from trainer.methods.base import Method
from trainer.progress import progress_bar
from trainer.run import Output
from trainer.stages.classify import trained_method
from trainer.training.devices import shard
from trainer.training.inference import (
    Budget,
    finite,
    in_parts,
    inference,
    iterate_views,
    with_mirror,
)


def stage() -> Stage:
    """The stage after ``classify``."""
    return Stage("cams", ("classify",), _knobs, _work)


def _knobs(context: Context) -> Any:
    config = context.configs.cams
    protocol, _ = protocol_of(config, context.backbone, context.method)
    return [protocol, *key_knobs(config), [record.id for record in context.images]]


def _work(context: Context, output: Output) -> None:
    config = context.configs.cams
    name, protocol = protocol_of(config, context.backbone, context.method)
    make_cams(trained_method(context), context.images, output, protocol, config, context.device)
    output.metrics.update(
        protocol=name, scales=list(protocol.views.scales), min_cells=config.min_cells
    )


def make_cams(
    method: Method,
    records: Sequence[Record],
    output: Output,
    protocol: Protocol,
    config: CamsConfig,
    device: str = "auto",
) -> None:
    """Write ``<id>.npz`` for every record (without tags: no maps); files that exist and load are
    kept.
    """
    missing = [r for r in records if not is_whole(read_cam, cam_path(output.folder, r.id))]
    looks = usable_views(protocol.views, config.min_cells, method.backbone)
    with (
        inference(method, config.precision, device) as target,
        progress_bar("cams", len(missing)) as advance,
    ):
        pixels = config.pixels
        budget = Budget(config.batch, pixels)
        for batch in iterate_views(shard(missing), looks, budget, config.workers):
            views = [
                finite(_float(in_parts(method.cams, with_mirror(x.to(target)), pixels)), "maps")
                for x in batch.images
            ]
            for i, record in enumerate(batch.records):
                tags = list(record.tags)
                own = [(v[i, tags], v[len(batch.records) + i, tags]) for v in views]
                size = stride4(batch.size)
                # SEAM's normalisation can fall just below 0.
                maps = merge(own, size, protocol).clamp(0, 1) if tags else torch.zeros(0, *size)
                write_cam(cam_path(output.folder, record.id), tags, maps.numpy(), batch.size)
                advance()
    output.outputs.update(count=len(records), made=len(missing))


def _float(maps: torch.Tensor) -> torch.Tensor:
    return maps.float().cpu()
