"""What a user types, sees and gets back as exit code."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import pytest
import tiny_models
from grpc_health.v1 import health_pb2, health_pb2_grpc
from PIL import Image
from server_process import ROOT, served

from serving.cli import main
from serving.client import Client
from serving.errors import ServerUnavailable
from serving.images import encodings
from wsss.v1 import segmentation_pb2 as pb
from wsss.v1 import segmentation_pb2_grpc


@dataclass
class Done:
    code: int
    stdout: str
    stderr: str


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Call ``main`` with arguments, here rather than in a process of its own, which would take a
    second each.
    """

    def call(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["wsss-serving", *map(str, arguments)])
        capsys.readouterr()
        with warnings.catch_warnings(), pytest.raises(SystemExit) as caught:
            main()
        captured = capsys.readouterr()
        return Done(int(caught.value.code or 0), captured.out, captured.err)

    return call


def test_help_has_examples(run):
    top = run("--help")
    assert top.code == 0
    for command in ("serve", "label", "models", "health"):
        assert command in top.stdout
        text = run(command, "--help").stdout
        assert "Example" in text
        assert f" wsss-serving {command}" in text


def test_help_is_fast_and_imports_nothing_heavy():
    code = (
        "import resource, runpy, sys; sys.argv = ['wsss-serving', '--help']\ntry:\n   "
        " runpy.run_module('serving.cli', run_name='__main__')\nexcept SystemExit:\n    used ="
        " resource.getrusage(resource.RUSAGE_SELF)\n    print(sorted({'grpc', 'numpy',"
        " 'onnxruntime', 'PIL', 'torch', 'asyncio'} & set(sys.modules)))\n    print(used.ru_utime +"
        " used.ru_stime)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    loaded, seconds = done.stdout.splitlines()[-2:]
    assert loaded == "[]"
    assert float(seconds) < 1.0, "time of the processor, so that a busy machine does not fail this"


def test_no_module_of_serving_loads_torch_or_the_trainer():
    code = (
        "import importlib, pkgutil, sys, serving\n"
        "names = [m.name for m in pkgutil.walk_packages(serving.__path__, 'serving.')]\n"
        "assert 'serving.engines.onnxruntime' in names\n"
        "for name in names: importlib.import_module(name)\n"
        "import onnxruntime\n"
        "print(sorted({'torch', 'trainer', 'scipy', 'onnx'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "[]", done.stderr


SLOW = (
    "import time\n"
    "from serving.engines.onnxruntime import OnnxRuntimeEngine as engine\n"
    "run = engine.run\n"
    "engine.run = lambda self, inputs, stop=None: (time.sleep(0.8), run(self, inputs, stop))[1]\n"
    "from serving.cli import main; main()"
)


def test_sigterm_finishes_what_was_accepted_and_refuses_the_rest(repository):
    raw = pb.RawImage(height=40, width=40, pixels=bytes([200]) * 4800)
    request = pb.SegmentRequest(
        image=pb.Image(raw=raw), model="colours", encoding=pb.MASK_ENCODING_RAW
    )
    states, refused, under_way = [], [], []
    options = ("--repository", repository, "--workers", 1, "--engine", "onnxruntime")
    with served(*options, command=[sys.executable, "-c", SLOW]) as (process, address):
        with grpc.insecure_channel(address) as channel:
            stub = segmentation_pb2_grpc.SegmentationStub(channel)

            def watch() -> None:
                try:
                    replies = health_pb2_grpc.HealthStub(channel).Watch(
                        health_pb2.HealthCheckRequest()
                    )
                    states.extend(reply.status for reply in replies)
                except grpc.RpcError:
                    states.append("closed")

            watcher = threading.Thread(target=watch)
            watcher.start()
            calls = [stub.Segment.future(request, timeout=60) for _ in range(5)]
            # They arrive in any order, so that the first one sent may be the last one run.
            while not any(call.done() for call in calls):
                time.sleep(0.01)
            process.send_signal(signal.SIGTERM)
            while len(states) < 2:
                time.sleep(0.01)
            with Client(address, timeout=10, retries=0) as late:
                while process.poll() is None and len(refused) < 5:
                    with pytest.raises(ServerUnavailable) as caught:
                        late.list_models()
                    refused.append(caught.value.code)
                    under_way.append(not all(call.done() for call in calls))
                    time.sleep(0.05)
            # The first refusal comes at once; how many of the five do before the rest is done
            # depends on the machine.
            assert under_way[0], "nothing was under way while calls were refused"
            masks = [call.result().mask.raw for call in calls]
            watcher.join(30)
        assert process.wait(30) == 0
    assert masks == [b"\1" * 1600] * 5
    assert set(refused) == {"UNAVAILABLE"}
    assert states == [
        health_pb2.HealthCheckResponse.SERVING,
        health_pb2.HealthCheckResponse.NOT_SERVING,
        "closed",
    ]


def test_health_command_and_ctrl_c(run, repository):
    with served("--repository", repository) as (process, address):
        assert address.startswith("127.0.0.1:")
        good = run("health", "--address", address, "--model", "maps", "--json")
        assert good.code == 0
        assert json.loads(good.stdout)["status"] == "SERVING"
        assert run("health", "--address", address, "--model", "none").code == 1
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    bad = run("health", "--address", address, "--timeout", 1)
    assert (bad.code, bad.stdout.strip()) == (1, "UNAVAILABLE")


def test_models_are_followed_and_a_bad_one_is_left_out_unless_strict(run, tmp_path):
    root = tmp_path / "exported"
    tiny_models.export(root)
    tiny_models.export(root, "bad", changes={"sha256": {"model.onnx": "0" * 64}})
    done = run("serve", "--repository", root, "--port", 0, "--strict")
    assert (done.code, "SHA-256" in done.stderr) == (2, True)
    with served("--repository", root, "--control", "poll", "--poll-seconds", 0.1) as (_, address):
        assert run("health", "--address", address, "--model", "colours").code == 0
        assert (
            json.loads(run("health", "--address", address, "--model", "bad", "--json").stdout)[
                "status"
            ]
            == "NOT_SERVING"
        )
        made = tiny_models.export(tmp_path / "made", version=2)
        made.rename(root / "colours" / "2")
        with Client(address) as client:
            while client.get_model("colours").version != 2:
                time.sleep(0.05)
    assert run("serve", "--control", "always", "--port", 0).stderr.startswith(
        "error: models.control is 'always'"
    )


def test_sigterm_while_models_are_loaded_ends_at_once(tmp_path):
    tiny_models.export(tmp_path)
    forever = (
        "import asyncio\nfrom serving.repository import models\n"
        "async def never(folder, config): print('trying', flush=True); await asyncio.sleep(1000)\n"
        "models.try_model = never\nfrom serving.cli import main; main()"
    )
    command = [sys.executable, "-c", forever, "serve", "--port", "0", "--repository", str(tmp_path)]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "trying\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    output, errors = process.communicate()
    assert (output, "Traceback" in errors) == ("", False)


def test_port_in_use_and_bad_repositories_exit_with_2(run, repository, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run("serve", "--repository", repository, "--port", port)
    assert done.code == 2
    assert f"port {port} of 127.0.0.1 is in use" in done.stderr
    assert "try: --port" in done.stderr
    assert "Traceback" not in done.stderr
    done = run(
        "serve", "--repository", repository, "--port", 0, "--host", "203.0.113.1", "--insecure"
    )
    assert (done.code, "cannot listen" in done.stderr) == (2, True)
    done = run("serve", "--repository", tmp_path / "none", "--port", 0)
    assert (done.code, "no folder" in done.stderr) == (2, True)
    tiny_models.export(tmp_path, changes={"sha256": {"model.onnx": "0" * 64}})
    done = run("serve", "--repository", tmp_path, "--port", 0)
    assert (done.code, "SHA-256" in done.stderr) == (2, True)


def test_label_exit_codes_and_json(run, repository, tmp_path):
    source, target = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    assert run("label", source, target, "--repository", repository).code == 2
    Image.new("RGB", (30, 20), (255, 0, 0)).save(source / "a.jpg")
    done = run("label", source, target, "--repository", repository, "--json")
    assert done.code == 0, done.stderr
    assert json.loads(done.stdout) | {"seconds": 0, "images_per_second": 0} == {
        "images": 1,
        "written": 1,
        "skipped": 0,
        "failed": 0,
        "left_out": 0,
        "seconds": 0,
        "images_per_second": 0,
        "target": str(target),
        "format": "voc",
        "files": [],
        "model": "colours",
        "version": 1,
    }
    (source / "b.png").write_text("text")
    done = run("label", source, target, "--repository", repository, "--format", "voc")
    assert done.code == 1
    assert "1 there already, 1 images failed" in done.stdout
    assert "failures.jsonl" in done.stderr
    for wrong, told in (
        (("--format", "cocoa"), "nearest: coco"),
        (("--format", "voc", "--polygons"), "--format coco --polygons"),
        (("--oversize", "tiles"), "nearest: tile"),
        (("--model", "colour"), "nearest: colours"),
        (("--background-threshold", "0.5"), "CAM models only"),
        (("--max-pixels", "0"), "Invalid value"),
    ):
        done = run("label", source, target, "--repository", repository, *wrong)
        assert (done.code, told in done.stderr) == (2, True), done.stderr


def test_label_in_other_forms_and_tiled(run, repository, tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    Image.new("RGB", (700, 300), (255, 0, 0)).save(source / "a.png")
    command = (
        "label",
        source,
        tmp_path / "out",
        "--repository",
        repository,
        "--model",
        "colours",
        "--json",
    )
    done = run(*command, "--format", "coco", "--tile", "--overlap", 0.4, "--min-confidence", 0.2)
    assert done.code == 0, done.stderr
    (file,) = json.loads(done.stdout)["files"]
    (annotation,) = json.loads(Path(file).read_text())["annotations"]
    assert (annotation["area"], annotation["bbox"]) == (700 * 300, [0, 0, 700, 300])
    entry = json.loads((tmp_path / "out" / "manifest.jsonl").read_text())
    assert entry["tiles"] > 1
    assert entry["settings"]["overlap"] == 0.4
    assert (
        "1 there already"
        in run(
            *command[:-1], "--format", "coco", "--tile", "--overlap", 0.4, "--min-confidence", 0.2
        ).stdout
    )


def test_segment_through_a_server(run, server, tmp_path):
    image, mask, look = tmp_path / "a.png", tmp_path / "mask", tmp_path / "look.jpg"
    picture = Image.new("RGB", (40, 30), (255, 0, 0))
    picture.paste((0, 0, 255), (0, 0, 20, 30))
    picture.save(image)
    command = ("segment", image, mask, "--address", server.address, "--force")
    done = run(*command, "--model", "colours", "--overlay", look, "--json")
    assert done.code == 0, done.stderr
    found = json.loads(done.stdout)["found"]
    assert found["red"] == {
        "score": pytest.approx(0.5, abs=1e-3),
        "pixels": 600,
        "box": [20, 0, 20, 30],
    }
    with Image.open(mask) as written, Image.open(look) as shown:
        assert (written.mode, written.getpixel((0, 0)), shown.size) == ("P", 3, (40, 30))
        left, right = shown.getpixel((10, 15)), shown.getpixel((30, 15))
    assert left != right
    assert run(*command, "--classes", "red, green", "--encoding", "coco_rle").code == 0
    assert json.loads(mask.read_bytes()) == {
        "red": {"size": [30, 40], "counts": mask_counts(30, 40)}
    }
    run(
        *command,
        "--model",
        "maps",
        "--tags",
        "blue",
        "--encoding",
        "polygons",
        "--background-threshold",
        0.9,
    )
    assert list(json.loads(mask.read_bytes())) == ["blue"]
    run(*command, "--encoding", "label_runs", "--min-confidence", 1)
    assert json.loads(mask.read_bytes())["labels"] == [3, 1] * 30
    run(*command, "--encoding", "raw")
    assert len(mask.read_bytes()) == 1200
    for wrong, told in (
        (("--encoding", "jpeg"), "one of: png"),
        (("--classes", "rad"), "nearest: red"),
        (("--oversize", "tiles"), "nearest: tile"),
        (("--overlay", tmp_path / "look.what"), "a name that ends in"),
        (("--overlay", tmp_path / "none" / "look.png"), "look.png: No such file"),
    ):
        done = run(*command, *wrong)
        assert (done.code, told in done.stderr) == (2, True), done.stderr
    done = run("segment", tmp_path / "none.jpg", mask, "--address", server.address)
    assert (done.code, "none.jpg: No such file" in done.stderr) == (2, True), done.stderr


def test_segment_writes_over_nothing_of_the_users(run, server, tmp_path):
    image, mask, mine = tmp_path / "a.png", tmp_path / "mask.png", tmp_path / "mine.png"
    Image.new("RGB", (40, 30), (255, 0, 0)).save(image)
    Image.new("P", (40, 30), 2).save(mine)
    (tmp_path / "link.png").symlink_to(image)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def told(*arguments: object) -> str:
        done = run("segment", image, *arguments, "--model", "colours", "--address", server.address)
        assert done.code == 2, done.stderr
        return str(done.stderr)

    for same in (image, tmp_path / "link.png", tmp_path / "x" / ".." / "a.png"):
        for more in ((), ("--force",)):
            assert "which is read" in told(same, *more)
    assert "is there already" in told(mine)
    assert "--force" in told(mask, "--overlay", mine)
    assert "both MASK and --overlay" in told(mask, "--overlay", mask)
    assert "which is read" in told(mask, "--overlay", image, "--force")
    assert "would hold a mask as png" in told(tmp_path / "mask.jpg")
    assert "would hold a mask as coco_rle" in told(mask, "--encoding", "coco_rle")
    assert "is a folder" in told(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    command = ("segment", image, mask, "--model", "colours", "--address", server.address)
    for _ in range(2):
        assert run(*command, "--overlay", tmp_path / "look.jpg").code == 0
    assert run(*command, "--min-confidence", 1, "--tags", "blue").code == 2
    assert run(*command, "--min-confidence", 1, "--tags", "blue", "--force").code == 0


def test_a_token_is_added_to_no_other_file(run, tmp_path):
    (tmp_path / "notes.txt").write_text("shopping: milk")
    done = run("token", "ci", "--role", "infer", "--file", tmp_path / "notes.txt")
    assert (done.code, (tmp_path / "notes.txt").read_text()) == (2, "shopping: milk")
    for _ in range(2):
        assert run("token", "ci", "--role", "infer", "--file", tmp_path / "tokens").code == 0
        (tmp_path / "tokens").write_text((tmp_path / "tokens").read_text().rstrip())
    assert len((tmp_path / "tokens").read_text().splitlines()) == 2


def mask_counts(height: int, width: int) -> str:
    labels = np.zeros((height, width), np.uint8)
    labels[:, width // 2 :] = 1
    return encodings.coco_counts(labels)[1].decode()


def test_models_lists_and_verifies(run, repository, tmp_path):
    done = run("models", "--repository", repository, "--json")
    assert [(model["name"], model["kind"]) for model in json.loads(done.stdout)] == [
        ("colours", "segmenter"),
        ("maps", "cam"),
    ]
    assert "colours" in run("models", "--repository", repository).stdout
    (tiny_models.export(tmp_path) / "model.onnx").write_bytes(b"")
    done = run("models", "--repository", tmp_path)
    assert (done.code, "SHA-256" in done.stderr) == (2, True)


def test_the_wire_contract_compiles(tmp_path):
    pytest.importorskip("grpc_tools")
    os.symlink(ROOT / "protos", tmp_path / "protos")
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import setup; from pathlib import Path\n"
    )
    code += f"setup.generate(Path({str(tmp_path)!r}))"
    subprocess.run([sys.executable, "-B", "-c", code], check=True, timeout=60)
    made = sorted(
        path.relative_to(tmp_path / "wsss").as_posix()
        for path in (tmp_path / "wsss").rglob("*.py*")
    )
    generated = ("__init__.py", "{}_pb2.py", "{}_pb2.pyi", "{}_pb2_grpc.py")
    packages = {"v1": "segmentation", "inference": "open_inference"}
    expected = [
        f"{folder}/{name.format(stem)}" for folder, stem in packages.items() for name in generated
    ]
    assert made == sorted(["__init__.py", *expected])
