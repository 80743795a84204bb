import pytest
import torch
from golden import U
from torch import nn

from trainer.methods.correlation import (
    normalised_seed,
    pixel_correlation,
    pixel_region_correlation,
    strongest_foreground,
)

MODES = ("code", "transposed", "class_softmax")


def near(value: torch.Tensor, expected: float) -> bool:
    return value.item() == pytest.approx(expected, rel=1e-6)


def layer(s: int) -> nn.Conv2d:
    conv = nn.Conv2d(195, 192, 1, bias=False).double()
    conv.weight.data = 0.2 * (U((192, 195, 1, 1), s) - 0.5)
    return conv


def golden() -> tuple[nn.Conv2d, nn.Conv2d, torch.Tensor, torch.Tensor]:
    return layer(7), layer(17), 2 * U((2, 195, 9, 11), 8) - 0.5, U((2, 21, 9, 11), 9)


def test_golden_pixel_correlation():
    f9, _, features, seed = golden()
    refined = pixel_correlation(seed, f9(features))
    assert refined.shape == seed.shape
    assert near(refined.mean(), 0.501804745)
    assert near(refined[0, 3, 4, 5], 0.571816433)
    assert near(refined[1, 20, 8, 10], 0.498089188)


def test_golden_pixel_region_correlation():
    f9, f10, features, seed = golden()
    p = pixel_region_correlation(seed, features, f9, f10)
    assert near(p[0, 3, 4, 5], 0.020048925)
    assert near(p[1, 20, 8, 10], 0.009590467)
    fused = pixel_correlation(seed, f9(features)) + p * seed
    assert near(fused.mean(), 0.506868189)
    assert near(fused[0, 3, 4, 5], 0.572382073)
    transposed = pixel_region_correlation(seed, features, f9, f10, "transposed")
    assert near(transposed[0, 3, 4, 5], 0.015775945)


def test_golden_class_means():
    f9, f10, features, seed = golden()
    seen = []

    def spy(z: torch.Tensor) -> torch.Tensor:
        seen.append(z)
        return f10(z)

    pixel_region_correlation(seed, features, f9, spy)
    assert seen[0].shape == (2, 195, 21, 1)
    assert near(seen[0][0, 3, 4, 0], 0.628386799)


@pytest.mark.parametrize("mode", MODES)
def test_region_weights_sum_to_one_over_their_axis(mode):
    f9, f10, features, seed = golden()
    p = pixel_region_correlation(seed, features, f9, f10, mode)
    total = p.sum(1) if mode == "class_softmax" else p.sum((2, 3))
    torch.testing.assert_close(total, torch.ones_like(total))
    assert p.shape == seed.shape


@pytest.mark.parametrize("mode", MODES)
def test_a_spread_keeps_the_soft_max_from_taking_one_cell(mode):
    f9, f10, features, seed = golden()
    axis = 1 if mode == "class_softmax" else 2
    # Features of small networks are large: the released scale leaves a single cell.
    large = 300 * features
    released = pixel_region_correlation(seed, large, f9, f10, mode).flatten(2).amax(axis)
    assert released.median() > 0.99
    p = pixel_region_correlation(seed, large, f9, f10, mode, spread=1.0)
    smaller = pixel_region_correlation(seed, 100 * features, f9, f10, mode, spread=1.0)
    torch.testing.assert_close(p, smaller, atol=1e-3, rtol=1e-2)
    assert p.flatten(2).amax(axis).max() < 0.9
    # Scores of deviation 1 again, whatever their scale was.
    logs = p.flatten(2).log()
    torch.testing.assert_close(
        logs.std(axis, correction=0), torch.ones_like(logs.mean(axis)), atol=1e-3, rtol=0.0
    )


def test_scores_that_are_all_alike_weigh_all_cells_alike():
    f9, f10, features, seed = golden()
    f10.weight.data.zero_()
    p = pixel_region_correlation(seed, features, f9, f10, spread=1.0)
    torch.testing.assert_close(p, torch.full_like(p, 1 / 99))


def test_alike_cells_share_their_mean():
    kinds = torch.tensor([[0, 1, 1], [2, 0, 1]])
    embedding = 7 * nn.functional.one_hot(kinds, 4).permute(2, 0, 1)[None].double()
    seed = U((1, 3, 2, 3), 1)
    refined = pixel_correlation(seed, embedding)
    for kind in range(3):
        mask = kinds == kind
        expected = seed[:, :, mask].mean(2, keepdim=True).expand(-1, -1, int(mask.sum()))
        torch.testing.assert_close(refined[:, :, mask], expected, rtol=1e-4, atol=0)


def test_an_embedding_of_zeros_is_an_empty_map():
    embedding = torch.zeros(1, 4, 2, 3, requires_grad=True)
    refined = pixel_correlation(torch.rand(1, 3, 2, 3), embedding)
    assert not refined.any()
    refined.sum().backward()
    assert torch.isfinite(embedding.grad).all()


def test_a_batch_is_its_images():
    f9, _, features, seed = golden()
    refined = pixel_correlation(seed, f9(features))
    alone = pixel_correlation(seed[1:], f9(features[1:]))
    torch.testing.assert_close(refined[1:], alone)


def test_seed_keeps_the_strongest_class_of_each_pixel():
    cam = (4 * U((2, 5, 6, 7), 1) - 2).requires_grad_()
    seed = normalised_seed(cam)
    assert not seed.requires_grad
    assert seed.min() >= 0
    assert seed.max() <= 1
    assert ((seed[:, 1:] > 0).sum(1) <= 1).all()
    torch.testing.assert_close(seed[:, 0], 1 - seed[:, 1:].amax(1))
    other = cam.detach().clone()
    other[:, 0] = 9
    assert torch.equal(normalised_seed(other), seed)
    assert not normalised_seed(-other.abs())[:, 1:].any()


def test_ties_are_kept():
    y = torch.tensor([0.3, 0.5, 0.2, 0.5]).view(1, 4, 1, 1)
    assert strongest_foreground(y).flatten().tolist() == pytest.approx([0.3, 0.5, 0, 0.5])
