"""Copies of PASCAL VOC 2012 and COCO 2014, compared with the originals."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from trainer.checks.inspection import Problem
from trainer.checks.lists import tag_counts
from trainer.data.coco.classes import COCO_CLASSES
from trainer.data.coco.dataset import CocoDataset
from trainer.data.dataset import Dataset
from trainer.data.tags import FROM_MASKS
from trainer.data.voc.classes import VOC_CLASSES, VOC_ID
from trainer.data.voc.lists import LISTS
from trainer.errors import some

# VOC 2012, with SBD's list as psa, IRN and SEAM release it.
VOC_SIZES = {"train": 1464, "val": 1449, "trainval": 2913, "test": 1456, "train_aug": 10582}
# Several papers print this number for train_aug, whose list has 10,582 images.
MISPRINT = 10528
VOC_TAGS = {
    "train": (88, 65, 105, 78, 87, 78, 128, 131, 148, 64, 82, 121, 68, 81, 442, 82, 63, 93, 83, 84),
    "val": (90, 79, 103, 72, 96, 74, 127, 119, 123, 71, 75, 128, 79, 76, 445, 85, 57, 90, 84, 74),
    "train_aug": (
        *(590, 504, 705, 468, 714, 393, 1150, 1005, 1228, 267),
        *(613, 1188, 445, 492, 4155, 522, 300, 649, 503, 567),
    ),
}
"""Images of each class, in VOC's order, by the objects in the XML files with difficult ones."""
COCO_SIZES = {"train2014": (82783, 82081), "val2014": (40504, 40137)}
"""Images of each list, and the number of those with an annotation."""


def compare(dataset: Dataset) -> Iterator[Problem]:
    """What differs from VOC 2012 or COCO 2014; nothing for other data.

    A copy of VOC 2012 has VOC's 20 classes and mostly VOC's ids; a copy of COCO 2014 has its list
    names and most of its categories.
    """
    if (
        dataset.format == "voc"
        and dataset.classes == VOC_CLASSES
        and dataset.mask_values == tuple(range(1, 21))
    ):
        foreign = sum(not VOC_ID.fullmatch(i) for i in dataset.records)
        if 2 * foreign < len(dataset.records):
            yield from _voc_lists(dataset)
            yield from _voc_tags(dataset)
            yield from _sbd(dataset)
    if isinstance(dataset, CocoDataset) and COCO_SIZES.keys() & dataset.lists.keys():
        yield from _coco(dataset)


def _voc_lists(dataset: Dataset) -> Iterator[Problem]:
    lists = {name: set(ids) for name, ids in dataset.lists.items()}
    members = _members(dataset, lists)
    for name, size in VOC_SIZES.items():
        ids = lists.get(name)
        if ids is None or len(ids) == size:
            continue
        surplus = len(ids) - size
        difference = (
            f"{abs(surplus):,} {'more' if surplus > 0 else 'fewer'} than VOC 2012's {size:,}"
        )
        message = f"list {name!r} has {len(ids):,} images, {difference}"
        names: set[str] = set()
        if members[name]:
            names = ids - members[name] if surplus > 0 else members[name] - ids
            message += (
                f"; {len(names):,} are known {'not to belong' if surplus > 0 else 'to belong'}"
                " to it"
            )
        yield Problem(
            "warning", "voc-list", message, tuple(sorted(names)), _original(name, len(ids))
        )
    train, train_aug = lists.get("train", set()), lists.get("train_aug", set())
    if train_aug and not train <= train_aug:
        stray = tuple(sorted(train - train_aug))
        message = (
            f"images of 'train' that 'train_aug' lacks, which holds all of them: {len(stray):,}"
        )
        yield Problem(
            "warning", "voc-subset", message, stray, _original("train_aug", len(train_aug))
        )


def _members(dataset: Dataset, lists: dict[str, set[str]]) -> dict[str, set[str]]:
    """Ids that belong to each list, as far as other lists and complete mask folders tell."""
    # VOC has masks of train and val, SBD of train_aug and val.
    voc = _stems(dataset, "SegmentationClass")
    sbd = _stems(dataset, "SegmentationClassAug")
    train, val, train_aug = (lists.get(name, set()) for name in ("train", "val", "train_aug"))
    if len(voc) != VOC_SIZES["trainval"]:
        members = {"train": set(), "val": set(), "trainval": train | val}
    elif len(train_aug) == VOC_SIZES["train_aug"]:
        members = {"train": voc & train_aug, "val": voc - train_aug, "trainval": voc}
    else:
        members = {"train": voc - val, "val": voc - train, "trainval": train | val}
    is_whole = len(sbd) in (VOC_SIZES["train_aug"], VOC_SIZES["train_aug"] + VOC_SIZES["val"])
    return {**members, "test": set(), "train_aug": train | sbd - val if is_whole else train}


