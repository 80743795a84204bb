"""Images with VOC annotations beside them or in another folder, without VOC's tree: labelImg's and
Roboflow's layout.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

from trainer.data.classes import table_of_tags
from trainer.data.dataset import Dataset, Record
from trainer.data.formats import class_folders
from trainer.data.formats.base import Format
from trainer.data.image_files import image_id, passed_over, unique, walk
from trainer.data.knobs import DataConfig
from trainer.data.names import composed, is_list_name
from trainer.data.remarks import Remarks
from trainer.data.voc.xml import read_objects
from trainer.errors import some


def recognises(root: Path) -> bool:
    """Whether half of the images below ``root`` have an annotation of the same name; or some have,
    and the folders are no classes.
    """
    annotations = _annotations(root)
    images = walk(root).images if annotations else []
    pairs, _ = _match(images, annotations)
    return 2 * len(pairs) >= len(images) > 0 or (bool(pairs) and not class_folders.recognises(root))


def read(root: Path, config: DataConfig, remarks: Remarks) -> Dataset:
    """Read images and their annotations: ``a.xml`` beside ``a.jpg``, or in another folder if the
    name is the only one. Folders ``train``, ``valid`` or ``test`` at the top are lists. Images
    without an annotation are left out; one without an object has no tag.

    Raises:
        DataError: no object in any annotation.
    """
    files = walk(root)
    pairs, strangers = _match(files.images, _annotations(root))
    images = unique(pairs, root, remarks, lambda path: image_id(path, root))
    objects = read_objects({i: pairs[path] for i, path in images.items()}, images, remarks)
    counts = Counter(name for names in objects.values() for name in names)
    remarks.notes += files.notes()
    table = table_of_tags(counts, root, remarks)
    if bare := len(files.images) - len(pairs):
        remarks.note(f"{bare} images have no annotation and are left out")
    if strangers:
        names = some(path.relative_to(root).as_posix() for path in strangers)
        remarks.note(f"{len(strangers)} annotations belong to no image: {names}")
    records = {}
    for key, of_image in objects.items():
        tags = table.positions(of_image)
        unknown = table.complement(tags) if config.missing == "unknown" else ()
        records[key] = Record(key, images[key], tags, unknown=unknown)
    return Dataset(
        root=root,
        format="xml",
        classes=table.names,
        mask_values=table.values,
        records=records,
        lists=_lists(root, records),
        tags_from="objects of XML annotations, difficult ones included",
    )


def _annotations(root: Path) -> list[Path]:
    return sorted(
        path
        for path in root.rglob("*.[xX][mM][lL]")
        if not any(passed_over(part) is not None for part in path.relative_to(root).parts)
    )


def _match(
    images: Iterable[Path], annotations: Iterable[Path]
) -> tuple[dict[Path, Path], list[Path]]:
    """The annotation of each image, and the annotations of no image."""
    beside: dict[Path, list[Path]] = defaultdict(list)
    namesakes: dict[str, list[Path]] = defaultdict(list)
    for image in images:
        beside[image.parent / composed(image.stem)].append(image)
        namesakes[composed(image.stem)].append(image)
    pairs: dict[Path, Path] = {}
    strangers = []
    for path in annotations:
        stem = composed(path.stem)
        matches = beside.get(path.parent / stem) or namesakes.get(stem, [])
        # An annotation beside a.jpg and a.png belongs to both. Elsewhere, two images of its name
        # leave open which is meant.
        if len(matches) == 1 or (matches and matches[0].parent == path.parent):
            pairs.update((image, path) for image in matches)
        else:
            strangers.append(path)
    return pairs, strangers


def _lists(root: Path, records: dict[str, Record]) -> dict[str, tuple[str, ...]]:
    lists: dict[str, list[str]] = defaultdict(list)
    for record in records.values():
        top = record.image.relative_to(root).parts[0]
        if is_list_name(top):
            lists[top.lower()].append(record.id)
    return {name: tuple(ids) for name, ids in sorted(lists.items())}


FORMAT = Format(
    rank=50,
    words="a folder of images with XML annotations",
    layout="",
    tags_from=("xml",),
    recognises=recognises,
    read=read,
)
