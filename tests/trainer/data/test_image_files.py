"""Which files below a folder are images, and which image a table means."""

from __future__ import annotations

import os
import socket
import unicodedata
from pathlib import Path

import pytest

from trainer.data.image_files import ImageNames, list_images, walk


def put(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root


def inside(root: Path, paths: list[Path]) -> list[str]:
    return [path.relative_to(root).as_posix() for path in paths]


def find(root: Path, name: str, *others: str) -> list[str]:
    return inside(root, ImageNames(root, list_images(root), (name, *others)).find(name))


def test_suffixes_of_any_case_and_no_hidden_files(tmp_path: Path) -> None:
    put(tmp_path, "b.JPG", "._b.jpg", "sub/a.webp", ".cache/c.jpg", "notes.txt", "d.jfif", "e.JPE")
    assert inside(tmp_path, list_images(tmp_path)) == ["b.JPG", "d.jfif", "e.JPE", "sub/a.webp"]


def test_thumbnails_of_systems_are_left_out_and_named(tmp_path: Path) -> None:
    put(tmp_path, "cat/x.jpg", "cat/@eaDir/x.jpg/SYNOPHOTO_THUMB_M.jpg", "__MACOSX/cat/x.jpg")
    put(tmp_path, "$RECYCLE.BIN/y.jpg", ".thumbnails/x.png", "cat/Thumbs.db", "#recycle/z.png")
    found = walk(tmp_path)
    assert inside(tmp_path, found.images) == ["cat/x.jpg"]
    (note,) = found.notes()
    assert note == (
        "4 folders of the system or of a program are left out:"
        " #recycle, $RECYCLE.BIN, __MACOSX, cat/@eaDir"
    )


def test_kinds_that_are_not_read_are_named(tmp_path: Path) -> None:
    found = walk(put(tmp_path, "a.jpg", "a.HEIC", "b.avif", "c/d.gif", "e.jp2", "f.txt"))
    assert inside(tmp_path, found.images) == ["a.jpg"]
    assert found.notes()[0].startswith("4 files of kinds that are not read")
    assert found.notes()[0].endswith("are left out: a.HEIC, b.avif, c/d.gif, e.jp2")


def test_links_are_followed_once(tmp_path: Path) -> None:
    put(tmp_path, "elsewhere/a.jpg", "data/deep/b.jpg")
    root = tmp_path / "data"
    (root / "pics").symlink_to(tmp_path / "elsewhere")
    (root / "deep/up").symlink_to(root)
    (root / "self").symlink_to("self")
    (root / "gone.jpg").symlink_to("nowhere.jpg")
    (root / "c.jpg").symlink_to("deep/b.jpg")
    found = walk(root)
    assert inside(root, found.images) == ["c.jpg", "deep/b.jpg", "pics/a.jpg"]
    assert found.notes() == [
        "2 links that lead nowhere are left out: gone.jpg, self",
        "1 links to folders that are read already, or around the data are left out: deep/up",
    ]


def test_links_to_folders_around_the_data_are_not_followed(tmp_path: Path) -> None:
    root = put(tmp_path / "disk/data", "cat/a.jpg")
    put(tmp_path, "disk/other/b.jpg", "disk/data/cat/deep/c.jpg")
    (root / "cat/disk").symlink_to(tmp_path / "disk")
    (root / "cat/deep/top").symlink_to(tmp_path)
    seen = walk(root)
    assert inside(root, seen.images) == ["cat/a.jpg", "cat/deep/c.jpg"]
    assert seen.notes() == [
        "2 links to folders that are read already, or around the data are left out:"
        " cat/deep/top, cat/disk"
    ]


def test_many_links_between_folders_end(tmp_path: Path) -> None:
    folders = [tmp_path / f"f{n}" for n in range(12)]
    for n, folder in enumerate(folders):
        put(folder, f"{n}.jpg")
        for m, other in enumerate(folders):
            (folder / f"to{m}").symlink_to(other)
    assert len(list_images(tmp_path)) == 12


def test_a_glance_ends(tmp_path: Path) -> None:
    put(tmp_path, *(f"{n}/a.jpg" for n in range(9)))
    assert len(walk(tmp_path, limit=4).images) == 3


def test_pipes_and_sockets_are_never_opened(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s.png"))
        found = walk(tmp_path)
    assert inside(tmp_path, found.images) == ["a.jpg"]
    assert found.notes() == [
        "2 pipes, sockets or devices called like images are left out: pipe.jpg, s.png"
    ]


def test_folders_that_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "a.jpg", "closed/b.jpg")
    scandir = os.scandir

    def refuse(folder: Path) -> object:
        if Path(folder).name == "closed":
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    assert walk(tmp_path).notes() == ["1 folders that cannot be opened are left out: closed"]


def test_names_that_no_text_file_can_hold(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg", "two\nlines.jpg", "Bild\u202f1.png")
    (tmp_path / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"")
    found = walk(tmp_path)
    assert inside(tmp_path, found.images) == ["Bild\u202f1.png", "a.jpg"]
    (note,) = found.notes()
    assert r"'caf\udce9.jpg', 'two\nlines.jpg'" in note
    note.encode()


@pytest.mark.parametrize(
    "name",
    [
        "sub/Kühe 1.JPG",
        "sub/Kühe 1",
        "Kühe 1.JPG",
        "Kühe 1",
        "sub/kühe 1.jpg",
        unicodedata.normalize("NFD", "sub/Kühe 1.JPG"),
        ".\\sub\\Kühe 1.JPG",
        "..\\..\\sub\\Kühe 1.JPG",
        "animals/sub/Kühe 1.JPG",
        "C:\\Users\\me\\photos\\Kühe 1.JPG",
        "/home/me/animals/sub/Kühe 1.JPG",
        "sub/K%C3%BChe%201.JPG",
    ],
)
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_that_mean_one_image(tmp_path: Path, name: str, form: str) -> None:
    on_disk = unicodedata.normalize(form, "sub/Kühe 1.JPG")
    put(tmp_path, on_disk, "other.jpg")
    assert find(tmp_path, name) == [on_disk]


def test_absolute_names_of_this_folder(tmp_path: Path) -> None:
    put(tmp_path, "data/sub/a.jpg")
    (tmp_path / "link").symlink_to("data")
    for root in (tmp_path / "data", tmp_path / "link"):
        assert find(root, f"{root}/sub/a.jpg") == ["sub/a.jpg"]
        assert find(root, f"{tmp_path.resolve()}/data/sub/a.jpg") == ["sub/a.jpg"]


def test_a_name_of_another_folder_is_not_taken_for_this_one(tmp_path: Path) -> None:
    put(tmp_path, "dog/1.jpg", "cat/2.jpg")
    assert find(tmp_path, "cat/1.jpg", "dog/1.jpg", "cat/2.jpg") == []
    assert find(tmp_path, "/old/cat/1.jpg", "/old/dog/1.jpg") == []
    assert find(tmp_path, "/old/dog/1.jpg", "/old/cat/1.jpg") == ["dog/1.jpg"]


def test_several_images_of_one_name(tmp_path: Path) -> None:
    put(tmp_path, "p/x.jpg", "q/x.jpg", "a.jpg", "a.png", "A.jpg")
    assert find(tmp_path, "x.jpg") == ["p/x.jpg", "q/x.jpg"]
    assert find(tmp_path, "a.jpg") == ["a.jpg"]
    assert find(tmp_path, "a") == ["a.jpg", "a.png"]


def test_a_name_that_goes_through_a_link_to_a_folder_read_already(tmp_path: Path) -> None:
    put(tmp_path, "all/a.jpg")
    (tmp_path / "train").symlink_to("all")
    assert find(tmp_path, "train/a.jpg") == ["all/a.jpg"]
