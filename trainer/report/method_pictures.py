"""``wsss-trainer pictures``: what a method learnt, as its paper draws it.

Sub-categories: t-SNE of the heads' weights (SC-CAM, CVPR 2020, Fig. 6). Visual words: image patches
of each word (VWE, IJCAI 2021, Fig. 5). FMix: masks and mixed images (MVA's report, Fig. 2).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from trainer.data.dataset import Dataset, Record
from trainer.data.formats.opening import reopen_data
from trainer.data.pixels import read_image
from trainer.errors import ConfigError
from trainer.files import write_atomic
from trainer.methods.base import Method
from trainer.methods.fmix_cam import FmixCam
from trainer.methods.mixing import binarise, low_frequency_field
from trainer.methods.registry import load_method
from trainer.methods.subcategories import SubcategoryCam
from trainer.methods.vwe import Vwe, encode
from trainer.progress import progress_bar
from trainer.report.charts import Dot, scatter
from trainer.report.html import Section, render, render_page, rgb
from trainer.report.pictures import fit, photo_address
from trainer.run import Run
from trainer.training.devices import check_device
from trainer.training.inference import Budget, Views, inference, iterate_views

FILE = "pictures.html"
WORDS, EACH = 40, 8
"""How many words are shown, the most frequent first, and patches of each."""
IMAGES = 400
"""How many training images are looked at for words."""
PATCH, SIDE = 64, 160
"""Side of a patch in the image, and longer side of a picture, pixels."""
SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Shares of the first image in the FMix masks shown."""
Pixels = npt.NDArray[np.uint8]


def write_pictures(run_dir: Path, out: Path | None = None, device: str = "auto") -> Path:
    """Write the pictures of a run's method as one self-contained page, and return its path.

    Args:
        run_dir: a run with a trained classifier.
        out: the file; ``pictures.html`` in the run by default.
        device: ``auto``, ``cpu`` or ``cuda``.

    Raises:
        ConfigError: the method has no such pictures, or there is no such device.
        RunError: no run.
        WeightsError: the run has no trained classifier.
    """
    check_device(device)
    run = Run.existing(run_dir)
    dataset = reopen_data(run.manifest)
    method = load_method(run_dir / "classify" / "model.pt", {"classes": list(dataset.classes)})
    records = dataset.subset(run.manifest["train_list"])
    drawers: dict[type[Method], Callable[[], tuple[str, str, dict[str, Any]]]] = {
        SubcategoryCam: lambda: heads(method, dataset),
        Vwe: lambda: words(method, records, device),
        FmixCam: lambda: masks(method, records),
    }
    draw = next((one for kind, one in drawers.items() if isinstance(method, kind)), None)
    if draw is None:
        raise ConfigError(
            f"the method {run.manifest['method']} has no pictures of its own",
            "a run of sc_cam, subcategory_teaching, vwe or fmix_cam",
            f"wsss-trainer report {run_dir}",
        )
    name, heading, values = draw()
    section = Section(name, heading, render(f"pictures_{name}.html", **values))
    path = out or run_dir / FILE
    title = f"{run.path.name}: pictures of {run.manifest['method']}"
    facts = {"name": run.path.name, "method": run.manifest["method"]}
    write_atomic(path, render_page("pictures.html", title, [section], **facts))
    return path


def heads(method: Method, dataset: Dataset) -> tuple[str, str, dict[str, Any]]:
    """The weights of both heads in the plane, by t-SNE of their cosine distances."""
    assert isinstance(method, SubcategoryCam)
    counts = method.config.subcategories
    if not method.subcategories:
        raise ConfigError("a classifier without sub-categories", "the last round of a method")
    parts = [method.classifier.weight, method.subcategory_classifier.weight]
    weights = torch.cat([part.detach().flatten(1) for part in parts]).numpy()
    owner = [*range(len(counts)), *(k for k, count in enumerate(counts) for _ in range(count))]
    points = in_plane(weights)
    names = dataset.classes
    texts = [*names, *(f"{names[k]}, sub-category" for k in owner[len(names) :])]
    dots = [
        Dot(x, y, rgb(k + 1), text, text in names)
        for k, text, (x, y) in zip(owner, texts, points.tolist(), strict=True)
    ]
    label = f"t-SNE of the weights of {len(counts)} classes and {sum(counts)} sub-categories"
    key = [(name, rgb(k + 1)) for k, name in enumerate(names)]
    return "heads", "Weights of the heads", {"chart": scatter(dots, label), "key": key}


