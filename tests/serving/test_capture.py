"""What a server keeps of its callers' images with --capture, and that no caller notices."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tiny_models
from configs import configured
from http_calls import ask, fetch
from PIL import Image
from server_process import ROOT
from servers import running

from serving import capture
from serving.client import Client
from serving.errors import StartError, TargetError
from serving.files import TEMPORARY
from serving.images import encodings, masks

DARK, BRIGHT = 60, 240
HTTP = "/v1/models/colours/segment"


def picture(light, seed=0, size=(24, 36)):
    """Pixels whose doubt is 1 - light/255."""
    pixels = np.random.default_rng(seed).integers(0, light, (*size, 3), dtype=np.uint8)
    pixels[..., seed % 3] = light
    return pixels


def file(pixels, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def models(tmp_path):
    tiny_models.export(tmp_path / "exported", doubt=True)
    return tmp_path / "exported"


@pytest.fixture
def start(models, tmp_path):
    """Starts a server that keeps images with a doubt above 0.5."""

    @contextlib.contextmanager
    def start(**settings):
        options = {"capture__folder": str(tmp_path / "kept"), "capture__doubt": 0.5}
        config = configured(models, network__http_port=0, **options | settings)
        with running(config) as server:
            yield server

    return start


def outcomes(server):
    """How many images became what; waits until nothing is in the queue."""
    deadline = time.monotonic() + 20
    while server._capture._queue.qsize() or server._capture._memory.taken:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    page = fetch(server.http_address, "/metrics")[1].splitlines()
    prefix = 'wsss_captures_total{outcome="'
    pairs = [line.removeprefix(prefix).split('"} ') for line in page if line.startswith(prefix)]
    return {name: float(number) for name, number in pairs}


def images(folder, model="colours"):
    return sorted(p for p in (folder / model).iterdir() if p.suffix != ".json")


def check_whole(folder):
    """Every image has its reply, whose mask is the model's, and nothing else is there."""
    pictures = images(folder)
    for path in pictures:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        reply = json.loads(path.with_suffix(".json").read_text())
        labels = {name: k for k, name in enumerate(tiny_models.CLASSES, 1)}
        counts = {labels[n]: entry["counts"].encode() for n, entry in reply["mask"].items()}
        mask = encodings.from_coco_counts(counts, *reply["size"])
        assert np.array_equal(mask, tiny_models.expected_mask(pixels))
    assert len(list((folder / "colours").iterdir())) == 2 * len(pictures)


def test_doubtful_images_of_both_protocols_are_kept_with_their_reply(start, tmp_path):
    by_grpc, by_http, raw = (picture(DARK, seed) for seed in range(3))
    with start() as server, Client(server.address) as client:
        result = client.segment(file(by_grpc, "WEBP"), "colours", tags=["red"])
        assert ask(server.http_address, HTTP, file(by_http)).status == 200
        client.segment(raw)
        client.segment(file(picture(BRIGHT)))
        assert [error for _, error in client.segment_many([(1, file(picture(DARK, 5)))])]
        assert outcomes(server) == {"kept": 4}
    kept = {path.suffix: path for path in images(tmp_path / "kept")}
    assert kept[".webp"].read_bytes() == file(by_grpc, "WEBP")
    assert {path.read_bytes() for path in images(tmp_path / "kept")} >= {
        file(by_http),
        masks.encode_rgb(raw),
    }
    reply = json.loads(kept[".webp"].with_suffix(".json").read_text())
    assert reply["doubt"] == pytest.approx(result.doubt, abs=1e-6)
    assert reply["scores"] == pytest.approx(result.scores, abs=1e-6)
    assert (reply["model"], reply["version"], reply["tags"]) == ("colours", 1, ["red"])
    assert (reply["run"], reply["size"]) == ("runs/colours", [24, 36])
    # Neither who sent it nor anything of the request but the tags.
    assert reply.keys() == {
        *("format", "image", "size", "time", "model", "version", "model_sha256", "run"),
        *("doubt", "scores", "tags", "mask"),
    }
    assert (tmp_path / "kept").stat().st_mode & 0o077 == 0


