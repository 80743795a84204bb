"""Images with VOC annotations beside them or in another folder, without VOC's tree: labelImg's and
Roboflow's layout.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

from trainer.data.dataset import Dataset, Record, check_classes, complain, some
from trainer.data.formats import class_folders
from trainer.data.formats.cells import is_list_name
from trainer.data.formats.voc_xml import read_objects
from trainer.data.image_files import image_id, passed_over, walk
from trainer.data.knobs import DataConfig
from trainer.data.names import composed, in_order, one_spelling, spelling_notes
from trainer.errors import DataError

Problems = list[DataError] | None


def recognises(root: Path) -> bool:
    """Whether half of the images below ``root`` have an annotation called like them, or some have
    and folders are no classes.
    """
    annotations = _annotations(root)
    images = walk(root).images if annotations else []
    matched = len(_match(images, annotations)[0])
    return 2 * matched >= len(images) > 0 or (matched > 0 and not class_folders.recognises(root))


def read(root: Path, problems: Problems, config: DataConfig) -> Dataset:
    """Read images and their annotations: ``a.jpg`` with ``a.xml`` beside it, or in any other folder
    where the name is the only one. Ids are relative paths without suffix, ``/`` as ``__``. Folders
    called ``train``, ``valid`` or ``test`` at the top are lists. Images without an annotation are
    left out; one without an object has no tag.

    Args:
        problems: collects what is wrong instead of raising it; the entries concerned are left out.
        config: how to read it.

    Raises:
        DataError: annotations that cannot be used, two images with the same id, or tags asked for
            from elsewhere.
    """
    if config.labels_from not in ("auto", "xml"):
        raise DataError(f"{root} has annotations in XML only", "--labels-from xml or auto")
    files = walk(root)
    matched, strangers = _match(files.images, _annotations(root))
    images: dict[str, Path] = {}
    for path in matched:
        other = images.setdefault(image_id(path, root), path)
        if other != path:
            found = f"{root} has {other.name} and {path.name}, with the same id"
            complain(DataError(found, "one file a name", "rename or remove one"), problems)
    objects, error = read_objects({i: matched[path] for i, path in images.items()}, images)
    if error:
        complain(error, problems)
    counts = Counter(name for shown in objects.values() for name in shown)
    spellings = one_spelling(counts)
    classes, values = in_order(set(spellings.values()))
    check_classes(classes, root)
    index = {name: classes.index(taken) for name, taken in spellings.items()}
    records = {
        i: Record(i, images[i], tuple(sorted({index[name] for name in shown})))
        for i, shown in objects.items()
    }
    notes = [*files.notes(), *spelling_notes(spellings)]
    if without := len(files.images) - len(matched):
        notes.append(f"{without} images have no annotation and are left out")
    if strangers:
        names = some(path.relative_to(root).as_posix() for path in strangers)
        notes.append(f"{len(strangers)} annotations belong to no image: {names}")
    return Dataset(
        root=root,
        format="xml",
        classes=classes,
        mask_values=values,
        records=records,
        lists={**_lists(root, records), "all": tuple(records)},
        tags_from="objects of XML annotations, difficult ones included",
        notes=tuple(notes),
        config=config,
    )


def _annotations(root: Path) -> list[Path]:
    """XML files below ``root``, but for hidden ones and those of systems."""
    return sorted(
        path
        for path in root.rglob("*.[xX][mM][lL]")
        if not any(passed_over(part) is not None for part in path.relative_to(root).parts)
    )


def _match(
    images: Iterable[Path], annotations: Iterable[Path]
) -> tuple[dict[Path, Path], list[Path]]:
    """The annotation of each image, and annotations without one."""
    beside: dict[Path, list[Path]] = defaultdict(list)
    named: dict[str, list[Path]] = defaultdict(list)
    for image in images:
        beside[image.parent / composed(image.stem)].append(image)
        named[composed(image.stem)].append(image)
    matched: dict[Path, Path] = {}
    strangers = []
    for path in annotations:
        stem = composed(path.stem)
        found = beside.get(path.parent / stem) or named.get(stem, [])
        if len(found) == 1 or (found and found[0].parent == path.parent):
            matched.update((image, path) for image in found)
        else:
            strangers.append(path)
    return matched, strangers


def _lists(root: Path, records: dict[str, Record]) -> dict[str, tuple[str, ...]]:
    lists: dict[str, list[str]] = defaultdict(list)
    for record in records.values():
        top = record.image.relative_to(root).parts[0]
        if is_list_name(top):
            lists[top.lower()].append(record.id)
    return {name: tuple(ids) for name, ids in sorted(lists.items())}
