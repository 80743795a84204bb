from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainer.data.dataset import Dataset
from trainer.data.formats.opening import open_dataset
from trainer.data.knobs import DataConfig
from trainer.errors import DataError

IMAGES = ("one.jpg", "sub/two.png", "sub/Über drei.JPG", "other/four.v2.jpeg")


def make(root: Path, table: str, images: tuple[str, ...] = IMAGES) -> Path:
    for name in images:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 3)).save(root / name)
    (root / "labels.csv").write_text(table, encoding="utf-8")
    return root


def tags(data: Dataset) -> dict[str, list[str]]:
    return {i: [data.classes[k] for k in record.tags] for i, record in data.records.items()}


EXPECTED = {"one": ["big cat"], "sub__two": ["big cat", "dog"], "sub__Über drei": ["dog"]}


@pytest.mark.parametrize(
    "table",
    [
        "image,tag\none.jpg,big cat\nsub/two.png,dog\nsub/two.png,big cat\nsub/Über drei.JPG,dog\n",
        "filename,label\none,big cat\nsub/two,dog;big cat\nÜber drei,dog\n",
        'file,tags\none.jpg,"big cat"\n.\\sub\\two.png,"dog; big cat;"\nÜber drei.JPG,"dog"\n',
        "image_id,dog,big cat\none,0,1\nsub/two.png,1,1\nsub/two.png,1,1\nsub/Über drei,1,0\n",
        "Path;Class\none.jpg;big cat\n./sub/two.png;dog|big cat\nsub/Über drei.JPG;dog\n",
        "\ufeffimage\tclasses\none.jpg\tbig cat\ntwo\tdog;big cat\n\nÜber drei\tdog\n",
    ],
)
def test_shapes_of_the_table(tmp_path: Path, table: str) -> None:
    data = open_dataset(make(tmp_path, table))
    assert data.format == "folder"
    assert data.classes == ("big cat", "dog")
    assert tags(data) == EXPECTED
    assert data.lists == {"all": ("one", "sub__two", "sub__Über drei")}
    assert any(note.startswith("1 images have no row") for note in data.notes)


def test_absolute_paths_below_the_folder(tmp_path: Path) -> None:
    data = open_dataset(make(tmp_path, f"filename,cat\n{tmp_path.resolve()}/sub/two.png,1\n"))
    assert tags(data) == {"sub__two": ["cat"]}


def test_tags_from_the_masks(tmp_path: Path) -> None:
    make(tmp_path, "image,tag\none,a\ntwo,b\n")
    (tmp_path / "masks").mkdir()
    Image.new("L", (4, 3), 2).save(tmp_path / "masks" / "one.png")
    data = open_dataset(tmp_path, config=DataConfig(labels_from="masks"))
    assert tags(data) == {"one": ["b"], "sub__two": []}
    assert data.tags_from == "classes in the masks"
    with pytest.raises(DataError, match="it has no tags from xml"):
        open_dataset(tmp_path, config=DataConfig(labels_from="xml"))
    (tmp_path / "masks" / "one.png").unlink()
    with pytest.raises(DataError, match="no masks to take tags from"):
        open_dataset(tmp_path, config=DataConfig(labels_from="masks"))


def test_split_column_makes_lists(tmp_path: Path) -> None:
    table = "image,tag,split\none,a,train\ntwo,a,val\ntwo,b,val\nÜber drei,b,\n"
    data = open_dataset(make(tmp_path, table))
    assert data.lists == {
        "train": ("one",),
        "val": ("sub__two",),
        "all": ("one", "sub__two", "sub__Über drei"),
    }


def test_an_image_in_several_lists(tmp_path: Path) -> None:
    data = open_dataset(
        make(tmp_path, "image,tag,split\none,a,train;train_aug\ntwo,a,train_aug|x\n")
    )
    assert data.lists["train_aug"] == ("one", "sub__two")
    assert (data.lists["train"], data.lists["x"]) == (("one",), ("sub__two",))


def test_image_without_tag_stays(tmp_path: Path) -> None:
    data = open_dataset(make(tmp_path, "image,tag\none,\ntwo,a\n"))
    assert data.records["one"].tags == ()
    assert data.records["one"].is_negative
    assert "1 of 2 images show none of the classes" in data.notes


