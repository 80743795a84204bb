"""The table of tags, as spreadsheets save it."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from trainer.data.dataset import Dataset
from trainer.data.formats.opening import open_dataset
from trainer.errors import DataError
from trainer.review.files import Files
from trainer.review.tag_table import TABLE, TagAnswer, read_tag_answers

HEAD = "id,class,tag,score,answer"


@pytest.fixture
def dataset(bare: Path) -> Dataset:
    return open_dataset(bare)


def answers(folder: Path, content: bytes, dataset: Dataset) -> list[tuple[str, str, bool]]:
    (folder / TABLE).write_bytes(content)
    return [said(entry) for entry in read_tag_answers(Files(folder), dataset)]


def said(entry: TagAnswer) -> tuple[str, str, bool]:
    return entry.id, entry.name, entry.is_present


def missing_tag(dataset: Dataset) -> tuple[str, str]:
    record = next(r for r in dataset.records.values() if len(r.tags) < len(dataset.classes))
    return record.id, next(n for k, n in enumerate(dataset.classes) if k not in record.tags)


def test_what_spreadsheets_make_of_it(dataset: Dataset, tmp_path: Path) -> None:
    record_id, name = missing_tag(dataset)
    # Excel leaves out the empty cells at the end of some rows.
    text = f"{HEAD}\n{record_id},{name},absent,0.9\n{record_id},{name.upper()},absent,0.9,Present\n"
    contents = [
        text.encode(),
        text.replace("\n", "\r\n").encode("utf-8-sig"),
        text.replace(",", ";").encode(),
        text.replace(",", "\t").encode("utf-16"),
        text.replace("id,class", "ID, Class").encode(),
    ]
    for content in contents:
        assert answers(tmp_path, content, dataset) == [(record_id, name, True)]
    with zipfile.ZipFile(tmp_path / "review.zip", "w") as archive:
        archive.writestr(f"review/{TABLE}", contents[0])
    (entry,) = read_tag_answers(Files(tmp_path / "review.zip"), dataset)
    assert said(entry) == (record_id, name, True)
    assert entry.where.endswith(f"review.zip/review/{TABLE}, line 3")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"scene,cat,absent,0.9,present\n", "lacks the column"),
        (b"PK\x03\x04 a workbook", "is a workbook of Excel"),
        (f"{HEAD}\nnobody,cat,absent,0.9,present\n".encode(), "line 2 has the image 'nobody'"),
        (
            f"{HEAD}\nscene_00001,fox,absent,0.9,present\nscene_00001,Fox,absent,0.9,no\n".encode(),
            "line 3 says otherwise of 'Fox'",
        ),
    ],
)
def test_what_is_no_such_table(
    content: bytes, words: str, dataset: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=words):
        answers(tmp_path, content, dataset)
