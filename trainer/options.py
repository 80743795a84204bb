"""What ``wsss-trainer fit`` was asked for, and the config of each stage that follows from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trainer import config as knobs
from trainer.data.knobs import DataConfig
from trainer.errors import ConfigError, nearest
from trainer.evaluation.knobs import EvaluateConfig
from trainer.maps.protocols import CamsConfig
from trainer.methods.recipes import RECIPES, ClassifyConfig, make_config
from trainer.methods.recipes import recipe as recipe_of
from trainer.methods.registry import method_classes, method_module
from trainer.refine import affinitynet, irnet
from trainer.refine.affinitynet import PUBLISHED_LR, AffinityConfig
from trainer.refine.irnet import IrnConfig
from trainer.refine.presets import named_refinement
from trainer.refine.pseudo_masks import RefineConfig
from trainer.segmenters import segmenter_class
from trainer.segmenters.config import PRESETS, SCRATCH, SegmentConfig
from trainer.training.devices import check_device

STAGES = ("classify", "cams", "refine", "segment", "evaluate", "report")
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
"""Of maps after IRNet's walk, as released (spec refine-segment 4.5); calibrated maps of small
networks have it too.
"""


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
    segmenter: str = "aspp"
    segmenter_weights: str | None = None
    cams: Path | None = None
    train_list: str | None = None
    val_list: str | None = None
    epochs: int | None = None
    size: int | None = None
    until: str = "report"
    supervision: Literal["weak", "full", "both"] = "weak"
    seed: int = 0
    device: str = "auto"
    settings: tuple[str, ...] = ()


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
        """File of the trained network that the walk is to use; empty where one is trained or there
        is no walk.
        """
        given = {"affinity": self.affinity.checkpoint, "irn": self.irn.checkpoint}.get(
            self.refine.refine, "none"
        )
        return "" if given == "none" else given


def make_configs(options: Options) -> Configs:
    """Recipe, method's own training, presets of method, ``--refine`` and ``--segmenter``,
    ``--epochs`` and ``--size``, ``--set``.

    Each goes over the one before.

    Raises:
        ConfigError: unknown method, recipe, preset, segmenter, section or knob.
    """
    check_device(options.device)
    if not 0 <= options.seed < 2**32:
        raise ConfigError(f"--seed {options.seed}", f"0 to {2**32 - 1}")
    _, method_config = method_classes(options.method)
    changes = knobs.parse_settings(options.settings, SECTIONS)
    recipe = options.recipe or recipe_of(options.backbone, options.weights)
    small = recipe not in ("psa", "irn")
    module = method_module(options.method)
    preset = method_preset(options.method, options.preset, recipe)
    own: dict[str, Any] = getattr(module, "SMALL", {}) if small else {}
    # A method's published training is for the networks that it was published with.
    published = getattr(module, "TRAINING", {}).get(recipe, {})
    base = make_config(recipe, {**published, **preset["classify"]})
    short: dict[str, Any] = {} if options.epochs is None else {"epochs": options.epochs}
    sizes: dict[str, Any] = {}
    if options.size is not None:
        if not (sides := knobs.ranges(ClassifyConfig)["crop"]).holds(options.size):
            raise ConfigError(f"--size {options.size}", str(sides))
        low, high = (round(side * options.size / base.crop) for side in base.resize)
        short["crop"], sizes["resize"] = options.size, (low, high)
    made = knobs.replace(base, {**short, **sizes, **changes["classify"]}, "classify")
    refinement = named_refinement(options.refine or "crf")
    ways: dict[str, dict[str, Any]] = (
        {"affinity": affinitynet.SMALL, "irn": irnet.SMALL} if small else {}
    )
    for section, way in refinement.items():
        ways[section] = {**ways.get(section, {}), **way}
    refiner = changes["refine"].get("refine", ways["refine"]["refine"])
    if refiner in ("affinity", "irn"):
        ways["refine"] = {"crf_after_walk": small, **ways["refine"]}
    if options.refine in PUBLISHED_LR and not small:
        ways["affinity"] = {**ways["affinity"], "lr": PUBLISHED_LR[options.refine]}
    if refiner == "irn":
        ways["refine"] |= PUBLISHED_THRESHOLD
    labels = {"labels_from": options.labels_from} if options.labels_from else {}
    return Configs(
        knobs.replace(DataConfig(), {**labels, **changes["data"]}, "data"),
        knobs.replace(
            method_config(),
            {**own, **preset["method"], **changes["method"]},
            f"method {options.method}",
        ),
        made,
        knobs.replace(CamsConfig(), {**preset["cams"], **changes["cams"]}, "cams"),
        knobs.replace(
            RefineConfig(calibrate=small), {**ways["refine"], **changes["refine"]}, "refine"
        ),
        knobs.replace(
            AffinityConfig(), {**ways.get("affinity", {}), **changes["affinity"]}, "affinity"
        ),
        knobs.replace(IrnConfig(), {**ways.get("irn", {}), **changes["irn"]}, "irn"),
        segment_config(options.segmenter, recipe, short, changes["segment"]),
        knobs.replace(EvaluateConfig(), changes["evaluate"], "evaluate"),
    )


def check_plans(options: Options, configs: Configs, tagged: int, images: int) -> None:
    """Look at every training that is to come, before the first of them.

    Args:
        options: what is to be done.
        configs: knobs.
        tagged: training images with tags.
        images: training images.

    Raises:
        ConfigError: a plan that cannot be, see ``Training.check_plan``.
    """
    if options.classifier is None and options.cams is None:
        configs.classify.check_plan(tagged)
    if options.until not in STAGES[:2] and not configs.checkpoint:
        walks = {"affinity": configs.affinity, "irn": configs.irn}
        if config := walks.get(configs.refine.refine):
            config.check_plan(tagged)
    if options.until in STAGES[3:]:
        configs.segment.check_plan(images)


def segment_config(
    name: str, recipe: str, short: dict[str, Any], changes: dict[str, Any]
) -> SegmentConfig:
    """Knobs of the segmenter ``name``, with those of ``--epochs`` and ``--size``, and ``--set``.

    Raises:
        ConfigError: there is no such segmenter, or a knob that it does not have.
    """
    if name not in PRESETS:
        raise ConfigError(
            f"there is no segmenter {name!r}",
            nearest(name, PRESETS),
            "--segmenter with one of these names",
        )
    base = SCRATCH if name == "aspp" and recipe == "scratch" else PRESETS[name]
    # A number of epochs is asked for instead of the published number of updates.
    made = knobs.replace(
        base, {**short, **({"updates": 0} if "epochs" in short else {}), **changes}, "segment"
    )
    for knob in changes:
        if knob in segmenter_class(made.network).unused:
            raise ConfigError(
                f"the segmenter {made.network} has no knob {knob!r}",
                "one of its own",
                "docs/segmenters.md",
            )
    return made


def method_preset(method: str, name: str | None, recipe: str = "") -> dict[str, dict[str, Any]]:
    """What ``--preset`` changes, by section.

    A change of ``<recipe>.<knob>`` is one of ``classify`` with this recipe only: published rates
    are for the networks that they were published with.

    Raises:
        ConfigError: the method has no such preset.
    """
    presets: dict[str, dict[str, Any]] = getattr(method_module(method), "PRESETS", {})
    if name is not None and name not in presets:
        raise ConfigError(
            f"{method} has no preset {name!r}",
            nearest(name, presets) if presets else "no --preset",
            f"wsss-trainer methods {method}",
        )
    changes: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    for knob, value in (presets[name] if name else {}).items():
        section, _, key = knob.partition(".")
        if section == recipe:
            section = "classify"
        if section not in RECIPES:
            changes[section][key] = value
    return changes
