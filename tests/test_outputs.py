"""Both halves decide alike where an output may go: nothing of the user's is touched."""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType

import pytest

import serving.outputs
import trainer.outputs
from serving.errors import TargetError as ServingTargetError
from trainer.errors import TargetError as TrainerTargetError

REFUSED = (TrainerTargetError, ServingTargetError)


@pytest.fixture(params=[trainer.outputs, serving.outputs], ids=["trainer", "serving"])
def outputs(request: pytest.FixtureRequest) -> ModuleType:
    module: ModuleType = request.param
    return module


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "cat").mkdir(parents=True)
    (folder / "cat" / "a.jpg").write_text("a picture")
    return folder


def never(_: Path) -> bool:
    return False


def always(_: Path) -> bool:
    return True


def test_a_folder_that_is_holds_or_lies_in_an_input(outputs, data, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(data)
    (tmp_path / "up").symlink_to(tmp_path)
    monkeypatch.chdir(data / "cat")
    for folder in (
        data,
        tmp_path,
        data / "new" / "deeper",
        data / "cat",
        tmp_path / "link",
        tmp_path / "link" / "runs" / "default",
        tmp_path / "up" / "photos" / "x",
        tmp_path / "nowhere" / ".." / "photos" / "x",
        tmp_path / "nowhere" / ".." / "photos",
        Path("runs/default"),
        Path(".."),
        Path("../../photos"),
        Path("/"),
    ):
        with pytest.raises(REFUSED, match=r"is read|no folder"):
            outputs.check_folder(folder, always, [data], "--run")
    for folder in (tmp_path / "run", Path("../../run"), tmp_path / "photos-2"):
        outputs.check_folder(folder, never, [data])


def test_a_disk_that_knows_no_case_is_asked_and_not_the_spelling(
    outputs, data, tmp_path, monkeypatch
):
    real = os.stat

    def stat(path, **rest):
        return real(str(path).replace("PHOTOS", "photos"), **rest)

    monkeypatch.setattr(os, "stat", stat)
    with pytest.raises(REFUSED, match="lies in"):
        outputs.check_folder(tmp_path / "PHOTOS" / "run", always, [data])
    with pytest.raises(REFUSED, match=r"is .*photos"):
        outputs.check_folder(tmp_path / "PHOTOS", always, [data])


def test_a_folder_that_holds_other_things(outputs, data, tmp_path):
    with pytest.raises(REFUSED, match=r"--run .*photos holds other things \(such as cat\)"):
        outputs.check_folder(data, never, option="--run")
    with pytest.raises(REFUSED, match="holds other things"):
        outputs.check_folder(tmp_path / "nowhere" / ".." / "photos", never)
    outputs.check_folder(data, always)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / ".DS_Store").write_text("")
    outputs.check_folder(tmp_path / "empty", never)


def test_a_link_inside_of_the_output_that_leads_to_an_input(outputs, data, tmp_path):
    (tmp_path / "run" / "deep").mkdir(parents=True)
    (tmp_path / "run" / "deep" / "masks").symlink_to(data / "cat")
    with pytest.raises(REFUSED, match="the link masks, which lies in"):
        outputs.check_folder(tmp_path / "run", always, [data])
    outputs.check_folder(tmp_path / "run", always, [tmp_path / "elsewhere"])


@pytest.mark.parametrize("name", ["file", "file/below", "dangling", "loop", "loop/x"])
def test_something_in_the_way_of_a_folder(outputs, tmp_path, name):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(REFUSED):
        outputs.check_folder(tmp_path / name, always)


def test_files_that_are_there(outputs, tmp_path, data):
    mine = tmp_path / "mine.png"
    mine.write_text("mine")
    (tmp_path / "empty.png").write_text("")
    outputs.check_file(tmp_path / "new" / "deep.png")
    outputs.check_file(tmp_path / "empty.png")
    outputs.check_file(mine, is_ours=always)
    with pytest.raises(REFUSED, match=r"mine\.png is there already"):
        outputs.check_file(mine)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name, text in (
        ("photos", "is a folder"),
        ("pipe", "is no regular file"),
        ("dangling", "link to nowhere"),
        ("mine.png/below", "no folder"),
    ):
        with pytest.raises(REFUSED, match=text):
            outputs.check_file(tmp_path / name)


def test_a_file_that_is_an_input_in_any_spelling(outputs, tmp_path, data, monkeypatch):
    photo = data / "cat" / "a.jpg"
    (tmp_path / "soft.jpg").symlink_to(photo)
    os.link(photo, tmp_path / "hard.jpg")
    monkeypatch.chdir(data)
    for file in (photo, tmp_path / "soft.jpg", tmp_path / "hard.jpg", Path("x/../cat/a.jpg")):
        with pytest.raises(REFUSED, match="which is read"):
            outputs.check_file(file, [photo], always)


def test_a_marked_file_may_be_written_again(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(f"<html><meta content='{trainer.outputs.MARK}'>")
    trainer.outputs.check_file(tmp_path / "page.html")


def test_both_halves_decide_by_the_same_lines() -> None:
    """No code is shared between the halves, so it is compared."""
    for name in (
        "check_file",
        "folds_case",
        "_real",
        "_identity",
        "_above",
        "_check_way",
        "_links",
    ):
        texts = [getattr(m, name).__code__.co_code for m in (trainer.outputs, serving.outputs)]
        assert texts[0] == texts[1], name


@pytest.mark.parametrize(
    "place", ["../x", "/abs", "a/../../x", "a//b", "", ".", "a/", "a\0b", "x" * 256]
)
def test_names_from_the_inside_of_files_that_would_lead_elsewhere(place: str) -> None:
    assert not trainer.outputs.is_inner(place)


def test_names_that_stay_inside() -> None:
    for place in ("a", "a/b", "..a", "a b", "Kühe/1", "a\\b", "x" * 200):
        assert trainer.outputs.is_inner(place)


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "cow/calf", "a\\b", "/abs", "CON", "nul.txt", "a.", "a ", " a", "a:b", "a\nb"],
)
def test_names_that_are_no_folder_everywhere(name: str) -> None:
    assert not trainer.outputs.is_portable(name)
    assert trainer.outputs.is_portable("Kuh und Kalb")
