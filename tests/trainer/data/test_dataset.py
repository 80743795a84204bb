from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainer.data.classes import check_classes
from trainer.data.dataset import (
    Dataset,
    Record,
    map_mask_values,
    read_index_png,
    read_mask_file,
)
from trainer.data.formats.opening import open_dataset
from trainer.data.knobs import DataConfig
from trainer.data.palette import voc_palette
from trainer.data.pixels import image_size, read_image
from trainer.errors import DataError, some

RED_GREEN = np.array([[[200, 0, 0], [0, 200, 0], [0, 200, 0]]], np.uint8).repeat(2, axis=0)


def bomb(path: Path, side: int) -> Path:
    """A PNG whose header claims side x side pixels and whose body is a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


def test_missing_empty_and_unrecognised_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a folder"):
        open_dataset(tmp_path / "nowhere")
    with pytest.raises(DataError, match="found: nothing"):
        open_dataset(tmp_path)
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DataError, match=r"found: a\.txt") as caught:
        open_dataset(tmp_path)
    assert "labels.csv" in str(caught.value)
    with pytest.raises(DataError, match="is not a folder"):
        open_dataset(tmp_path / "a.txt")


def test_rgb_is_read_as_it_is_and_may_be_written_to(tmp_path: Path) -> None:
    Image.fromarray(RED_GREEN).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert image.tolist() == RED_GREEN.tolist()
    assert image.flags.writeable


def test_cmyk(tmp_path: Path) -> None:
    Image.fromarray(RED_GREEN).convert("CMYK").save(tmp_path / "a.tiff")
    assert np.abs(read_image(tmp_path / "a.tiff").astype(int) - RED_GREEN).max() <= 1
    Image.new("CMYK", (9, 5), (0, 255, 255, 0)).save(tmp_path / "a.jpg")
    image = read_image(tmp_path / "a.jpg")
    assert image.shape == (5, 9, 3)
    assert np.abs(image.astype(int) - (255, 0, 0)).max() < 8


def test_sixteen_bit_is_scaled(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 32768, 65535]], np.uint16)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png")[0].tolist() == [[0] * 3, [127] * 3, [255] * 3]


def test_float_tiff_is_scaled(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 0.5, 1]], np.float32)).save(tmp_path / "a.tif")
    assert read_image(tmp_path / "a.tif")[0].tolist() == [[0] * 3, [127] * 3, [255] * 3]


def test_grey_one_bit_palette_and_alpha(tmp_path: Path) -> None:
    Image.fromarray(np.array([[7, 250]], np.uint8)).save(tmp_path / "grey.png")
    assert read_image(tmp_path / "grey.png").tolist() == [[[7] * 3, [250] * 3]]
    Image.fromarray(np.array([[False, True]])).save(tmp_path / "bit.png")
    assert read_image(tmp_path / "bit.png").tolist() == [[[0] * 3, [255] * 3]]
    palette = Image.fromarray(np.array([[0, 1]], np.uint8))
    palette.putpalette([1, 2, 3, 4, 5, 6])
    palette.save(tmp_path / "palette.png")
    assert read_image(tmp_path / "palette.png").tolist() == [[[1, 2, 3], [4, 5, 6]]]
    palette.save(tmp_path / "transparent.png", transparency=0)
    assert read_image(tmp_path / "transparent.png").tolist() == [[[255, 255, 255], [4, 5, 6]]]
    Image.new("RGBA", (1, 1), (0, 0, 0, 0)).save(tmp_path / "alpha.png")
    assert read_image(tmp_path / "alpha.png").tolist() == [[[255, 255, 255]]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, orientation: int) -> None:
    image = Image.fromarray(RED_GREEN)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "a.png", exif=exif)
    shape = (2, 3) if orientation < 5 else (3, 2)
    assert read_image(tmp_path / "a.png").shape == (*shape, 3)
    assert image_size(tmp_path / "a.png") == shape
    red_first = orientation in (1, 4, 5, 6)
    assert read_image(tmp_path / "a.png")[0, 0, 0] == (200 if red_first else 0)


def test_truncated_fake_and_missing_images(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    for suffix in ("jpg", "png", "webp", "tif", "bmp"):
        whole = tmp_path / f"whole.{suffix}"
        Image.fromarray(noise).save(whole)
        cut = tmp_path / f"cut.{suffix}"
        cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
        with pytest.raises(DataError, match="cannot be read"):
            read_image(cut)
    (tmp_path / "text.jpg").write_text("I am no JPEG")
    with pytest.raises(DataError, match=r"text\.jpg cannot be read"):
        read_image(tmp_path / "text.jpg")
    (tmp_path / "empty.png").write_bytes(b"")
    for name in ("empty.png", "gone.png"):
        with pytest.raises(DataError, match="cannot be read"):
            read_image(tmp_path / name)
    Image.new("RGB", (4, 4)).save(tmp_path / "a.gif")
    with pytest.raises(DataError, match="cannot be read"):
        read_image(tmp_path / "a.gif")


def test_damaged_bytes_are_user_errors_or_images(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    exif = Image.Exif()
    exif[0x0112] = 6
    refused = 0
    for suffix in ("png", "tif", "webp", "jpg", "bmp"):
        Image.fromarray(rng.integers(0, 255, (9, 9, 3), dtype=np.uint8)).save(
            tmp_path / f"a.{suffix}", exif=exif
        )
        data = np.frombuffer((tmp_path / f"a.{suffix}").read_bytes(), np.uint8)
        for _ in range(40):
            broken = data.copy()
            broken[rng.integers(0, len(data), 4)] = rng.integers(0, 255, 4)
            (tmp_path / "b").write_bytes(broken.tobytes())
            try:
                assert read_image(tmp_path / "b").dtype == np.uint8
            except DataError:
                refused += 1
    assert refused > 15


@pytest.mark.parametrize("side", [10_001, 20_000, 60_000])
def test_a_bomb_is_refused_by_its_header(tmp_path: Path, side: int) -> None:
    with pytest.raises(DataError, match="pixels"):
        read_image(bomb(tmp_path / "bomb.png", side))
    with pytest.raises(DataError, match="pixels"):
        read_index_png(bomb(tmp_path / "mask.png", side))


def test_colour_mask_is_refused(tmp_path: Path) -> None:
    Image.fromarray(RED_GREEN).save(tmp_path / "m.png")
    with pytest.raises(DataError, match="is a RGB picture"):
        read_index_png(tmp_path / "m.png")


def test_mask_values_are_translated() -> None:
    raw = np.array([[0, 8, 12, 255]], np.uint8)
    assert map_mask_values(raw, (8, 12), "m").tolist() == [[0, 1, 2, 255]]
    assert map_mask_values(np.array([[254]], np.uint8), range(1, 255), "m").tolist() == [[254]]
    with pytest.raises(DataError, match=r"values \[12\]"):
        map_mask_values(raw, (8,), "m")


def test_class_tables(tmp_path: Path) -> None:
    check_classes([str(k) for k in range(254)], tmp_path)
    for names in ([], ["a", "a"], ["a", ""], [str(k) for k in range(255)]):
        with pytest.raises(DataError, match="class table"):
            check_classes(names, tmp_path)


def test_unknown_list_names_the_nearest(tmp_path: Path) -> None:
    data = Dataset(tmp_path, "voc", ("a",), (1,), {}, {"train_aug": (), "all": ()}, "csv")
    with pytest.raises(DataError, match="did you mean 'train_aug'"):
        data.subset("train_agu")


def test_fingerprint_sees_tags_lists_and_files(tmp_path: Path) -> None:
    Image.fromarray(RED_GREEN).save(tmp_path / "a.png")

    def make(tags: tuple[int, ...] = (0,), listed: tuple[str, ...] = ("a",)) -> str:
        records = {"a": Record("a", tmp_path / "a.png", tags)}
        return Dataset(
            tmp_path, "voc", ("x", "y"), (1, 2), records, {"train": listed}, "csv"
        ).fingerprint()

    first = make()
    assert first == make()
    assert len({first, make(tags=(1,)), make(listed=())}) == 3
    Image.fromarray(RED_GREEN[:, :1]).save(tmp_path / "a.png")
    assert make() != first


def test_lists_in_messages_are_shortened() -> None:
    assert some("abc") == "a, b, c"
    assert some("abcdefg", 2) == "a, b and 5 more"


@pytest.mark.parametrize("masks", ["index", "colours", "binary"])
def test_masks_are_turned_as_their_exif_data_say(tmp_path, masks):
    exif = Image.Exif()
    exif[0x112] = 6
    label = np.zeros((3, 5), np.uint8)
    label[0, 0] = 1
    image = Image.fromarray(label)
    if masks == "colours":
        image = Image.fromarray(voc_palette()[label])
    image.save(tmp_path / "a.png", exif=exif)
    expected = np.rot90(label, -1)
    assert (read_mask_file(tmp_path / "a.png", DataConfig(masks=masks)) == expected).all()
