"""Maps of what departs from the images that show no class.

A classifier looks at what tells its classes apart, which need not be the object: of a chipped edge
it may know the shadow beside it. Hundreds of images without any class also tell what is normal.
Features of a network that knows photographs are described by one normal distribution over all
cells of these images, and a cell is odd as far as its Mahalanobis distance is rare among them
(Rippel, Mertens and Merhof, "Modeling the Distribution of Normal Data in Pre-Trained Deep Features
for Anomaly Detection", ICPR 2020, eq. 1; cells of several depths as in Defard et al., "PaDiM", ICPR
workshops 2021).

Tags alone tell whether the objects of a class are such departures: the oddest cell of an image then
separates images of the class from images without any.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.data.dataset import Record
from trainer.nets.backbone import Backbone
from trainer.nets.detail import STRIDE
from trainer.progress import progress_bar
from trainer.training.inference import Budget, Views, inference, iterate_views

Map = npt.NDArray[np.float32]

DEEPEST = 16
"""Features up to this stride are compared. Deeper cells see too much of what lies around them."""
CHANNELS = 256
"""Channels that are compared, at most: the covariance has their number squared."""
IMAGES = 200
"""Images without any class that are looked at, at most, to describe what is normal; half as many
others say how odd a normal cell gets.
"""
FEWEST = 20
"""Images of either kind under which nobody knows what is normal."""
FEW = 3
"""Images of a class under which nobody knows whether it departs."""
TELLS = 0.9
"""AUROC of the oddest cell from which the objects of a class are the departures. Below it, what is
odd may be the part and not its object.
"""
SURE = 0.5
"""Least value that a map has to reach to be of use: one normal cell in 10^3 is as odd."""
NORMAL, ODD = 2.0, 4.0
"""The map is 0 where one normal cell in 10^2 is as odd, and 1 where one in 10^4 is."""


class NormalCells:
    """The cells of images without any class, and how far other cells are from them.

    Args:
        network: a backbone on the weights that the training starts from.
        normal: images that show no class: their cells are what is normal.
        others: such images of other groups, which tell how odd a normal cell gets.
        budget: how much is viewed at once.
        device: ``auto``, ``cpu`` or ``cuda``.
    """

    def __init__(
        self,
        network: Backbone,
        normal: Sequence[Record],
        others: Sequence[Record],
        budget: Budget,
        device: str,
    ) -> None:
        self.network, self.budget, self.device = network, budget, device
        names = [name for name, stride in network.strides.items() if 4 <= stride <= DEEPEST]
        # The last feature of each stride has seen the most.
        self.names = list({network.strides[name]: name for name in names}.values())
        self.mean, self.whitening = self._fit(normal)
        distances = [distance.ravel() for _, distance in self.distances(others)]
        self.levels = np.sort(np.concatenate(distances))
        self.oddest = [float(distance.max()) for distance in distances]

    def _features(self, images_B3HW: Tensor) -> Tensor:
        """``[B,C,h,w]`` at 8 pixels a cell, each the mean of its neighbourhood."""
        features = self.network(images_B3HW)
        height, width = images_B3HW.shape[2:]
        size = (-(-height // STRIDE), -(-width // STRIDE))
        cells = torch.cat(
            [
                F.interpolate(
                    F.avg_pool2d(features[name], 3, 1, 1, count_include_pad=False),
                    size,
                    mode="bilinear",
                    align_corners=False,
                )
                for name in self.names
            ],
            1,
        )
        return cells[:, :: -(-cells.shape[1] // CHANNELS)]

    def _batches(
        self, records: Sequence[Record], title: str
    ) -> Iterator[tuple[list[Record], Tensor]]:
        with (
            inference(self.network, "fp32", self.device) as target,
            progress_bar(title, len(records)) as advance,
        ):
            for batch in iterate_views(records, Views((1.0,)), self.budget, 0):
                yield batch.records, self._features(batch.images[0].to(target))
                for _ in batch.records:
                    advance()

    def _fit(self, records: Sequence[Record]) -> tuple[Tensor, Tensor]:
        count, total, squares = 0, torch.zeros(()), torch.zeros(())
        for _, features in self._batches(records, "what is normal"):
            # Sums of squares of a million cells need double precision.
            cells = features.transpose(0, 1).flatten(1).double()
            count += cells.shape[1]
            total, squares = total + cells.sum(1).cpu(), squares + (cells @ cells.T).cpu()
        mean = total / count
        covariance = squares / count - mean[:, None] * mean
        # Channels that hardly fire would count as much as all others otherwise.
        covariance += 1e-3 * covariance.diagonal().mean() * torch.eye(len(mean), dtype=mean.dtype)
        whitening = torch.linalg.cholesky(torch.linalg.inv(covariance))
        return mean.float(), whitening.float()

    def distances(self, records: Sequence[Record]) -> Iterator[tuple[Record, Map]]:
        """Mahalanobis distance of every cell, ``float32 [h,w]`` at 8 pixels a cell."""
        for own, features in self._batches(records, "departures"):
            mean, whitening = self.mean.to(features.device), self.whitening.to(features.device)
            offsets = features.movedim(1, -1) - mean
            rows = torch.linalg.vector_norm(offsets @ whitening, dim=-1).cpu().numpy()
            yield from zip(own, rows)

    def maps(self, records: Sequence[Record]) -> Iterator[tuple[Record, Map]]:
        """How odd every cell is among normal ones, ``float32 [h,w]`` in 0..1; see ``NORMAL``."""
        for record, distance in self.distances(records):
            above = len(self.levels) - np.searchsorted(self.levels, distance)
            rarity = -np.log10(np.maximum(above, 0.5) / len(self.levels))
            yield record, ((rarity - NORMAL) / (ODD - NORMAL)).clip(0, 1).astype(np.float32)


def learn(
    network: Backbone, records: Sequence[Record], budget: Budget, device: str
) -> NormalCells | None:
    """What is normal in the training images ``records``; None with too few that show no class."""
    groups: dict[object, list[Record]] = {}
    for record in records:
        if record.is_negative:
            groups.setdefault(record.unit, []).append(record)
    # Another exposure of the same part would look more normal than a part that nobody has seen.
    parts = list(groups.values())
    others = [record for part in parts[::3] for record in part]
    normal = [r for n, part in enumerate(parts) if n % 3 for r in part]
    if min(len(normal), len(others)) < FEWEST:
        return None
    return NormalCells(
        network, _thinned(normal, IMAGES), _thinned(others, IMAGES // 2), budget, device
    )


def departing_classes(
    normal: NormalCells, records: Sequence[Record], count: int
) -> dict[int, float]:
    """Classes whose objects are departures, with the AUROC that says so; see ``TELLS``.

    Args:
        normal: of the same data.
        records: training images; those with one tag are looked at.
        count: number of classes.
    """
    from sklearn.metrics import roc_auc_score

    own = [_thinned([r for r in records if r.tags == (k,)], IMAGES // 4) for k in range(count)]
    oddest = {
        record.id: float(distance.max())
        for record, distance in normal.distances([r for part in own for r in part])
    }
    values = {}
    for k, part in enumerate(own):
        if len(part) < FEW:
            continue
        truth = [True] * len(part) + [False] * len(normal.oddest)
        scores = [*(oddest[r.id] for r in part), *normal.oddest]
        values[k] = float(roc_auc_score(truth, scores))
    return {k: value for k, value in values.items() if value >= TELLS}


class DepartureMaps:
    """Maps of departures that take the place of the classifier's.

    Args:
        classes: whose maps they are.
        maps: of images, by id: ``float32 [h,w]`` in 0..1.
    """

    def __init__(
        self, classes: Collection[int] = (), maps: Mapping[str, Map] = MappingProxyType({})
    ) -> None:
        self.classes, self.maps = classes, maps

    def replace(self, record_id: str, own: Sequence[int], maps_kHW: Map) -> None:
        """Put the departures of an image in the place of its maps, unless they show nothing.

        Where several of its classes ``own`` depart, each has the pixels at which its map is the
        largest of theirs.
        """
        rows = [row for row, k in enumerate(own) if k in self.classes]
        cells = self.maps.get(record_id)
        if not rows or cells is None or cells.max() < SURE:
            return
        plane, size = torch.from_numpy(cells)[None, None], maps_kHW.shape[1:]
        large = F.interpolate(plane, size, mode="bilinear", align_corners=False)[0, 0].numpy()
        winner = maps_kHW[rows].argmax(0)
        for number, row in enumerate(rows):
            maps_kHW[row] = np.where(winner == number, large, 0)


def _thinned(records: Sequence[Record], most: int) -> list[Record]:
    step = -(-len(records) // most) or 1
    return list(records[::step])
