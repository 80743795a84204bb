"""What lies in a folder that is labelled: links, pipes, other kinds of pictures, our outputs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from configs import EXACT
from PIL import Image

from serving.errors import LabelError, TargetError
from serving.labelling.label import label
from serving.labelling.labeller import LabelConfig
from serving.labelling.ledger import open_ledger, read_manifest
from serving.listing import list_images


def picture(path: Path, seed: int = 0, kind: str = "PNG") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, kind)


@pytest.fixture
def config(tmp_path: Path, repository: Path) -> LabelConfig:
    picture(tmp_path / "in" / "a.png")
    return LabelConfig(
        tmp_path / "in", tmp_path / "out", repository, model="colours", engine=EXACT, workers=1
    )


def reasons(config: LabelConfig) -> dict[str, str]:
    """Why, by name."""
    lines = (config.target / "failures.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    return {entry["image"]: entry.get("error") or entry["left_out"] for entry in entries}


def names(folder: Path) -> set[str]:
    return {path.as_posix() for path in list_images(folder).images}


def test_every_ending_of_a_jpeg_is_read_and_other_kinds_are_named(config):
    for name in ("b.jfif", "c.JPE", "d.jpeg"):
        picture(config.source / name, kind="JPEG")
    picture(config.source / "without ending")
    picture(config.source / "e.GIF", kind="GIF")
    (config.source / "f.heic").write_bytes(b"\0\0\0\x18ftypheic" + b"\0" * 40)
    (config.source / "g.avif").write_bytes(b"\0\0\0\x18ftypavif" + b"\0" * 40)
    (config.source / "h.jp2").write_bytes(b"\0\0\0\x0cjP  \r\n\x87\n")
    for name in ("notes.txt", "labels.csv", "Makefile", "LICENSE"):
        (config.source / name).write_text("all: text")
    summary = label(config)
    assert (summary.written, summary.failed, summary.images) == (4, 5, 9)
    found = reasons(config)
    assert set(found) == {"without ending", "e.GIF", "f.heic", "g.avif", "h.jp2"}
    assert "GIF" in found["e.GIF"]
    assert "HEIC" in found["f.heic"]
    assert "PNG" in found["without ending"]


def test_pipes_sockets_and_devices_are_not_waited_for(config):
    os.mkfifo(config.source / "b.jpg")
    os.mkfifo(config.source / "no ending")
    (config.source / "c.jpg").symlink_to("/dev/zero")
    summary = label(config)
    assert (summary.written, summary.failed, summary.left_out) == (1, 0, 2)
    assert set(reasons(config)) == {"b.jpg", "c.jpg"}


def test_links_to_folders_are_followed_once(config, tmp_path):
    picture(tmp_path / "elsewhere" / "deep" / "b.png", 1)
    (config.source / "link").symlink_to(tmp_path / "elsewhere")
    (config.source / "again").symlink_to(tmp_path / "elsewhere")
    (config.source / "self").symlink_to(config.source)
    (config.source / "up").symlink_to(tmp_path)
    (tmp_path / "elsewhere" / "back").symlink_to(config.source)
    (config.source / "loop").symlink_to(config.source / "loop")
    assert names(config.source) == {"a.png", "again/deep/b.png"}
    summary = label(config)
    assert (summary.written, summary.left_out) == (2, 4)
    assert set(reasons(config)) == {"again/back", "link", "self", "up"}
    only = tmp_path / "only links"
    only.mkdir()
    (only / "link").symlink_to(tmp_path / "elsewhere")
    assert names(only) == {"link/deep/b.png", "link/back/a.png"}


def test_folders_that_cannot_be_opened_are_failures(config, monkeypatch):
    picture(config.source / "closed" / "b.png")
    real = os.listdir

    def listdir(folder):
        if Path(folder).name == "closed":
            raise PermissionError(13, "Permission denied", folder)
        return real(folder)

    monkeypatch.setattr(os, "listdir", listdir)
    summary = label(config)
    assert (summary.written, summary.failed) == (1, 1)
    assert "Permission denied" in reasons(config)["closed"]


def test_thumbnails_of_systems_and_outputs_of_ours_are_left_out(config, tmp_path):
    picture(config.source / "@eaDir" / "a.png" / "SYNOPHOTO_THUMB_M.png")
    picture(config.source / "__MACOSX" / "b.png")
    label(replace(config, target=config.source / "masks"))
    inner = replace(config, target=config.source / "coco", format="coco")
    assert label(inner).written == 1
    assert set(reasons(inner)) == {"@eaDir", "__MACOSX", "masks"}
    assert label(inner).skipped == 1
    picture(config.source / "run" / "masks" / "b.png")
    (config.source / "run" / "manifest.json").write_text('{"format": 1, "stages": {}}')
    (config.source / "exported").symlink_to(config.repository)
    assert label(config).written == 1
    assert reasons(config)["run"] == "a run of wsss-trainer"
    with pytest.raises(LabelError, match="is an output of wsss-serving label"):
        label(replace(config, source=config.source / "masks"))


def test_no_image_names_what_is_there(config):
    (config.source / "a.png").rename(config.source / "a.gif")
    with pytest.raises(LabelError, match=r"no image below .*a\.gif: "):
        label(config)


def test_a_folder_of_other_things_and_a_mask_that_was_corrected(config, tmp_path):
    config.target.mkdir()
    mine = config.target / "a.png"
    picture(mine, 5)
    (config.target / "manifest.jsonl").write_text('{"audio": "a.wav"}\n')
    before = mine.read_bytes()
    with pytest.raises(TargetError, match="holds other things"):
        label(config)
    mine.unlink()
    (config.target / "manifest.jsonl").unlink()
    label(config)
    Image.new("P", (11, 9), 1).save(mine)
    corrected = mine.read_bytes()
    assert corrected != before
    assert label(config).skipped == 1
    for changed in (replace(config, force=True), replace(config, confidence_threshold=0.5)):
        summary = label(changed)
        assert (summary.written, summary.failed) == (0, 1)
        assert "was changed since it was written" in reasons(config)["a.png"]
        assert mine.read_bytes() == corrected
    mine.unlink()
    assert label(config).written == 1


def test_names_that_the_disk_does_not_take_cost_no_other_image(config):
    picture(config.source / f"{'x' * 251}.png")
    picture(config.source / "b.png", 1)
    summary = label(replace(config, format="coco"))
    assert (summary.written, summary.failed) == (2, 1)
    assert label(replace(config, target=config.source / "voc")).written == 3


def test_two_names_that_are_one_on_a_disk_that_knows_no_case(config, monkeypatch):
    picture(config.source / "A.png", 1)
    assert label(config).written == 2
    monkeypatch.setattr("serving.labelling.label.folds_case", lambda _: True)
    with pytest.raises(LabelError, match=r"A\.png and a\.png would both become a\.png"):
        label(config)


def test_one_labeller_at_a_time_and_what_a_killed_one_left(config):
    label(config)
    left = config.target / "sub" / ".wsss-0123456789abcdef.tmp"
    left.parent.mkdir()
    left.write_text("half a mask")
    with open_ledger(config.target), pytest.raises(LabelError, match="another labeller is at work"):
        label(config)
    assert label(config).skipped == 1
    assert not left.exists()


KILLED = """
import sys, time
from pathlib import Path
from serving.labelling import labeller, store
from serving.labelling.label import label
write = store.write_atomic
def slow(path, data):
    time.sleep(0.02)
    write(path, data)
store.write_atomic = slow
sys.path.insert(0, sys.argv[1])
from configs import EXACT
source, target, repository = map(Path, sys.argv[2:])
print("ready", flush=True)
label(labeller.LabelConfig(source, target, repository, model="colours", format="coco",
                           engine=EXACT, workers=2))
"""


def test_a_labeller_that_is_killed_loses_and_doubles_nothing(config, tmp_path):
    for number in range(30):
        picture(config.source / f"{number}.png", number)
    whole = replace(config, target=tmp_path / "whole", format="coco")
    label(whole)
    arguments = [Path(__file__).parents[1], config.source, config.target, config.repository]
    command = [sys.executable, "-c", KILLED, *map(str, arguments)]
    for delay in (0.25, 0.35, 0.45):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
    done = len(read_manifest(config.target / "manifest.jsonl"))
    summary = label(replace(config, format="coco"))
    assert (summary.images, summary.failed) == (31, 0)
    assert summary.skipped == done
    for path in whole.target.rglob("*.json"):
        assert (config.target / path.relative_to(whole.target)).read_bytes() == path.read_bytes()
    assert not list(config.target.rglob(".wsss-*"))
