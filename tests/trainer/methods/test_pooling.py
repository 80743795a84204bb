from dataclasses import replace

import pytest
import torch
from golden import U

from trainer.errors import ConfigError
from trainer.methods import vwe
from trainer.methods.cam import Config
from trainer.methods.pooling import (
    OF_MAPS,
    PoolingConfig,
    gap,
    gmp,
    hspp,
    lse,
    pool_by,
    pooled_logits,
    topk,
)


def test_the_generator_is_that_of_the_specification():
    expected = [0.740084824, 0.564395128, 0.454749261, 0.272400737, 0.823448711]
    torch.testing.assert_close(
        U((5,), 1), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-8
    )
    torch.testing.assert_close(
        U((2, 2), 7).flatten().tolist(),
        [0.107687033, 0.904258046, 0.541490533, 0.790921164],
        rtol=0,
        atol=1e-8,
    )


@pytest.mark.parametrize(
    ("shape", "pooled", "expected"),
    [
        ((1, 3, 32, 32), hspp, (0.795904893, 0.798817011, 0.795677646)),
        ((1, 3, 11, 14), hspp, (0.783176336, 0.777435396, 0.772304741)),
        ((2, 3, 11, 14), gap, (0.541328452, 0.503144817, 0.518191866)),
        ((2, 3, 11, 14), gmp, (0.997233035, 0.995204345, 0.993556145)),
    ],
)
def test_golden_g10(shape, pooled, expected):
    out = pooled(U(shape, 43))
    assert out.shape == shape[:2]
    torch.testing.assert_close(out[0].tolist(), list(expected), rtol=1e-6, atol=0)


def test_adaptive_bins_agree_where_the_grid_divides_and_work_everywhere():
    even, odd = U((2, 3, 8, 12), 5), U((2, 3, 11, 14), 43)
    torch.testing.assert_close(hspp(even, bins="adaptive"), hspp(even))
    difference = (hspp(odd, bins="adaptive") - hspp(odd)).abs().max()
    assert 1e-3 < difference < 0.09
    assert hspp(U((1, 3, 2, 3), 5), bins="adaptive").shape == (1, 3)


@pytest.mark.parametrize("size", [(3, 20), (20, 3), (1, 1)])
def test_floor_bins_refuse_small_maps(size):
    with pytest.raises(ValueError, match=rf"at least 4x4, not {size[0]}x{size[1]}"):
        hspp(torch.rand(1, 2, *size))


def test_gamma_weighs_the_average():
    f = U((1, 2, 8, 8), 9)
    maxima = hspp(f, gamma=0.0)
    torch.testing.assert_close(hspp(f, gamma=5.0), (3 * maxima + 5 * gap(f)) / 8)
    torch.testing.assert_close(hspp(torch.full((1, 2, 8, 8), 3.0)), torch.full((1, 2), 3.0))


def test_the_gradient_of_gmp_goes_to_one_of_equal_maxima():
    f = torch.ones(1, 1, 3, 3, requires_grad=True)
    gmp(f).sum().backward()
    assert f.grad is not None
    assert f.grad.max() == 1
    assert f.grad.sum() == 1


def test_pool_by_name():
    f = U((2, 3, 11, 14), 43)
    assert torch.equal(pool_by(PoolingConfig("gap"), f), gap(f))
    assert torch.equal(pool_by(PoolingConfig("gmp"), f), gmp(f))
    assert torch.equal(pool_by(PoolingConfig("hspp", "adaptive", 1.0), f), hspp(f, 1.0, "adaptive"))
    assert torch.equal(pool_by(PoolingConfig("lse", lse_sharpness=2.0), f), lse(f, 2.0))
    assert torch.equal(pool_by(PoolingConfig("topk", topk_share=0.1), f), topk(f, 0.1))


def test_log_sum_exp_lies_between_average_and_maximum():
    f = 3 * torch.randn(2, 3, 9, 7, generator=torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(lse(f, 1e-4), gap(f), atol=1e-3, rtol=0)
    torch.testing.assert_close(lse(f, 200.0), gmp(f), atol=0.03, rtol=0)
    torch.testing.assert_close(lse(f, 4.0), (4.0 * f).exp().mean((2, 3)).log() / 4.0)
    assert lse(1000 * f, 4.0).isfinite().all()


def test_top_k_is_the_mean_of_the_highest_cells_and_one_at_least():
    f = torch.arange(40.0).reshape(1, 1, 5, 8)
    assert topk(f, 0.1).item() == 37.5
    assert topk(f, 0.001).item() == 39.0


@pytest.mark.parametrize("pooling", ["gap", "gmp", "hspp", "lse", "topk"])
def test_a_linear_head_scores_what_the_pooling_leaves(pooling):
    config, f = PoolingConfig(pooling), U((2, 3, 8, 8), 5).float()
    head = torch.nn.Conv2d(3, 4, 1, bias=False)
    logits = pooled_logits(config, f, head)
    if pooling in OF_MAPS:
        assert torch.equal(logits, pool_by(config, head(f)))
    else:
        assert torch.equal(logits, head(pool_by(config, f)[:, :, None, None]).flatten(1))


def test_levels_of_the_pyramid_are_a_knob():
    f = U((1, 2, 16, 16), 9)
    torch.testing.assert_close(hspp(f, 2.0, levels=(1,)), (gmp(f) + 2 * gap(f)) / 3)
    config = PoolingConfig("hspp", "adaptive", 3.0, (1, 8))
    assert torch.equal(pool_by(config, f), hspp(f, 3.0, "adaptive", (1, 8)))
    assert torch.equal(pool_by(PoolingConfig("hspp"), f), hspp(f))
    with pytest.raises(ValueError, match="at least 20x20"):
        hspp(f, levels=(1, 20))


@pytest.mark.parametrize(
    "knobs", [{"hspp_gamma": -1.0}, {"hspp_levels": ()}, {"hspp_levels": (0,)}]
)
@pytest.mark.parametrize("config", [Config, vwe.Config])
def test_impossible_pyramids(config, knobs):
    with pytest.raises(ConfigError, match="hspp"):
        config(**knobs)


def test_maps_too_small_for_hspp_are_an_error_that_says_what_to_type():
    config = PoolingConfig(pooling="hspp")
    with pytest.raises(ConfigError, match="not 3x3") as caught:
        pool_by(config, torch.rand(1, 2, 3, 3))
    assert "hspp_bins=adaptive" in caught.value.hint
    assert pool_by(replace(config, hspp_bins="adaptive"), torch.rand(1, 2, 3, 3)).shape == (1, 2)
