"""How a data set is read where there is a choice."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import ClassVar, Literal

from trainer.config import Knobs
from trainer.data.names import folded, is_background

NEGATIVE_FOLDERS = frozenset(
    ("good", "none", "normal", "ok", "negative", "negatives", "no defect", "no_defect")
)
"""Class folders of images that show no class, as ``folded`` returns their names."""


@dataclass(frozen=True)
class DataConfig(Knobs):
    """Knobs of reading data.

    Attributes:
        labels_from: where image tags come from: ``xml`` (VOC's ``Annotations``), ``csv``
            (``image_labels.csv``, ``labels.csv``), ``masks`` (the classes that the masks show), or
            ``auto``, the best that is there.
        masks: what mask files hold: ``index``, class indices as palette or grey PNG; ``colours``,
            those of the VOC palette in RGB; or ``binary``, 0 for background and 255 (or 1) for the
            object, where there is one class or each image has one tag.
        crowd: COCO's crowd regions in masks: ``drop`` leaves them out (ReCAM), ``ignore`` makes
            them 255, ``keep`` paints them like objects.
        crowd_tags: whether crowds give tags (ReCAM) or not.
        keep_empty: whether COCO images without any annotation stay, as negatives (MCTformer, RIB,
            ReCAM), or not (AFA, ToCo).
        missing: what a class is that nobody names: ``absent``, or ``unknown``. Cells that say 0 are
            absent, and cells ``?`` are unknown, in any case.
        negative: tags and class folders that mean "shows no class", with commas between them;
            ``auto`` takes folders called good, none, normal, ok, negative, negatives, no defect or
            no_defect; ``none`` takes no name. ``background`` always means it.
        group: the column that names what an image belongs to, such as a part or a patient, so that
            lists and intervals keep its images together; ``auto`` takes group, patient, slide,
            scene or tile; ``none`` reads no groups.
        lists: a CSV file of image and list in place of the data's own lists, as ``wsss-trainer
            split`` writes it; ``auto`` takes ``lists.csv`` in the data folder; ``none`` takes no
            file.
    """

    section: ClassVar[str] = "data"

    labels_from: Literal["auto", "xml", "masks", "csv"] = "auto"
    masks: Literal["index", "colours", "binary"] = "index"
    crowd: Literal["drop", "ignore", "keep"] = "drop"
    crowd_tags: bool = False
    keep_empty: bool = True
    missing: Literal["absent", "unknown"] = "absent"
    negative: str = "auto"
    group: str = "auto"
    lists: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        # The data of a run are read again from other working directories.
        if self.lists not in ("auto", "none") and os.path.isfile(self.lists):
            object.__setattr__(self, "lists", os.path.abspath(self.lists))

    def is_negative(self, name: str, *, folder: bool = False) -> bool:
        """Whether a tag, or a class folder, says that the image shows no class."""
        if self.negative == "auto":
            return is_background(name) or (folder and folded(name) in NEGATIVE_FOLDERS)
        names = () if self.negative == "none" else self.negative.split(",")
        return is_background(name) or folded(name) in map(folded, names)
