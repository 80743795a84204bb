"""Tables as spreadsheets, pandas and people write them."""

from __future__ import annotations

import codecs
import os
import tempfile
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from trainer.checks.check import check
from trainer.data.dataset import Dataset
from trainer.data.formats.opening import open_dataset
from trainer.data.tables.cells import tags_of
from trainer.data.tables.reading import read_table
from trainer.errors import DataError

IMAGES = ("a.jpg", "sub/b.JPG", "Kühe 1.png", "d.jpeg")
EXAMPLES = int(os.environ.get("WSSS_FUZZ_EXAMPLES", "60"))
ROWS = "image,tag\na.jpg,cat\nb.JPG,dog\n"


def photographs(root: Path, names: tuple[str, ...] = IMAGES) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 3)).save(root / name)
    return root


def opened(root: Path, table: str | bytes, name: str = "labels.csv") -> Dataset:
    photographs(root)
    (root / name).write_bytes(table if isinstance(table, bytes) else table.encode())
    return open_dataset(root)


def tags(data: Dataset) -> dict[str, list[str]]:
    return {i: [data.classes[k] for k in record.tags] for i, record in data.records.items()}


def notes(data: Dataset) -> str:
    return "\n".join(data.notes)


@pytest.mark.parametrize(
    "data",
    [
        ROWS.encode("utf-16"),
        codecs.BOM_UTF16_BE + ROWS.replace(",", "\t").encode("utf-16-be"),
        ROWS.encode("utf-16-le"),
        ROWS.encode("utf-32"),
        ROWS.encode("utf-8-sig"),
        b"sep=;\r\n" + ROWS.replace(",", ";").replace("\n", "\r\n").encode(),
        b'"sep=\t"\n' + ROWS.replace(",", "\t").encode(),
        ROWS.replace("\n", "\r").encode(),
        b"image;tag;weight, kg\na.jpg;cat;3,5\nb.JPG;dog;4\n",
        b"image,tag,\na.jpg,cat,\nb.JPG,dog,\n",
        b"image,tag\na.jpg,cat,\nb.JPG,dog,,\n",
        b",image,tag\n0,a.jpg,cat\n1,b.JPG,dog\n",
        b"Unnamed: 0,image,tag\n0,a.jpg,cat\n1,b.JPG,dog\n",
        b"File Name,Category\na.jpg,cat\nb.JPG,dog\n",
        b'image,tag\n"a.jpg" ,"cat"\nb.JPG,dog\n',
        b"image,cat,dog\na.jpg,x,\nb.JPG,,x\n",
        b"image,cat,dog\na.jpg,yes,no\nb.JPG,no,yes\n",
        b"image,cat,dog\na.jpg,1,-1\nb.JPG,-1,1\n",
        b"image;cat;dog\na.jpg;1,0;0,0\nb.JPG;0,0;1,0\n",
        b",image,cat,dog\n0,a.jpg,True,False\n1,b.JPG,False,True\n",
        b"image,background,cat,dog\na.jpg,1,1,0\nb.JPG,0,0,1\n",
        b"image,tag\na.jpg,cat;background\nb.JPG,dog;__ignore__\n",
        b"image,tag\na.jpg,Cat\nb.JPG,dog\na.jpg,cat\na.jpg,cat\n",
        b"image,tag\na.jpg,\"['cat']\"\nb.JPG,[dog]\n",
    ],
    ids=str,
)
def test_tables_of_many_programs(tmp_path: Path, data: bytes) -> None:
    assert tags(opened(tmp_path, data)) == {"a": ["cat"], "sub__b": ["dog"]}


def test_letter_case_of_the_file_and_of_the_suffix(tmp_path: Path) -> None:
    data = opened(tmp_path, "image,tag\nA.JPG,cat\nsub/b.jpg,dog\n", "Labels.CSV")
    assert tags(data) == {"a": ["cat"], "sub__b": ["dog"]}
    assert data.tags_from == "Labels.CSV"


