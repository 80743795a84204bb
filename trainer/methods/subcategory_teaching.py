"""Class activation maps of a classifier that learns the sub-categories of a vision transformer.

The report of "liuvince/mva-wsss" for the MVA master, 2021 ("MVA"), with the clustering of Sarfraz
et al., CVPR 2019 ("FINCH").

1. The teacher, a ViT with a linear head, learns the tags. Its class token after the last layer norm
  is the embedding of an image.
2. FINCH clusters the embeddings of each class. Its coarsest partition gives the K_c sub-categories.
3. The student is ``cam`` with a second head: L = soft margin(W_p f, Y_p) + weight * soft margin(W_s
  f, Y_s).

Maps: M = ReLU(W_p f).

Deviations: the teacher's schedule counts updates; MVA's counts epochs by accident. Images are
normalised as the teacher's file expects. Only training images are clustered; MVA's clusters contain
validation images. The weight is 1 as in the report; the code has 2. The teacher trains all its
epochs, without early stopping. ``teacher=backbone`` clusters the features of a ``cam`` classifier
and is the row "Sub-category Exploration" of the report: one round, FINCH instead of k-means.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import nn

from trainer.config import Range, as_dict
from trainer.data.dataset import Record
from trainer.data.loader import Batch, Samples
from trainer.data.pixels import read_image
from trainer.data.transforms import MEAN, STD, normalise, to_tensor
from trainer.errors import ConfigError
from trainer.files import file_sha256
from trainer.methods.base import at_least_float32
from trainer.methods.clustering import finch_labels
from trainer.methods.declaration import Declaration
from trainer.methods.linear import LinearConfig
from trainer.methods.mixing import MVA_TRAINING
from trainer.methods.preparation import Preparation, Prepared, Workshop
from trainer.methods.recipes import PSA
from trainer.methods.samples import make_sample
from trainer.methods.subcategories import (
    EMBEDDINGS,
    SUBCATEGORIES,
    Embeddings,
    Subcategories,
    SubcategoryCam,
    SubcategoryConfig,
    embed,
)
from trainer.methods.tag_loss import tag_loss
from trainer.nets.vit import Vit
from trainer.progress import progress_bar
from trainer.ranks import rank
from trainer.run import Metrics, Output
from trainer.training.devices import Precision
from trainer.training.inference import inference
from trainer.training.loop import Trainer, step_rng
from trainer.training.model_file import read_model
from trainer.training.optimiser import Training
from trainer.weights.vit import build_vit, load_vit

PRESETS: dict[str, dict[str, Any]] = {
    "paper": MVA_TRAINING,
    "mva": {
        **MVA_TRAINING,
        "classify.new_factor": 1.0,
        "method.weight": 2.0,
        "method.teacher_schedule": "epochs",
        "method.teacher_input": "imagenet",
        "method.cluster": "train+val",
    },
}


@dataclass(frozen=True)
class Config(SubcategoryConfig):
    """Knobs of ``subcategory_teaching``, besides those of ``SubcategoryConfig``.

    Attributes:
        weight: of the sub-category loss: 1 in the report, 2 in MVA's code.
        teacher: ``vit_b_16`` as published, ``vit_small`` or ``vit_tiny``; ``backbone`` is a ``cam``
            classifier on the student's own network, the report's "Sub-category Exploration", which
            needs no file of ViT weights.
        teacher_weights: file of the ViT, torchvision's or timm's; ``none`` trains it from scratch.
        teacher_epochs: passes of the teacher over the training list.
        teacher_lr: peak rate of the teacher.
        teacher_batch: images per update of the teacher.
        teacher_schedule: cosine after a linear warm-up, both in ``updates``, or in ``epochs`` as
            MVA's by accident.
        teacher_input: pixels normalised by ``imagenet`` statistics, by ``half`` (mean and deviation
            0.5), or ``auto``: as the file expects.
        early_exit: early exit of FINCH; on as in the version that MVA used.
        cluster: images to cluster: ``train``, or ``train+val`` as MVA, which uses the tags of
            validation images.
    """

    weight: Annotated[float, Range(0, 1000)] = 1.0
    teacher: Literal["vit_b_16", "vit_small", "vit_tiny", "backbone"] = "vit_b_16"
    teacher_weights: str = ""
    teacher_epochs: Annotated[int, Range(1, 10_000)] = 15
    teacher_lr: Annotated[float, Range(0, 100, above=True)] = 0.1
    teacher_batch: Annotated[int, Range(1, 4096)] = 8
    teacher_schedule: Literal["updates", "epochs"] = "updates"
    teacher_input: Literal["auto", "imagenet", "half"] = "auto"
    early_exit: bool = True
    cluster: Literal["train", "train+val"] = "train"


class SubcategoryTeaching(SubcategoryCam):
    """The student: two heads, one for the classes and one for the teacher's clusters."""

    config: Config

    def param_groups(
        self, lr: float, weight_decay: float, new_factor: float = 10.0
    ) -> list[dict[str, Any]]:
        """See ``Method``. As in MVA's code, the head of the sub-categories does not decay."""
        groups = super().param_groups(lr, weight_decay, new_factor)
        if not self.subcategories:
            return groups
        own = self.subcategory_classifier.weight
        for group in groups:
            group["params"] = [p for p in group["params"] if p is not own]
        return [
            *groups,
            {"name": "subcategories", "params": [own], "lr": lr * new_factor, "weight_decay": 0.0},
        ]


