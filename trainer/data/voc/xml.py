"""Annotations of PASCAL VOC in XML: the classes that an image shows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from xml.parsers import expat

from trainer.data.names import is_background
from trainer.data.remarks import Remarks
from trainer.errors import DataError, some

MOST_BYTES = 16_000_000
"""An annotation has a few kilobytes. A larger file is something else, and is not read."""
LONGEST_NAME = 200
EXPECTED = "a VOC annotation: <annotation> with <object><name>cat</name>...</object>"


def object_names(path: Path) -> set[str]:
    """Names of the objects of an annotation: with difficult objects, without parts of objects.

    Raises:
        DataError: no XML, no annotation, too large, a declared entity, or an object without a name.
    """
    names: list[str] = []
    places: list[str] = []
    parser = expat.ParserCreate()

    def start(tag: str, _: dict[str, str]) -> None:
        if not places and tag != "annotation":
            raise ValueError(f"it begins with <{tag[:40]}>")
        places.append(tag)
        if places == ["annotation", "object"]:
            names.append("")

    def text(content: str) -> None:
        # Parts of objects have names too, one level deeper.
        if len(places) == 3 and places[1:] == ["object", "name"]:
            names[-1] += content

    # Entities that expand into each other can fill the memory.
    def refuse(*_: object) -> None:
        raise ValueError("it declares entities")

    parser.StartElementHandler, parser.CharacterDataHandler = start, text
    parser.EndElementHandler = lambda _: places.pop()
    parser.EntityDeclHandler = refuse
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise ValueError(f"it has {size:,} bytes")
        parser.Parse(path.read_bytes(), True)
    except (OSError, ValueError, LookupError, expat.ExpatError) as error:
        raise DataError(f"{path} cannot be read: {error}", EXPECTED) from error
    texts = [" ".join(name.split()) for name in names]
    if not all(0 < len(name) <= LONGEST_NAME for name in texts):
        raise DataError(f"{path} has an object without a name", EXPECTED)
    return set(texts)


def read_objects(
    annotations: Mapping[str, Path], ids: Iterable[str], remarks: Remarks
) -> dict[str, set[str]]:
    """Names of the objects by image id, without background; one problem for all files that cannot
    be used.
    """
    names: dict[str, set[str]] = {}
    faults: list[str] = []
    surplus: set[str] = set()
    for i in ids:
        if i in annotations:
            try:
                objects = object_names(annotations[i])
            except DataError as error:
                faults.append(error.found)
                continue
            names[i] = {name for name in objects if not is_background(name)}
            surplus |= objects - names[i]
    if surplus:
        remarks.note(f"objects called {some(map(repr, sorted(surplus)))} are of no class")
    if faults:
        remarks.problem(
            f"{len(faults)} annotations cannot be used: {some(faults, 3)}",
            EXPECTED,
            "correct these files, or take them out",
        )
    return names
