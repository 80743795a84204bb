"""What ``wsss-trainer fit`` was asked for, and the config of each stage that follows from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trainer import config as knobs
from trainer.data.knobs import DataConfig
from trainer.data.sizes import TILE
from trainer.errors import ConfigError, nearest
from trainer.evaluation.knobs import EvaluateConfig
from trainer.maps.protocols import CamsConfig
from trainer.methods.recipes import RECIPES, ClassifyConfig, make_config
from trainer.methods.recipes import recipe as recipe_of
from trainer.methods.registry import declaration
from trainer.refine import affinitynet, irnet
from trainer.refine.affinitynet import PUBLISHED_LR, AffinityConfig
from trainer.refine.irnet import IrnConfig
from trainer.refine.presets import named_refinement
from trainer.refine.pseudo_masks import RefineConfig
from trainer.segmenters import segmenter_class
from trainer.segmenters.config import PRESETS, SCRATCH, SegmentConfig
from trainer.training.devices import check_device

STAGES = ("classify", "cams", "refine", "segment", "evaluate", "report")
"""Where ``--until`` can stop."""

SECTIONS = (
    "data",
    "method",
    "classify",
    "cams",
    "refine",
    "affinity",
    "irn",
    "segment",
    "evaluate",
)

PUBLISHED_THRESHOLD = {"threshold_from": "fixed", "threshold": 0.25}
"""Of maps after IRNet's walk, as released; calibrated maps of small networks have it too."""

Layer = dict[str, dict[str, Any]]
"""Changes of knobs: section -> knob -> value."""


@dataclass(frozen=True)
class Options:
    """What ``wsss-trainer fit`` was asked for; see its ``--help``."""

    data: Path
    run: Path
    method: str = "cam"
    backbone: str = "mobilenet_v2"
    weights: str | None = None
    classifier: Path | None = None
    labels_from: str | None = None
    recipe: str | None = None
    preset: str | None = None
    refine: str | None = None
    detail: Literal["auto", "coarse", "fine"] = "auto"
    segmenter: str = "aspp"
    segmenter_weights: str | None = None
    cams: Path | None = None
    train_list: str | None = None
    val_list: str | None = None
    masks: str | None = None
    corrections: Path | None = None
    epochs: int | None = None
    size: int | None = None
    until: str = "report"
    supervision: Literal["weak", "full", "both"] = "weak"
    seed: int = 0
    device: str = "auto"
    settings: tuple[str, ...] = ()

    def reaches(self, part: str) -> bool:
        """Whether ``--until`` stops at ``part``, one of ``STAGES``, or later."""
        return STAGES.index(self.until) >= STAGES.index(part)

    @property
    def pretrained(self) -> bool:
        """Whether networks start from weights of the backbone. A given classifier is trained and
        needs none, unless some are named.
        """
        if self.weights is None:
            return self.classifier is None
        return self.weights != "none"


@dataclass(frozen=True)
class Configs:
    """One config a stage."""

    data: DataConfig
    method: Any
    classify: ClassifyConfig
    cams: CamsConfig
    refine: RefineConfig
    affinity: AffinityConfig
    irn: IrnConfig
    segment: SegmentConfig
    evaluate: EvaluateConfig

    @property
    def checkpoint(self) -> str:
        """File of the trained network that walks; empty where the run trains one or has no walk."""
        files = {"affinity": self.affinity.checkpoint, "irn": self.irn.checkpoint}
        file = files.get(self.refine.refine, "none")
        return "" if file == "none" else file


def make_configs(
    options: Options, of_data: Layer | None = None, of_masks: Layer | None = None
) -> Configs:
    """The knobs of every stage, in layers, each over the ones before: recipe, what the data ask
    for, ``--preset``, ``--refine``, ``--epochs`` and ``--size``, what true masks that train ask
    for, ``--set``.

    Args:
        options: as typed.
        of_data: see ``trainer.adaptation``.
        of_masks: see ``trainer.adaptation``.

    Raises:
        ConfigError: unknown method, recipe, preset, segmenter, section or knob.
    """
    check_device(options.device)
    check_seed(options.seed)
    # First, because ``refine.refine`` decides what ``--refine`` changes.
    user_layer = typed_layer(options)
    recipe = options.recipe or recipe_of(options.backbone, options.weights)
    layers = [
        recipe_layer(options.method, recipe),
        of_data or {},
        method_preset(options.method, options.preset, recipe),
    ]
    # --size shrinks the range of sizes of the layers below, so they are needed first.
    classify = make_config(recipe, merged(layers)["classify"])
    way_of_data = layers[1].get("refine", {}).get("refine")
    layers += [
        refinement_layer(
            options.refine or way_of_data, user_layer["refine"].get("refine"), is_small(recipe)
        ),
        short_layer(options.epochs, options.size, classify),
        of_masks or {},
        detail_layer(options.detail, options.segmenter),
        user_layer,
    ]
    changes = merged(layers)
    defaults: dict[str, Any] = {
        "data": DataConfig(),
        "method": declaration(options.method).config(),
        "classify": classify,
        "cams": CamsConfig(),
        "refine": RefineConfig(),
        "affinity": AffinityConfig(),
        "irn": IrnConfig(),
        "segment": segment_default(options.segmenter, recipe),
        "evaluate": EvaluateConfig(),
    }
    titles = {"method": f"method {options.method}"}
    configs = Configs(
        **{
            section: knobs.replace(default, changes[section], titles.get(section, section))
            for section, default in defaults.items()
        }
    )
    check_segmenter_knobs(configs.segment.network, user_layer["segment"])
    return configs