def in_plane(vectors_ND: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """t-SNE of vectors by their cosine distances, ``[N,2]``; the same every time.

    van der Maaten and Hinton, "Visualizing data using t-SNE", JMLR 2008.
    """
    from sklearn.manifold import TSNE

    # The perplexity is the number of neighbours that count; 30 is usual and too many for few rows.
    perplexity = min(30.0, max(1.0, (len(vectors_ND) - 1) / 3))
    tsne = TSNE(perplexity=perplexity, metric="cosine", init="random", random_state=0)
    points: npt.NDArray[np.float64] = tsne.fit_transform(vectors_ND).astype(np.float64)
    return points


def words(
    method: Method, records: Sequence[Record], device: str
) -> tuple[str, str, dict[str, Any]]:
    """Patches of the most frequent words: of each image, the cell that is most like the word."""
    assert isinstance(method, Vwe)
    step = max(1, len(records) // IMAGES)
    sample = list(records)[::step][:IMAGES]
    counts, best = nearest_cells(method, sample, device)
    order = [int(j) for j in np.argsort(-counts, kind="stable")[:WORDS] if counts[j]]
    cells = {j: sorted(best.get(j, ()), key=lambda cell: -cell[0])[:EACH] for j in order}
    places = {record.id: record for record in sample}
    images: dict[str, Pixels] = {}
    rows = []
    for j in order:
        patches = []
        for _, name, y, x in cells[j]:
            if name not in images:
                images[name] = read_image(places[name].image)
            patch = patch_at(images[name], y, x)
            patches.append((name, photo_address(patch, fit(patch.shape, PATCH))))
        rows.append({"word": j, "cells": int(counts[j]), "patches": patches})
    values = {"rows": rows, "active": int((counts > 0).sum()), "words": len(counts)}
    return "words", "Visual words", {**values, "images": len(sample)}


Cell = tuple[float, str, float, float]
"""Likeness, id of the image, and centre of the cell as shares of height and width."""


def nearest_cells(
    method: Vwe, records: Sequence[Record], device: str
) -> tuple[npt.NDArray[np.int64], dict[int, list[Cell]]]:
    """How many cells each word is the likeliest of, and the likeliest cell of each image."""
    counts = np.zeros(len(method.codebook), np.int64)
    best: dict[int, list[Cell]] = {}
    with (
        inference(method, "fp32", device) as target,
        progress_bar("words", len(records)) as advance,
    ):
        for batch in iterate_views(records, Views(scales=(1.0,)), Budget(images=8)):
            p = encode(method.features(batch.images[0].to(target)), method.codebook).cpu()
            height, width = p.shape[2:]
            for record, shares in zip(batch.records, p, strict=True):
                values, labels = shares.flatten(1).max(0)
                counts += np.bincount(labels.numpy(), minlength=len(counts))
                for j in labels.unique().tolist():
                    cell = int(torch.where(labels == j, values, -1).argmax())
                    y, x = divmod(cell, width)
                    place = ((y + 0.5) / height, (x + 0.5) / width)
                    best.setdefault(j, []).append((float(values[cell]), record.id, *place))
                advance()
    return counts, best


def patch_at(image: Pixels, y: float, x: float) -> Pixels:
    """The patch of an image around a place, given as shares of its sides; moved inside."""
    height, width = image.shape[:2]
    top = min(max(0, round(y * height) - PATCH // 2), max(0, height - PATCH))
    left = min(max(0, round(x * width) - PATCH // 2), max(0, width - PATCH))
    return image[top : top + PATCH, left : left + PATCH]


def masks(method: Method, records: Sequence[Record]) -> tuple[str, str, dict[str, Any]]:
    """Two training images, the masks of several shares, and what the classifier learns from."""
    assert isinstance(method, FmixCam)
    pair = [r for r in records if r.tags][:2]
    if len(pair) < 2:
        raise ConfigError("one training image with a tag", "two, to mix them")
    config = method.config
    size = (SIDE, SIDE)
    first, second = (_square(read_image(record.image)) for record in pair)
    rows = []
    for n, share in enumerate(SHARES):
        # A seed of its own for each picture, so that a share more changes no other.
        rng = np.random.default_rng(n)
        field = low_frequency_field(size, config.decay, config.mask, rng)
        mask = binarise(field, share, config.softness, rng)
        mixture = mask[..., None] * first + (1 - mask[..., None]) * second
        grey = np.repeat((255 * mask)[..., None], 3, 2).astype(np.uint8)
        rows.append(
            (share, photo_address(grey, size), photo_address(mixture.astype(np.uint8), size))
        )
    originals = [
        (record.id, photo_address(picture, size))
        for record, picture in zip(pair, (first, second), strict=True)
    ]
    return "masks", "Masks and mixed images", {"originals": originals, "rows": rows, "side": SIDE}


def _square(image: Pixels) -> Pixels:
    """The image at SIDE x SIDE."""
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float()
    square = F.interpolate(pixels, (SIDE, SIDE), mode="bilinear", antialias=True)
    return np.asarray(square[0].permute(1, 2, 0).clamp(0, 255).byte())