def test_masks_follow_the_class_order(tmp_path: Path) -> None:
    make(tmp_path, "image,tag\nsub/two.png,zebra\none,ant\nÜber drei,ant\n")
    for name, value in (("sub/two", 1), ("one", 2), ("sub__Über drei", 255)):
        (tmp_path / "masks" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((3, 4), value, np.uint8)).save(tmp_path / "masks" / f"{name}.png")
    data = open_dataset(tmp_path)
    assert data.classes == ("ant", "zebra")
    assert any("1=ant, 2=zebra" in note for note in data.notes)
    assert set(data.records) == {"one", "sub__two", "sub__Über drei"}
    (tmp_path / "classes.txt").write_text("zebra\nant\nyak\n")
    data = open_dataset(tmp_path)
    assert data.classes == ("zebra", "ant", "yak")
    assert [data.classes[k] for k in data.records["sub__two"].tags] == ["zebra"]
    assert data.read_mask(data.records["sub__two"]).tolist() == [[1] * 4] * 3
    assert data.read_mask(data.records["sub__Über drei"]).max() == 255


def test_negatives_need_no_mask_where_others_have_one(tmp_path: Path) -> None:
    text = "image,a,split\none,1,val\nsub/two,0,val\nÜber drei,0,train\nx,?,val\ny,1,val\n"
    make(tmp_path, text, (*IMAGES, "x.png", "y.png"))
    assert open_dataset(tmp_path).masked("all") == []
    (tmp_path / "masks").mkdir()
    Image.fromarray(np.ones((3, 4), np.uint8)).save(tmp_path / "masks" / "one.png")
    data = open_dataset(tmp_path)
    # Neither an image whose class is unknown nor a tagged one without a mask has a true mask.
    assert [record.id for record in data.masked("val")] == ["one", "sub__two"]
    blank = data.records["sub__two"]
    assert data.is_blank(blank)
    assert data.read_mask(blank).tolist() == [[0] * 4] * 3
    # Nobody drew a mask of this list.
    assert data.masked("train") == []
    assert data.measured_lists("train", "val") == ["val"]
    assert data.mask_fingerprint(data.masked("val")) != data.mask_fingerprint([data.records["one"]])


def test_masks_beside_an_images_folder(tmp_path: Path) -> None:
    make(tmp_path, "image,tag\nx.jpg,a\n", ("images/x.jpg",))
    (tmp_path / "masks").mkdir()
    Image.fromarray(np.ones((3, 4), np.uint8)).save(tmp_path / "masks" / "x.png")
    assert open_dataset(tmp_path).has_mask(open_dataset(tmp_path).records["images__x"])


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("picture,kind\none,a\n", "columns 'picture', 'kind', none of them for the image"),
        ("image\none\n", "columns 'image', none of them for tags"),
        ("image,kind\none,a\ntwo,b\n", "column 'kind' holds 'a'"),
        ("image,a,b\none,1,0\ntwo,1,2\n", "line 3, column 'b': '2'"),
        ("image,a,b\none,1,0\none,0,1\n", r"contradicts itself about \(1\): one"),
        ("image,tag,split\none,a,train\none,b,val\n", "contradicts itself"),
        ("image,tag\none,a,b\n", "line 2 has 3 cells"),
        ("image,tag\nnine.jpg,a\none,b\nsub/nine,b\n", r"not there \(2\): nine\.jpg, sub/nine"),
        ("image,tag\none,\n", "no image of .*labels.csv shows a class"),
        ("", "is empty"),
        ("one.jpg,cat\n", "columns 'one.jpg', 'cat', none of them for the image"),
    ],
)
def test_bad_tables(tmp_path: Path, table: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_dataset(make(tmp_path, table))


def test_ambiguous_name(tmp_path: Path) -> None:
    make(tmp_path, "image,tag\nx.jpg,a\n", ("p/x.jpg", "q/x.jpg"))
    with pytest.raises(DataError, match=r"several images have \(1\): x\.jpg"):
        open_dataset(tmp_path)
    make(tmp_path, "image,tag\np/x.jpg,a\nq/x,b\n", ())
    assert tags(open_dataset(tmp_path)) == {"p__x": ["a"], "q__x": ["b"]}


def test_same_id_twice(tmp_path: Path) -> None:
    make(tmp_path, "image,tag\np/x.jpg,a\np__x.png,a\n", ("p/x.jpg", "p__x.png"))
    with pytest.raises(DataError, match="same id"):
        open_dataset(tmp_path)


def test_unknown_class_names_the_nearest(tmp_path: Path) -> None:
    make(tmp_path, "image,tag\none,zebr\n")
    (tmp_path / "classes.txt").write_text("zebra\nant\n")
    with pytest.raises(DataError, match="did you mean 'zebra'"):
        open_dataset(tmp_path)


def test_no_image(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "labels.csv").write_text("image,tag\n")
    with pytest.raises(DataError, match="no image"):
        open_dataset(tmp_path / "empty")


def test_problems_are_collected_and_the_rest_is_kept(tmp_path: Path) -> None:
    make(tmp_path, "image,tag\none,a\nnine,a\n")
    problems: list[DataError] = []
    assert tags(open_dataset(tmp_path, problems)) == {"one": ["a"]}
    assert len(problems) == 1