def test_nothing_is_kept_without_the_option(models, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with running(configured(models)) as server, Client(server.address) as client:
        client.segment(picture(DARK))
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}


def test_an_image_is_kept_once_and_no_more_than_the_rate_says(start, tmp_path):
    with start(capture__per_minute=2) as server, Client(server.address) as client:
        for seed in (0, 0, 0, 1):
            client.segment(file(picture(DARK, seed)))
            outcomes(server)
        client.segment(file(picture(DARK, 2)))
        assert outcomes(server) == {"kept": 2, "known": 2, "rate": 1}
        times = server._capture._times
        times.extend([times[0] - 60] * 2)
        client.segment(file(picture(DARK, 2)))
        assert outcomes(server)["kept"] == 3
    check_whole(tmp_path / "kept")


def test_a_full_folder_takes_no_more_until_somebody_removes_images(start, tmp_path, caplog):
    kept = tmp_path / "kept"
    noise = [file(picture(DARK, seed, (220, 250))) for seed in range(16)]
    assert 2**20 // len(noise[0]) < 12
    options = {"capture__max_mb": 1, "capture__per_minute": 99}
    with start(**options) as server, Client(server.address) as client:
        for data in noise:
            client.segment(data)
            result = outcomes(server)
        assert result["full"] >= 1
        assert result["kept"] + result["full"] == 16
        assert caplog.text.count("raise --capture-mb") == 1
        size = sum(path.stat().st_size for path in (kept / "colours").iterdir())
        assert size < 2**20
        assert f"wsss_capture_bytes {float(size)}\n" in fetch(server.http_address, "/metrics")[1]
        shutil.rmtree(kept)
        client.segment(noise[0])
        assert outcomes(server)["kept"] == result["kept"] + 1
    check_whole(kept)


def test_a_full_disk_leaves_no_part_of_an_image(start, tmp_path, monkeypatch, caplog):
    kept, replace = tmp_path / "kept", Path.replace

    def full(path, target):
        if Path(target).suffix == ".png":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return replace(path, target)

    with start() as server, Client(server.address) as client:
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", full)
            for seed in range(2):
                assert client.segment(file(picture(DARK, seed))).doubt > 0.5
                outcomes(server)
        assert list((kept / "colours").iterdir()) == []
        assert caplog.text.count("No space left on device") == 1
        with monkeypatch.context() as patch:
            patch.setattr(capture, "RESERVE", 2**62)
            client.segment(file(picture(DARK)))
            assert outcomes(server) == {"failed": 2, "disk": 1}
        client.segment(file(picture(DARK)))
        assert outcomes(server)["kept"] == 1
    check_whole(kept)


def test_requests_do_not_wait_for_a_writer_that_hangs(start, tmp_path):
    with start(capture__per_minute=99) as server, Client(server.address, timeout=5) as client:
        # Another process writes, and does not end.
        with (tmp_path / "kept" / capture.MARK).open() as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            for seed in range(15):
                client.segment(file(picture(DARK, seed)))
            page = fetch(server.http_address, "/metrics")[1]
            dropped = float(page.split('outcome="queue"} ')[1].split()[0])
            assert 15 - capture.QUEUE - 1 <= dropped < 15
        result = outcomes(server)
        assert result == {"queue": dropped, "kept": 15 - dropped}
    check_whole(tmp_path / "kept")


def test_an_error_in_the_writer_is_none_of_a_request(start, monkeypatch, caplog):
    def broken(*_):
        raise MemoryError

    with start() as server, Client(server.address) as client:
        with monkeypatch.context() as patch:
            patch.setattr(capture.Candidate, "size", property(broken))
            assert client.segment(picture(DARK)).doubt > 0.5
        with monkeypatch.context() as patch:
            patch.setattr(capture.Candidate, "reply", broken)
            client.segment(picture(DARK))
            assert outcomes(server) == {"failed": 2}
        client.segment(picture(DARK))
        assert outcomes(server)["kept"] == 1