class Teacher(nn.Module):
    """A ViT with a linear head for the tags.

    Args:
        vit: the network.
        num_classes: K.
        half: its input is normalised by mean and deviation 0.5 instead of ImageNet's.
    """

    def __init__(self, vit: Vit, num_classes: int, half: bool) -> None:
        super().__init__()
        self.vit, self.half_statistics = vit, half
        self.head = nn.Linear(vit.embedding, num_classes)

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Class tokens ``[B,D]`` of images normalised with ImageNet's statistics."""
        if self.half_statistics:
            mean, deviation = (images.new_tensor(numbers)[:, None, None] for numbers in (MEAN, STD))
            images = (images * deviation + mean - 0.5) / 0.5
        tokens: torch.Tensor = self.vit(images)
        return tokens

    def loss(self, batch: Batch, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        """``cls``: multi-label soft margin loss."""
        scores = at_least_float32(self.head(self.embed(batch["image"])))
        return {"cls": tag_loss(scores, batch["tags"])}


def preparations(config: Config) -> list[Preparation]:
    """The teacher with its embeddings, then the clusters.

    Raises:
        ConfigError: a ViT without a file of weights.
    """
    check_weights(config)
    knobs = as_dict(config)
    of_teacher = {key: knobs[key] for key in knobs if key.startswith("teacher")} | {
        "cluster": config.cluster
    }
    if config.teacher == "backbone":
        of_teacher |= {key: knobs[key] for key in as_dict(LinearConfig())}
    else:
        # Teachers of earlier versions have torchvision's names and are trained again.
        of_teacher["library"] = "timm"
    if config.teacher != "backbone" and config.teacher_weights != "none":
        of_teacher["sha256"] = file_sha256(Path(config.teacher_weights))
    of_clusters = {"early_exit": config.early_exit, "cluster": config.cluster}
    return [
        Preparation("teacher", of_teacher, config.teacher == "backbone", teach),
        Preparation("subcategories", of_clusters, False, cluster),
    ]


def check_weights(config: Config) -> None:
    """Refuse a ViT without its file of weights.

    Raises:
        ConfigError: as said.
    """
    file = config.teacher_weights
    if config.teacher == "backbone" or file == "none" or Path(file).is_file():
        return
    raise ConfigError(
        f"the teacher's weights, {file}, are not there" if file else "the teacher has no weights",
        "a file for method.teacher_weights: torchvision's vit_b_16-c867db91.pth, or a state dict of"
        " timm's vit_base_patch16_224.orig_in21k_ft_in1k; a smaller ViT of either does for a try",
        "--set method.teacher_weights=FILE; without such a file --set method.teacher=backbone, "
        "or --set method.teacher_weights=none to train the ViT from scratch",
    )


def prepared(config: Config, run: Path) -> Prepared:
    """The clusters as sub-categories; the student starts from the initial weights."""
    return Subcategories.read(run / "subcategories" / SUBCATEGORIES).prepared(config)


def teach(shop: Workshop, stage: Output) -> None:
    """Train the teacher and embed the images to cluster."""
    config: Config = shop.config
    records = images_to_cluster(shop)
    if config.teacher == "backbone":
        start = Prepared(replace(config, subcategories=()))
        student = shop.train(shop.build(start), stage, start, None)
        assert isinstance(student, SubcategoryTeaching)
        make = partial(embed, student.embed, student)
    else:
        teacher = train_teacher(shop, stage)
        make = partial(embed_stretched, teacher)
    if rank() == 0:
        if not (stage.folder / EMBEDDINGS).exists():
            make(records, "teacher: embeddings", shop.device).write(stage.folder / EMBEDDINGS)
        stage.outputs.update(count=len(records), weights="model.pt", embeddings=EMBEDDINGS)


def train_teacher(shop: Workshop, stage: Output) -> Teacher:
    """The ViT of ``teacher/model.pt``, trained where it is not there yet."""
    config: Config = shop.config
    # The new head draws from torch's global generator.
    step_rng(shop.seed, 0)
    teacher = make_teacher(config, len(shop.dataset.classes))
    path, identity = stage.folder / "model.pt", {"teacher": config.teacher}
    if not path.exists():
        training = teacher_training(config, len(shop.records), shop.classify.workers)
        views = replace(PSA, resize=(256, 512), crop=teacher.vit.image_size)
        make = partial(make_sample, config=views, num_classes=len(shop.dataset.classes))
        group = {"name": "teacher", "lr": training.lr, "weight_decay": 0.0}
        trainer = Trainer(
            teacher,
            Teacher.loss,
            [{**group, "params": list(teacher.parameters())}],
            Samples(shop.records, make, shop.seed),
            training,
            stage.folder,
            Metrics(shop.run / "metrics.csv", "teacher"),
            shop.seed,
            shop.device,
        )
        trainer.run()
        trainer.save(stage, identity)
    teacher.load_state_dict(read_model(path, identity)[1])
    return teacher.eval()


def make_teacher(config: Config, num_classes: int) -> Teacher:
    """The ViT on the weights of its file, or on random ones, with a fresh head."""
    if config.teacher_weights == "none":
        vit, half = build_vit(config.teacher), False
    else:
        vit, report = load_vit(Path(config.teacher_weights))
        half = report.mean[0] == 0.5
    if config.teacher_input != "auto":
        half = config.teacher_input == "half"
    return Teacher(vit, num_classes, half)


def teacher_training(config: Config, images: int, workers: int) -> Training:
    """Knobs of the teacher's training."""
    # MVA's rates and its warm-up of 500, which may be longer than a whole short training.
    updates = max(1, images // config.teacher_batch) * config.teacher_epochs
    return Training(
        epochs=config.teacher_epochs,
        batch=config.teacher_batch,
        lr=config.teacher_lr,
        momentum=0.9,
        weight_decay=0.0,
        schedule="cosine" if config.teacher_schedule == "updates" else "cosine_epochs",
        warmup=min(500, updates // 5),
        clip=1.0,
        workers=workers,
    )


def embed_stretched(
    teacher: Teacher, records: list[Record], title: str, device: str, batch: int = 32
) -> Embeddings:
    """Class tokens of images stretched to the ViT's size, bilinear, one view."""
    size = (teacher.vit.image_size, teacher.vit.image_size)
    rows: list[torch.Tensor] = []
    precision: Precision = "fp32"
    with (
        inference(teacher, precision, device) as target,
        progress_bar(title, len(records)) as advance,
    ):
        for start in range(0, len(records), batch):
            views = []
            for record in records[start : start + batch]:
                image = Image.fromarray(read_image(record.image)).resize(
                    size, Image.Resampling.BILINEAR
                )
                views.append(to_tensor(normalise(image)))
                advance()
            rows.append(teacher.embed(torch.stack(views).to(target)).float().cpu())
    return Embeddings([record.id for record in records], torch.cat(rows).numpy())


def cluster(shop: Workshop, stage: Output) -> None:
    """FINCH on the embeddings of each class."""
    if rank() > 0:
        return
    config: Config = shop.config
    records = images_to_cluster(shop)
    embeddings = Embeddings.read(shop.run / "teacher" / EMBEDDINGS)
    labels, counts = finch_labels(
        embeddings.values, shop.dataset.tag_matrix(records), config.early_exit
    )
    Subcategories(embeddings.ids, labels.astype("uint8"), tuple(counts.tolist())).write(
        stage.folder / SUBCATEGORIES
    )
    stage.outputs.update(count=len(records), subcategories=SUBCATEGORIES)
    stage.metrics.update(dict(zip(shop.dataset.classes, counts.tolist())))


def images_to_cluster(shop: Workshop) -> list[Record]:
    """The images to cluster: the training list, with ``train+val`` also those of the validation
    list that have tags.
    """
    records = {record.id: record for record in shop.records}
    if shop.config.cluster == "train+val":
        records.update((record.id, record) for record in shop.validation if record.tags)
    return list(records.values())


METHOD = Declaration(
    SubcategoryTeaching,
    Config,
    presets=PRESETS,
    preparations=preparations,
    prepared=prepared,
)
