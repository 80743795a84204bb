"""The class table of a folder with tags: their names in order, or the lines of ``classes.txt``."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

from trainer.data.dataset import check_classes, complain, some
from trainer.data.formats.tables import read_text
from trainer.data.image_files import entries
from trainer.data.names import folded, in_order, is_background, one_spelling, spelling_notes
from trainer.errors import DataError, nearest

Problems = list[DataError] | None


def class_lines(root: Path) -> list[str]:
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


def class_table(
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
