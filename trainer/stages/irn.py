"""IRNet as stages of a run: labels from class maps, training, the walk of every map."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from trainer.data.dataset import Dataset, Record, read_index_png
from trainer.data.loader import Batch, Samples
from trainer.data.palette import write_index_png
from trainer.data.pixels import image_size, read_image
from trainer.data.sizes import PIXELS, enlarged, shrunk, working_size
from trainer.data.transforms import Rng
from trainer.files import is_whole, write_atomic
from trainer.maps.camfile import cam_path, no_maps, stride4, upsample_cam, write_cam
from trainer.progress import progress_bar
from trainer.ranks import rank, shard
from trainer.refine.irn_inference import (
    Instances,
    edge_and_displacement,
    instances,
    mean_displacement,
    on_canvas,
    walked_maps,
)
from trainer.refine.irn_labels import ir_label, irn_sample
from trainer.refine.irnet import EPS, IrnConfig, IrNet, boundary_losses
from trainer.refine.pseudo_masks import (
    check_cams,
    check_maps_space,
    has_maps,
    image_and_cam,
    maps_of,
)
from trainer.run import Metrics, Output
from trainer.stages.affinity import label_images
from trainer.training.inference import Budget, Views, finite, in_parts, inference, iterate_views
from trainer.training.loop import Trainer

LABEL_BYTES, INSTANCE_BYTES = 0.05, 0.1
"""Of a label and of the instances of an image, for each pixel."""


def make_labels(
    dataset: Dataset,
    records: Sequence[Record],
    cam_folder: Path,
    out_folder: Path,
    config: IrnConfig,
    power: float = 1.0,
    workers: int | None = None,
    progress: bool = False,
    pixels: int = PIXELS,
) -> None:
    """Write ``<id>.png``: 0 sure background, k+1 class k, 255 open; files that load are kept.

    Arguments and errors as those of ``make_labels`` of ``trainer.stages.affinity``.
    """
    check_cams(records, cam_folder)
    missing = [record for record in records if not is_whole(_fits, out_folder, record)]
    work = partial(_label, len(dataset.classes), cam_folder, out_folder, config, power, pixels)
    label_images(work, missing, out_folder, LABEL_BYTES, "IRNet", workers, progress, pixels)


def train_irn(
    net: IrNet,
    records: Sequence[Record],
    labels: Path,
    config: IrnConfig,
    output: Output,
    metrics: Metrics,
    seed: int,
    identity: dict[str, Any],
    device: str = "auto",
) -> None:
    """Train the branches of ``net`` on the labels, measure its mean shift, and write
    ``model.pt``.
    """
    trainer = Trainer(
        net,
        partial(_loss, radius=config.radius),
        net.param_groups(config.lr, config.weight_decay, config.new_factor),
        Samples(records, partial(_sample, labels=labels, config=config), seed),
        config,
        output.folder,
        metrics,
        seed,
        device,
    )
    trainer.run()
    # The first process saves the network.
    if config.displacement and rank() == 0:
        net.mean_shift.copy_(mean_displacement(_displacements(net, records, config, device)))
    trainer.save(output, identity)


def walk(
    net: IrNet,
    records: Sequence[Record],
    cam_folder: Path,
    out_folder: Path,
    config: IrnConfig,
    power: float = 1.0,
    device: str = "auto",
    instance_folder: Path | None = None,
    pixels: int = PIXELS,
) -> None:
    """Write the maps of every record after the walk, over their largest value; files that load are
    kept.

    With ``instance_folder`` also ``<id>.npz`` there: ``labels int32 [H,W]``, ``classes int64 [n]``,
    ``scores float32 [n]``. Deviation: maps are stretched from stride 4 to the image when they are
    read, instead of enlarged fourfold and cut.

    Raises:
        DataError: maps that are missing or do not fit.
        RunError: no space left, already or soon.
    """
    check_cams(records, cam_folder)
    missing = [
        record
        for record in shard(records)
        if not has_maps(out_folder, record)
        or (instance_folder and record.tags and not cam_path(instance_folder, record.id).exists())
    ]
    check_maps_space(missing, out_folder, INSTANCE_BYTES if instance_folder else 0)
    with inference(net, "fp32", device) as target, progress_bar("walk", len(missing)) as advance:
        # One image at a time, since each lies on a canvas of its own.
        budget = Budget(1, pixels, canvas=config.canvas)
        for batch in iterate_views(missing, Views(scales=(1.0,)), budget):
            record, size = batch.records[0], batch.size
            maps, cam = no_maps(size).maps, maps_of(record, cam_folder)
            if len(cam.classes):
                small = stride4(batch.working)
                image = batch.images[0][0].to(target)
                edge, displacement = edge_and_displacement(net, image, config.canvas, pixels)
                cams = torch.from_numpy(upsample_cam(cam.maps, small) ** np.float32(power))
                cams = cams.to(target)
                cams = cams / (cams.amax((1, 2), keepdim=True) + EPS)
                edge = finite(edge, "edges")
                after = walked_maps(cams, edge, small, config, enlarge=False).cpu().clamp(0, 1)
                maps = upsample_cam(after.numpy(), stride4(size))
                if instance_folder and displacement is not None:
                    parts = instances(cams, edge, displacement, batch.working, config)
                    path = cam_path(instance_folder, record.id)
                    _write_instances(path, parts, cam.classes, size)
            write_cam(cam_path(out_folder, record.id), cam.classes, maps, size)
            advance()


def _write_instances(
    path: Path, parts: Instances, classes: npt.NDArray[np.int16], size: tuple[int, int]
) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        labels=enlarged(parts.labels, size),
        classes=classes[parts.classes],
        scores=parts.scores,
    )
    write_atomic(path, buffer.getvalue())


def _label(
    num_classes: int,
    cam_folder: Path,
    out_folder: Path,
    config: IrnConfig,
    power: float,
    pixels: int,
    record: Record,
) -> None:
    image, cam = image_and_cam(record, cam_folder, num_classes)
    size = working_size(cam.size, pixels)
    maps = upsample_cam(cam.maps, size) ** np.float32(power)
    local = ir_label(maps, shrunk(image, size), config)
    # From the number of a map within the image to the label of its class; 0 and 255 stay.
    keys = np.arange(256, dtype=np.uint8)
    keys[1 : len(cam.classes) + 1] = cam.classes + 1
    write_index_png(out_folder / f"{record.id}.png", enlarged(keys[local], cam.size))


def _fits(folder: Path, record: Record) -> bool:
    label = read_index_png(folder / f"{record.id}.png")
    return bool(label.shape == image_size(record.image))


def _sample(record: Record, rng: Rng, labels: Path, config: IrnConfig) -> dict[str, torch.Tensor]:
    label = read_index_png(labels / f"{record.id}.png")
    image, view = irn_sample(read_image(record.image), label, rng, config)
    return {"image": image, "label": view}


def _loss(
    net: IrNet, batch: Batch, rng: np.random.Generator, radius: int
) -> dict[str, torch.Tensor]:
    edge, displacement = net(batch["image"])
    terms = boundary_losses(edge, displacement, batch["label"], radius)
    return {name: term / 2 for name, term in terms.items() if name != "total"}


def _displacements(
    net: IrNet, records: Sequence[Record], config: IrnConfig, device: str
) -> Iterator[torch.Tensor]:
    """Displacements of the training images on the canvas, a batch at a time, the last one if it is
    full.
    """
    waiting: list[torch.Tensor] = []
    # A list shorter than a batch is one batch, the only one.
    full = min(config.batch, len(records))
    with (
        inference(net, "fp32", device) as target,
        progress_bar("mean shift", len(records)) as advance,
    ):
        square = (config.canvas, config.canvas)
        for batch in iterate_views(records, Views(scales=(1.0,)), Budget(1)):
            waiting.append(on_canvas(batch.images[0][0], square))
            advance()
            if len(waiting) == full:
                yield in_parts(lambda x: net(x)[1], torch.stack(waiting).to(target), PIXELS).cpu()
                waiting = []
