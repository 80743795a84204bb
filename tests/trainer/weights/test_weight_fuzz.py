"""Weight files and maps with damage anywhere: read, or refused in words. Never another exception.

WSSS_FUZZ_EXAMPLES raises the number of cases.
"""

from __future__ import annotations

import io
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from weight_files import write_params

from trainer.errors import DataError, WeightsError
from trainer.evaluation.foreign_files import read_array
from trainer.maps.camfile import read_cam, write_cam
from trainer.maps.foreign import read_foreign
from trainer.weights.checkpoints import read_checkpoint

EXAMPLES = int(os.environ.get("WSSS_FUZZ_EXAMPLES", "25"))
STATE = {"conv1.weight": torch.ones(2, 3), "bn.running_var": torch.ones(2)}


def saved(content: object, new_format: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=new_format)
    return buffer.getvalue()


def safetensors() -> bytes:
    about = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
    text = json.dumps({"conv1.weight": about, "__metadata__": {"format": "pt"}}).encode()
    return struct.pack("<Q", len(text)) + text + bytes(24)


def mxnet(folder: Path) -> bytes:
    write_params(folder / "a.params", {"arg:a": np.ones((2, 3), np.float32)}, "storage")
    return (folder / "a.params").read_bytes()


def maps(folder: Path) -> bytes:
    write_cam(folder / "a.npz", [0, 1], np.ones((2, 3, 4), np.float32), (12, 16))
    return (folder / "a.npz").read_bytes()


def pickled() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, {0: np.ones((12, 16), np.float32)}, allow_pickle=True)  # type: ignore[arg-type]
    return buffer.getvalue()


def array() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.ones((12, 16), np.uint8))
    return buffer.getvalue()


def foreign(path: Path) -> object:
    return read_foreign(path, (12, 16))


READERS: dict[str, tuple[Callable[[Path], bytes], Callable[[Path], object]]] = {
    "zip.pth": (lambda _: saved({"state_dict": STATE, "epoch": 3}), read_checkpoint),
    "old.pth": (lambda _: saved(STATE, False), read_checkpoint),
    "a.safetensors": (lambda _: safetensors(), read_checkpoint),
    "a.params": (mxnet, read_checkpoint),
    "cam.npz": (maps, read_cam),
    "pickled.npy": (lambda _: pickled(), foreign),
    "mask.npy": (lambda _: array(), read_array),
    "mask.npz": (maps, read_array),
}

KINDS = ("byte", "cut", "number", "twice")
DAMAGE = st.lists(
    st.tuples(
        st.integers(0, 1 << 20),
        st.sampled_from(["byte", "cut", "number", "twice"]),
        st.binary(max_size=8),
    ),
    min_size=1,
    max_size=6,
)


def damaged(data: bytes, steps: list[tuple[int, str, bytes]]) -> bytes:
    for place, kind, content in steps:
        at = place % (len(data) + 1)
        if kind == "cut":
            data = data[:at]
        elif kind == "twice":
            data = data[:at] + data[at // 2 :]
        elif kind == "byte":
            data = data[:at] + content[:1] + data[at + 1 :]
        else:
            number = content.ljust(8, b"\xff")
            data = data[:at] + number + data[at + 8 :]
    return data


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", READERS)
def test_any_damage_is_read_or_refused_in_words(name: str, tmp_path: Path) -> None:
    make, read = READERS[name]
    whole, path = make(tmp_path), tmp_path / name
    path.write_bytes(whole)
    read_whole = name != "mask.npz"
    if read_whole:
        read(path)

    refused: list[DataError | WeightsError] = []

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        derandomize=True,
        database=None,
    )
    @given(DAMAGE)
    def attempt(steps: list[tuple[int, str, bytes]]) -> None:
        path.write_bytes(damaged(whole, steps))
        try:
            read(path)
        except (DataError, WeightsError) as error:
            refused.append(error)

    attempt()
    assert all(error.found and error.expected for error in refused)
