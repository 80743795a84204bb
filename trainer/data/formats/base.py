"""What a format of data sets is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trainer.data.dataset import Dataset
from trainer.data.formats.writing import Writer
from trainer.data.knobs import DataConfig
from trainer.data.remarks import Remarks


@dataclass(frozen=True)
class Format:
    """One format. A module of this package that has such a ``FORMAT`` is in use; no list names it.

    ``open_dataset`` completes what ``read`` returns: it adds the list ``all``, the notes, the
    config, and the tags that masks show where those are wanted.

    Attributes:
        rank: formats are tried in ascending order; the first that recognises a folder reads it.
        words: the format in a sentence: "DATA is ...".
        layout: what its folders look like, for users whose folder no format recognises; may be
            empty.
        tags_from: values of ``data.labels_from`` that it can follow, besides ``auto``.
        recognises: whether a folder is of this format. It is called for every folder that a user
            names, so it looks at names and reads little.
        read: reads a folder. Problems and notes go to the remarks; whatever a problem concerns is
            left out.
        writer: writes it, for ``convert --to``; None if that is not possible.
        masks: what its mask files hold where ``data.masks`` has its default.
    """

    rank: int
    words: str
    layout: str
    tags_from: tuple[str, ...]
    recognises: Callable[[Path], bool]
    read: Callable[[Path, DataConfig, Remarks], Dataset]
    writer: type[Writer] | None = None
    masks: Literal["index", "binary"] = "index"
