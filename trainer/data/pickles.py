"""Read the pickled ``.npy`` files of released repositories without running code from them."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

SAFE = {
    ("collections", "OrderedDict"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("_codecs", "encode"),
}
"""The only names that a pickle may use. All others are refused, so no code of the file runs.
Arrays saved by NumPy before 1.17 use ``_codecs.encode``, which turns text into bytes.
"""


def read_pickled_dict(path: Path) -> dict[Any, Any]:
    """A dictionary of arrays, tensors, numbers and texts that ``np.save`` wrote.

    Raises:
        ValueError: the file holds an array of numbers, or a pickle of something else.
        pickle.UnpicklingError: the pickle would run code. It is not run.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        read_header = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        _, _, dtype = read_header(file)
        if not dtype.hasobject:
            raise ValueError("an array without class names")
        content = _Unpickler(file).load()
    # ``np.save`` wraps a dictionary in an array of one object.
    content = content.item() if isinstance(content, np.ndarray) else content
    if not isinstance(content, dict):
        raise ValueError(f"a {type(content).__name__}")
    return content


class _Unpickler(pickle.Unpickler):
    """Arrays, tensors and containers only."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            return _storage
        if (module, name) not in SAFE:
            raise pickle.UnpicklingError(f"it holds {module}.{name}; nothing of it was run")
        return super().find_class(module, name)


def _storage(data: bytes) -> Any:
    import torch

    return torch.load(io.BytesIO(data), weights_only=True)
