"""Golden values of spec methods 21 and the properties that define each term."""

import pytest
import torch
from golden import U

from trainer.errors import ConfigError
from trainer.methods.regularizers import (
    adaptive_min_pooling,
    bernoulli_entropy,
    concentration,
    normalise_cam,
    prediction_entropy,
)

RAW = 3 * U((2, 20, 7, 7), 3) - 1
LABELS = (U((2, 20), 4) > 0.8).double()


@pytest.mark.parametrize(
    ("coords", "cam_map", "value"),
    [
        ("normalised", "class_softmax", 2.95645974),
        ("normalised", "relu", 2.901145753),
        ("cells", "relu", 35.539035476),
    ],
)
def test_concentration_is_golden(coords, cam_map, value):
    assert concentration(RAW, LABELS, coords, cam_map).item() == pytest.approx(value, rel=1e-6)


def test_concentration_of_one_cell_is_nothing_and_grows_with_the_distance_of_two():
    maps = torch.zeros(1, 1, 9, 9, dtype=torch.float64)
    maps[..., 4, 4] = 1
    one = torch.ones(1, 1, dtype=torch.float64)
    assert concentration(maps, one, eps=0).item() == pytest.approx(0)
    spread = []
    for apart in (1, 2, 3):
        two = torch.zeros_like(maps)
        two[..., 4 - apart, 4] = two[..., 4 + apart, 4] = 1
        spread.append(concentration(two, one, eps=0).item())
    assert spread == pytest.approx([1, 4, 9])
    assert concentration(two.roll(1, 3), one, eps=0).item() == pytest.approx(9)


def test_concentration_of_a_uniform_map_that_is_not_square():
    flat = torch.ones(1, 1, 56, 56, dtype=torch.float64)
    one = torch.ones(1, 1, dtype=torch.float64)
    assert concentration(flat, one).item() == pytest.approx(522.5)
    assert concentration(flat[..., :3], one).item() == pytest.approx(
        (56**2 - 1) / 12 + (3**2 - 1) / 12
    )


def test_mixed_labels_weigh_the_classes_of_both_partners():
    other = LABELS.flip(1)
    apart = 0.3 * concentration(RAW, LABELS) + 0.7 * concentration(RAW, other)
    torch.testing.assert_close(concentration(RAW, 0.3 * LABELS + 0.7 * other), apart)


@pytest.mark.parametrize(
    ("normalise", "value"), [("per_image", 2.975374372), ("per_pixel_max", 2.974548437)]
)
def test_prediction_entropy_is_golden(normalise, value):
    assert prediction_entropy(RAW, normalise).item() == pytest.approx(value, rel=1e-6)


def test_entropy_of_pooled_logits_is_that_of_a_map_of_one_cell():
    pooled = RAW.mean((2, 3), keepdim=True)
    torch.testing.assert_close(prediction_entropy(RAW, "image_level"), prediction_entropy(pooled))


def test_bernoulli_entropy_is_golden():
    assert bernoulli_entropy(4 * U((3, 20), 1) - 2).item() == pytest.approx(0.579172581, rel=1e-6)


def test_normalised_maps_are_golden_and_below_one():
    x = 4 * U((2, 5, 6, 7), 1) - 2
    normal = normalise_cam(x)
    assert normal.mean().item() == pytest.approx(0.267111476, rel=1e-6)
    assert normal[0].amax((1, 2))[:2].tolist() == pytest.approx(
        [0.999989740, 0.999989741], rel=1e-8
    )
    assert 0 <= normal.min() <= normal.max() < 1
    assert not normalise_cam(torch.zeros(1, 2, 3, 3)).any()
    assert adaptive_min_pooling(x).item() == pytest.approx(0.530079575, rel=1e-6)


def test_entropy_of_the_predicted_vector():
    p = torch.sigmoid(RAW.mean((2, 3)))
    expected = -(p * p.log()).sum(1).mean()
    torch.testing.assert_close(prediction_entropy(RAW, "vector"), expected)
    assert prediction_entropy(torch.full((1, 2, 1, 1), 60.0), "vector").abs() < 1e-12


def test_options_that_do_not_exist_are_refused():
    with pytest.raises(ConfigError, match="per_imag'") as caught:
        prediction_entropy(RAW, "per_imag")  # type: ignore[arg-type]
    assert "did you mean 'per_image'?" in caught.value.expected
    with pytest.raises(ConfigError, match="pixels"):
        concentration(RAW, LABELS, "pixels")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="softmax"):
        concentration(RAW, LABELS, "cells", "softmax")  # type: ignore[arg-type]
