"""Images anywhere below a folder, and their tags in ``labels.csv`` (spec refine-segment 11)."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from trainer.data.dataset import Dataset, Record, check_classes, complain, some
from trainer.data.image_files import list_images
from trainer.data.knobs import DataConfig
from trainer.data.tables import IMAGE_COLUMNS, Table, flag, flagged, read_table
from trainer.data.tags import FROM_MASKS
from trainer.errors import DataError, nearest

TAG_COLUMNS = ("tag", "tags", "label", "labels", "class", "classes")
SHAPES = 'image,tag (one row a tag), image,"tag1;tag2", or image and one 0/1 column a class'
Problems = list[DataError] | None


@dataclass
class _Row:
    """What the table says about one image."""

    tags: set[str]
    split: str


def recognises(root: Path) -> bool:
    """Whether ``root`` has ``labels.csv``."""
    return (root / "labels.csv").is_file()


def read(root: Path, problems: Problems, config: DataConfig) -> Dataset:
    """Read a folder of images with ``labels.csv``.

    The table has a column of image names (``image``, ``filename``, ``file``, ``path``,
    ``image_id``), with or without suffix, relative to ``root`` or just the name of an image
    anywhere below, and the tags in one of three shapes: a column ``tag`` with one row a tag, the
    same column with ``tag1;tag2``, or one 0/1 column a class. A column ``split`` (``train``, or
    ``train;train_aug``) makes lists. Ids are relative paths without suffix, ``/`` written as
    ``__``.

    ``masks/`` may hold one PNG an image (same relative path, same id or same name) with the values
    1..K in class order: the lines of ``classes.txt`` where there is one, else the names sorted.

    Args:
        problems: collects what is wrong instead of raising it; the entries concerned are left out.
        config: how to read it. Where ``tags_from`` is the masks, the tags are those of the table
        still.

    Raises:
        DataError: columns that do not fit, images that are not there or are ambiguous, unknown
            classes, rows that contradict each other.
    """
    if config.labels_from == "xml":
        raise DataError(
            f"{root} is a folder with labels.csv and has no Annotations",
            "--labels-from csv or masks",
        )
    files = [p for p in list_images(root) if p.relative_to(root).parts[0] != "masks"]
    if not files:
        raise DataError(f"{root} holds labels.csv but no image", "image files anywhere below it")
    by_id = _by_id(root, files, problems)
    table = read_table(root / "labels.csv")
    rows, names = _read_rows(table, _Finder(root, by_id), problems)
    classes = _class_order(root, names, problems)
    index = {name: k for k, name in enumerate(classes)}
    masks = _masks(root, by_id)
    records = {
        i: Record(
            i, by_id[i], tuple(sorted(index[t] for t in row.tags if t in index)), masks.get(i)
        )
        for i, row in sorted(rows.items())
    }
    lists: dict[str, list[str]] = defaultdict(list)
    for i in records:
        for name in _parts(rows[i].split):
            lists[name].append(i)
    notes = _notes(root, len(by_id) - len(records), masks, classes)
    named = {name: tuple(ids) for name, ids in sorted(lists.items())} | {"all": tuple(records)}
    return Dataset(
        root=root,
        format="folder",
        classes=classes,
        mask_values=tuple(range(1, len(classes) + 1)),
        records=records,
        lists=named,
        tags_from=FROM_MASKS if config.labels_from == "masks" else "labels.csv",
        notes=tuple(notes),
        masks_from="masks" if any(record.mask for record in records.values()) else "",
        config=config,
    )


def _by_id(root: Path, files: list[Path], problems: Problems) -> dict[str, Path]:
    by_id: dict[str, Path] = {}
    twice = []
    for path in files:
        key = "__".join(path.relative_to(root).with_suffix("").parts)
        if key in by_id:
            twice.append(f"{by_id[key].relative_to(root)} and {path.relative_to(root)}")
        by_id.setdefault(key, path)
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


class _Finder:
    """Finds the image that a table calls ``a/b.jpg``, ``a/b``, ``b.jpg`` or ``b``."""

    def __init__(self, root: Path, by_id: dict[str, Path]) -> None:
        self.root = root.resolve()
        self.exact: dict[str, str] = {}
        self.loose: dict[str, list[str]] = defaultdict(list)
        for key, path in by_id.items():
            inside = path.relative_to(root)
            self.exact[inside.as_posix()] = key
            self.exact.setdefault(inside.with_suffix("").as_posix(), key)
            for name in {path.name, path.stem}:
                self.loose[name].append(key)

    def candidates(self, name: str) -> list[str]:
        """Ids that ``name`` may mean: none, one, or several when it is ambiguous."""
        name = name.replace("\\", "/").removeprefix("./")
        if name.startswith("/") and Path(name).is_relative_to(self.root):
            name = Path(name).relative_to(self.root).as_posix()
        if name in self.exact:
            return [self.exact[name]]
        return self.loose.get(name, []) if "/" not in name else []


def _read_rows(
    table: Table, finder: _Finder, problems: Problems
) -> tuple[dict[str, _Row], list[str]]:
    """What the table says by image id, and the class names in it."""
    image, tag, split, columns = _columns(table)
    rows: dict[str, _Row] = {}
    unknown: list[str] = []
    ambiguous: list[str] = []
    clashes: list[str] = []
    for n, cells in enumerate(table.rows):
        found = finder.candidates(cells[image])
        if len(found) != 1:
            (ambiguous if found else unknown).append(cells[image])
            continue
        try:
            tags = _row_tags(table, n, tag, columns)
        except DataError as error:
            complain(error, problems)
            continue
        row = _Row(tags, cells[split] if split is not None else "")
        old = rows.setdefault(found[0], row)
        if old.split != row.split or (tag is None and old.tags != row.tags):
            clashes.append(cells[image])
        old.tags |= row.tags
    where = table.path
    for names, found_words, expected, hint in (
        (
            unknown,
            "names images that are not there",
            "paths relative to the folder",
            "correct them or bring the images",
        ),
        (
            ambiguous,
            "uses names that several folders have",
            "paths such as folder/name.jpg",
            "write the folder too",
        ),
        (
            clashes,
            "contradicts itself about",
            "the same split and the same 0/1 columns in every row",
            "keep one row each",
        ),
    ):
        if names:
            count = len(set(names))
            complain(
                DataError(
                    f"{where} {found_words} ({count}): {some(dict.fromkeys(names))}", expected, hint
                ),
                problems,
            )
    if tag is None:
        return rows, [table.columns[c] for c in columns]
    return rows, sorted({name for row in rows.values() for name in row.tags})


def _columns(table: Table) -> tuple[int, int | None, int | None, list[int]]:
    """Columns of image, tag (or None), split (or None), and those of the classes where there is no
    tag column.
    """
    image, tag, split = table.find(IMAGE_COLUMNS), table.find(TAG_COLUMNS), table.find(("split",))
    if image is None:
        raise DataError(
            f"{table.found()}, none of them for the image",
            f"one of {some(IMAGE_COLUMNS, 20)}; {SHAPES}",
        )
    if tag is not None:
        return image, tag, split, []
    columns = [c for c in range(len(table.columns)) if c not in (image, split)]
    if not columns:
        raise DataError(f"{table.found()}, none of them for tags", SHAPES)
    for c in columns:
        strange = next((row[c] for row in table.rows if flag(row[c]) is None), None)
        if strange is not None and all(flag(row[c]) is None for row in table.rows):
            raise DataError(
                f"{table.found()}; column {table.columns[c]!r} holds {strange!r}",
                SHAPES,
                f"call the column of tags 'tag', or take {table.columns[c]!r} out",
            )
    return image, None, split, columns


def _row_tags(table: Table, n: int, tag: int | None, columns: Sequence[int]) -> set[str]:
    if tag is None:
        return {table.columns[columns[k]] for k in flagged(table, n, columns)}
    return set(_parts(table.rows[n][tag]))


def _parts(cell: str) -> list[str]:
    parts = (part.strip() for part in cell.replace("|", ";").split(";"))
    return list(dict.fromkeys(part for part in parts if part))


def _class_order(root: Path, names: list[str], problems: Problems) -> tuple[str, ...]:
    path = root / "classes.txt"
    if not path.is_file():
        check_classes(sorted(names), root / "labels.csv")
        return tuple(sorted(names))
    try:
        order = [
            line.strip()
            for line in path.read_text(encoding="utf-8-sig").splitlines()
            if line.strip()
        ]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} cannot be read: {error}", "one class name a line, UTF-8"
        ) from error
    check_classes(order, path)
    unknown = [name for name in names if name not in order]
    if unknown:
        found = f"labels.csv has tags that classes.txt lacks: {some(map(repr, unknown))}"
        complain(
            DataError(found, nearest(unknown[0], order), f"correct them, or add them to {path}"),
            problems,
        )
    return tuple(order)


def _masks(root: Path, by_id: dict[str, Path]) -> dict[str, Path]:
    folder = root / "masks"
    there = (
        {p.relative_to(folder).as_posix(): p for p in folder.rglob("*.png")}
        if folder.is_dir()
        else {}
    )
    stems = Counter(path.stem for path in by_id.values())
    masks = {}
    for key, path in by_id.items():
        inside = path.relative_to(root).with_suffix(".png").as_posix()
        names = [inside, f"{key}.png"] + ([f"{path.stem}.png"] if stems[path.stem] == 1 else [])
        # Images below images/ usually have their masks at the same place below masks/.
        names.append(PurePosixPath(*PurePosixPath(inside).parts[1:]).as_posix())
        found = next((there[name] for name in names if name in there), None)
        if found is not None:
            masks[key] = found
    return masks


def _notes(
    root: Path, unlabelled: int, masks: dict[str, Path], classes: tuple[str, ...]
) -> list[str]:
    notes = []
    if unlabelled:
        notes.append(f"{unlabelled} images have no row in labels.csv and are left out")
    if masks and not (root / "classes.txt").is_file():
        order = some((f"{k + 1}={name}" for k, name in enumerate(classes)), 8)
        notes.append(
            f"mask values are taken in the order of the sorted names ({order}); classes.txt fixes"
            " another order"
        )
    return notes
