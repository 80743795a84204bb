"""AffinityNet as stages of a run: labels from class maps, training, the walk of every map."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from trainer.data.dataset import Dataset, Record
from trainer.data.loader import Batch, Samples
from trainer.data.pixels import image_size, read_image
from trainer.data.sizes import PIXELS, shrunk, working_size
from trainer.data.transforms import Rng
from trainer.errors import DataError
from trainer.files import check_space, is_whole, write_atomic
from trainer.maps.camfile import cam_path, no_maps, stride4, upsample_cam, write_cam
from trainer.pool import each_image
from trainer.progress import progress_bar
from trainer.ranks import shard
from trainer.refine.affinity_labels import affinity_sample
from trainer.refine.affinitynet import (
    AffinityConfig,
    AffinityNet,
    affinities,
    affinity_loss,
    pad_to_stride,
    pair_labels,
    walk_scores,
)
from trainer.refine.crf import DenseCrf, preset, unary_from_softmax
from trainer.refine.pseudo_masks import (
    check_cams,
    check_maps_space,
    has_maps,
    image_and_cam,
    maps_of,
    pixel_limit,
)
from trainer.run import Metrics, Output
from trainer.training.inference import Budget, Views, finite, in_parts, inference, iterate_views
from trainer.training.loop import Trainer

LABEL_BYTES = 0.2
"""Bytes a pixel of a compressed label: CRF scores of two or three channels, low and high."""

Scores = npt.NDArray[np.uint8]


def make_labels(
    dataset: Dataset,
    records: Sequence[Record],
    cam_folder: Path,
    out_folder: Path,
    config: AffinityConfig,
    power: float = 1.0,
    workers: int | None = None,
    progress: bool = False,
    pixels: int = PIXELS,
) -> None:
    """Write ``<id>.npz`` with the CRF's scores for a strong and a weak background; files that load
    are kept.

    Args:
        dataset: the data set of ``records``.
        records: tagged images.
        cam_folder: their maps.
        out_folder: made if absent.
        config: alphas and CRF.
        power: what the maps are raised to first, see ``trainer.evaluation.threshold.calibration``.
        workers: processes; None for one a core, 0 for none.
        progress: show a bar.
        pixels: see ``RefineConfig``; the scores of a larger image stay at the size that fits.

    Raises:
        DataError: maps or images that are missing, damaged or of another size; every other label is
            there nevertheless.
        RunError: no space left, already or soon.
    """
    check_cams(records, cam_folder)
    missing = [record for record in records if not is_whole(read_labels, out_folder, record)]
    work = partial(_label, len(dataset.classes), cam_folder, out_folder, config, power, pixels)
    label_images(work, missing, out_folder, LABEL_BYTES, "AffinityNet", workers, progress, pixels)


def label_images(
    work: Callable[[Record], None],
    records: Sequence[Record],
    folder: Path,
    pixel_bytes: float,
    network: str,
    workers: int | None,
    progress: bool,
    budget: int,
) -> None:
    """``work`` on every image in a process pool, if the labels of ``network`` will fit into
    ``folder``; images of ``budget`` pixels at once, at most.

    Raises:
        DataError: of single images, listed; the others are done.
        RunError: no space left, already or soon.
    """
    pixels = sum(int(np.prod(image_size(record.image))) for record in records)
    check_space(folder, int(pixel_bytes * pixels), f"labels of {network}")
    what = "labels could not be made, all others are kept"
    title, name = f"labels of {network}", (lambda record: record.id)
    each_image(work, records, what, workers, title, progress, name, pixel_limit(budget))


def read_labels(folder: Path, record: Record) -> tuple[Scores, Scores]:
    """Low and high scores ``uint8 [K,H,W]`` in 0..255, background first.

    Raises:
        DataError: missing or damaged.
    """
    path = folder / f"{record.id}.npz"
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return archive["low"], archive["high"]
    except Exception as error:
        raise DataError(
            f"{path} cannot be read: {error}", "labels", "run the same command again"
        ) from error


def train_affinity(
    net: AffinityNet,
    records: Sequence[Record],
    labels: Path,
    config: AffinityConfig,
    output: Output,
    metrics: Metrics,
    seed: int,
    identity: dict[str, Any],
    device: str = "auto",
) -> None:
    """Train ``net`` on the labels and write ``model.pt``."""
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
    trainer.save(output, identity)


def walk(
    net: AffinityNet,
    records: Sequence[Record],
    cam_folder: Path,
    out_folder: Path,
    config: AffinityConfig,
    power: float = 1.0,
    device: str = "auto",
    pixels: int = PIXELS,
) -> None:
    """Write the maps of every record after the walk; files that load are kept.

    A map is the share of its class in the walked scores of background and classes, so that 1 -
    their sum is the background, and arg-max and CRF are those of the scores themselves. Deviation:
    shares are stored at stride 4.

    Raises:
        DataError: maps that are missing or do not fit.
        RunError: no space left, already or soon.
    """
    check_cams(records, cam_folder)
    missing = [record for record in shard(records) if not has_maps(out_folder, record)]
    check_maps_space(missing, out_folder)
    with inference(net, "fp32", device) as target, progress_bar("walk", len(missing)) as advance:
        # The network works only for images that may have a map.
        for record in missing:
            if record.is_negative:
                write_cam(cam_path(out_folder, record.id), *no_maps(image_size(record.image)))
                advance()
        open_records = [record for record in missing if not record.is_negative]
        for batch in iterate_views(open_records, Views(scales=(1.0,)), Budget(pixels=pixels)):
            images = pad_to_stride(batch.images[0].to(target))
            features = finite(in_parts(net, images, pixels), "features")
            for record, own in zip(batch.records, features):
                cam, shares = maps_of(record, cam_folder), torch.zeros(0, *stride4(batch.size))
                if len(cam.classes):
                    maps = upsample_cam(cam.maps, batch.working) ** np.float32(power)
                    scores = walk_scores(own, torch.from_numpy(maps).to(target), config)
                    shares = _shares(scores, stride4(batch.size))
                write_cam(cam_path(out_folder, record.id), cam.classes, shares.numpy(), batch.size)
                advance()


def _shares(scores_CHW: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """The share of each class in the scores of background and classes, ``[k,h,w]``."""
    shares = (scores_CHW[1:] / scores_CHW.sum(0).clamp_min(1e-12)).cpu()
    # Rounding can leave 0..1, which ``write_cam`` refuses.
    return F.interpolate(shares[None], size, mode="bilinear")[0].clamp(0, 1)


def _label(
    num_classes: int,
    cam_folder: Path,
    out_folder: Path,
    config: AffinityConfig,
    power: float,
    pixels: int,
    record: Record,
) -> None:
    image, cam = image_and_cam(record, cam_folder, num_classes)
    size = working_size(cam.size, pixels)
    image, maps = shrunk(image, size), upsample_cam(cam.maps, size) ** np.float32(power)
    strongest = np.clip(maps.max(0, keepdims=True), 0, 1)
    parameters = preset(config.crf)
    # One CRF for both scores: its kernels depend on the image alone.
    crf = DenseCrf(image, parameters.gaussian, parameters.bilateral)
    arrays = {}
    for name, alpha in (("low", config.low_alpha), ("high", config.high_alpha)):
        scores = np.concatenate([(1 - strongest) ** np.float32(alpha), maps])
        q = crf.infer(unary_from_softmax(scores), parameters.iterations)
        # Eight bits are enough: training takes the arg-max of means only.
        arrays[name] = np.round(255 * q).astype(np.uint8)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    write_atomic(out_folder / f"{record.id}.npz", buffer.getvalue())


def _sample(
    record: Record, rng: Rng, labels: Path, config: AffinityConfig
) -> dict[str, torch.Tensor]:
    low, high = read_labels(labels, record)
    image, label = affinity_sample(
        shrunk(read_image(record.image), low.shape[1:]),
        low / np.float32(255),
        high / np.float32(255),
        rng,
        config.crop,
        config.jitter,
    )
    return {"image": image, "label": label}


def _loss(
    net: AffinityNet, batch: Batch, rng: np.random.Generator, radius: int
) -> dict[str, torch.Tensor]:
    labels = pair_labels(batch["label"], radius)
    terms = affinity_loss(affinities(net(batch["image"]), radius), labels)
    return {"bg": terms["bg"] / 4, "fg": terms["fg"] / 4, "neg": terms["neg"] / 2}
