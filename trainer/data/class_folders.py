"""One folder a class, each image with one tag (spec refine-segment 11)."""

from __future__ import annotations

from pathlib import Path

from trainer.data.dataset import Dataset, Record, check_classes, complain, some
from trainer.data.image_files import list_images
from trainer.data.knobs import DataConfig
from trainer.data.pixels import IMAGE_SUFFIXES
from trainer.errors import DataError

Problems = list[DataError] | None
SPLITS = ("train", "val", "test")
OTHERS = ("annotations", "imagesets", "images", "jpegimages", "labels", "masks", "segmentation")
"""Folders of other formats: where one of them is, the folders beside it are no classes."""


def recognises(root: Path) -> bool:
    """Whether every folder in ``root`` (or in its folders ``train*``, ``val*``, ``test*``) is a
    class with images in it.
    """
    splits = _splits(root)
    return bool(splits) and len({folder.name for _, folders in splits for folder in folders}) > 1


def read(root: Path, problems: Problems, config: DataConfig) -> Dataset:
    """Read ``<class>/<image>``, or ``<list>/<class>/<image>``. Ids are relative paths without
    suffix, ``/`` as ``__``.

    Args:
        problems: collects what is wrong instead of raising it; the entries concerned are left out.
        config: how to read it.

    Raises:
        DataError: two images with the same id, or tags asked for from elsewhere.
    """
    if config.labels_from != "auto":
        raise DataError(
            f"{root} has one folder a class, no {config.labels_from}", "--labels-from auto"
        )
    splits = _splits(root)
    classes = tuple(sorted({folder.name for _, folders in splits for folder in folders}))
    check_classes(classes, root)
    records: dict[str, Record] = {}
    lists: dict[str, list[str]] = {}
    twice = []
    for name, folders in splits:
        for folder in folders:
            for path in list_images(folder):
                key = "__".join(path.relative_to(root).with_suffix("").parts)
                if key in records:
                    twice.append(path.name)
                    continue
                records[key] = Record(key, path, (classes.index(folder.name),))
                lists.setdefault(name, []).append(key)
    if twice:
        found = f"{root} has {len(twice)} names twice, with different suffixes: {some(twice)}"
        complain(DataError(found, "one file a name", "remove or rename one of each"), problems)
    named = {name: tuple(ids) for name, ids in lists.items()} | {"all": tuple(records)}
    notes = ("every image has the one tag of its folder; others that it shows are unknown",)
    values = tuple(range(1, len(classes) + 1))
    return Dataset(
        root,
        "folders",
        classes,
        values,
        records,
        named,
        "the folder of each image",
        notes,
        config=config,
    )


def _splits(root: Path) -> list[tuple[str, list[Path]]]:
    """Lists and the class folders of each; empty if the folders are something else."""
    folders = _folders(root)
    if any(folder.name.lower().startswith(OTHERS) for folder in folders) or _has_image(root):
        return []
    if folders and all(
        folder.name.startswith(SPLITS) and not _has_image(folder) for folder in folders
    ):
        splits = [(folder.name, _folders(folder)) for folder in folders]
    else:
        splits = [("all", folders)]
    named_like_lists = all(
        folder.name.startswith(SPLITS) for _, group in splits for folder in group
    )
    whole = all(group and all(map(_has_image, group)) for _, group in splits)
    return splits if whole and not named_like_lists else []


def _folders(root: Path) -> list[Path]:
    return sorted(
        path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")
    )


def _has_image(folder: Path) -> bool:
    return any(
        path.suffix.lower() in IMAGE_SUFFIXES and path.is_file() for path in folder.iterdir()
    )
