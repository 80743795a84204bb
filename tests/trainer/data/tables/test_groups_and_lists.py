"""Groups in tables, and lists in a file of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from trainer.data.dataset import Dataset
from trainer.data.formats.opening import open_dataset
from trainer.data.knobs import DataConfig
from trainer.errors import DataError


def table(root: Path, text: str, names: str = "abc") -> Path:
    root.mkdir(exist_ok=True)
    for name in names:
        Image.new("RGB", (4, 3)).save(root / f"{name}.png")
    (root / "labels.csv").write_text(text)
    return root


def groups(data: Dataset) -> list[str]:
    return [record.group for record in data.records.values()]


@pytest.mark.parametrize(
    ("column", "choice", "expected"),
    [
        ("group", "auto", ["p1", "p1", ""]),
        ("Patient", "auto", ["p1", "p1", ""]),
        ("slide id", "auto", ["p1", "p1", ""]),
        ("lot", "auto", ["", "", ""]),
        ("lot", "LOT", ["p1", "p1", ""]),
        ("group", "none", ["", "", ""]),
    ],
)
@pytest.mark.parametrize("shape", ["tags", "flags"])
def test_the_column_of_groups(
    tmp_path: Path, column: str, choice: str, expected: list[str], shape: str
) -> None:
    cells = [("cat", "1"), ("", "0"), ("cat", "1")]
    rows = "".join(
        f"{name},{cell[shape == 'flags']},{group}\n"
        for name, cell, group in zip("abc", cells, ("p1", "p1", ""), strict=True)
    )
    root = table(tmp_path, f"image,{'tag' if shape == 'tags' else 'cat'},{column}\n{rows}")
    config = DataConfig(group=choice)
    if shape == "flags" and not any(expected):
        with pytest.raises(DataError, match=f"column '{column}' holds 'p1'"):
            open_dataset(root, config=config)
        return
    data = open_dataset(root, config=config)
    assert groups(data) == expected
    assert data.classes == ("cat",)
    said = any("is taken as the group of each image" in note for note in data.notes)
    assert said == (choice == "auto" and column not in ("group", "lot"))
    assert any("not read" in note for note in data.notes) == (not any(expected))


def test_a_class_called_tile_is_no_group(tmp_path: Path) -> None:
    data = open_dataset(table(tmp_path, "image,tile,crack\na,1,0\nb,0,1\nc,0,0\n"))
    assert data.classes == ("crack", "tile")
    assert groups(data) == ["", "", ""]


def test_faults_of_groups(tmp_path: Path) -> None:
    root = table(tmp_path, "image,tag,patient\na,cat,1\na,dog,2\nb,cat,1\n")
    with pytest.raises(DataError, match=r"contradicts itself about \(1\): a"):
        open_dataset(root)
    with pytest.raises(DataError, match="no column 'patent'") as error:
        open_dataset(root, config=DataConfig(group="patent"))
    assert "did you mean 'patient'" in error.value.expected


def test_a_file_of_lists_takes_the_place_of_the_data_s_own(tmp_path: Path) -> None:
    root = table(tmp_path, "image,tag,split\na,cat,train\nb,dog,train\nc,cat,val\n")
    (root / "lists.csv").write_text("image,list,patient\na.png,val;test,p\nb,Train,\nc.png,,p\n")
    data = open_dataset(root)
    assert {name: ids for name, ids in data.lists.items() if name != "all"} == {
        "test": ("a",),
        "train": ("b",),
        "val": ("a",),
    }
    assert groups(data) == ["p", "", "p"]
    assert any(note.startswith("the lists are those of lists.csv") for note in data.notes)
    own = open_dataset(root, config=DataConfig(lists="none"))
    assert own.lists["train"] == ("a", "b")
    assert own.fingerprint() != data.fingerprint()


def test_the_groups_of_a_split_keep_their_column(tmp_path: Path) -> None:
    root = table(tmp_path, "image,tag,lot\na,cat,1\nb,dog,1\nc,cat,2\n")
    (root / "lists.csv").write_text("image,list,group\na.png,train,1\nb.png,train,1\nc.png,val,2\n")
    assert groups(open_dataset(root, config=DataConfig(group="lot"))) == ["1", "1", "2"]
    assert groups(open_dataset(root, config=DataConfig(group="none"))) == ["", "", ""]


def test_a_file_of_lists_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "photos"
    for name in ("cat/1.png", "dog/1.png"):
        (root / name).parent.mkdir(parents=True)
        Image.new("RGB", (4, 3)).save(root / name)
    monkeypatch.chdir(tmp_path)
    Path("mine.csv").write_text("image,list\ncat/1.png,train\ndog__1,val\n")
    config = DataConfig(lists="mine.csv")
    monkeypatch.chdir(root)
    data = open_dataset(root, config=config)
    assert (data.lists["train"], data.lists["val"]) == (("cat__1",), ("dog__1",))
    with pytest.raises(DataError, match=r"other\.csv is no file") as error:
        open_dataset(root, config=DataConfig(lists="other.csv"))
    assert "wsss-trainer split" in error.value.hint


def test_a_note_about_two_files_of_one_name_is_said_once(tmp_path: Path) -> None:
    root = table(tmp_path / "data", "image,tag,split,tile\na,cat,train,1\nb,dog,val,2\nc,,val,2\n")
    data = open_dataset(root, config=DataConfig(lists=str(root / "labels.csv")))
    assert [note.startswith("column 'tile' of labels.csv") for note in data.notes].count(True) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,list\nz.png,train\n", r"has names that fit no image, or several: z\.png\n"),
        ("image,tag\na.png,train\n", "none of them for the list"),
        ("photo,list\na.png,train\n", "none of them for the image"),
    ],
)
def test_faults_of_a_file_of_lists(tmp_path: Path, text: str, message: str) -> None:
    root = table(tmp_path, "image,tag\na,cat\nb,dog\n")
    (root / "lists.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        open_dataset(root)
