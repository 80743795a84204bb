"""Cells and columns as spreadsheets, R, NumPy, fastai and Kaggle write them."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from trainer.data.formats.opening import open_dataset
from trainer.errors import DataError


def make(root: Path, table: str, classes: str = "") -> Path:
    for name in "abcd":
        Image.new("RGB", (4, 3)).save(root / f"{name}.jpg")
    (root / "labels.csv").write_text(table, encoding="utf-8")
    if classes:
        (root / "classes.txt").write_text(classes, encoding="utf-8")
    return root


def states(root: Path) -> dict[str, str]:
    """By image: the classes that it shows, and with ``?`` those that it may show."""
    data = open_dataset(root)
    return {
        key: " ".join(
            [*(data.classes[k] for k in r.tags), *(f"?{data.classes[k]}" for k in r.unknown)]
        )
        for key, r in data.records.items()
    }


@pytest.mark.parametrize("word", ["NA", "<NA>", "#N/A", "n.a.", "None", "NULL", "-", "—"])
def test_words_for_no_tag(tmp_path: Path, word: str) -> None:
    root = make(tmp_path, f"image,tag\na,cat\nb,{word}\nc,{word}\n")
    assert states(root) == {"a": "cat", "b": "", "c": ""}
    assert any(f"hold no tag: {word!r} 2 times" in note for note in open_dataset(root).notes)


def test_a_class_of_such_a_name(tmp_path: Path) -> None:
    root = make(tmp_path, "image,tag\na,None\nb,None;cat\nc,\n", "None\ncat\n")
    assert states(root) == {"a": "None", "b": "None cat", "c": ""}


@pytest.mark.parametrize("word", ["NA", "<NA>", "#N/A", "None", "NaN", "?"])
def test_words_for_unknown(tmp_path: Path, word: str) -> None:
    root = make(tmp_path, f"image,cat,dog\na,1,0\nb,{word},1\n")
    assert states(root) == {"a": "cat", "b": "dog ?cat"}


@pytest.mark.parametrize(
    ("yes", "no"),
    [
        ("WAHR", "FALSCH"),
        ("VRAI", "FAUX"),
        ("VERDADERO", "FALSO"),
        ("ИСТИНА", "ЛОЖЬ"),
        ("да", "нет"),
        ("是", "否"),
        ("1.000000000000000000e+00", "0.000000000000000000e+00"),
        ('"1,00"', '"0,00"'),
        ("1.", "0."),
    ],
)
def test_yes_and_no_of_any_program(tmp_path: Path, yes: str, no: str) -> None:
    root = make(tmp_path, f"image,cat,dog\na,{yes},{no}\nb,{no},{yes}\nc,{no},{no}\n")
    assert states(root) == {"a": "cat", "b": "dog", "c": ""}


def test_answers_are_no_classes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'label' holds FALSCH, WAHR and nothing else"):
        open_dataset(make(tmp_path, "image,label\na,WAHR\nb,FALSCH\n"))


@pytest.mark.parametrize("cell", ["0.9", "1.5", "90%", "1e-3", "3"])
def test_probabilities_and_counts_are_refused(tmp_path: Path, cell: str) -> None:
    with pytest.raises(DataError, match=f"neither 0 nor 1 \\('{cell}' 1 times\\)"):
        open_dataset(make(tmp_path, f"image,cat,dog\na,1,0\nb,0,{cell}\nc,0,1\n"))


def test_blanks_between_tags(tmp_path: Path) -> None:
    table = "image,tags\na,cat dog\nb,cat\nc,dog\n"
    with pytest.raises(DataError, match="1 tags consist of other tags: 'cat dog'") as error:
        open_dataset(make(tmp_path, table))
    assert "put ; between them" in error.value.hint
    root = make(tmp_path, table, "cat\ncat dog\ndog\n")
    assert states(root) == {"a": "cat dog", "b": "cat", "c": "dog"}
    # Words that are no tags by themselves are part of a name.
    (root / "classes.txt").unlink()
    root = make(root, "image,tags\na,left lung\nb,right lung\nc,left eye\n")
    assert states(root) == {"a": "left lung", "b": "right lung", "c": "left eye"}


def test_codes_keep_their_zeros(tmp_path: Path) -> None:
    root = make(tmp_path, "image,tag\na,007\nb,7\nc,08\n")
    assert states(root) == {"a": "007", "b": "7", "c": "08"}


@pytest.mark.parametrize(
    ("columns", "a", "b", "c", "lists"),
    [
        ("is_valid", "False", "True", "False", {"train": "ac", "valid": "b"}),
        ("is_train", "1", "0", "1", {"train": "ac", "val": "b"}),
        ("isTest,is_valid", "0,0", "0,1", "1,0", {"train": "a", "test": "c", "valid": "b"}),
        ("train,val", "1,0", "0,1", "0,0", {"train": "a", "val": "b"}),
    ],
)
@pytest.mark.parametrize("tag", [True, False])
def test_columns_called_like_lists(
    tmp_path: Path, columns: str, a: str, b: str, c: str, lists: dict[str, str], tag: bool
) -> None:
    head, rows = ("tag", "xyx") if tag else ("x,y", ("1,0", "0,1", "1,0"))
    lines = (f"{name},{row},{more}" for name, row, more in zip("abc", rows, (a, b, c), strict=True))
    data = open_dataset(make(tmp_path, "\n".join((f"image,{head},{columns}", *lines))))
    assert data.classes == ("x", "y")
    assert data.lists == {name: tuple(ids) for name, ids in {**lists, "all": "abc"}.items()}


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    root = make(tmp_path, "image,car,train\na,1,0\nb,0,1\n")
    assert states(root) == {"a": "car", "b": "train"}
    root = make(tmp_path, "image,tag,train\na,car,1\nb,bus,0\n")
    assert open_dataset(root).lists == {"train": ("a",), "val": ("b",), "all": ("a", "b")}


@pytest.mark.parametrize(
    ("table", "cell"),
    [
        ("image,tag,present\na,cat,1\nb,cat,0\n", "0"),
        ("image,tag,Confidence\na,cat,0.9\nb,cat,0.1\n", "0.1"),
        ("image,tag,x\na,cat,yes\na,dog,no\nb,cat,no\nb,dog,no\n", "no"),
    ],
)
def test_rows_of_absent_tags_are_refused(tmp_path: Path, table: str, cell: str) -> None:
    with pytest.raises(DataError, match=rf"rows hold a tag and '{cell}' in column"):
        open_dataset(make(tmp_path, table))


def test_other_answers_beside_tags_do_no_harm(tmp_path: Path) -> None:
    root = make(tmp_path, "image,tag,blurred,score\na,cat,0,0.9\nb,cat,1,1\nb,dog,0,\n")
    assert states(root) == {"a": "cat", "b": "cat dog"}


@pytest.mark.parametrize("cell", ['"""cat"""', "“cat”", "`cat`", '"cat,"', "'cat'"])
def test_quotes_and_commas_around_a_tag(tmp_path: Path, cell: str) -> None:
    root = make(tmp_path, f"image,tag\na,{cell}\nb,cat\n")
    assert states(root) == {"a": "cat", "b": "cat"}


def test_training_on_all_lists_is_said(tmp_path: Path) -> None:
    root = make(tmp_path, "image,tag,split\na,x,trian\nb,y,val\n")
    assert any("no list is called train: fit trains" in note for note in open_dataset(root).notes)


def test_a_list_of_an_unusual_name_beside_train(tmp_path: Path) -> None:
    data = open_dataset(make(tmp_path, "image,tag,subset\na,x,train\nb,x,dev\nc,y,test\n"))
    assert data.lists == {
        "train": ("a",),
        "dev": ("b",),
        "test": ("c",),
        "all": ("a", "b", "c"),
    }


def test_folds_are_no_lists(tmp_path: Path) -> None:
    data = open_dataset(make(tmp_path, "image,tag,fold\na,x,0\nb,y,1\n"))
    assert set(data.lists) == {"all"}


@pytest.mark.parametrize("column", ["ImageId", "Image ID", "imageName", "fname", "File-Path"])
def test_names_of_the_column_of_images(tmp_path: Path, column: str) -> None:
    assert states(make(tmp_path, f"{column},tag\na,cat\nb,dog\n")) == {"a": "cat", "b": "dog"}


def test_other_numbers_of_the_images_are_no_class(tmp_path: Path) -> None:
    root = make(tmp_path, "id,image,cat,dog\n1,a,1,0\n2,b,0,1\n3,c,0,1\n")
    assert states(root) == {"a": "cat", "b": "dog", "c": "dog"}


def test_signs_are_names_of_classes(tmp_path: Path) -> None:
    assert states(make(tmp_path, "image,+,-\na,1,0\nb,0,1\n")) == {"a": "+", "b": "-"}


@pytest.mark.parametrize("mark", ["\u200b", "\ufeff\ufeff"])
def test_marks_that_nobody_sees(tmp_path: Path, mark: str) -> None:
    assert states(make(tmp_path, f"{mark}image,tag\na,cat\n")) == {"a": "cat"}


def test_objects_are_no_tags(tmp_path: Path) -> None:
    make(tmp_path, "").joinpath("labels.csv").unlink()
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.jpg", "label": [{"name": "cat"}]}')
    with pytest.raises(DataError, match=r"a cell of tags holds objects: {'name': 'cat'}"):
        open_dataset(tmp_path)


def test_an_image_of_another_list_is_not_meant(tmp_path: Path) -> None:
    (tmp_path / "val").mkdir()
    make(tmp_path / "val", "").joinpath("labels.csv").unlink()
    (tmp_path / "labels.csv").write_text("image,tag\ntrain/a.jpg,cat\ntrain/b.jpg,dog\n")
    with pytest.raises(DataError, match=r"not there \(2\): train/a.jpg, train/b.jpg"):
        open_dataset(tmp_path)
    # Without such folders, train is one of another machine.
    assert set(states(make(tmp_path / "val", "image,tag\ntrain/a.jpg,cat\n"))) == {"a"}


def test_other_tables_are_named(tmp_path: Path) -> None:
    root = make(tmp_path, "image,tag\na,cat\nb,dog\n")
    for name in ("train.csv", "labels.xlsx", "lists.csv"):
        (root / name).write_text("image,list\na,train\n")
    assert "2 other tables are not read: labels.xlsx, train.csv" in open_dataset(root).notes