def test_windows_code_page_is_a_guess_and_said(tmp_path: Path) -> None:
    data = opened(tmp_path, "image,tag\nKühe 1.png,Kühe\n".encode("cp1252"))
    assert tags(data) == {"Kühe 1": ["Kühe"]}
    assert "was read as Windows' code page 1252" in notes(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"PK\x03\x04rest", "is a workbook of Excel"),
        (b"image,tag\na\x00.jpg,cat\n", "holds zero bytes"),
        (b"image,tag\na.jpg,\x81\n", "cannot be read"),
        (b'image,tag\na.jpg,"cat\nb.JPG,dog\n', "quote that is not closed"),
        (b"image,tag\na.jpg,cat,x\nb.JPG,dog,y\n", r"line 2 has 3 cells \(2 such lines\)"),
        (b"image,tag\n,cat\n,dog\n", r"rows without an image \(2\)"),
        (b"image,tag\na.jpg,\xe2\x80\x8b\n", "without letters"),
    ],
)
def test_tables_that_cannot_be_read(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(DataError) as caught:
        opened(tmp_path, data)
    assert caught.match(message)


def test_one_error_for_all_cells_that_are_neither_yes_nor_no(tmp_path: Path) -> None:
    photographs(tmp_path)
    (tmp_path / "labels.csv").write_text(
        "image,cat,dog\na.jpg,1,2\nb.JPG,maybe,0\nKühe 1.png,2,-1\nd.jpeg,1,0\n"
    )
    problems: list[DataError] = []
    data = open_dataset(tmp_path, problems)
    assert tags(data) == {"a": ["cat"], "d": ["cat"], "sub__b": [], "Kühe 1": []}
    # Their rows are there: one cell of each is wrong, and no other.
    assert "no row" not in notes(data)
    assert data.records["a"].unknown == (1,)
    (problem,) = problems
    assert "has 4 cells that are neither 0 nor 1 ('2' 2 times, 'maybe' 1 times" in problem.found
    assert "line 2, column 'dog': '2'" in problem.found


def test_a_column_without_yes_or_no_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="column 'width', 'source' holds '640'"):
        opened(tmp_path, "image,cat,width,source\na.jpg,1,640,web\nb.JPG,0,480,web\n")


def test_columns_that_are_not_read_are_named(tmp_path: Path) -> None:
    data = opened(tmp_path, "image,tag,width,fold\na.jpg,cat,640,0\nb.JPG,dog,480,1\n")
    assert "columns that are not read: 'width', 'fold'" in notes(data)
    assert data.lists.keys() == {"all"}


@pytest.mark.parametrize("column", ["split", "subset", "Set", "fold", "phase", "partition", "use"])
@pytest.mark.parametrize(
    "shape", ["image,tag,{}\na,cat,{}\nb,dog,{}\n", "image,cat,{}\na,1,{}\nb,0,{}\n"]
)
@pytest.mark.parametrize("names", [("train", "val"), ("Train", "VAL"), ("Training", "Validation")])
def test_lists_in_a_column(tmp_path: Path, column: str, shape: str, names: tuple[str, str]) -> None:
    data = opened(tmp_path, shape.format(column, *names))
    assert data.default_list("train") is not None
    assert data.lists[data.default_list("train") or ""] == ("a",)
    assert data.lists[data.default_list("val") or ""] == ("sub__b",)


def test_the_same_list_in_two_spellings(tmp_path: Path) -> None:
    data = opened(tmp_path, "image,tag,split\na,cat,Train\nb,dog,train;TEST\nd,cat,mine\n")
    assert data.lists["train"] == ("a", "sub__b")
    assert data.lists["test"] == ("sub__b",)
    assert data.lists["mine"] == ("d",)


