"""Maps that others made: the ``.npy`` files of PSA, SEAM, CPN, IRN, VWE and MVA."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from trainer.data.pickles import read_pickled_dict
from trainer.errors import DataError
from trainer.maps.camfile import Cam


def read_foreign(path: Path, size: tuple[int, int], as_evaluated: bool = False) -> Cam:
    """Maps of a ``.npy`` file of the released repositories, each over its maximum, in 0..1.

    PSA, SEAM, CPN: ``{class: float32 [H,W]}``. IRN, VWE, MVA: ``{"keys": int [k], "cam":
    [k,h,w]}``, tensors or arrays.

    Args:
        path: the file.
        size: of the image.
        as_evaluated: as the released scripts measure maps: ``high_res [k,H,W]`` where IRN's kind
            has it, and values that lie in 0..1 as they are. The size of full maps is then their
            own.

    Raises:
        DataError: something else, or a pickle that would run code (it is not run).
    """
    try:
        content = read_pickled_dict(path)
        part = "high_res" if as_evaluated and "high_res" in content else "cam"
        # IRN's kind has arrays under names, PSA's has the classes themselves as keys.
        by_name = "keys" in content
        keys, maps = (
            (content["keys"], content[part]) if by_name else (list(content), list(content.values()))
        )
        classes = np.asarray(keys, np.int16)
        values = (
            np.stack([np.asarray(m, np.float32) for m in maps])
            if len(maps)
            else np.zeros((0, 1, 1), np.float32)
        )
        if not np.isfinite(values).all() or values.ndim != 3 or len(classes) != len(values):
            raise ValueError(f"classes {classes.shape} and maps {values.shape}")
    except Exception as error:
        raise DataError(
            f"maps {path} cannot be read: {error}",
            "a pickled dict of class maps as PSA, SEAM, CPN, IRN, VWE or MVA write",
        ) from error
    values = np.maximum(values, 0)
    if not as_evaluated or values.max(initial=0) > 1:
        values = values / np.maximum(values.max((1, 2), keepdims=True), 1e-5)
    full = as_evaluated and len(values) and (part == "high_res" or not by_name)
    order = np.argsort(classes)
    return Cam(classes[order], values[order], (values.shape[1], values.shape[2]) if full else size)
