"""Stages ``segment`` and ``segment_full``: train a segmenter on pseudo or on true masks, and
predict every measured list.

Training and test are stages of their own, so that predictions can be made again, with other scales
or another CRF, without another training. With self-training, each round but the last is two stages
more: a training, and the masks that it leaves for the next one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from trainer.config import as_dict
from trainer.context import Context, Need, Stage, results_of
from trainer.data.dataset import Record
from trainer.data.tables.training_masks import LIST
from trainer.errors import DataError
from trainer.evaluation.measure import MAPS
from trainer.files import write_atomic
from trainer.ranks import rank
from trainer.refine.vote import origins
from trainer.run import Metrics, Output, stage_key
from trainer.segmenters import make_segmenter, prediction
from trainer.segmenters.config import MASK_KNOBS, ROUND_KNOBS, TEST_KNOBS, VERDICT, SegmentConfig
from trainer.segmenters.self_training import write_round
from trainer.segmenters.start import Source
from trainer.segmenters.training import (
    ReadMask,
    check_masks,
    read_pseudo_mask,
    train_segmenter,
)
from trainer.stages import sure_masks
from trainer.stages.classify import trained_method
from trainer.training.loop import step_rng
from trainer.training.model_file import read_model

FULL = "segment_full"


def stages(name: str, inputs: tuple[str, ...], source: Source, rounds: int = 1) -> list[Stage]:
    """Training and test of ``segment`` or ``segment_full``.

    Args:
        name: of the test; the last training's is ``<name>_train``.
        inputs: stages that the first training reads.
        source: what the network starts from.
        rounds: of self-training.
    """
    # A segmenter's own file is found by its start; the backbone's is the run's.
    needs: Need = source if source in ("weights", "classifier") else "nothing"
    knobs, stages = partial(_training_knobs, name), []
    for number in range(1, rounds):
        training = SegmenterTraining(name, inputs, number)
        trained, masks = f"{training.title}_train", training.title
        stages += [
            Stage(trained, inputs, knobs, training.work, _model_folder(number), needs),
            Stage(masks, (trained,), _round_knobs, partial(_predict_round, number), _masks(number)),
        ]
        inputs = (masks,)
    work = SegmenterTraining(name, inputs, rounds, True).work
    last = Stage(f"{name}_train", inputs, knobs, work, name, needs)
    folder = f"{name}/predictions"
    return [*stages, last, Stage(name, (last.name,), _test_knobs, partial(_test, name), folder)]


def _model_folder(number: int | str) -> str:
    """Where the model of an earlier round lies below the run."""
    return f"rounds/{number}/segment"


def _masks(number: int) -> str:
    """Where the masks that round ``number`` leaves lie below the run."""
    return f"rounds/{number}/masks"


def _pseudo_masks(context: Context, number: int) -> Path:
    """The folder of the pseudo masks that round ``number`` trains on."""
    first = sure_masks.NAME if context.masks else "masks"
    return context.run.path / (_masks(number - 1) if number > 1 else first)


def _config(name: str, context: Context) -> SegmentConfig:
    """The knobs of a training."""
    return replace(context.configs.segment, **(context.full_segment if name == FULL else {}))


def _training_knobs(name: str, context: Context) -> Any:
    every, start = results_of(_config(name, context)), context.start
    masks = None if name == FULL else context.masks
    others = TEST_KNOBS | VERDICT | ROUND_KNOBS | (set() if masks else MASK_KNOBS)
    own = {k: v for k, v in every.items() if k not in others}
    sha256 = start.report.sha256 if start.report else start.source
    truth = [context.dataset.mask_fingerprint(context.training)] if name == FULL else []
    truth += context.truth(LIST) if masks else []
    return [context.backbone, sha256, context.train_list, context.seed, own, *truth]


def _round_knobs(context: Context) -> Any:
    every = results_of(context.configs.segment)
    test = {k: v for k, v in every.items() if k in TEST_KNOBS - {"crf"}}
    return [test, every["round_confidence"], _planned_crf(context)]


def _planned_crf(context: Context) -> str:
    """The dense CRF of predictions for the next round, as far as knobs say."""
    own, refine = context.configs.segment.round_crf, context.configs.refine
    if own != "auto":
        return own
    return refine.crf if refine.with_crf else "none"


def _round_crf(context: Context) -> str:
    """The dense CRF of predictions for the next round, after ``refine``."""
    planned = _planned_crf(context)
    if planned != LIST:
        return planned
    # True masks have chosen.
    return str(context.run.metrics("refine")["crf"])


def _test_knobs(context: Context) -> Any:
    every = results_of(context.configs.segment)
    return [{k: v for k, v in every.items() if k in TEST_KNOBS | VERDICT}, context.measured_lists]


@dataclass(frozen=True)
class SegmenterTraining:
    """One training of a segmenter.

    Attributes:
        name: ``segment`` or ``segment_full``.
        inputs: stages that it reads.
        number: of the round, from 1.
        is_last: whether its model is the run's.
    """

    name: str
    inputs: tuple[str, ...]
    number: int = 1
    is_last: bool = False

    @property
    def title(self) -> str:
        """Its name in progress lines and in ``metrics.csv``."""
        return self.name if self.is_last else f"{self.name}_round{self.number}"

    def work(self, context: Context, output: Output) -> None:
        """Train, and write ``model.pt``."""
        true, dataset = self.name == FULL, context.dataset
        masks, folder = context.masks, _pseudo_masks(context, self.number)
        records, true_records = _trained_on(context, true), list[Record]()
        read_mask: ReadMask = dataset.read_mask
        supervision = "true masks" if true else "tags"
        if not true:
            check_masks(records, folder)
            read_mask = partial(read_pseudo_mask, folder=folder)
        if not true and masks:
            true_records, read_mask = masks.images, partial(masks.read_either, folder=folder)
            supervision = f"tags and masks of {len(true_records)} images"
        if not true and (segments := origins(as_dict(context.configs))):
            supervision += f" and {segments}"
        key = self.key(context)
        identity = {
            **context.identity(),
            "initial": context.start.supervision(context.supervision),
            "supervision": supervision,
            "key": key,
        }
        if _is_trained(context, output, key):
            return
        train_segmenter(
            make_segmenter(_config(self.name, context), context.backbone, len(dataset.classes)),
            fresh_network(context),
            records,
            read_mask,
            output,
            Metrics(context.run.path / "metrics.csv", self.title),
            context.seed,
            identity,
            context.device,
            true_records,
        )

    def key(self, context: Context) -> str:
        """Hash of what the weights depend on: the key of the stage, if its round were the last."""
        if self.is_last:
            return str(context.run.key(f"{self.name}_train"))
        inputs = [str(context.run.key(name)) for name in self.inputs]
        return stage_key(f"{self.name}_train", _training_knobs(self.name, context), inputs)


def _is_trained(context: Context, output: Output, key: str) -> bool:
    """Whether the weights are there: of a run that was killed before its manifest was written, or
    of the same training under another number of rounds, whose file is copied.
    """
    path, run = output.folder / "model.pt", context.run.path
    others = [context.model("segment"), *sorted(run.glob(f"{_model_folder('*')}/model.pt"))]
    for file in (path, *others):
        if file.exists() and read_model(file, {})[0].get("key") == key:
            if file != path and rank() == 0:
                write_atomic(path, file.read_bytes())
            output.outputs.update(count=1, weights="model.pt")
            return True
    return False


def _trained_on(context: Context, true: bool) -> list[Record]:
    """The images that train on true masks alone, or those that train on pseudo masks.

    Raises:
        DataError: true masks are to train, and there is none.
    """
    trusted = context.masks.ids if context.masks else frozenset()
    without = set() if true else context.run.left_out | trusted
    training = context.dataset.with_masks(context.training) if true else context.training
    records = [record for record in training if record.id not in without]
    if true and not records:
        raise DataError(
            f"no image of list {context.train_list!r} has a true mask",
            "masks for --supervision full",
        )
    return records


def _test(name: str, context: Context, output: Output) -> None:
    identity = {"classes": list(context.dataset.classes)}
    config, device = context.configs.segment, context.device
    segmenter, network, _ = prediction.load(context.model(name), identity, config)
    least: list[float] = []
    if config.verdict:
        least = prediction.verdict(
            segmenter, network, context.dataset, context.training, f"{name} verdict", device
        )
        output.metrics["least"] = least
    for list_name in context.measured_lists:
        records = context.dataset.subset(list_name)
        folder, title = output.folder / list_name, f"{name} {list_name}"
        maps = output.folder / MAPS / list_name
        prediction.predict(
            segmenter, network, records, folder, title, device, maps=maps, least=least
        )
        output.outputs[list_name] = len(records)


def _predict_round(number: int, context: Context, output: Output) -> None:
    identity = {"classes": list(context.dataset.classes)}
    model = context.run.path / _model_folder(number) / "model.pt"
    segmenter, network, _ = prediction.load(model, identity, context.configs.segment)
    records, crf = _trained_on(context, False), _round_crf(context)
    former = _pseudo_masks(context, number)
    title = f"segment_round{number}"
    write_round(segmenter, network, records, former, output.folder, crf, title, context.device)
    output.outputs.update(count=len(records))
    output.metrics.update(crf=crf, confidence=context.configs.segment.round_confidence)


def fresh_network(context: Context) -> nn.Module:
    """The segmenter's network on its initial weights; its head is drawn from the seed."""
    # Before the network is built: its head is drawn here, whatever stages ran in this process.
    step_rng(context.seed, 0)
    segmenter = make_segmenter(
        context.configs.segment, context.backbone, len(context.dataset.classes)
    )
    network = segmenter.build()
    if context.start.source == "classifier":
        segmenter.take_backbone(network, trained_method(context).backbone)
    elif context.start.path is not None:
        segmenter.load(network, context.start.path)
    return network