def test_two_servers_share_a_folder_and_its_size(start, tmp_path):
    options = {"capture__max_mb": 1, "capture__per_minute": 99}
    noise = [file(picture(DARK, seed, (220, 250))) for seed in range(16)]
    with start(**options) as one, start(**options) as other:
        for data in noise:
            for server in (one, other):
                assert ask(server.http_address, HTTP, data).status == 200
        counts = [outcomes(server) for server in (one, other)]
    kept = sum(count.get("kept", 0) for count in counts)
    assert len(images(tmp_path / "kept")) == kept
    assert sum(count.get("known", 0) for count in counts) == kept
    assert sum(path.stat().st_size for path in (tmp_path / "kept" / "colours").iterdir()) < 2**20
    check_whole(tmp_path / "kept")


WRITER = """
import sys
from pathlib import Path
import numpy as np
import test_capture
from configs import configured
from serving import capture
from serving.client import Client
from servers import running
folder = Path(sys.argv[1])
config = configured(folder / "exported", capture__folder=str(folder / "kept"), capture__doubt=0.5,
                    capture__per_minute=9999)
with running(config) as server, Client(server.address) as client:
    for seed in range(int(sys.argv[2]), 10**6):
        client.segment(test_capture.file(test_capture.picture(60, seed)))
"""


def test_killed_servers_leave_no_part_of_an_image(models, start, tmp_path):
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests" / "serving")))
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), str(seed)],
            env={**os.environ, "PYTHONPATH": path},
        )
        for seed in (0, 10**5)
    ]
    deadline = time.monotonic() + 60
    with contextlib.suppress(FileNotFoundError):
        while time.monotonic() < deadline:
            if (tmp_path / "kept" / "colours").is_dir() and len(images(tmp_path / "kept")) > 30:
                break
            time.sleep(0.01)
    for writer in writers:
        writer.send_signal(signal.SIGKILL)
        writer.wait(20)
    leftover = tmp_path / "kept" / "colours" / TEMPORARY.format("0123456789abcdef")
    leftover.write_bytes(b"half")
    with start() as server, Client(server.address) as client:
        assert not leftover.exists()
        # A reply whose image was not written yet is completed by the next copy of the image.
        client.segment(file(picture(DARK, 10**6)))
        outcomes(server)
    pictures = images(tmp_path / "kept")
    assert len(pictures) > 30
    assert all(path.with_suffix(".json").is_file() for path in pictures)
    for reply in (tmp_path / "kept" / "colours").glob("*.json"):
        json.loads(reply.read_text())


def test_a_server_does_not_start_with_a_folder_that_is_not_its_own(start, models, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "holiday.jpg").write_bytes(b"x")
    for place, text in (
        (mine, "holds other things"),
        (mine / "holiday.jpg", "is no folder"),
        (models, "which is read"),
        (models / "kept", "lies in"),
    ):
        with pytest.raises(TargetError, match=text), start(capture__folder=str(place)):
            pass
    assert [path.name for path in mine.iterdir()] == ["holiday.jpg"]
    with pytest.raises(StartError, match="--capture"), start(capture__folder="/proc/kept"):
        pass


def test_the_log_says_what_will_be_kept(start, models, caplog):
    caplog.set_level("INFO", "serving.capture")
    tiny_models.change_card(
        models / "colours" / "1",
        doubt={"held_out": {"doubt": 0.0123, "wrong": 0.02}, "wrong": [[0, 0.5], [255, 0.0]]},
    )
    with start():
        assert "for colours with a doubt above 0.5" in caplog.text
        assert "average at the export was 0.0123" in caplog.text
    shutil.rmtree(models)
    tiny_models.export(models, "maps", "cam")
    with start():
        assert "no model gives its doubt" in caplog.text


def test_files_that_somebody_removes_at_the_wrong_moment_cost_no_image(
    start, tmp_path, monkeypatch
):
    with start() as server, Client(server.address) as client:
        client.segment(file(picture(DARK)))
        outcomes(server)
        listing = os.scandir

        def late(folder):
            entries = list(listing(folder))
            for entry in entries:
                if entry.is_file() and not entry.name.startswith("."):
                    os.unlink(entry)
            return entries

        monkeypatch.setattr(capture.os, "scandir", late)
        (tmp_path / "kept" / "colours" / "new").touch()
        client.segment(file(picture(DARK, 1)))
        assert outcomes(server) == {"kept": 2}
