"""Stages between ``cams`` and ``refine`` of ``--refine affinity`` and ``--refine irn``: labels from
the maps, training of the network, and the walk of every map.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from trainer.context import Context, Need, Stage, results_of
from trainer.data.sizes import PIXELS
from trainer.files import file_sha256
from trainer.nets import build_backbone, usable_knobs
from trainer.nets.backbone import Backbone
from trainer.options import Configs
from trainer.ranks import rank
from trainer.refine.affinitynet import AffinityNet
from trainer.refine.irnet import IrNet
from trainer.run import Metrics, Output
from trainer.stages import affinity, irn
from trainer.stages.classify import trained_method
from trainer.stages.refine import calibrated_by, power
from trainer.training.loop import step_rng
from trainer.training.model_file import read_model
from trainer.weights.loading import load_backbone
from trainer.weights.released import load_refiner

# A stage's key holds only the knobs that change its files, so that another beta costs another walk
# and no training.
LABEL_KNOBS = {"low_alpha", "high_alpha", "crf", "crf_backend", "foreground", "background"}
WALK_KNOBS = {
    "beta",
    "steps",
    "walk_alpha",
    "walk_radius",
    "borders",
    "solver",
    "canvas",
    "threshold",
    "instances",
}


def stages(configs: Configs, has_weights: bool) -> list[Stage]:
    """What the refinement needs before the masks; nothing without a walk, and only the walk where
    a trained network is given.

    Args:
        configs: knobs.
        has_weights: whether there are weights of the backbone to start from.
    """
    name = configs.refine.refine
    if name not in ("affinity", "irn"):
        return []
    if configs.checkpoint:
        return [Stage("walk", ("cams",), _walk_knobs, _walk, needs="checkpoint")]
    own = name == "affinity" and configs.affinity.init == "classifier"
    needs: Need = "weights" if has_weights and not own else "classifier"
    return [
        Stage(f"{name}_labels", ("cams",), _label_knobs, _labels),
        Stage(name, (f"{name}_labels",), _training_knobs, _train, needs=needs),
        Stage("walk", (name,), _walk_knobs, _walk),
    ]


def network_config(context: Context) -> Any:
    """The knobs of the network that walks."""
    configs = context.configs
    return configs.affinity if configs.refine.refine == "affinity" else configs.irn


def _knobs_of(context: Context, names: set[str]) -> dict[str, Any]:
    every = results_of(network_config(context))
    return {name: every[name] for name in sorted(every.keys() & names)}


def _map_facts(context: Context) -> list[Any]:
    """What the walk sees of the maps besides their files."""
    config = context.configs.refine
    # The default leaves keys of older runs as they are.
    facts: list[Any] = [] if config.pixels == PIXELS else [config.pixels]
    if not config.calibrate:
        return facts
    source = calibrated_by(context)
    return [source, *context.truth(source), *facts]


def _label_knobs(context: Context) -> Any:
    return [_knobs_of(context, LABEL_KNOBS), _map_facts(context)]


def _training_knobs(context: Context) -> Any:
    own = results_of(network_config(context)).keys() - LABEL_KNOBS - WALK_KNOBS - {"checkpoint"}
    start = [context.backbone, context.initial_sha256, context.seed]
    return [_knobs_of(context, set(own)), start]


def _walk_knobs(context: Context) -> Any:
    checkpoint = context.configs.checkpoint
    more: list[Any] = [record.id for record in context.images]
    if checkpoint:
        file_facts = [file_sha256(Path(checkpoint)), context.backbone, _map_facts(context)]
        more = [more, file_facts]
    return [_knobs_of(context, WALK_KNOBS | {"radius"}), more]


def _labels(context: Context, output: Output) -> None:
    # The first process fills every core with workers; the others would only compete.
    if rank() > 0:
        return
    make = (
        partial(affinity.make_labels, config=context.configs.affinity)
        if context.configs.refine.refine == "affinity"
        else partial(irn.make_labels, config=context.configs.irn)
    )
    make(
        context.dataset,
        context.labelled,
        context.run.path / "cams",
        output.folder,
        power=power(context),
        progress=True,
        pixels=context.configs.refine.pixels,
    )
    output.outputs.update(count=len(context.labelled))
    output.metrics.update(power=round(power(context), 4))


def _train(context: Context, output: Output) -> None:
    if (output.folder / "model.pt").exists():
        return
    name = context.configs.refine.refine
    # Before the network is built, whose heads are random.
    step_rng(context.seed, 0)
    metrics = Metrics(context.run.path / "metrics.csv", name)
    labels = context.run.path / f"{name}_labels"
    rest = (output, metrics, context.seed, context.expected, context.device)
    net = _network(context)
    if isinstance(net, AffinityNet):
        affinity.train_affinity(net, context.labelled, labels, context.configs.affinity, *rest)
    else:
        irn.train_irn(net, context.labelled, labels, context.configs.irn, *rest)


def _walk(context: Context, output: Output) -> None:
    net, cams = trained_network(context), context.run.path / "cams"
    device, pixels = context.device, context.configs.refine.pixels
    if isinstance(net, AffinityNet):
        config = context.configs.affinity
        affinity.walk(
            net, context.mapped, cams, output.folder, config, power(context), device, pixels
        )
    else:
        own = context.configs.irn
        folder = context.run.path / "instances" if own.instances else None
        # So that a later run notices when instances are gone.
        output.places += [folder] if folder else []
        irn.walk(
            net, context.mapped, cams, output.folder, own, power(context), device, folder, pixels
        )
    checkpoint = context.configs.checkpoint
    output.outputs.update(
        count=len(context.mapped), **({"taken_from": checkpoint} if checkpoint else {})
    )
    output.metrics.update(power=round(power(context), 4))


def check_network(context: Context) -> None:
    """Refuse a backbone or a trained network that the walk cannot use, before anything trains.

    Raises:
        ConfigError: a backbone without the features that the network stands on.
        WeightsError: see ``trained_network``.
    """
    if context.configs.checkpoint:
        trained_network(context)
    else:
        # Random weights are enough: only the shape of the network is in question.
        _network(context, "none")


def trained_network(context: Context) -> AffinityNet | IrNet:
    """The network that walks: the given one, or what this run trained.

    Raises:
        WeightsError: a file that is missing, not whole, or of another network or class table.
    """
    net = _network(context, "none")
    if context.configs.checkpoint:
        load_refiner(net, Path(context.configs.checkpoint), context.dataset.classes)
    else:
        _, state = read_model(context.model(context.configs.refine.refine), context.expected)
        net.load_state_dict(state)
    return net


def _network(context: Context, init: str = "") -> AffinityNet | IrNet:
    """A fresh network on its initial weights, or on those that ``init`` names."""
    configs = context.configs
    if configs.refine.refine == "affinity":
        own = configs.affinity
        knobs = {"output_stride": own.output_stride, "bn": own.bn}
        return AffinityNet(_backbone(context, knobs, init or own.init))
    # The published backbone of IRNet.
    knobs = {"output_stride": 16, "dilate": False}
    return IrNet(_backbone(context, knobs, init or "auto"), configs.irn.displacement)


def _backbone(context: Context, knobs: dict[str, Any], init: str) -> Backbone:
    """A backbone on the weights that ``init`` names: ``weights``, ``classifier``, ``auto``, or
    random for ``none``.
    """
    name = context.backbone
    backbone = build_backbone(name, **usable_knobs(name, knobs))
    if init == "classifier" or (init == "auto" and context.initial is None):
        backbone.load_state_dict(trained_method(context).backbone.pretrained.state_dict())
    elif init != "none" and context.initial:
        load_backbone(backbone, context.initial.path)
    return backbone
