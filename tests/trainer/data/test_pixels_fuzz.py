"""Damaged image files: an image or an error of ours, soon, whatever the bytes.

Longer: ``WSSS_FUZZ_EXAMPLES=20000 python -m pytest tests/trainer/data/test_pixels_fuzz.py``.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from image_cases import CASES

from trainer.data.pixels import image_size, read_image
from trainer.errors import DataError

FILES = [case.data for case in CASES.values() if 0 < len(case.data) < 20_000]
EXAMPLES = int(os.environ.get("WSSS_FUZZ_EXAMPLES", "150"))
# A number in a file must not cost more time than its bytes do.
SECONDS = 5.0


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A file of the table that was cut, lengthened, has bytes exchanged, or parts of another."""
    data = bytearray(draw(st.sampled_from(FILES)))
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, len(data)))
        change = draw(st.integers(0, 3))
        if change == 0:
            data[at : at + 4] = draw(st.sampled_from([b"\0\0\0\0", b"\xff\xff\xff\xff", b"\0\1"]))
        elif change == 1 and at < len(data):
            data[at] = draw(st.integers(0, 255))
        elif change == 2:
            other = draw(st.sampled_from(FILES))
            data[at:at] = other[: draw(st.integers(0, 60))]
        else:
            del data[at : at + draw(st.integers(0, 40))]
    return bytes(data)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "image"


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=damaged())
def test_any_file_is_an_image_or_an_error_of_ours(data: bytes, path: Path) -> None:
    path.write_bytes(data)
    began = time.monotonic()
    try:
        pixels = read_image(path)
    except DataError:
        pass
    else:
        assert (pixels.dtype, pixels.ndim, pixels.shape[2]) == (np.uint8, 3, 3)
        assert image_size(path) == pixels.shape[:2]
    with suppress(DataError):
        image_size(path)
    assert time.monotonic() - began < SECONDS
