"""Stage ``classify``: train a method's classifier from tags."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import nn

from trainer import config as knobs
from trainer.config import Range
from trainer.data.dataset import Dataset, Record
from trainer.data.loader import Samples
from trainer.data.pixels import read_image
from trainer.data.superpixels import make_segments, read_segments, renumbered
from trainer.data.transforms import Rng, classify_planes
from trainer.errors import ConfigError, WeightsError, nearest
from trainer.files import write_atomic
from trainer.methods.base import Method, method_classes
from trainer.methods.subcategories import Subcategories
from trainer.nets import build_backbone
from trainer.run import Metrics, Stage
from trainer.training.checkpoints import Checkpoints
from trainer.training.devices import rank, shard, wait_for_all
from trainer.training.inference import Budget, Views, finite, inference, iterate_views
from trainer.training.loop import train
from trainer.training.optimiser import Training
from trainer.weights.loading import check_finite


@dataclass(frozen=True)
class ClassifyConfig(Training):
    """Knobs of the classifier's training, besides those of ``Training``.

    Attributes:
        resize: range of the longer side (spec methods 6.3).
        crop: side of the training crop.
        jitter: colour jitter.
        output_stride: of the backbone; 0 is the backbone's usual one.
        dilate: keep the field of view with dilation where stride was taken away.
        bn: batch norm of the backbone: ``frozen``, ``stats`` (fixed statistics, trained affine), or
            ``train``.
        detach_after: feature behind which the gradient is cut (IRN cuts after stage 2), or
            ``none``.
        validate: measure mAP on the validation list's tags after each epoch.
    """

    resize: Annotated[tuple[int, int], Range(16, 8192)] = (256, 512)
    crop: Annotated[int, Range(16, 4096)] = 448
    jitter: bool = True
    output_stride: Annotated[int, Range(0, 32)] = 0
    dilate: bool = True
    bn: str = "frozen"
    detach_after: str = "none"
    validate: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.resize[0] > self.resize[1]:
            raise ConfigError(
                f"classify.resize={self.resize[0]},{self.resize[1]}", "the smaller side first"
            )


PSA = ClassifyConfig()
IRN = ClassifyConfig(
    epochs=5,
    weight_decay=1e-4,
    resize=(320, 640),
    crop=512,
    jitter=False,
    output_stride=16,
    dilate=False,
    bn="stats",
    detach_after="stage2",
)
SMALL = ClassifyConfig(
    epochs=5,
    lr=1e-3,
    momentum=0.9,
    weight_decay=1e-4,
    resize=(256, 448),
    crop=256,
    output_stride=16,
    detach_after="stage2",
)
SCRATCH = ClassifyConfig(
    epochs=16,
    lr=1e-3,
    new_factor=1.0,
    optimizer="adam",
    weight_decay=1e-4,
    resize=(112, 160),
    crop=112,
    output_stride=16,
    bn="train",
    jitter=False,
)
RECIPES = {"psa": PSA, "irn": IRN, "small": SMALL, "scratch": SCRATCH}


def recipe(backbone: str, weights: str | None) -> str:
    """Name of the recipe that a backbone learns with: published for ResNet-38 and ResNet-50/101,
    ours for small ones.
    """
    if weights == "none":
        return "scratch"
    return {"resnet38": "psa", "resnet50": "irn", "resnet101": "irn"}.get(backbone, "small")


def make_config(name: str, changes: dict[str, Any]) -> ClassifyConfig:
    """The named recipe with changes.

    Raises:
        ConfigError: an unknown recipe or knob.
    """
    if name not in RECIPES:
        raise ConfigError(f"there is no recipe {name!r}", nearest(name, RECIPES))
    return knobs.replace(RECIPES[name], changes, "classify")


def backbone_knobs(backbone: str, config: ClassifyConfig) -> dict[str, Any]:
    """Constructor arguments of the backbone. ResNet-38 has one form only."""
    if backbone == "resnet38":
        return {}
    detach = None if config.detach_after == "none" else config.detach_after
    options: dict[str, Any] = {"bn": config.bn, "dilate": config.dilate, "detach_after": detach}
    if config.output_stride:
        options["output_stride"] = config.output_stride
    return options


def build(
    method: str, method_config: Any, backbone: str, options: dict[str, Any], num_classes: int
) -> Method:
    """A method on a fresh backbone."""
    made: Callable[..., Method] = method_classes(method)[0]
    return made(method_config, build_backbone(backbone, **options), num_classes)


def method_loss(
    module: Method, images: torch.Tensor, tags: torch.Tensor, *more: Any
) -> dict[str, torch.Tensor]:
    """The method's loss, in the form that the loop calls: ``more`` is the generator, after what
    else a sample has.
    """
    *extra, rng = more
    return module.loss(images, tags, rng, *extra)


def make_sample(
    record: Record,
    rng: Rng,
    config: ClassifyConfig,
    num_classes: int,
    superpixels: Path | None = None,
    subcategories: Subcategories | None = None,
) -> tuple[torch.Tensor, ...]:
    """Training view and 0/1 tags of a record.

    With a folder of ``superpixels`` also their ids 1, 2, ... in the view, with ``subcategories``
    also their labels.
    """
    ids = [] if superpixels is None else [read_segments(record, superpixels)]
    image, cut = classify_planes(
        read_image(record.image), ids, rng, config.resize, config.crop, config.jitter
    )
    tags = torch.zeros(num_classes)
    tags[list(record.tags)] = 1
    labels = [] if subcategories is None else [subcategories.of(record.id)]
    return (image, tags, *(torch.from_numpy(renumbered(plane)) for plane in cut), *labels)


def classify(
    module: Method,
    dataset: Dataset,
    records: Sequence[Record],
    validation: Sequence[Record],
    config: ClassifyConfig,
    stage: Stage,
    metrics: Metrics,
    seed: int,
    identity: dict[str, Any],
    device: str = "auto",
    subcategories: Subcategories | None = None,
) -> None:
    """Train on ``records`` and write ``model.pt``. ``identity`` says what the weights are, for
    ``load``.
    """
    superpixels = (
        prepare_superpixels(records, module.segments, config, stage) if module.segments else None
    )
    make = partial(
        make_sample,
        config=config,
        num_classes=len(dataset.classes),
        superpixels=superpixels,
        subcategories=subcategories,
    )
    groups = module.param_groups(config.lr, config.weight_decay, config.new_factor)

    def validate(epoch: int) -> dict[str, float]:
        return {"val_map": mean_average_precision(module, dataset, validation, config, device)}

    wanted = config.validate and any(record.tags for record in validation)
    last = train(
        module,
        method_loss,
        groups,
        Samples(records, make, seed),
        config,
        stage.folder,
        metrics,
        seed,
        metrics.stage,
        validate if wanted else None,
        device,
    )
    save(stage.folder, module, identity)
    stage.metrics.update({k: float(f"{v:.6g}") for k, v in last.items()})
    stage.outputs.update(count=1, weights="model.pt", images=len(records))


def prepare_superpixels(
    records: Sequence[Record], count: int, config: ClassifyConfig, stage: Stage
) -> Path:
    """Folder of the images' super-pixels, beside the stage's: they outlive a change of the
    training.
    """
    folder = stage.folder.parent / "superpixels" / str(count)
    workers = None if config.workers < 0 else config.workers
    make_segments(shard(records), folder, count, workers, progress=rank() == 0)
    wait_for_all()
    return folder


def mean_average_precision(
    module: Method,
    dataset: Dataset,
    records: Sequence[Record],
    config: ClassifyConfig,
    device: str = "auto",
) -> float:
    """mAP over the classes that occur, each image at its own size, one scale."""
    from sklearn.metrics import average_precision_score

    scores: dict[str, np.ndarray] = {}
    with inference(
        module, config.precision if config.precision != "fp16" else "auto", device
    ) as target:
        for batch in iterate_views(records, Views(scales=(1.0,)), Budget(images=16), workers=0):
            logits = finite(module(batch.images[0].to(target)).float().cpu(), "scores").numpy()
            scores.update({record.id: row for record, row in zip(batch.records, logits)})
    truth = dataset.tag_matrix(records)
    table = np.stack([scores[record.id] for record in records])
    present = [k for k in range(truth.shape[1]) if truth[:, k].any()]
    return float(np.mean([average_precision_score(truth[:, k], table[:, k]) for k in present]))


def save(folder: Path, module: nn.Module, identity: dict[str, Any]) -> None:
    """Write ``model.pt``, the final weights with what they are, and remove the checkpoints."""
    if rank() == 0:
        buffer = io.BytesIO()
        torch.save({"identity": identity, "state": module.state_dict()}, buffer)
        write_atomic(folder / "model.pt", buffer.getvalue())
        Checkpoints(folder).clear()


def read_weights(
    path: Path, expected: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Identity and state of a ``model.pt``; every entry of ``expected`` must agree.

    Raises:
        WeightsError: missing, damaged, or made by another method, backbone or class table.
    """
    if not path.exists():
        raise WeightsError(
            f"{path} is missing",
            "trained weights",
            "run wsss-trainer fit again: it goes on where it stopped",
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        identity, state = content["identity"], content["state"]
    except Exception as error:
        raise WeightsError(
            f"{path} cannot be read: {error}", "weights written by wsss-trainer"
        ) from error
    check_finite(path, state)
    for key, value in expected.items():
        if identity.get(key) != value:
            raise WeightsError(
                f"{path} was made with {key} = {identity.get(key)}",
                f"{key} = {value}",
                "choose the run that made it, or another --run",
            )
    return identity, state


def load(path: Path, expected: dict[str, Any]) -> Method:
    """The trained method of ``classify/model.pt``, in evaluation mode. See ``read_weights`` for
    errors.
    """
    identity, state = read_weights(path, expected)
    _, config_class = method_classes(identity["method"])
    config = knobs.replace(config_class(), tuples(identity["method_config"]), "method")
    module = build(
        identity["method"],
        config,
        identity["backbone"],
        identity["backbone_knobs"],
        len(identity["classes"]),
    )
    module.load_state_dict(state)
    return module.eval()


def tuples(values: dict[str, Any]) -> dict[str, Any]:
    """Knobs as JSON keeps them, with lists made tuples again."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
