"""Which images get a mask: at random, or by doubt as ``ask`` chooses them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from trainer.data.dataset import Dataset, Record
from trainer.errors import DataError
from trainer.files import file_sha256
from trainer.ranks import rank
from trainer.review.asking import examine, most_helpful
from trainer.review.model import Model
from trainer.run import Run, write_json
from trainer.training.collectives import wait_for_all


def random_order(pool: Sequence[Record], seed: int, draw: int) -> list[str]:
    """Ids in a random order: more masks contain the fewer."""
    order = np.random.default_rng((seed, draw, 1)).permutation(len(pool))
    return [pool[n].id for n in order]


def asked_order(
    base: Path, dataset: Dataset, pool: Sequence[Record], count: int, file: Path, device: str
) -> list[str]:
    """The ids that ``ask`` would choose, the most helpful first; kept in ``file``.

    Args:
        base: a run with a segmenter, which is asked.
        dataset: of the run.
        pool: images to choose from.
        count: how many to choose.
        file: for the next call; another segmenter or pool makes it anew.
        device: see ``Model``.
    """
    model = Model.of(Run.existing(base), dataset, device)
    key = [file_sha256(model.weights), [record.id for record in pool]]
    if rank() == 0 and len(_read(file, key)) < count:
        places = most_helpful(pool, *examine(model, dataset, pool), count)
        write_json(file, {"key": key, "ids": [pool[place.position].id for place in places]})
    wait_for_all()
    return _read(file, key)


def _read(file: Path, key: Sequence[object]) -> list[str]:
    try:
        content = json.loads(file.read_text())
        return list(content["ids"]) if content["key"] == key else []
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{file} cannot be read: {error}", "what budget wrote", "remove the file"
        ) from error