def _stems(dataset: Dataset, folder: str) -> set[str]:
    return {path.stem for path in (dataset.root / folder).glob("*.png")}


def _original(name: str, size: int) -> str:
    if size == MISPRINT:
        return "10,528 is a misprint in several papers; the released train_aug.txt has 10,582 lines"
    if name == "train_aug":
        return "take train_aug.txt as psa, IRN or SEAM release it"
    archive = "VOC2012test.tar" if name == "test" else "VOCtrainval_11-May-2012.tar"
    return f"take {LISTS.as_posix()}/{name}.txt from {archive}"


def _voc_tags(dataset: Dataset) -> Iterator[Problem]:
    for name, originals in VOC_TAGS.items():
        # Of an incomplete list, it is the list that is wrong.
        if len(dataset.lists.get(name, ())) != VOC_SIZES[name]:
            continue
        counts = [count.present for count in tag_counts(dataset, dataset.subset(name)).values()]
        wrong = [
            (c, n, e) for c, n, e in zip(VOC_CLASSES, counts, originals, strict=True) if n != e
        ]
        if not wrong:
            continue
        figures = some((f"{c} {n:,} instead of {e:,}" for c, n, e in wrong), 20)
        message = f"list {name!r} has {sum(counts):,} tags instead of {sum(originals):,}: {figures}"
        names = tuple(c for c, _, _ in wrong)
        if dataset.tags_from == FROM_MASKS:
            hint = (
                "masks hide difficult objects, and SBD's miss some: --labels-from xml gives the"
                " published tags"
            )
            yield Problem("info", "voc-tags", message, names, hint)
        else:
            hint = (
                "published tags are the objects of Annotations/*.xml, difficult ones included:"
                " --labels-from xml"
            )
            yield Problem("warning", "voc-tags", message, names, hint)


def _sbd(dataset: Dataset) -> Iterator[Problem]:
    if "train_aug" not in dataset.lists:
        count = len(dataset.lists.get("train", ()))
        yield Problem(
            "warning",
            "voc-sbd",
            f"no SBD list (train_aug.txt or trainaug.txt in {LISTS.as_posix()}): training has the"
            f" {count:,} images of 'train' instead of 10,582. MVA's FMix fell from 61.2 to 54.0"
            " mIoU on val without it",
            (),
            "bring the list of ids as psa, IRN or SEAM release it: its photographs and their XML"
            " are in VOC 2012 already, and SBD's masks are needed for --supervision full only",
        )
        return


def _coco(dataset: CocoDataset) -> Iterator[Problem]:
    classes = dataset.classes
    lacking, foreign = _without(COCO_CLASSES, classes), _without(classes, COCO_CLASSES)
    if 2 * len(lacking) > len(COCO_CLASSES):
        return
    if lacking or foreign:
        message = (
            f"{len(classes)} categories instead of COCO's 80: {len(lacking)} are missing,"
            f" {len(foreign)} are others"
        )
        hint = "take instances_*.json of annotations_trainval2014.zip"
        yield Problem("warning", "coco-classes", message, lacking + foreign, hint)
    elif classes != COCO_CLASSES:
        others = tuple(a for a, b in zip(classes, COCO_CLASSES, strict=True) if a != b)
        message = f"categories in another order than COCO's: {len(others)}"
        yield Problem(
            "warning",
            "coco-classes",
            message,
            others,
            "label maps made by others would show other classes",
        )
    yield from _coco_lists(dataset)


def _without(names: Iterable[str], others: Iterable[str]) -> tuple[str, ...]:
    others = set(others)
    return tuple(name for name in names if name not in others)


def _coco_lists(dataset: CocoDataset) -> Iterator[Problem]:
    for name, (total, with_notes) in COCO_SIZES.items():
        if name not in dataset.lists:
            continue
        empty = dataset.empty[name]
        with_tags = len(dataset.lists[name]) - (empty if dataset.config.keep_empty else 0)
        if with_tags == with_notes and empty in (0, total - with_notes):
            if dataset.config.keep_empty and not empty:
                message = (
                    f"the JSON of {name!r} has lost its {total - with_notes} images without"
                    " annotation"
                )
                hint = (
                    "take the original JSON to train with them as negatives, or"
                    " --set data.keep_empty=off to train without them, as AFA and ToCo do"
                )
                yield Problem("warning", "coco-list", message, (), hint)
            continue
        message = (
            f"list {name!r} has {with_tags:,} images with annotations and {empty:,} without, "
            f"instead of COCO 2014's {with_notes:,} and {total - with_notes:,}"
        )
        yield Problem(
            "warning",
            "coco-list",
            message,
            (),
            f"take instances_{name}.json of annotations_trainval2014.zip",
        )
