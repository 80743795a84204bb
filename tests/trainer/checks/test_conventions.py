"""Copies of VOC 2012 and COCO 2014, as records without files: whole, and damaged in the ways that
users meet.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from trainer.checks.conventions import COCO_SIZES, VOC_SIZES, VOC_TAGS, compare
from trainer.checks.inspection import Problem
from trainer.data.coco.classes import COCO_CLASSES
from trainer.data.coco.dataset import CocoDataset
from trainer.data.dataset import Dataset, Record
from trainer.data.formats.voc import XML
from trainer.data.knobs import DataConfig
from trainer.data.tags import FROM_MASKS
from trainer.data.voc.classes import VOC_CLASSES

TRAIN = tuple(f"2007_{n:06}" for n in range(1464))
VAL = tuple(f"2008_{n:06}" for n in range(1449))
SBD = tuple(f"2010_{n:06}" for n in range(10582 - 1464))
TEST = tuple(f"2012_{n:06}" for n in range(1456))
LISTS = {
    "train": TRAIN,
    "val": VAL,
    "trainval": TRAIN + VAL,
    "train_aug": TRAIN + SBD,
    "test": TEST,
}


def spread(ids: Iterable[str], counts: Iterable[int], tags: dict[str, set[int]]) -> None:
    """Give the first ids the first class, the next ones the second, ...: each class as often as
    ``counts`` says.
    """
    names = list(ids)
    place = 0
    for k, count in enumerate(counts):
        for _ in range(count):
            tags.setdefault(names[place % len(names)], set()).add(k)
            place += 1


def voc(root: Path, masks: bool = True, **changes: Any) -> Dataset:
    tags: dict[str, set[int]] = {}
    spread(TRAIN, VOC_TAGS["train"], tags)
    spread(VAL, VOC_TAGS["val"], tags)
    spread(
        SBD, (a - b for a, b in zip(VOC_TAGS["train_aug"], VOC_TAGS["train"], strict=True)), tags
    )
    if masks:
        for folder, ids in (
            ("SegmentationClass", TRAIN + VAL),
            ("SegmentationClassAug", TRAIN + SBD + VAL),
        ):
            (root / folder).mkdir(parents=True)
            for i in ids:
                (root / folder / f"{i}.png").touch()
    records = {
        i: Record(
            i, root / f"{i}.jpg", tuple(sorted(tags.get(i, ()))), root / "m.png" if masks else None
        )
        for i in TRAIN + VAL + SBD + TEST
    }
    lists = {**LISTS, **changes.pop("lists", {})}
    lists = {name: ids for name, ids in lists.items() if ids}
    whole = Dataset(
        root,
        "voc",
        VOC_CLASSES,
        tuple(range(1, 21)),
        records,
        {**lists, "all": tuple(records)},
        XML,
    )
    return dataclasses.replace(whole, **changes)


def of_kind(dataset: Dataset, kind: str) -> list[Problem]:
    return [problem for problem in compare(dataset) if problem.kind == kind]


def test_the_numbers_agree_with_each_other() -> None:
    assert sum(VOC_TAGS["train_aug"]) == 16458
    assert sum(VOC_TAGS["train_aug"]) / VOC_SIZES["train_aug"] == pytest.approx(1.555, abs=5e-4)
    assert sum(VOC_TAGS["train"]) == 933 + 2 * 382 + 3 * 125 + 4 * 21 + 5 * 3
    assert VOC_SIZES["trainval"] == VOC_SIZES["train"] + VOC_SIZES["val"]
    assert len(set(COCO_CLASSES)) == 80
    assert (COCO_CLASSES[0], COCO_CLASSES[11], COCO_CLASSES[79]) == (
        "person",
        "stop sign",
        "toothbrush",
    )
    assert all(everything > annotated for everything, annotated in COCO_SIZES.values())


def test_a_whole_copy_has_no_problem(tmp_path: Path) -> None:
    assert list(compare(voc(tmp_path))) == []


def test_a_short_list_is_named_with_the_ids_that_it_lacks(tmp_path: Path) -> None:
    (problem,) = compare(voc(tmp_path, lists={"train": TRAIN[3:], "trainval": ()}))
    assert problem.message.startswith(
        "list 'train' has 1,461 images, 3 fewer than VOC 2012's 1,464; 3 are known"
    )
    assert (problem.severity, problem.names) == ("warning", TRAIN[:3])
    assert "ImageSets/Segmentation/train.txt from VOCtrainval" in problem.hint


def test_short_lists_without_mask_folders(tmp_path: Path) -> None:
    problems = of_kind(
        voc(tmp_path, masks=False, lists={"train": TRAIN[3:], "val": VAL[1:]}), "voc-list"
    )
    assert [problem.names for problem in problems] == [(), ()]


def test_train_aug_of_the_misprint(tmp_path: Path) -> None:
    data = voc(tmp_path, lists={"train_aug": TRAIN[:-1] + SBD[:-53]})
    (problem,) = of_kind(data, "voc-list")
    assert problem.message.startswith(
        "list 'train_aug' has 10,528 images, 54 fewer than VOC 2012's 10,582; 54 are known"
    )
    assert problem.names == (TRAIN[-1], *SBD[-53:])
    assert "misprint" in problem.hint
    (subset,) = of_kind(data, "voc-subset")
    assert subset.names == (TRAIN[-1],)


def test_a_long_list_is_named_with_the_ids_that_are_too_many(tmp_path: Path) -> None:
    (problem,) = compare(voc(tmp_path, lists={"val": VAL + SBD[:2], "trainval": ()}))
    assert "1,451 images, 2 more than" in problem.message
    assert problem.names == SBD[:2]


def test_classes_whose_counts_differ_are_named(tmp_path: Path) -> None:
    data = voc(tmp_path)
    records = dict(data.records)
    records[VAL[0]] = dataclasses.replace(records[VAL[0]], tags=())
    lost = [VOC_CLASSES[k] for k in data.records[VAL[0]].tags]
    (problem,) = compare(dataclasses.replace(data, records=records))
    assert problem.names == tuple(lost)
    assert problem.message.startswith(
        f"list 'val' has {sum(VOC_TAGS['val']) - len(lost):,} tags instead of"
    )
    assert "89 instead of 90" in problem.message
    assert problem.severity == "warning"
    (problem,) = compare(dataclasses.replace(data, records=records, tags_from=FROM_MASKS))
    assert problem.severity == "info"


def test_without_sbd_it_says_what_is_missing_and_what_it_costs(tmp_path: Path) -> None:
    (problem,) = compare(voc(tmp_path, lists={"train_aug": ()}))
    assert problem.kind == "voc-sbd"
    for part in ("1,464 images of 'train' instead of 10,582", "61.2 to 54.0"):
        assert part in problem.message
    assert "photographs and their XML are in VOC 2012 already" in problem.hint


@pytest.mark.parametrize("change", ["classes", "ids", "format"])
def test_other_data_are_not_compared(tmp_path: Path, change: str) -> None:
    data = voc(tmp_path, lists={"train_aug": (), "train": TRAIN[:7]})
    assert list(compare(data))
    if change == "classes":
        data = dataclasses.replace(data, classes=("cat", "dog"), mask_values=(8, 12))
    elif change == "ids":
        records = {f"img{i}": dataclasses.replace(r, id=f"img{i}") for i, r in data.records.items()}
        data = dataclasses.replace(data, records=records, lists={"train": ("img2007_000000",)})
    else:
        data = dataclasses.replace(data, format="synthetic")
    assert list(compare(data)) == []


def coco(
    sizes: dict[str, int], empty: dict[str, int], keep: bool = False, **changes: Any
) -> CocoDataset:
    lists = {name: tuple(f"{name}_{n}" for n in range(size)) for name, size in sizes.items()}
    values, config = tuple(range(1, 81)), DataConfig(keep_empty=keep)
    data = CocoDataset(
        Path(), "coco", COCO_CLASSES, values, {}, lists, "", (), "", config, {}, empty
    )
    return dataclasses.replace(data, **changes)


def test_whole_copies_of_coco() -> None:
    dropped, kept = {"train2014": 82081, "val2014": 40137}, {"train2014": 82783, "val2014": 40504}
    empty = {"train2014": 702, "val2014": 367}
    assert list(compare(coco(dropped, empty))) == []
    assert list(compare(coco(kept, empty, keep=True))) == []
    assert list(compare(coco(dropped, {"train2014": 0, "val2014": 0}))) == []


def test_damaged_copies_of_coco() -> None:
    (problem,) = compare(coco({"train2014": 82000}, {"train2014": 702}))
    assert (
        problem.message
        == "list 'train2014' has 82,000 images with annotations and 702 without, instead of COCO"
        " 2014's 82,081 and 702"
    )
    (problem,) = compare(coco({"val2014": 40137}, {"val2014": 0}, keep=True))
    assert "has lost its 367 images without annotation" in problem.message
    (problem,) = compare(
        coco({"val2014": 40137}, {"val2014": 367}, classes=(*COCO_CLASSES[:-1], "hair brush"))
    )
    assert problem.names == ("toothbrush", "hair brush")
    (problem,) = compare(coco({"val2014": 40137}, {"val2014": 367}, classes=COCO_CLASSES[::-1]))
    assert "another order" in problem.message


def test_own_data_in_lists_called_like_cocos() -> None:
    assert (
        list(compare(coco({"train2014": 3}, {"train2014": 0}, classes=("person", "dog", "hat"))))
        == []
    )
