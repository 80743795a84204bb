"""Knobs come in layers, each over the ones before: recipe, method, preset, ``--refine``,
``--epochs`` and ``--size``, ``--set``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trainer.errors import ConfigError
from trainer.methods.recipes import RECIPES
from trainer.options import Configs, Options, make_configs, merged
from trainer.segmenters.config import PRESETS


def configs(**options: Any) -> Configs:
    options = {"backbone": "resnet38", **options}
    return make_configs(Options(Path("data"), Path("run"), **options))


def test_later_layers_win():
    layers = [{"cams": {"batch": 1, "pixels": 1}}, {"cams": {"batch": 2}, "irn": {"steps": 3}}]
    one = merged(layers)
    assert (one["cams"], one["irn"]) == ({"batch": 2, "pixels": 1}, {"steps": 3})


def test_every_layer_of_the_classifier_goes_over_the_one_before():
    paper = {"method": "sc_cam", "preset": "paper"}
    recipe, method = configs().classify, configs(method="sc_cam").classify
    assert recipe == RECIPES["psa"]
    assert method != recipe
    preset = configs(**paper).classify
    assert (preset.optimizer, preset.lr, preset.batch) == ("adam", 1e-3, method.batch)
    short = configs(**paper, epochs=2, size=224).classify
    assert (short.epochs, short.crop, short.lr) == (2, 224, preset.lr)
    # The range of sizes shrinks with the crop of the layers below.
    assert short.resize == tuple(round(side * 224 / preset.crop) for side in preset.resize)
    typed = ("classify.epochs=7", "classify.crop=96", "classify.lr=0.5")
    last = configs(**paper, epochs=2, size=224, settings=typed).classify
    assert (last.epochs, last.crop, last.lr, last.resize) == (7, 96, 0.5, short.resize)


def test_the_refinement_goes_over_the_recipe_and_set_over_both():
    small = configs(backbone="mobilenet_v2", refine="irn")
    assert (small.refine.calibrate, small.refine.crf_after_walk) == (True, True)
    assert (small.refine.threshold_from, small.refine.threshold) == ("fixed", 0.25)
    published = configs(refine="psa")
    assert (published.affinity.lr, published.refine.crf_after_walk) == (0.1, False)
    typed = configs(refine="psa", settings=("affinity.lr=0.3", "refine.crf_after_walk=on"))
    assert (typed.affinity.lr, typed.refine.crf_after_walk) == (0.3, True)
    way = configs(settings=("refine.refine=irn",)).refine
    assert (way.refine, way.threshold_from) == ("irn", "fixed")


def test_epochs_replace_the_updates_that_a_paper_counts():
    assert PRESETS["deeplab-v2-r101"].updates > 0
    short = configs(segmenter="deeplab-v2-r101", epochs=2).segment
    assert (short.epochs, short.updates) == (2, 0)
    again = configs(segmenter="deeplab-v2-r101", epochs=2, settings=("segment.updates=9",)).segment
    assert again.updates == 9


def test_a_knob_that_the_segmenter_does_not_have_is_refused():
    with pytest.raises(
        ConfigError, match="the segmenter deeplab-v2-r101 has no knob 'output_stride'"
    ):
        configs(segmenter="deeplab-v2-r101", settings=("segment.output_stride=8",))
