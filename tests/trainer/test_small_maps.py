"""What small maps and short trainings ask for, and what of it a preset or the user keeps off."""

from pathlib import Path

import pytest

from trainer.data.dataset import Record
from trainer.methods import seam
from trainer.options import Options, make_configs, merged
from trainer.small_maps import about_maps

PHOTOGRAPHS = [Record(f"r{i}", Path(f"r{i}.jpg"), (i % 2,)) for i in range(1800)]


def chosen(longer: int | None = 2000, **options):
    typed = Options(Path("data"), Path("run"), **options)
    pairs = list(about_maps(typed, make_configs(typed), PHOTOGRAPHS, longer, []))
    layer = merged([layer for layer, _ in pairs])
    return make_configs(typed, layer), [reason for _, reason in pairs]


def test_a_short_training_of_sc_cam_goes_on_from_round_to_round():
    configs, reasons = chosen(method="sc_cam")
    assert configs.method.warm_start
    assert "a round has 560 updates" in reasons[0]
    long = ("classify.updates=5000",)
    assert not chosen(method="sc_cam", settings=long)[0].method.warm_start
    for stays in ({"preset": "code"}, {"settings": ("method.warm_start=off",)}):
        configs, reasons = chosen(method="sc_cam", **stays)
        assert not configs.method.warm_start
        assert reasons == []


@pytest.mark.parametrize(("crop", "second"), [(256, 0.6), (704, 0.3)])
def test_the_second_view_of_seam_follows_the_size_of_its_map(crop, second):
    size = (f"classify.crop={crop}",)
    configs, reasons = chosen(method="seam", settings=size)
    assert seam.second_scale(configs.method, crop / 16) == second
    assert any("second view has 0.6" in reason for reason in reasons) == (second == 0.6)
    # As published: 448 pixels at stride 8.
    assert seam.second_scale(seam.Config(), 56) == 0.3
    code, reasons = chosen(method="seam", settings=size, preset="code")
    assert seam.second_scale(code.method, crop / 16) == 0.3
    assert reasons == []


def test_methods_that_hold_on_small_maps_say_nothing():
    assert chosen()[1] == []
    assert chosen(None)[1] == []
    assert chosen(None, method="mixup_cam")[1] == []


@pytest.mark.parametrize(("method", "knobs"), [("seam", ("method.prcm=on",)), ("cpn", ())])
def test_the_soft_max_of_regions_is_not_saturated_on_small_networks(method, knobs):
    configs, reasons = chosen(method=method, settings=knobs)
    assert configs.method.prcm_spread == seam.SPREAD
    assert any("PRCM" in reason for reason in reasons)
    for stays in ({"preset": "code"}, {"preset": "paper"}):
        configs, _ = chosen(method=method, settings=knobs, **stays)
        assert (configs.method.prcm_spread, configs.cams.min_cells) == (0.0, 0)
    typed = (*knobs, "method.prcm_spread=0")
    assert chosen(method=method, settings=typed)[0].method.prcm_spread == 0
    assert chosen(method="seam")[0].method.prcm_spread == 0


def test_views_with_few_cells_are_named():
    _, reasons = chosen(longer=320)
    assert reasons == [
        "maps: no views at scale 0.5: the maps of most images would have fewer than 16 cells"
        " on the longer side"
    ]
    assert chosen(longer=500)[1] == []
    assert chosen(longer=320, settings=("cams.min_cells=0",))[1] == []
    # The largest view stays.
    assert "no views at scale 0.5, 1, 1.5:" in chosen(longer=60)[1][0]
