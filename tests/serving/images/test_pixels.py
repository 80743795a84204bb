"""Serving's side of the table of image files: see ``tests/trainer/data/test_pixels.py``."""

from __future__ import annotations

import numpy as np
import pytest
from image_cases import CASES, Case

from serving.config import Limits
from serving.errors import ImageError
from serving.images.decoding import decode


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_file_is_read_to_its_pixels_or_refused(case: Case) -> None:
    if case.pixels is None:
        with pytest.raises(ImageError, match=case.refused):
            decode(case.data, Limits())
        return
    found = decode(case.data, Limits()).pixels
    assert found.flags.c_contiguous
    assert (found.dtype, found.shape) == (np.uint8, case.pixels.shape)
    assert np.abs(found.astype(int) - case.pixels).max() <= case.off