def check_seed(seed: int) -> None:
    """Raises ConfigError: numpy takes no such seed."""
    if not 0 <= seed < 2**32:
        raise ConfigError(f"--seed {seed}", f"0 to {2**32 - 1}")


def merged(layers: list[Layer]) -> Layer:
    """One layer of all; later ones win."""
    return {
        section: {knob: v for layer in layers for knob, v in layer.get(section, {}).items()}
        for section in SECTIONS
    }


def is_small(recipe: str) -> bool:
    """Whether a recipe is ours, for small networks, and not one of a paper's."""
    return recipe not in ("psa", "irn")


def recipe_layer(method: str, recipe: str) -> Layer:
    """What a recipe changes outside of the classifier, and what the method changes of a recipe."""
    entry = declaration(method)
    # A method's published training is for the networks that it was published with.
    layer: Layer = {"classify": dict(entry.training.get(recipe, {}))}
    if is_small(recipe):
        layer |= {
            "method": dict(entry.small),
            "refine": {"calibrate": True},
            "affinity": affinitynet.SMALL,
            "irn": irnet.SMALL,
        }
    return layer


def method_preset(method: str, name: str | None, recipe: str = "") -> Layer:
    """What ``--preset`` changes.

    A change of ``<recipe>.<knob>`` is one of ``classify`` with this recipe only: published rates
    are for the networks that they were published with.

    Raises:
        ConfigError: the method has no such preset.
    """
    presets = declaration(method).presets
    if name is not None and name not in presets:
        raise ConfigError(
            f"{method} has no preset {name!r}",
            nearest(name, presets) if presets else "no --preset",
            f"wsss-trainer methods {method}",
        )
    layer: Layer = {section: {} for section in SECTIONS}
    for knob, value in (presets[name] if name else {}).items():
        section, _, key = knob.partition(".")
        if section == recipe:
            section = "classify"
        if section not in RECIPES:
            layer[section][key] = value
    return layer


def refinement_layer(name: str | None, way: str | None, small: bool) -> Layer:
    """What ``--refine`` changes.

    Args:
        name: of the refinement; None for the dense CRF.
        way: ``--set refine.refine``, which goes over the name's own way.
        small: see ``is_small``.
    """
    changes = named_refinement(name or "crf")
    refine = dict(changes["refine"])
    way = way or refine["refine"]
    if way in ("affinity", "irn"):
        # Released code ends a walk with arg-max, ours for small networks with a CRF.
        refine.setdefault("crf_after_walk", small)
    if way == "irn":
        refine = {**PUBLISHED_THRESHOLD, **refine}
    layer = {**changes, "refine": refine}
    if name in PUBLISHED_LR and not small:
        layer["affinity"] = {**layer["affinity"], "lr": PUBLISHED_LR[name]}
    return layer


def short_layer(epochs: int | None, size: int | None, classify: ClassifyConfig) -> Layer:
    """What ``--epochs`` and ``--size`` change, of the classifier ``classify`` and of the segmenter.

    Raises:
        ConfigError: a size that no crop can have.
    """
    layer: Layer = {"classify": {}, "segment": {}}
    if epochs is not None:
        # Where a paper or the data ask for updates, epochs count instead of them.
        layer["classify"] |= {"epochs": epochs, "updates": 0}
        layer["segment"] |= {"epochs": epochs, "updates": 0}
    if size is not None:
        if not (sides := knobs.ranges(ClassifyConfig)["crop"]).holds(size):
            raise ConfigError(f"--size {size}", str(sides))
        low, high = (round(side * size / classify.crop) for side in classify.resize)
        layer["classify"] |= {"crop": size, "resize": (low, high)}
        layer["segment"]["crop"] = size
    return layer


def detail_layer(detail: str, segmenter: str) -> Layer:
    """What ``--detail`` changes; with ``auto`` the data decide, see ``trainer.adaptation``."""
    if detail == "auto":
        return {}
    tile = TILE if detail == "fine" else 0
    layer: Layer = {
        "classify": {"detail": detail},
        "cams": {"tile": tile, "sharpen": detail == "fine"},
    }
    if segmenter == "aspp":
        # Published networks have a form of their own.
        layer["segment"] = {"detail": detail, "tile": tile}
    return layer


def typed_layer(options: Options) -> Layer:
    """What ``--labels-from`` and ``--set`` change."""
    layer: Layer = dict(knobs.parse_settings(options.settings, SECTIONS))
    labels = {"labels_from": options.labels_from} if options.labels_from else {}
    for section in ("classify", "segment"):
        # Who types epochs wants them to count.
        if "epochs" in layer[section]:
            layer[section] = {"updates": 0, **layer[section]}
    return {**layer, "data": {**labels, **layer["data"]}}


def segment_default(name: str, recipe: str) -> SegmentConfig:
    """The knobs of ``--segmenter``.

    Raises:
        ConfigError: there is no such segmenter.
    """
    if name not in PRESETS:
        raise ConfigError(
            f"there is no segmenter {name!r}",
            nearest(name, PRESETS),
            "--segmenter with one of these names",
        )
    return SCRATCH if name == "aspp" and recipe == "scratch" else PRESETS[name]


def check_segmenter_knobs(network: str, changes: dict[str, Any]) -> None:
    """Refuse knobs that the segmenter ``network`` does not have.

    Raises:
        ConfigError: one of ``changes`` is such a knob.
    """
    for knob in changes:
        if knob in segmenter_class(network).unused:
            raise ConfigError(
                f"the segmenter {network} has no knob {knob!r}",
                "one of its own",
                "docs/segmenters.md",
            )
