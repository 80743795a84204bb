"""Stages ``segment`` and ``segment_full``: train a segmenter on pseudo or on true masks, and
predict every measured list.

Training and test are stages of their own, so that predictions can be made again, with other scales
or another CRF, without another training.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from trainer.context import Context, Need, Stage, results_of
from trainer.data.dataset import Record
from trainer.errors import DataError
from trainer.evaluation.measure import MAPS
from trainer.run import Metrics, Output
from trainer.segmenters import make_segmenter, prediction
from trainer.segmenters.config import TEST_KNOBS
from trainer.segmenters.start import Source
from trainer.segmenters.training import check_masks, read_pseudo_mask, train_segmenter
from trainer.stages.classify import trained_method
from trainer.training.loop import step_rng
from trainer.training.model_file import read_model

FULL = "segment_full"


def stages(name: str, inputs: tuple[str, ...], source: Source) -> list[Stage]:
    """Training and test of ``segment`` or ``segment_full``.

    Args:
        name: of the test; the training's is ``<name>_train``.
        inputs: stages that the training reads.
        source: what the network starts from.
    """
    knobs, work = partial(_training_knobs, name), partial(_train, name)
    # A segmenter's own file is found by its start; the backbone's is the run's.
    needs: Need = source if source in ("weights", "classifier") else "nothing"
    training = Stage(f"{name}_train", inputs, knobs, work, name, needs)
    folder = f"{name}/predictions"
    return [training, Stage(name, (training.name,), _test_knobs, partial(_test, name), folder)]


def _training_knobs(name: str, context: Context) -> Any:
    every, start = results_of(context.configs.segment), context.start
    own = {k: v for k, v in every.items() if k not in TEST_KNOBS}
    sha256 = start.report.sha256 if start.report else start.source
    truth = [context.dataset.mask_fingerprint(context.training)] if name == FULL else []
    return [context.backbone, sha256, context.train_list, context.seed, own, *truth]


def _test_knobs(context: Context) -> Any:
    every = results_of(context.configs.segment)
    return [{k: v for k, v in every.items() if k in TEST_KNOBS}, context.measured_lists]


def _train(name: str, context: Context, output: Output) -> None:
    true, dataset, masks = name == FULL, context.dataset, context.run.path / "masks"
    records = _trained_on(context, true)
    if not true:
        check_masks(records, masks)
    key = context.run.key(f"{name}_train")
    identity = {
        **context.identity(),
        "initial": context.start.supervision(context.supervision),
        "supervision": "true masks" if true else "tags",
        "key": key,
    }
    path = output.folder / "model.pt"
    # A run that was killed between its weights and its manifest need not train again.
    if path.exists() and read_model(path, {})[0].get("key") == key:
        return
    train_segmenter(
        make_segmenter(context.configs.segment, context.backbone, len(dataset.classes)),
        fresh_network(context),
        records,
        dataset.read_mask if true else partial(read_pseudo_mask, folder=masks),
        output,
        Metrics(context.run.path / "metrics.csv", name),
        context.seed,
        identity,
        context.device,
    )


def _trained_on(context: Context, true: bool) -> list[Record]:
    """The images that have a mask to learn from.

    Raises:
        DataError: there is none.
    """
    without = set() if true else context.run.left_out
    records = [
        record
        for record in context.training
        if record.id not in without and (not true or context.dataset.has_mask(record))
    ]
    if not records:
        raise DataError(
            f"no image of list {context.train_list!r} has a true mask",
            "masks for --supervision full",
        )
    return records


def _test(name: str, context: Context, output: Output) -> None:
    identity = {"classes": list(context.dataset.classes)}
    segmenter, network, _ = prediction.load(context.model(name), identity, context.configs.segment)
    for list_name in context.measured_lists:
        records = context.dataset.subset(list_name)
        folder, title = output.folder / list_name, f"{name} {list_name}"
        maps = output.folder / MAPS / list_name
        prediction.predict(segmenter, network, records, folder, title, context.device, maps=maps)
        output.outputs[list_name] = len(records)


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