def test_spellings_of_a_class_are_one_class_and_said(tmp_path: Path) -> None:
    data = opened(tmp_path, "image,tag\na,Cow\nb,cow\nd,cow\n")
    assert data.classes == ("cow",)
    assert "'Cow' = 'cow'" in notes(data)
    data = opened(tmp_path, "image,Cow,cow\na,1,0\nb,0,1\n")
    assert len(data.classes) == 1
    nfc, nfd = (unicodedata.normalize(form, "Kühe") for form in ("NFC", "NFD"))
    data = opened(tmp_path, f"image,tag\na,{nfc}\nb,{nfd}\nb,{nfd}\n")
    assert data.classes == ("Kühe",)
    assert "differ" not in notes(data)


def test_classes_txt_decides_about_spellings(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("__ignore__\n_background_\ndog\nCow\n")
    data = opened(tmp_path, "image,tag\na,cow\nb,dog\n")
    assert data.classes == ("dog", "Cow")
    assert tags(data) == {"a": ["Cow"], "sub__b": ["dog"]}
    (tmp_path / "classes.txt").write_text("A\na\n")
    data = opened(tmp_path, "image,tag\na,A\nb,a\n")
    assert tags(data) == {"a": ["A"], "sub__b": ["a"]}
    (tmp_path / "classes.txt").write_text("cow\nbackground\ndog\n")
    with pytest.raises(DataError, match="background after a class"):
        opened(tmp_path, "image,tag\na,cow\nb,dog\n")


def test_background_is_no_class(tmp_path: Path) -> None:
    data = opened(tmp_path, "image,tag\na,cat\nb,Background\nd,_background_\n")
    assert data.classes == ("cat",)
    assert tags(data) == {"a": ["cat"], "d": [], "sub__b": []}
    assert "'Background', '_background_' is no class" in notes(data)


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["cat, dog", "cat", "dog"], [["cat", "dog"], ["cat"], ["dog"]]),
        (["cat,dog", "dog,cow", "cow,cat"], [["cat", "dog"], ["dog", "cow"], ["cow", "cat"]]),
        (["['cat', 'dog']", "[]", '["cow"]'], [["cat", "dog"], [], ["cow"]]),
        (["['cat' 'dog']", "(cat, dog)", "{1, 2}"], [["cat", "dog"], ["cat", "dog"], ["1", "2"]]),
        (["cat|dog;cat", "nan", "None"], [["cat", "dog"], [], []]),
        (["kit fox, Vulpes macrotis", "crane"], [["kit fox, Vulpes macrotis"], ["crane"]]),
        (["cat,", "cat"], [["cat"], ["cat"]]),
        ([",", "cat"], [[], ["cat"]]),
        (["(unknown)", "()", "{'a'}"], [["(unknown)"], [], ["a"]]),
        (["1.0", "2.0", "", "1"], [["1"], ["2"], [], ["1"]]),
        (["1.0", "cat"], [["1.0"], ["cat"]]),
    ],
)
def test_several_tags_in_a_cell(cells: list[str], expected: list[list[str]]) -> None:
    assert tags_of(cells) == expected


def test_a_comma_between_a_class_and_something_else_is_asked_about() -> None:
    with pytest.raises(DataError, match="1 tags with a comma hold a class"):
        tags_of(["crane, bird", "bird", "cat"])
    assert tags_of(["crane, bird", "bird"], ["crane, bird", "bird"]) == [["crane, bird"], ["bird"]]
    assert tags_of(["cat, dog"], ["cat", "dog"]) == [["cat", "dog"]]


@pytest.mark.parametrize("values", [("0", "1"), ("1", "1"), ("True", "False"), ("yes", "no")])
def test_answers_instead_of_names_are_asked_about(tmp_path: Path, values: tuple[str, str]) -> None:
    with pytest.raises(DataError, match=r"column 'label' holds .* and nothing else") as caught:
        opened(tmp_path, "image,label\na,{}\nb,{}\n".format(*values))
    assert "call the column 'label' what 1 means" in str(caught.value)


