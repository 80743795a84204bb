from dataclasses import dataclass
from typing import Literal

import pytest

from trainer import config as knobs
from trainer.context import results_of
from trainer.errors import ConfigError
from trainer.maps.protocols import CamsConfig
from trainer.methods.recipes import ClassifyConfig
from trainer.segmenters.config import SegmentConfig


@dataclass(frozen=True)
class Knobs:
    count: int = 3
    rate: float = 0.5
    on: bool = True
    name: str = "x"
    kind: Literal["soft", "hard"] = "soft"
    momentum: float | Literal["code"] = "code"
    pair: tuple[int, int] = (1, 2)
    scales: tuple[float, ...] = (1.0,)
    limit: int | None = 7


def test_settings_are_split_by_section():
    texts = ["classify.epochs=5", " cams.scales = 1,2 ", "method.note=a=b.c"]
    assert knobs.parse_settings(texts, ["classify", "cams", "method", "refine"]) == {
        "classify": {"epochs": "5"},
        "cams": {"scales": " 1,2 "},
        "method": {"note": "a=b.c"},
        "refine": {},
    }


@pytest.mark.parametrize("text", ["epochs=5", "classify.epochs", "", "=", "classify"])
def test_what_is_no_setting_is_refused(text):
    with pytest.raises(ConfigError, match="is not a setting") as caught:
        knobs.parse_settings([text], ["classify"])
    assert caught.value.expected == "section.key=value"


def test_an_unknown_section_shows_the_nearest():
    with pytest.raises(ConfigError, match="'clasify'") as caught:
        knobs.parse_settings(["clasify.epochs=5"], ["classify", "cams"])
    assert "did you mean 'classify'?" in caught.value.expected


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("count", "12", 12),
        ("rate", "1e-3", 1e-3),
        ("rate", "2", 2.0),
        ("on", "off", False),
        ("on", "TRUE", True),
        ("name", "1,5", "1,5"),
        ("kind", "hard", "hard"),
        ("momentum", "0.9", 0.9),
        ("momentum", "code", "code"),
        ("pair", "256,512", (256, 512)),
        ("pair", "(256, 512)", (256, 512)),
        ("scales", "1,0.5, 2", (1.0, 0.5, 2.0)),
        ("scales", "[1]", (1.0,)),
        ("scales", "", ()),
        ("limit", "none", None),
        ("limit", "4", 4),
    ],
)
def test_text_becomes_the_type_of_the_knob(key, text, value):
    got = getattr(knobs.replace(Knobs(), {key: text}, "here"), key)
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        ("count", "1.5", "int"),
        ("rate", "fast", "float"),
        ("on", "maybe", "on or off"),
        ("kind", "sort", "did you mean 'soft'"),
        ("momentum", "paper", "float or known: code"),
        ("pair", "1", "2 values"),
        ("pair", "1,2,3", "2 values"),
        ("pair", "1,b", "int"),
        ("scales", "1,x", "float"),
        ("limit", "many", "int"),
    ],
)
def test_a_value_of_the_wrong_kind_says_where_and_what(key, text, expected):
    with pytest.raises(ConfigError) as caught:
        knobs.replace(Knobs(), {key: text}, "here")
    assert f"here.{key}={text}".startswith(caught.value.found.split("=")[0])
    assert expected in caught.value.expected


def test_an_unknown_knob_shows_the_nearest():
    with pytest.raises(ConfigError, match="classify has no knob 'epoch'") as caught:
        knobs.replace(ClassifyConfig(), {"epoch": "5"}, "classify")
    assert "did you mean 'epochs'?" in caught.value.expected


def test_inherited_knobs_and_ready_values_are_taken():
    changed = knobs.replace(
        ClassifyConfig(), {"momentum": "0.9", "crop": 64, "resize": "32,64"}, "classify"
    )
    assert (changed.momentum, changed.crop, changed.resize) == (0.9, 64, (32, 64))
    assert changed.epochs == ClassifyConfig().epochs


def test_runs_of_earlier_versions_keep_their_segmenters():
    assert not {"side", "tag_loss", "verdict"} & results_of(SegmentConfig()).keys()
    assert results_of(SegmentConfig(side=340))["side"] == 340


def test_as_dict_is_plain_json():
    assert knobs.as_dict(CamsConfig(scales=(1.0, 2.0))) == {
        "protocol": "auto",
        "scales": [1.0, 2.0],
        "min_cells": 16,
        "precision": "fp32",
        "batch": 4,
        "workers": -1,
        "bad": "stop",
        "pixels": 4_000_000,
        "side": 0,
        "tile": 0,
        "sharpen": False,
        "departures": False,
        "unknown": 0.5,
    }
