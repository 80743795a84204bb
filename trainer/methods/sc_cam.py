"""Class activation maps of a classifier that must also tell apart the clusters of each class, in
rounds of training and clustering.

Chang et al., "Weakly-Supervised Semantic Segmentation via Sub-category Exploration", CVPR 2020
("SC-CAM").

Round 0 trains ``cam``. Each round ends with k-means on the average features of the training images
of each class: its k clusters are the sub-categories Y_s. The next round starts from the initial
weights again, with two heads on the pooled feature f:

    L = soft margin(W_p f, Y_p) + weight * soft margin(W_s f, Y_s)   (SC-CAM, eq. 4; weight 5)

After ``rounds`` rounds the final classifier is trained. Its maps are those of the parent head:
M = ReLU(W_p f).

Deviations: defaults are those of the released code on ResNet-38. The code takes weights from the
middle of rounds 1 to 3 (epochs 31, 41 and 51 of 61) and a released classifier for round 0. We train
every round to its end, and round 0 too unless ``round0`` names a file. A class with fewer images
than k has as many sub-categories as images. Short trainings of small networks continue from the
round before: a fresh start of a few hundred updates would end behind ``cam``. ``k=auto`` is the
adaptive number of sub-categories that the paper leaves to future work: FINCH (Sarfraz et al., CVPR
2019) finds it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt

from trainer.config import Range, as_dict
from trainer.errors import ConfigError
from trainer.files import file_sha256
from trainer.methods.clustering import finch_labels, subcategory_labels
from trainer.methods.declaration import Changes, Declaration, Lesson
from trainer.methods.mixing import SC_CAM_TRAINING
from trainer.methods.preparation import Preparation, Prepared, Workshop
from trainer.methods.subcategories import (
    EMBEDDINGS,
    SUBCATEGORIES,
    Embeddings,
    Subcategories,
    SubcategoryCam,
    SubcategoryConfig,
    embed,
)
from trainer.ranks import rank
from trainer.run import Output

TRAINING: dict[str, dict[str, Any]] = {"psa": SC_CAM_TRAINING}
PRESETS: dict[str, dict[str, Any]] = {
    "code": {"method.warm_start": False},
    "paper": {
        "method.adapt_conv": 512,
        "method.warm_start": True,
        "classify.optimizer": "adam",
        "classify.lr": 1e-3,
        "classify.new_factor": 1.0,
        "classify.crop": 448,
    },
}
SHORT = 2000
"""Updates of a round below which the next round goes on from its weights. The published rounds have
40,000; with 315, a round that starts anew was behind ``cam``.
"""


@dataclass(frozen=True)
class Config(SubcategoryConfig):
    """Knobs of ``sc_cam``, besides those of ``SubcategoryConfig``.

    Attributes:
        k: sub-categories of each class; the paper tries 5, 10, 20 and 50. ``auto`` clusters by
            FINCH instead of k-means; its coarsest partition of the images of a class decides how
            many sub-categories the class has, anew in each round.
        rounds: number of clusterings, each after its own training.
        warm_start: a round starts from the weights of the round before, as in the paper's
            algorithm, instead of the initial weights, as released. Short trainings of small
            networks turn it on.
        round0: a trained classifier that replaces round 0: ``model.pt`` of a run of ``cam``, or a
            released file such as ``res38_cls.pth``.
    """

    k: Annotated[int | Literal["auto"], Range(1, 1000)] = 10
    rounds: Annotated[int, Range(1, 100)] = 3
    warm_start: bool = False
    round0: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.round0 and not Path(self.round0).is_file():
            raise ConfigError(
                f"round0={self.round0} is not a file",
                "weights of a classifier",
                "leave it out to train one",
            )


class ScCam(SubcategoryCam):
    """Two heads, one for the classes and one for their clusters."""

    config: Config


def preparations(config: Config) -> list[Preparation]:
    """The rounds before the last training: each a training, its features and its clusters."""
    # A change of these leaves earlier rounds valid: more rounds go on from those that are there.
    common = {
        key: value
        for key, value in as_dict(config).items()
        if key not in ("rounds", "maps", "subcategories")
    }
    # Round 0 has no second head, and no round before it to start from.
    first = {key: value for key, value in common.items() if key not in ("weight", "warm_start")}
    if config.round0:
        # The file's content is its identity: the same path may hold another file tomorrow.
        first["sha256"] = file_sha256(Path(config.round0))
    return [
        Preparation(f"round{r}", common if r else first, True, partial(explore, r))
        for r in range(config.rounds)
    ]


def prepared(config: Config, run: Path, rounds: int | None = None) -> Prepared:
    """What the training after ``rounds`` rounds starts from; after all of them by default."""
    rounds = config.rounds if rounds is None else rounds
    if rounds == 0:
        return Prepared(config)
    last = f"round{rounds - 1}"
    labels = Subcategories.read(run / last / SUBCATEGORIES)
    return labels.prepared(config, last if config.warm_start else None)


def explore(r: int, shop: Workshop, stage: Output) -> None:
    """Round ``r``: train on the clusters of the round before, embed every image, cluster again."""
    config: Config = shop.config
    start = prepared(config, shop.run, r)
    file = Path(config.round0) if r == 0 and config.round0 else None
    method = shop.train(shop.build(start), stage, start, file)
    if rank() > 0:
        return
    assert isinstance(method, ScCam)
    path = stage.folder / EMBEDDINGS
    # A round that was stopped after the features goes on with them.
    if not path.exists():
        embed(method.embed, method, shop.records, f"round {r}: features", shop.device).write(path)
    embeddings = Embeddings.read(path)
    tags = shop.dataset.tag_matrix(shop.records)
    labels, counts = clusters(embeddings.values, tags, config.k, shop.seed)
    Subcategories(embeddings.ids, labels, counts).write(stage.folder / SUBCATEGORIES)
    stage.outputs.update(
        count=len(embeddings.ids), embeddings=EMBEDDINGS, subcategories=SUBCATEGORIES
    )
    stage.metrics.update(subcategories=int(labels.any(0).sum()))


def clusters(
    embeddings_ND: npt.NDArray[np.float32],
    tags_NK: npt.NDArray[np.float32],
    k: int | Literal["auto"],
    seed: int,
) -> tuple[npt.NDArray[np.uint8], tuple[int, ...]]:
    """Labels of the second head, 0/1 ``[N,S]``, and the number of sub-categories of each class."""
    if k == "auto":
        labels, counts = finch_labels(embeddings_ND, tags_NK)
        return labels.astype(np.uint8), tuple(counts.tolist())
    labels = subcategory_labels(embeddings_ND, tags_NK, k, seed)
    return labels.astype(np.uint8), (k,) * tags_NK.shape[1]


def advice(config: Config, lesson: Lesson) -> Iterator[tuple[Changes, str]]:
    """Short rounds continue from the round before."""
    if lesson.updates < SHORT:
        yield (
            {"warm_start": True},
            f"sc_cam: each round goes on from the weights of the round before, because a round has"
            f" {lesson.updates} updates",
        )


METHOD = Declaration(
    ScCam,
    Config,
    presets=PRESETS,
    training=TRAINING,
    advice=advice,
    preparations=preparations,
    prepared=prepared,
)
