"""The trainer's side of the table of image files: see ``tests/serving/images/test_pixels.py``."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from image_cases import CASES, Case

from trainer.data.pixels import image_size, read_image
from trainer.errors import DataError


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_file_is_read_to_its_pixels_or_refused(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(case.data)
    if case.pixels is None:
        with pytest.raises(DataError, match=case.refused):
            read_image(path)
        return
    found = read_image(path)
    assert (found.dtype, found.shape) == (np.uint8, case.pixels.shape)
    assert np.abs(found.astype(int) - case.pixels).max() <= case.off
    assert image_size(path) == found.shape[:2]


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    for name in ("pipe.jpg", "."):
        with pytest.raises(DataError, match="no regular file"):
            read_image(tmp_path / name)
        with pytest.raises(DataError, match="no regular file"):
            image_size(tmp_path / name)
