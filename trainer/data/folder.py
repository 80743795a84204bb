"""Images anywhere below a folder, and their tags in a table (spec refine-segment 11)."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

from trainer.data import class_folders
from trainer.data.cells import is_list_name, lists_of, tags_of
from trainer.data.dataset import Dataset, Record, check_classes, complain, some
from trainer.data.image_files import UNREAD, ImageNames, Walk, entries, image_id, walk
from trainer.data.knobs import DataConfig
from trainer.data.mask_files import match_masks
from trainer.data.names import folded, in_order, is_background, one_spelling, spelling_notes
from trainer.data.tables import (
    IMAGE_COLUMNS,
    Table,
    flags,
    is_answer,
    is_flag,
    read_table,
    read_text,
)
from trainer.data.tags import FROM_MASKS
from trainer.errors import DataError, nearest

TABLES = ("labels.csv", "metadata.csv", "metadata.jsonl")
TAG_COLUMNS = ("tag", "tags", "label", "labels", "class", "classes", "category", "categories")
SPLIT_COLUMNS = ("split", "subset", "set", "fold", "phase", "partition")
SHAPES = 'image,tag (one row a tag), image,"tag1;tag2", or image and one 0/1 column a class'
Problems = list[DataError] | None


@dataclass(frozen=True)
class _Columns:
    """Which column of a table holds what.

    Attributes:
        image: names of images.
        tag: tags, or None.
        split: lists, or None.
        classes: the 0/1 columns, where there is no column of tags.
        unread: names of the other columns.
    """

    image: int
    tag: int | None
    split: int | None
    classes: tuple[int, ...]
    unread: tuple[str, ...]


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
    columns = _columns(table)
    known = _class_lines(root)
    rows, counts = _read_rows(table, columns, files, known, problems)
    classes, values, spellings, notes = _class_table(path, counts, known, problems)
    index = {name: k for k, name in enumerate(classes)}
    by_id = _by_id(root, files.images, rows, problems)
    masks, mask_notes = match_masks(mask_folders, root, by_id, problems)
    records, lists = {}, defaultdict(list)
    for key, image in sorted(by_id.items()):
        if image in rows:
            names = {spellings.get(tag) for tag in rows[image].tags}
            tags = tuple(sorted(index[name] for name in names if name in index))
            records[key] = Record(key, image, tags, masks.get(key))
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
    table: Table, columns: _Columns, files: Walk, known: list[str], problems: Problems
) -> tuple[dict[Path, _Row], Counter[str]]:
    """What the table says by image, and how often it names each class."""
    names = table.cells(columns.image)
    finder = ImageNames(files.root, files.images, names)
    tags = _tags(table, columns, known, problems)
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


def _columns(table: Table) -> _Columns:
    """Which column holds what.

    Raises:
        DataError: no column of images, or none of tags.
    """
    image, tag = table.find(IMAGE_COLUMNS), table.find(TAG_COLUMNS)
    if image is None:
        raise DataError(
            f"{table.found()}, none of them for the image",
            f"one of {some(IMAGE_COLUMNS, 20)}; {SHAPES}",
        )
    split = _split_column(table, {image, tag})
    others = [c for c in range(len(table.columns)) if c not in (image, tag, split)]
    if tag is not None:
        return _Columns(image, tag, split, (), tuple(table.columns[c] for c in others))
    filled = [c for c in others if any(table.cells(c)) or not table.rows]
    # Another name of the image, or numbers of lists, are no classes.
    filled = [c for c in filled if table.columns[c].lower() not in SPLIT_COLUMNS]
    marked = [c for c in filled if not table.rows or any(map(is_flag, table.cells(c)))]
    strange = [
        c for c in filled if c not in marked and table.columns[c].lower() not in IMAGE_COLUMNS
    ]
    if strange:
        names = some(repr(table.columns[c]) for c in strange)
        raise DataError(
            f"{table.found()}; column {names} holds {table.rows[0][strange[0]]!r}",
            SHAPES,
            f"call the column of tags 'tag', or take {names} out",
        )
    if not marked:
        raise DataError(f"{table.found()}, none of them for tags", SHAPES)
    classes = tuple(c for c in marked if not is_background(table.columns[c]))
    unread = tuple(table.columns[c] for c in others if c not in classes)
    return _Columns(image, None, split, classes, unread)


def _split_column(table: Table, taken: set[int | None]) -> int | None:
    """The column called ``split``, else the first whose cells are all names of lists."""
    named = table.find(("split",))
    if named is not None and named not in taken:
        return named
    free = [c for c in range(len(table.columns)) if c not in taken]
    free.sort(key=lambda c: table.columns[c].lower() not in SPLIT_COLUMNS)
    for column in free:
        cells = [cell for cell in table.cells(column) if cell]
        if cells and all(is_list_name(part) for cell in cells for part in lists_of(cell)):
            return column
    return None


def _tags(
    table: Table, columns: _Columns, known: list[str], problems: Problems
) -> list[set[str] | None]:
    """The tags of each row; None where a row cannot be read."""
    if columns.tag is None:
        rows = flags(table, columns.classes, problems)
        names = [table.columns[c] for c in columns.classes]
        return [None if row is None else {names[k] for k in row} for row in rows]
    tags = [set(of_cell) for of_cell in tags_of(table.cells(columns.tag), known)]
    values = set().union(*tags)
    if values and not known and all(map(is_answer, values)):
        name = table.columns[columns.tag]
        raise DataError(
            f"{table.path}: column {name!r} holds {some(sorted(values))} and nothing else",
            "names of classes, or one 0/1 column for each class with its name",
            f"call the column {name!r} what 1 means, for example 'cat'; or write names for"
            f" {some(sorted(values))}; or list these as names in classes.txt",
        )
    return list(tags)


def _class_lines(root: Path) -> list[str]:
    """The lines of ``classes.txt``; background may be the first of them and is none.

    Raises:
        DataError: it cannot be read, or background stands between classes.
    """
    path = next((p for p in entries(root) if p.name.lower() == "classes.txt"), None)
    if path is None or not path.is_file():
        return []
    lines = [line.strip() for line in read_text(path)[0].splitlines()]
    names = [line for line in lines if line]
    classes = [name for name in names if not is_background(name)]
    if classes != names[len(names) - len(classes) :]:
        raise DataError(
            f"{path} has background after a class",
            "the classes only: background has the mask value 0",
            "take it out, and see that the masks hold 1 for the first class",
        )
    check_classes(classes, path)
    return classes


def _class_table(
    path: Path, counts: Counter[str], known: list[str], problems: Problems
) -> tuple[tuple[str, ...], tuple[int, ...], dict[str, str], list[str]]:
    """Class names, their mask values, the class that each tag means, and notes."""
    background = sorted(name for name in counts if is_background(name))
    notes = [f"{some(map(repr, background))} is no class and is left out"] if background else []
    counts = Counter({name: n for name, n in counts.items() if not is_background(name)})
    if not known:
        spellings = one_spelling(counts)
        classes, values = in_order(set(spellings.values()))
        check_classes(classes, path)
        return classes, values, spellings, notes + spelling_notes(spellings)
    alike: dict[str, list[str]] = defaultdict(list)
    for name in known:
        alike[folded(name)].append(name)
    spellings = {}
    for name in counts:
        same = [name] if name in known else alike[folded(name)]
        if len(same) == 1:
            spellings[name] = same[0]
    unknown = sorted(counts.keys() - spellings.keys())
    if unknown:
        found = f"{path.name} has tags that classes.txt lacks: {some(map(repr, unknown))}"
        hint = f"correct them, or add them to {path.with_name('classes.txt')}"
        complain(DataError(found, nearest(unknown[0], known), hint), problems)
    values = tuple(range(1, len(known) + 1))
    return tuple(known), values, spellings, notes + spelling_notes(spellings)


def _notes(
    root: Path, files: Walk, rows: dict[Path, _Row], table: Table, columns: _Columns
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
