import errno
import os

import numpy as np
import pytest
import torch
from PIL import Image

from trainer import files
from trainer.data.dataset import read_index_png
from trainer.data.palette import voc_palette, write_index_png
from trainer.errors import DataError, RunError
from trainer.maps.camfile import cam_path, read_cam, upsample_cam, write_cam


def test_maps_come_back_as_float16_keeps_them(tmp_path):
    maps = np.random.RandomState(0).uniform(size=(2, 5, 7))
    path = cam_path(tmp_path / "cams", "2007_000032")
    write_cam(path, [3, 11], maps, (17, 28))
    cam = read_cam(path)
    assert path.name == "2007_000032.npz"
    assert cam.classes.tolist() == [3, 11]
    assert cam.classes.dtype == np.int16
    assert cam.size == (17, 28)
    assert cam.maps.dtype == np.float32
    np.testing.assert_array_equal(cam.maps, maps.astype(np.float16).astype(np.float32))
    with np.load(path, allow_pickle=False) as stored:
        assert {k: stored[k].dtype for k in stored} == {
            "classes": np.int16,
            "maps": np.float16,
            "size": np.int32,
        }
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_an_image_without_tags_has_no_maps(tmp_path):
    write_cam(tmp_path / "a.npz", [], np.zeros((0, 5, 7)), (17, 28))
    cam = read_cam(tmp_path / "a.npz")
    assert upsample_cam(cam.maps, cam.size).shape == (0, 17, 28)


@pytest.mark.parametrize("damage", ["missing", "cut", "text", "key", "pickle", "shape"])
def test_damaged_files_are_user_errors(tmp_path, damage):
    path = tmp_path / "a.npz"
    write_cam(path, [1], np.full((1, 5, 7), 0.5), (17, 28))
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:200])
    elif damage == "text":
        path.write_text("not an archive")
    elif damage == "key":
        np.savez(path, classes=np.zeros(1, np.int16))
    elif damage == "pickle":
        np.savez(
            path, classes=np.array([{}], object), maps=np.zeros((1, 5, 7)), size=np.array([17, 28])
        )
    else:
        np.savez(
            path, classes=np.zeros(2, np.int16), maps=np.zeros((1, 5, 7)), size=np.array([17, 28])
        )
    with pytest.raises(DataError, match=r"a\.npz") as caught:
        read_cam(path)
    assert "run wsss-trainer fit again" in caught.value.hint


@pytest.mark.parametrize(
    ("classes", "maps"),
    [
        ([1, 2], np.zeros((1, 4, 4))),
        ([1], np.full((1, 4, 4), 1.5)),
        ([1], np.full((1, 4, 4), np.nan)),
    ],
)
def test_maps_that_break_the_contract_are_not_written(tmp_path, classes, maps):
    with pytest.raises(ValueError, match="maps"):
        write_cam(tmp_path / "a.npz", classes, maps, (16, 16))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("grid", "size"), [((5, 7), (17, 28)), ((1, 1), (3, 4)), ((9, 6), (9, 6)), ((10, 12), (7, 5))]
)
def test_upsampling_is_that_of_torch(grid, size):
    maps = np.random.RandomState(1).uniform(size=(3, *grid)).astype(np.float32)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(maps)[None], size, mode="bilinear", align_corners=False
    )
    got = upsample_cam(maps, size)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected[0].numpy(), atol=1e-6)


def test_palette_is_that_of_the_voc_devkit():
    colours = voc_palette(22)
    assert colours.shape == (22, 3)
    assert colours[:4].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]
    assert colours[8].tolist() == [64, 0, 0]
    assert colours[15].tolist() == [192, 128, 128]
    assert colours[20].tolist() == [0, 64, 128]
    assert voc_palette()[255].tolist() == [224, 224, 192]
    assert len({tuple(c) for c in voc_palette().tolist()}) == 256


def test_index_png_keeps_values_and_has_the_palette(tmp_path):
    mask = np.arange(256, dtype=np.uint8).reshape(8, 32)
    path = tmp_path / "new" / "a.png"
    write_index_png(path, mask)
    np.testing.assert_array_equal(read_index_png(path), mask)
    with Image.open(path) as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), voc_palette()[mask])
    with pytest.raises(ValueError, match="uint8"):
        write_index_png(path, mask.astype(np.int64))


def test_no_space_left_keeps_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    write_index_png(path, np.zeros((4, 4), np.uint8))
    before = path.read_bytes()

    def full(self, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.Path, "write_bytes", full)
    with pytest.raises(RunError, match="no space left") as caught:
        write_index_png(path, np.ones((4, 4), np.uint8))
    assert "same command again" in caught.value.hint
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_a_folder_that_cannot_be_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        write_index_png(tmp_path / "file" / "a.png", np.zeros((2, 2), np.uint8))
