"""Formats: each is one file that declares itself."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

import trainer.data.formats
from trainer.data.formats.opening import formats, open_dataset
from trainer.errors import DataError

PAGE = Path(__file__).parents[2] / "docs" / "develop" / "add-a-format.md"


def test_every_format_has_a_rank_of_its_own_and_a_name_for_messages() -> None:
    forms = formats()
    assert len({form.rank for form in forms}) == len(forms)
    assert all(form.words for form in forms)
    writers = [form.writer.name for form in forms if form.writer]
    assert {"voc", "coco", "csv", "folders"} <= set(writers)
    assert len(set(writers)) == len(writers)


def test_the_documented_format_works_as_one_new_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "boxes_of_the_docs.py").write_text(code, encoding="utf-8")
    places = [*trainer.data.formats.__path__, str(tmp_path / "new")]
    monkeypatch.setattr(trainer.data.formats, "__path__", places)
    root = tmp_path / "data"
    root.mkdir()
    for name in ("a", "b"):
        Image.new("RGB", (4, 3)).save(root / f"{name}.png")
    rows = "a.png,0,0,2,2,cow,train\na.png,1,1,3,3,cat,train\nb.png,0,0,1,1,cow,val\n"
    (root / "boxes.csv").write_text(f"filename,xmin,ymin,xmax,ymax,class,split\n{rows}")
    data = open_dataset(root)
    assert (data.format, data.classes) == ("boxes", ("cat", "cow"))
    assert {key: record.tags for key, record in data.records.items()} == {"a": (0, 1), "b": (1,)}
    assert data.lists == {"train": ("a",), "val": ("b",), "all": ("a", "b")}
    (root / "b.png").unlink()
    with pytest.raises(DataError, match=r"names images that are not there: b\.png"):
        open_dataset(root)
