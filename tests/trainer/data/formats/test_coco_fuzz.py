"""JSON that nobody would write: it is read, or refused with a ``DataError``, in little memory.

Longer: ``WSSS_FUZZ_EXAMPLES=20000 python -m pytest tests/trainer/data/formats/test_coco_fuzz.py``.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import resource
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from trainer.data.formats.opening import open_dataset
from trainer.data.knobs import DataConfig
from trainer.errors import DataError

EXAMPLES = int(os.environ.get("WSSS_FUZZ_EXAMPLES", "60"))
MEMORY = 300_000_000
"""Bytes that all examples together may add to the process."""
BOUNDED = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
SQUARE = [[1, 1, 4, 1, 4, 4, 1, 4]]
VALID: dict[str, Any] = {
    "images": [
        {
            "id": n,
            "file_name": name,
            "height": 8,
            "width": 10,
            "neg_category_ids": [3][n:],
            "not_exhaustive_category_ids": [1],
            "group": f"part {n}",
        }
        for n, name in enumerate(("a.jpg", "sub\\b.jpg", "/x/c.jpg"))
    ],
    "categories": [
        {"id": 1, "name": "cat", "supercategory": "animal"},
        {"id": 3, "name": "Cow", "supercategory": "animal"},
        {"id": 4, "name": "animal"},
    ],
    "annotations": [
        {"id": 1, "image_id": 0, "category_id": 1, "segmentation": SQUARE, "iscrowd": 0},
        {"id": 2, "image_id": 1, "category_id": 3, "segmentation": SQUARE * 2, "ignore": 0},
        {"id": 3, "image_id": 1, "category_id": 1, "segmentation": [[1, 1], [7, 1], [7, 6]]},
        {
            "id": 4,
            "image_id": 2,
            "category_id": 1,
            "segmentation": {"size": [8, 10], "counts": [72, 8]},
            "iscrowd": 1,
        },
        {
            "id": 5,
            "image_id": 2,
            "category_id": 3,
            "segmentation": {"size": [8, 10], "counts": "`0`02"},
        },
    ],
}
NUMBERS = (0, 1, -1, 0.5, 1.0, 1e9, -1e8, 1e308, -(10**30), 10**400, 2**31, 2**63, float("nan"))
TEXTS = ("", "1", "8.0", "../../x", "C:\\a.jpg", "\ud800", "a\0b", "é" * 3000, "`" * 50, "~", "nan")
ODD = st.one_of(
    st.sampled_from((*NUMBERS, *TEXTS, None, True, [], {}, [[]], [[[]]], {"x": 1, "y": 2})),
    st.floats(),
    st.integers(),
    st.text(max_size=5),
    st.lists(st.one_of(st.floats(), st.integers(-9, 99), st.text(max_size=2)), max_size=9),
    st.builds(lambda depth: json.loads("[" * depth + "]" * depth), st.integers(1, 400)),
)


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a tree of lists and dictionaries."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    inner = [(*path, key) for key, _ in items] if isinstance(tree, (dict, list)) else []
    return inner + [p for each in inner for p in places_below(tree, each, path)]


def places_below(tree: Any, each: tuple[Any, ...], path: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    below = tree[each[-1]]
    return places(below, each) if isinstance(below, (dict, list)) else []


PLACES = places(VALID)


@st.composite
def tables(draw: st.DrawFn) -> dict[str, Any]:
    """The valid table with a few things replaced, taken out or doubled."""
    tree = copy.deepcopy(VALID)
    for *path, last in draw(st.lists(st.sampled_from(PLACES), min_size=1, max_size=4)):
        with contextlib.suppress(KeyError, IndexError, TypeError):
            parent = tree
            for key in path:
                parent = parent[key]
            change = draw(st.sampled_from(("replace", "replace", "remove", "double")))
            if change == "replace":
                parent[last] = draw(ODD)
            elif change == "remove":
                del parent[last]
            elif isinstance(parent, list):
                parent.append(parent[last])
    return tree


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("fuzz")
    for name in ("a.jpg", "sub/b.jpg", "c.jpg", "d.jpg"):
        (folder / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (10, 8)).save(folder / "images" / name)
    (folder / "annotations").mkdir()
    return folder


@pytest.fixture(scope="module", autouse=True)
def memory(root: Path) -> Any:
    """What the examples add to the largest size of the process."""
    read(root, json.dumps(VALID).encode(), DataConfig())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < MEMORY
    print(f"{grown / 1e6:.0f} MB more")


def read(root: Path, text: bytes, config: DataConfig) -> None:
    """Open the data set as ``fit`` and as ``check`` does, and draw every mask."""
    (root / "annotations" / "instances_train.json").write_bytes(text)
    for problems in (None, []):
        with contextlib.suppress(DataError):
            data = open_dataset(root, problems, config)
            data.fingerprint()
            for record in data.records.values():
                with contextlib.suppress(DataError):
                    data.read_mask(record)
    for problem in problems or ():
        str(problem).encode()


@BOUNDED
@given(table=tables(), crowd=st.sampled_from(("drop", "ignore", "keep")), empty=st.booleans())
def test_tables_that_are_odd(root: Path, table: dict[str, Any], crowd: Any, empty: bool) -> None:
    read(root, json.dumps(table).encode(), DataConfig(crowd=crowd, keep_empty=empty))


@BOUNDED
@given(st.data())
def test_files_that_are_damaged(root: Path, data: st.DataObject) -> None:
    text = bytearray(json.dumps(VALID).encode())
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, len(text)))
        span = data.draw(st.sampled_from((0, 1, 1, 5, 400)))
        text[at : at + span] = data.draw(st.binary(max_size=4))
    read(root, bytes(text), DataConfig())
