"""Strokes of the brush are those of Label Studio, whose reader here is the trainer's."""

from __future__ import annotations

import numpy as np
import pytest

from serving.annotation.brush import brush_runs
from trainer.review import brush

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    "region",
    [
        np.zeros((3, 5), bool),
        np.ones((300, 290), bool),
        RNG.random((33, 17)) < 0.5,
        np.eye(40, 1, dtype=bool),
        np.repeat(np.repeat(RNG.random((5, 7)) < 0.5, 40, 0), 37, 1),
        np.ones((1, 1), bool),
    ],
    ids=["empty", "full", "noise", "column", "blocks", "pixel"],
)
def test_strokes_come_back_in_every_pixel(region):
    data = brush_runs(region)
    assert all(isinstance(value, int) and 0 <= value < 256 for value in data)
    np.testing.assert_array_equal(brush.decode(data, region.shape, "here"), region)
    assert data == brush.encode(region)
