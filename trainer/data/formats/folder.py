"""Images anywhere below a folder, and their tags in a table (spec refine-segment 11)."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

from trainer.data.dataset import Dataset, Record, complain, some
from trainer.data.formats import class_folders
from trainer.data.formats.cells import lists_of
from trainer.data.formats.class_table import class_lines, class_table
from trainer.data.formats.mask_files import match_masks
from trainer.data.formats.tables import Table, read_table
from trainer.data.formats.tag_columns import Columns, find_columns, read_tags
from trainer.data.image_files import UNREAD, ImageNames, Walk, entries, image_id, walk
from trainer.data.knobs import DataConfig
from trainer.data.tags import FROM_MASKS
from trainer.errors import DataError

TABLES = ("labels.csv", "metadata.csv", "metadata.jsonl")
Problems = list[DataError] | None


@dataclass
class _Row:
    """What the table says about one image."""

    tags: set[str]
    lists: list[str]


def recognises(root: Path) -> bool:
    """Whether ``root`` has a table: ``labels.csv``, or ``metadata.csv`` or ``metadata.jsonl`` as of
    Hugging Face where the folders are no classes.
    """
    table = _table_file(root)
    return table is not None and (
        table.name.lower() == TABLES[0] or not class_folders.recognises(root)
    )


def _table_file(root: Path) -> Path | None:
    files = {path.name.lower(): path for path in reversed(entries(root))}
    return next((files[name] for name in TABLES if name in files and files[name].is_file()), None)


def read(root: Path, problems: Problems, config: DataConfig) -> Dataset:
    """Read a folder of images with a table of tags.

    The table has a column of image names (``image``, ``filename``, ``file``, ``path``,
    ``image_id``), with or without suffix, relative to ``root`` or just the name of an image
    anywhere below, and the tags in one of three shapes: a column ``tag`` with one row a tag, the
    same column with ``tag1;tag2``, or one 0/1 column a class. A column ``split`` (``train``, or
    ``train;train_aug``), or another one that holds names of lists, makes lists. Ids are relative
    paths without suffix, ``/`` written as ``__``.

    ``masks/`` may hold one PNG an image (same relative path, same id or same name) with the values
    1..K in class order: the lines of ``classes.txt`` where there is one, else the names sorted.
    Names that are numbers are the values themselves.

    Args:
        problems: collects what is wrong instead of raising it; the entries concerned are left out.
        config: how to read it. Where ``tags_from`` is the masks, the tags are those of the table
        still.

    Raises:
        DataError: columns that do not fit, images that are not there or are ambiguous, unknown
            classes, rows that contradict each other.
    """
    path = _table_file(root)
    assert path is not None
    if config.labels_from == "xml":
        raise DataError(
            f"{root} is a folder with {path.name} and has no Annotations",
            "--labels-from csv or masks",
        )
    mask_folders = [p for p in entries(root) if p.name.lower() == "masks" and p.is_dir()]
    files = walk(root, skip=mask_folders)
    if not files.images:
        raise DataError(
            f"{root} holds {path.name} but no image" + "".join(f"; {n}" for n in files.notes()),
            "image files anywhere below it",
        )
    table = read_table(path)
    columns = find_columns(table)
    known = class_lines(root)
    rows, counts = _read_rows(table, columns, files, known, problems)
    classes, values, spellings, notes = class_table(path, counts, known, problems)
    by_id = _by_id(root, files.images, rows, problems)
    masks, mask_notes = match_masks(mask_folders, root, by_id, problems)
    index = {tag: classes.index(name) for tag, name in spellings.items()}
    records, lists = {}, defaultdict(list)
    for key, image in sorted(by_id.items()):
        if image not in rows:
            continue
        tags = {index[tag] for tag in rows[image].tags if tag in index}
        records[key] = Record(key, image, tuple(sorted(tags)), masks.get(key))
        for name in rows[image].lists:
            lists[name].append(key)
    notes = [*table.notes, *notes, *mask_notes, *_notes(root, files, rows, table, columns)]
    if masks and not known:
        notes.append(_mask_order(classes, values))
    named = {name: tuple(ids) for name, ids in sorted(lists.items())} | {"all": tuple(records)}
    return Dataset(
        root=root,
        format="folder",
        classes=classes,
        mask_values=values,
        records=records,
        lists=named,
        tags_from=FROM_MASKS if config.labels_from == "masks" else path.name,
        notes=tuple(notes),
        masks_from="masks" if any(record.mask for record in records.values()) else "",
        config=config,
    )


def _by_id(
    root: Path, images: list[Path], rows: dict[Path, _Row], problems: Problems
) -> dict[str, Path]:
    """Images by id. Where several have the same, those count that the table names."""
    groups: dict[str, list[Path]] = defaultdict(list)
    for path in images:
        groups[image_id(path, root)].append(path)
    by_id, twice = {}, []
    for key, paths in groups.items():
        listed = [path for path in paths if path in rows]
        if len(listed) > 1:
            twice.append(" and ".join(str(path.relative_to(root)) for path in listed))
        by_id[key] = (listed or paths)[0]
    if twice:
        complain(
            DataError(
                f"{root} has {len(twice)} pairs of images with the same id: {some(twice)}",
                "different paths without suffix: outputs are called after them",
                "rename one of each pair",
            ),
            problems,
        )
    return by_id


def _read_rows(
    table: Table, columns: Columns, files: Walk, known: list[str], problems: Problems
) -> tuple[dict[Path, _Row], Counter[str]]:
    """What the table says by image, and how often it names each class."""
    names = table.cells(columns.image)
    finder = ImageNames(files.root, files.images, names)
    tags = read_tags(table, columns, known, problems)
    rows: dict[Path, _Row] = {}
    failures: dict[str, list[str]] = defaultdict(list)
    counts: Counter[str] = Counter({table.columns[c]: 0 for c in columns.classes})
    for n, name in enumerate(names):
        of_row = tags[n]
        if of_row is None:
            continue
        counts.update(of_row)
        found = finder.find(name)
        if len(found) != 1:
            failures["ambiguous" if found else "missing"].append(name)
            continue
        cell = table.rows[n][columns.split] if columns.split is not None else ""
        row = _Row(set(of_row), lists_of(cell))
        old = rows.setdefault(found[0], row)
        if old.lists != row.lists or (columns.tag is None and old.tags != row.tags):
            failures["clashing"].append(name)
        old.tags |= row.tags
    _complain(table.path, files, failures, problems if rows else None)
    return rows, counts


def _complain(table: Path, files: Walk, failures: dict[str, list[str]], problems: Problems) -> None:
    """One error for each kind of row that cannot be used."""
    others = ImageNames(files.root, files.left_out.get(UNREAD, []), failures["missing"])
    blank = [name for name in failures["missing"] if not name]
    unread = [name for name in failures["missing"] if name and others.find(name)]
    missing = [name for name in failures["missing"] if name and not others.find(name)]
    for names, words, expected, hint in (
        (blank, "has rows without an image", "a name in every row", "fill or delete them"),
        (
            unread,
            "names files of kinds that are not read",
            "JPEG, PNG, BMP, WebP or TIFF",
            "save them as JPEG or PNG, or take their rows out",
        ),
        (
            missing,
            "names images that are not there",
            "paths relative to the folder",
            "correct them or bring the images",
        ),
        (
            failures["ambiguous"],
            "uses names that several images have",
            "paths such as folder/name.jpg",
            "write the folder and the suffix too",
        ),
        (
            failures["clashing"],
            "contradicts itself about",
            "the same split and the same 0/1 columns in every row",
            "keep one row each",
        ),
    ):
        if names:
            once = list(dict.fromkeys(names))
            count = len(names) if names is blank else len(once)
            found = f"{table} {words} ({count}): {some(once)}"
            complain(DataError(found, expected, hint), problems)


def _notes(
    root: Path, files: Walk, rows: dict[Path, _Row], table: Table, columns: Columns
) -> list[str]:
    notes = files.notes()
    unlabelled = [path.relative_to(root).as_posix() for path in files.images if path not in rows]
    if unlabelled:
        notes.append(
            f"{len(unlabelled)} images have no row in {table.path.name} and are left out:"
            f" {some(unlabelled)}"
        )
    if columns.unread:
        names = some(map(repr, columns.unread))
        notes.append(f"{table.path.name} has columns that are not read: {names}")
    return notes


def _mask_order(classes: tuple[str, ...], values: tuple[int, ...]) -> str:
    order = some((f"{value}={name}" for value, name in zip(values, classes, strict=True)), 8)
    return (
        f"mask values are taken in the order of the sorted names ({order}); classes.txt fixes"
        " another order"
    )