def test_numbers_as_names_are_sorted_as_numbers_and_are_the_mask_values(tmp_path: Path) -> None:
    photographs(tmp_path, tuple(f"{n}.png" for n in range(1, 13)))
    (tmp_path / "masks").mkdir()
    for n in range(1, 13):
        Image.fromarray(np.full((3, 4), n, np.uint8)).save(tmp_path / "masks" / f"{n}.png")
    rows = "".join(f"{n}.png,{n}\n" for n in range(1, 13))
    (tmp_path / "labels.csv").write_text(f"image,tag\n{rows}")
    data = open_dataset(tmp_path)
    assert data.classes == tuple(map(str, range(1, 13)))
    for record in data.records.values():
        assert data.classes[data.read_mask(record).max() - 1] == record.id
    (tmp_path / "labels.csv").write_text("image,tag\n2.png,2\n12.png,12\n")
    data = open_dataset(tmp_path)
    assert data.mask_values == (2, 12)
    assert data.read_mask(data.records["12"]).max() == 2


@pytest.mark.parametrize("numbers", ["0 1 2", "1 300 20", "1 01 2"])
def test_numbers_that_cannot_be_mask_values(tmp_path: Path, numbers: str) -> None:
    first, second, third = numbers.split()
    data = opened(tmp_path, f"image,tag\na,{first}\nb,{second}\nd,{third}\n")
    assert data.mask_values == (1, 2, 3)
    assert list(data.classes) == sorted(numbers.split(), key=lambda n: (int(n), n))


@pytest.mark.parametrize(
    "name", ["a.PNG", "a.tif", "a_mask.png", "a.jpg.png", "A.png", "a-mask.TIFF"]
)
@pytest.mark.parametrize("folder", ["masks", "Masks"])
def test_masks_by_other_names(tmp_path: Path, name: str, folder: str) -> None:
    (tmp_path / folder).mkdir(parents=True)
    kind = "TIFF" if "tif" in name.lower() else "PNG"
    Image.fromarray(np.ones((3, 4), np.uint8)).save(tmp_path / folder / name, kind)
    (tmp_path / folder / "stranger.png").write_bytes(b"")
    (tmp_path / folder / "d.jpg").write_bytes(b"")
    data = opened(tmp_path, ROWS)
    assert data.read_mask(data.records["a"]).max() == 1
    assert f"2 files among the masks belong to no image, or to several: {folder}/d.jpg" in notes(
        data
    )


def test_two_masks_for_an_image(tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    for name in ("a.png", "a_mask.png"):
        Image.fromarray(np.ones((3, 4), np.uint8)).save(tmp_path / "masks" / name)
    with pytest.raises(DataError, match=r"two masks for the same image \(1\)"):
        opened(tmp_path, ROWS)


def test_a_mask_beside_its_image(tmp_path: Path) -> None:
    Image.new("L", (4, 3)).save(tmp_path / "a.png")
    data = opened(tmp_path, ROWS)
    assert data.records["a"].image.name == "a.jpg"
    assert "no row in labels.csv and are left out: Kühe 1.png, a.png" in notes(data)


def test_files_of_kinds_that_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "x.HEIC").write_bytes(b"")
    with pytest.raises(DataError, match=r"files of kinds that are not read \(1\): x\.HEIC"):
        opened(tmp_path, "image,tag\na.jpg,cat\nx.HEIC,dog\n")
    data = opened(tmp_path, ROWS)
    assert "1 files of kinds that are not read" in notes(data)


def test_pictures_behind_a_link(tmp_path: Path) -> None:
    photographs(tmp_path / "elsewhere")
    root = tmp_path / "data"
    root.mkdir()
    (root / "pics").symlink_to(tmp_path / "elsewhere")
    (root / "labels.csv").write_text("image,tag\na.jpg,cat\npics/sub/b.JPG,dog\n")
    assert tags(open_dataset(root)) == {"pics__a": ["cat"], "pics__sub__b": ["dog"]}


