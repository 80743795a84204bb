"""Sub-categories of classes: a second head learns to tell the clusters of a class apart.

Chang et al., CVPR 2020 ("SC-CAM"), eq. 4. Shapes: N images, K classes, S sub-categories of all
classes together, D numbers of an embedding.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from trainer.config import Range
from trainer.data.dataset import Record
from trainer.data.loader import Batch
from trainer.errors import DataError
from trainer.files import write_atomic
from trainer.methods.base import at_least_float32
from trainer.methods.inputs import Input
from trainer.methods.linear import LinearCam, LinearConfig
from trainer.methods.pooling import gap, pooled_logits
from trainer.methods.preparation import Prepared
from trainer.methods.tag_loss import tag_loss
from trainer.nets.backbone import Backbone
from trainer.progress import progress_bar
from trainer.training.inference import Budget, Views, finite, inference, iterate_views

SUBCATEGORIES = "subcategories.npz"
EMBEDDINGS = "embeddings.npz"


@dataclass(frozen=True)
class SubcategoryConfig(LinearConfig):
    """Knobs of methods with sub-categories, besides those of ``cam``.

    Attributes:
        weight: weight of the sub-category loss.
        maps: ``parent`` takes the maps of the classes; ``subcategory`` the maximum over the maps of
            a class's sub-categories, for diagnosis: it is worse.
        subcategories: how many each class has; the run fills it in from the clustering.
    """

    weight: Annotated[float, Range(0, 1000)] = 5.0
    maps: Literal["parent", "subcategory"] = "parent"
    subcategories: Annotated[tuple[int, ...], Range(0, 1000, most=254)] = ()


class SubcategoryCam(LinearCam):
    """``Cam`` with a second head on the same pooled features, or ``Cam`` itself without
    sub-categories.
    """

    config: SubcategoryConfig
    released = MappingProxyType(
        {
            "classifier.weight": ("fc8_20.weight", "fc8.weight"),
            "subcategory_classifier.weight": ("fc8_200.weight",),
        }
    )
    unused = ("fc8_200.weight", "subcategory_classifier.weight")

    def __init__(self, config: SubcategoryConfig, backbone: Backbone, num_classes: int) -> None:
        super().__init__(config, backbone, num_classes)
        self.subcategories = sum(config.subcategories)
        if self.subcategories:
            self.subcategory_classifier = self.new_head(
                self.classifier.in_channels, self.subcategories
            )

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Average of the features below the heads, ``[B,D]``: what is clustered."""
        return gap(self.features(images))

    def cams_and_logits(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``Method``; maps by ``maps``."""
        if self.config.maps == "parent" or not self.subcategories:
            return super().cams_and_logits(images)
        f = self.features(images)
        own = subcategory_maps(F.relu(self.subcategory_classifier(f)), self.config.subcategories)
        return own, gap(self.classifier(f))

    def continue_from(self, state: Mapping[str, torch.Tensor]) -> None:
        """All weights but those of the second head: clusters are numbered anew each round."""
        rest = {k: v for k, v in state.items() if not k.startswith("subcategory_classifier.")}
        self.load_state_dict(rest, strict=False)

    def loss(self, batch: Batch, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        """Soft margin losses of the classes: ``cls``, and of the sub-categories: ``sub``.

        ``batch["subcategories"]`` are labels ``[B,S]``: 0, 1, or NaN for those of an unknown class.
        A batch without them has only ``cls``.
        """
        f = self.dropout(self.features(batch["image"]))
        scores = at_least_float32(pooled_logits(self.config, f, self.classifier))
        terms = {"cls": tag_loss(scores, batch["tags"])}
        if "subcategories" in batch:
            scores = at_least_float32(pooled_logits(self.config, f, self.subcategory_classifier))
            terms["sub"] = self.config.weight * tag_loss(scores, batch["subcategories"])
        return terms


def over_joint_maximum(maps_BShw: torch.Tensor, counts: Sequence[int]) -> list[torch.Tensor]:
    """Sub-category maps of each class, over the largest value of the class + 1e-5."""
    return [
        b / (b.amax((1, 2, 3), keepdim=True) + 1e-5) if b.shape[1] else b
        for b in torch.split(maps_BShw, list(counts), 1)
    ]


def subcategory_maps(maps_BShw: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
    """The largest of each class's sub-category maps, ``[B,K,h,w]`` in 0..1; zeros for a class
    without any.

    Deviation: SC-CAM's code sums the views of the test before it takes the largest.
    """
    none = torch.zeros_like(maps_BShw[:, 0])
    blocks = over_joint_maximum(maps_BShw, counts)
    return torch.stack([block.amax(1) if block.shape[1] else none for block in blocks], 1)


@dataclass(frozen=True)
class Embeddings:
    """Features of images.

    Attributes:
        ids: of the images.
        values: ``float32 [N,D]``.
    """

    ids: list[str]
    values: npt.NDArray[np.float32]

    def write(self, path: Path) -> None:
        """Write an ``.npz`` whole or not at all."""
        _write(path, ids=np.array(self.ids), values=self.values)

    @classmethod
    def read(cls, path: Path) -> Embeddings:
        """Raises DataError: missing or damaged."""
        arrays = _read(path, ("ids", "values"))
        return cls([str(i) for i in arrays["ids"]], arrays["values"])


def embed(
    embedding: Callable[[torch.Tensor], torch.Tensor],
    module: torch.nn.Module,
    records: Sequence[Record],
    title: str,
    device: str,
) -> Embeddings:
    """``embedding`` of every image, one view at its own size or the largest that fits, in fp32."""
    rows: dict[str, npt.NDArray[np.float32]] = {}
    with inference(module, "fp32", device) as target, progress_bar(title, len(records)) as advance:
        for batch in iterate_views(records, Views(scales=(1.0,)), Budget(images=16)):
            vectors = embedding(batch.images[0].to(target)).float().cpu()
            rows |= zip(
                [record.id for record in batch.records], finite(vectors, "features").numpy()
            )
            for _ in batch.records:
                advance()
    # The batches came in the order of their sizes.
    ids = [record.id for record in records]
    return Embeddings(ids, np.stack([rows[image] for image in ids]))


@dataclass(frozen=True)
class Subcategories:
    """Labels of the second head.

    Attributes:
        ids: of the images that were clustered, which are those with a class.
        labels: 0/1, ``uint8 [N,S]``, class after class.
        counts: sub-categories of each class, ``[K]``; their sum is S.
    """

    ids: list[str]
    labels: npt.NDArray[np.uint8]
    counts: tuple[int, ...]

    def of(self, record: Record) -> npt.NDArray[np.float32]:
        """Labels of one image, ``[S]``: NaN for the sub-categories of an unknown class, and zeros
        for an image without a class, which was not clustered.
        """
        row = np.zeros(self.labels.shape[1], np.float32)
        if record.tags:
            row[:] = self.labels[self.rows[record.id]]
        starts = np.cumsum((0, *self.counts))
        for k in record.unknown:
            row[starts[k] : starts[k + 1]] = np.nan
        return row

    def prepared(self, config: SubcategoryConfig, weights_from: str | None = None) -> Prepared:
        """The config with the sub-categories of each class, and their labels for the second
        head.
        """
        inputs = {"subcategories": Input(self.of)}
        return Prepared(replace(config, subcategories=self.counts), inputs, weights_from)

    @cached_property
    def rows(self) -> dict[str, int]:
        """Row of each image."""
        return {image: row for row, image in enumerate(self.ids)}

    def write(self, path: Path) -> None:
        """Write an ``.npz`` whole or not at all."""
        _write(
            path, ids=np.array(self.ids), labels=self.labels, counts=np.array(self.counts, np.int64)
        )

    @classmethod
    def read(cls, path: Path) -> Subcategories:
        """Raises DataError: missing or damaged."""
        arrays = _read(path, ("ids", "labels", "counts"))
        return cls(
            [str(i) for i in arrays["ids"]],
            arrays["labels"],
            tuple(int(n) for n in arrays["counts"]),
        )


def _write(path: Path, **arrays: Any) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_atomic(path, buffer.getvalue())


def _read(path: Path, names: Sequence[str]) -> dict[str, Any]:
    try:
        # A pickle in a file from elsewhere could run code.
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in names}
    except Exception as error:
        raise DataError(
            f"{path} cannot be read: {error}",
            "a file of this run",
            "remove it and run the same command again",
        ) from error
