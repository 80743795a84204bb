"""Presets are what they are called: training, losses and views of a release or a paper."""

from pathlib import Path

import pytest

from trainer.commands.catalogue import describe_method, list_methods, print_catalogue
from trainer.methods.registry import method_names
from trainer.options import Configs, Options, make_configs

MVA_METHODS = ("mixup_cam", "fmix_cam", "manifold_mixup_cam", "subcategory_teaching")
PAIR = ("code", "paper")


def configs(method: str, preset: str | None, backbone: str = "resnet38", **more: object) -> Configs:
    given = {"method": method, "preset": preset, "backbone": backbone, **more}
    return make_configs(Options(Path("d"), Path("r"), **given))  # type: ignore[arg-type]


STUDY = [(method, "mva") for method in MVA_METHODS] + [
    ("subcategory_teaching", "paper"),
    *((method, preset) for method in ("fmix_cam", "manifold_mixup_cam") for preset in PAIR),
]


@pytest.mark.parametrize(("method", "preset"), STUDY)
def test_the_training_of_the_mva_study_on_resnet38(method: str, preset: str) -> None:
    made = configs(method, preset)
    trained = made.classify
    assert (trained.lr, trained.new_factor, trained.batch) == (0.1, 1.0, 8)
    assert trained.epochs == (25 if method == "fmix_cam" else 15)
    assert (trained.crop, trained.clip, trained.poly_power) == (300, 1.0, 0.0)
    assert (trained.resize, trained.weight_decay, trained.optimizer) == ((256, 512), 5e-4, "sgd")
    assert made.cams.protocol == "mva"


@pytest.mark.parametrize("method", MVA_METHODS)
def test_a_small_network_keeps_its_own_rates(method: str) -> None:
    own, made = (configs(method, preset, "mobilenet_v2").classify for preset in (None, "mva"))
    assert (made.lr, made.epochs, made.poly_power) == (own.lr, own.epochs, own.poly_power)
    assert (made.batch, made.crop) == (8, 300)


def test_set_wins_over_a_preset() -> None:
    changes = ("classify.lr=0.05", "classify.epochs=20", "cams.protocol=psa")
    made = configs("fmix_cam", "mva", settings=changes)
    assert (made.classify.lr, made.classify.epochs, made.cams.protocol) == (0.05, 20, "psa")


def test_what_the_mixing_methods_measure() -> None:
    for method in ("fmix_cam", "manifold_mixup_cam"):
        code, paper, mva = (configs(method, p).method for p in ("code", "paper", "mva"))
        assert code == mva
        assert (mva.entropy, mva.coords, mva.cam_map) == ("mva", "normalised", "class_softmax")
        assert (paper.entropy, paper.coords, paper.cam_map) == ("vector", "cells", "relu")
    assert {configs("fmix_cam", p).method.mask for p in (None, "code", "paper", "mva")} == {
        "reference"
    }
    report = configs("mixup_cam", "paper")
    assert (report.classify.optimizer, report.classify.lr) == ("adam", 1e-3)


def test_cpn_hides_super_pixels_as_printed_and_as_released() -> None:
    code, paper = (configs("cpn", p).method for p in ("code", "paper"))
    assert (code.patches, code.segments, code.draw) == ("superpixel", 300, "replacement")
    assert (paper.patches, paper.segments, paper.draw) == ("superpixel", 200, "independent")
    assert configs("cpn", None).method.patches == "grid"


def test_vwe_pools_as_released_and_joins_its_maps_as_printed() -> None:
    code, paper = (configs("vwe", p, "resnet50").method for p in ("code", "paper"))
    assert (code.pooling, code.word_branch, code.frequency) == ("hspp", False, "sum")
    assert (paper.pooling, paper.word_branch, paper.word_scale) == ("hspp", True, "none")
    assert paper.frequency == "mean"


@pytest.mark.parametrize(
    ("refine", "lr", "crf"),
    [
        ("psa", 0.1, (False, "P7")),
        ("psa-crf", 0.1, (True, "P1")),
        ("seam", 0.01, (False, "P7")),
        ("affinity", 0.01, (False, "P7")),
    ],
)
def test_rates_of_affinitynet(refine: str, lr: float, crf: tuple[bool, str]) -> None:
    made = configs("cam", None, refine=refine)
    assert made.affinity.lr == lr
    assert (made.refine.crf_after_walk, made.refine.crf) == crf
    small = configs("cam", None, "mobilenet_v2", refine=refine)
    assert small.affinity.lr == 0.001
    assert small.refine.crf_after_walk
    by_hand = configs("cam", None, refine=refine, settings=("affinity.lr=0.02",))
    assert by_hand.affinity.lr == 0.02


@pytest.mark.parametrize("name", method_names())
def test_the_catalogue_prints_settings_that_exist(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    print_catalogue(describe_method(name))
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith("--preset")]
    for line in shown:
        title, _, changes = line.partition(": ")
        words = [word for word in changes.split() if "=" in word]
        made = configs(name, None, settings=tuple(words))
        if "recipe psa" in title:
            assert made.classify.lr == 0.1


def test_the_report_of_the_mva_master_is_nobody_elses() -> None:
    papers = {row["method"]: row["paper"] for row in list_methods()}
    assert not [name for name in papers if "Valerio" in papers[name]]
    assert all("MVA" in papers[name] for name in MVA_METHODS if name != "mixup_cam")