def test_table_of_hugging_face(tmp_path: Path) -> None:
    data = opened(tmp_path, "file_name,label\na.jpg,cat\nsub/b.JPG,dog\n", "metadata.csv")
    assert tags(data) == {"a": ["cat"], "sub__b": ["dog"]}
    (tmp_path / "metadata.csv").unlink()
    lines = (
        '{"file_name": "a.jpg", "labels": ["cat", "dog"]}\n{"file_name": "b.JPG", "labels": []}\n'
    )
    data = opened(tmp_path, lines, "metadata.jsonl")
    assert tags(data) == {"a": ["cat", "dog"], "sub__b": []}
    with pytest.raises(DataError, match="line 1"):
        opened(tmp_path, "no JSON", "metadata.jsonl")


def test_nothing_of_the_table_is_there(tmp_path: Path) -> None:
    photographs(tmp_path)
    (tmp_path / "labels.csv").write_text("image,tag\nx,cat\ny,dog\n")
    (problem,) = (p for p in check(tmp_path).problems if p.severity == "error")
    assert "images that are not there (2): x, y" in problem.message


WORDS = (
    "image tag split label cat dog a.jpg sub/b.JPG A.JPG 0 1 -1 x nan [] ['cat'] cat,dog cat;dog"
    " background train Val ../../a.jpg C:\\x\\a.jpg 1.0 \u200b \ud800"
)
CELLS = st.one_of(st.sampled_from(WORDS.split(" ")), st.text(max_size=6))
TABLES = st.lists(st.lists(CELLS, max_size=5), max_size=6)


def as_bytes(rows: list[list[str]], delimiter: str, encoding: str) -> bytes:
    text = "\n".join(delimiter.join(row) for row in rows)
    return text.encode(encoding, "surrogatepass")


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=80),
        st.builds(
            as_bytes,
            TABLES,
            st.sampled_from(",;\t|"),
            st.sampled_from(("utf-8", "utf-16", "utf-16-le", "utf-8-sig")),
        ),
        st.builds(lambda rows: b"image,tag,split\n" + as_bytes(rows, ",", "utf-8"), TABLES),
    ),
    st.sampled_from(("labels.csv", "metadata.jsonl", "classes.txt")),
)
def test_any_table_is_read_or_refused(data: bytes, name: str) -> None:
    """Only a ``DataError``, or a data set whose records hold together."""
    with tempfile.TemporaryDirectory() as folder:
        root = photographs(Path(folder), IMAGES[:2])
        (root / "labels.csv").write_text(ROWS)
        if name == "metadata.jsonl":
            (root / "labels.csv").unlink()
        (root / name).write_bytes(data)
        problems: list[DataError] = []
        try:
            opened = open_dataset(root, problems)
        except DataError as error:
            str(error).encode()
            return
        "\n".join([*map(str, problems), *opened.notes, *opened.classes]).encode()
        assert opened.fingerprint()
        for record in opened.records.values():
            assert record.image.is_file()
            assert all(0 <= k < len(opened.classes) for k in record.tags)


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.text(max_size=60))
def test_any_json_line_is_read_or_refused(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "metadata.jsonl")
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        try:
            table = read_table(path)
        except DataError as error:
            str(error).encode()
            return
        assert all(len(row) == len(table.columns) for row in table.rows)


def test_a_file_without_a_suffix_is_not_called_missing(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "IM0001").write_bytes(b"DICM")
    (tmp_path / "labels.csv").write_text("image,tag\na.png,cow\nIM0001,cow\nIM0002,cow\n")
    problems = []
    open_dataset(tmp_path, problems)
    found = [problem.found for problem in problems]
    assert any("kinds that are not read (1): IM0001" in text for text in found)
    assert any("not there (1): IM0002" in text for text in found)
