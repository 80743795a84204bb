"""How a data set is read where there is a choice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from trainer.config import Knobs


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
        keep_empty: whether COCO images without any annotation stay, as background (MCTformer, RIB,
            ReCAM), or not (AFA, ToCo).
    """

    section: ClassVar[str] = "data"

    labels_from: Literal["auto", "xml", "masks", "csv"] = "auto"
    masks: Literal["index", "colours", "binary"] = "index"
    crowd: Literal["drop", "ignore", "keep"] = "drop"
    crowd_tags: bool = False
    keep_empty: bool = False
