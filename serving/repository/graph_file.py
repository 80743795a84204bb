"""What an ONNX file refers to, read from its bytes before a library acts on it.

Only the tree of messages is walked, for operator domains and places of external data; weights are
skipped.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

from serving.card import HINT, Card
from serving.errors import RepositoryError
from serving.protobuf import BYTES, fields

# Operators of other domains come from native libraries that a hostile model could name.
DOMAINS = {"", "ai.onnx", "ai.onnx.ml", "com.microsoft"}
DEPTH = 64
# The messages of onnx.proto that lead to names. By field number: the kind of the inner message, or
# "=" and the meaning of a text.
SCHEMA: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 10: "=function domain"},
    "node": {5: "attribute", 7: "=domain"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
    "entry": {1: "=key", 2: "=value"},
}


def check_graph(card: Card) -> None:
    """Check that the graphs use known operator domains, and only data files that the card lists.

    Raises:
        RepositoryError: one does not, or is not an ONNX file.
    """
    for name in (card.graph, card.half_graph):
        if name:
            _check_file(card, card.folder / name)


def _check_file(card: Card, path: Path) -> None:
    domains: set[str] = set()
    own: set[str] = set()
    places: set[str] = set()
    key = ""
    try:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        for what, text in _walk(memoryview(data), "model", 0):
            if what == "domain":
                domains.add(text)
            elif what == "function domain":
                own.add(text)
            elif what == "key":
                key = text
            elif key == "location":
                places.add(text)
    except (OSError, ValueError) as error:
        raise RepositoryError(f"{path} is no ONNX file: {error}", "an ONNX graph", HINT) from error
    if unknown := sorted(domains - DOMAINS - own):
        raise RepositoryError(
            f"{path} uses operators of the domain {unknown[0]!r}",
            f"one of {', '.join(sorted(DOMAINS - {''}))}",
        )
    if outside := sorted(places - card.sha256.keys()):
        raise RepositoryError(
            f"{path} keeps data in {outside[0]!r}", "only files that the card lists", HINT
        )


def _walk(data: memoryview, kind: str, depth: int) -> Iterator[tuple[str, str]]:
    """Texts of interest in a message, each with its meaning."""
    if depth > DEPTH:
        raise ValueError(f"messages nested more than {DEPTH} deep")
    for field in fields(data):
        inner = SCHEMA[kind].get(field.tag >> 3)
        if inner is None or field.tag & 7 != BYTES:
            continue
        value = data[field.begin : field.end]
        if inner.startswith("="):
            yield inner[1:], str(value, "utf-8")
        else:
            yield from _walk(value, inner, depth + 1)
