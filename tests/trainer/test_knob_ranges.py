"""No value of a knob can hang a command or end as a traceback: each has a range that is checked."""

from __future__ import annotations

import dataclasses
import typing
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from trainer import config as knobs
from trainer.cli import app
from trainer.config import Range, ranges
from trainer.data.knobs import DataConfig
from trainer.errors import ConfigError, UserError, explained
from trainer.evaluation.knobs import EvaluateConfig
from trainer.maps.protocols import CamsConfig
from trainer.methods.recipes import RECIPES, ClassifyConfig
from trainer.methods.registry import method_classes, method_names
from trainer.options import Options, make_configs
from trainer.refine.affinitynet import AffinityConfig
from trainer.refine.irnet import IrnConfig
from trainer.refine.pseudo_masks import RefineConfig
from trainer.scenes.writing import write_synthetic
from trainer.segmenters.config import PRESETS, SegmentConfig

SECTIONS: dict[str, type[Any]] = {
    "data": DataConfig,
    "classify": ClassifyConfig,
    "cams": CamsConfig,
    "refine": RefineConfig,
    "affinity": AffinityConfig,
    "irn": IrnConfig,
    "segment": SegmentConfig,
    "evaluate": EvaluateConfig,
    **{f"method {name}": method_classes(name)[1] for name in method_names()},
}
BAD = ("-1", "0", "nan", "inf", "-inf", "1e9", "-1e308", "9" * 30, "", "1,nan", "0,0", "x")


def numeric(hint: Any) -> bool:
    if hint in (int, float):
        return True
    return any(numeric(part) for part in typing.get_args(hint))


@pytest.mark.parametrize("section", SECTIONS)
def test_every_numeric_knob_has_a_range_that_is_kept(section: str) -> None:
    config = SECTIONS[section]
    hints, limits = typing.get_type_hints(config), ranges(config)
    for field in dataclasses.fields(config):
        if not numeric(hints[field.name]):
            continue
        assert field.name in limits, f"{section}.{field.name} has no Range"
        for text in BAD:
            value = given(config, field.name, text)
            values = value if isinstance(value, tuple) else (value,)
            assert all(isinstance(v, str) or limits[field.name].holds(v) for v in values)


def given(config: type[Any], knob: str, text: str) -> Any:
    """The value that the knob has, or a word where an error names it and says what is right."""
    try:
        return getattr(knobs.replace(config(), {knob: text}, "section"), knob)
    except ConfigError as error:
        return "refused" if knob in error.found and error.expected else float("nan")


@pytest.mark.parametrize(
    ("limits", "text", "inside", "outside"),
    [
        (Range(1, 10_000), "1 to 10,000", (1, 10_000), (0, 10_001, float("nan"))),
        (Range(0, 1, above=True), "above 0 to 1", (1e-9, 1), (0, 1.1)),
        (Range(0, 0.5, below=True), "0 to below 0.5", (0, 0.49), (0.5, float("inf"))),
    ],
)
def test_a_range(
    limits: Range, text: str, inside: tuple[float, ...], outside: tuple[float, ...]
) -> None:
    assert str(limits) == text
    assert all(map(limits.holds, inside))
    assert not any(map(limits.holds, outside))


def test_presets_and_recipes_are_within_their_ranges() -> None:
    for config in (*RECIPES.values(), *PRESETS.values()):
        dataclasses.replace(config)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("classify.resize=256,100", "classify.resize=256,100"),
        ("affinity.low_alpha=40", "low_alpha=40 high_alpha=32"),
        ("irn.rescale=2,1", "irn.rescale"),
        ("segment.label_stride=32", "label_stride=32 crop=16"),
        ("segment.rates=", r"segment.rates=\(nothing\)"),
        ("cams.scales=1,nan", "cams.scales=1.0,nan"),
        ("classify.ema=1", "classify.ema=1.0"),
    ],
)
def test_values_that_do_not_go_together(text: str, found: str) -> None:
    settings = ("segment.crop=16", text)
    with pytest.raises(ConfigError, match=found):
        make_configs(Options(Path("data"), Path("run"), settings=settings))


@pytest.mark.parametrize(
    ("change", "found", "expected"),
    [
        ({"seed": -1}, "--seed -1", "0 to"),
        ({"seed": 2**32}, "--seed", "0 to"),
        ({"device": "gpu0"}, "--device gpu0", "auto, cpu, cuda"),
        ({"epochs": 0}, "classify.epochs=0", "1 to"),
        ({"size": 0}, "--size 0", "16 to"),
        ({"size": 10**9}, "--size", "16 to"),
    ],
)
def test_options_have_ranges_too(change: dict[str, Any], found: str, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        make_configs(Options(Path("data"), Path("run"), **change))
    assert found in caught.value.found
    assert expected in caught.value.expected


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_an_error() -> None:
    with pytest.raises(ConfigError, match="torch finds no GPU"):
        make_configs(Options(Path("data"), Path("run"), device="cuda"))


def test_a_warm_up_longer_than_the_training_is_an_error(tmp_path: Path) -> None:
    write_synthetic(tmp_path / "data", 6, 32)
    with pytest.raises(ConfigError, match=r"classify.warmup=9 of 1 updates"):
        fit(tmp_path, "classify.warmup=9")


BORDERS = (
    "classify.crop=16",
    "classify.resize=16,16",
    "classify.batch=4096",
    "classify.workers=0",
    "classify.ema=0.999",
    "classify.poly_power=0",
    "cams.scales=0.05,8",
    "cams.pixels=10000",
    "cams.batch=1",
    "refine.pixels=10000",
    "refine.alpha=1000",
    "segment.crop=8",
    "segment.label_stride=8",
    "segment.rates=128",
    "segment.scale=0.05,8",
    "segment.scales=0.05,8",
    "segment.hsv=180",
    "segment.pixels=10000",
    "segment.workers=0",
)


def fit(folder: Path, *settings: str) -> None:
    line = ["fit", str(folder / "data"), "--run", str(folder / "run"), "--epochs", "1"]
    line += ["--backbone", "resnet18", "--weights", "none", "--until", "segment"]
    for setting in settings:
        line += ["--set", setting]
    result = CliRunner().invoke(app, line)
    if result.exception is not None:
        raise result.exception


def test_batch_norm_of_a_single_value_is_an_error_of_knobs(tmp_path: Path) -> None:
    write_synthetic(tmp_path / "data", 6, 32)
    with pytest.raises(UserError, match="batch norm cannot learn from a single value") as caught:
        fit(tmp_path, "classify.crop=16", "classify.resize=16,16", "classify.accumulate=4096")
    assert "accumulate" in caught.value.hint


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
            "not",
        ),
        (MemoryError(), "not enough memory"),
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."),
            "a loader process",
        ),
        (RuntimeError("anything else"), ""),
    ],
)
def test_what_the_machine_cannot_do_is_said_in_words(error: Exception, found: str) -> None:
    wrapped = RuntimeError("image 'a'")
    wrapped.__cause__ = error
    known = explained(wrapped)
    assert (known.found if known else "").startswith(found)
    assert (known is None) == (not found)


def test_values_at_the_borders_run(tmp_path: Path) -> None:
    write_synthetic(tmp_path / "data", 6, 32)
    fit(tmp_path, *BORDERS)
    assert (tmp_path / "run" / "segment" / "model.pt").exists()
