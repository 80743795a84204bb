"""What Label Studio asks a backend, and what it gets."""

from __future__ import annotations

import base64
import io
import json
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest
import tiny_models
from configs import configured
from http_calls import ask
from PIL import Image
from server_process import ROOT
from servers import admitted, held, running, until

from serving.annotation.project import example
from serving.images.polygons import fill
from trainer.review.brush import decode

CONFIG = example(tiny_models.CLASSES)
COMMAND = [sys.executable, "-m", "serving.cli", "annotate", "--port", "0"]


def blocks(seed):
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return np.repeat(np.repeat(coarse, 9, 0), 8, 1)


@contextmanager
def backend(*arguments, code=0, **options):
    """A process of the command, its address, and what it says at the end."""
    process = subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )
    try:
        line = process.stdout.readline()
        assert line.startswith("backend for Label Studio on http://"), process.communicate()
        yield line.split("//")[1].split(": ")[0]
        process.send_signal(signal.SIGTERM)
        assert "Traceback" not in process.communicate(timeout=30)[1]
        assert process.returncode == code
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for seed in range(3):
        Image.fromarray(blocks(seed)).save(folder / f"{seed}.png")
    (folder / "broken.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def doubting(tmp_path_factory):
    root = tmp_path_factory.mktemp("exported")
    tiny_models.export(root, doubt=True)
    with running(configured(root)) as server:
        yield server


@pytest.fixture(scope="module")
def address(doubting, photos):
    with backend("--address", doubting.address, "--images-root", photos) as address:
        yield address


def post(address, path, body, **headers):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return ask(address, path, data, {"content-type": "application/json"} | headers)


def predict(address, *values, config=CONFIG):
    tasks = [{"id": n, "data": {"image": value}} for n, value in enumerate(values)]
    return post(address, "/predict", {"tasks": tasks, "label_config": config})


def painted(regions, shape, labels=tiny_models.CLASSES):
    mask = np.zeros(shape, np.uint8)
    for region in regions:
        assert (region["original_height"], region["original_width"]) == shape
        (name,) = region["value"]["brushlabels"]
        mask[decode(region["value"]["rle"], shape, name)] = labels.index(name) + 1
    return mask


def test_health_setup_and_versions(address):
    for path in ("/", "/health"):
        reply = ask(address, path)
        assert (reply.status, reply.json["status"]) == (200, "UP")
    reply = post(address, "/setup", {"project": "1.2", "schema": CONFIG, "access_token": "x"})
    assert (reply.status, reply.json) == (200, {"model_version": "colours/1"})
    assert post(address, "/validate", {"config": CONFIG}).status == 200
    assert ask(address, "/versions").json == {"versions": ["colours/1"]}
    assert post(address, "/versions", {"project": "1"}).json == {"versions": ["colours/1"]}
    assert post(address, "/webhook", {"action": "ANNOTATION_CREATED"}).status == 200


def test_every_mask_comes_back_in_every_pixel(address, doubting, photos):
    file = (photos / "1.png").read_bytes()
    values = ("0.png", "/data/local-files/?d=2.png")
    inside = f"data:image/png;base64,{base64.b64encode(file).decode()}"
    reply = predict(address, *values, inside)
    assert reply.status == 200
    assert reply.json["model_version"] == "colours/1"
    for (draft,), seed in zip(reply.json["results"], (0, 2, 1), strict=True):
        pixels = blocks(seed)
        mask = painted(draft["result"], pixels.shape[:2])
        np.testing.assert_array_equal(mask, tiny_models.expected_mask(pixels))
        assert draft["model_version"] == "colours/1"
        assert draft["score"] == pytest.approx(1 - tiny_models.expected_doubt(pixels), abs=1e-4)
        scores = {r["value"]["brushlabels"][0]: r["score"] for r in draft["result"]}
        for k, name in enumerate(tiny_models.CLASSES):
            assert scores[name] == pytest.approx(pixels[..., k].mean() / 255, abs=1e-4)
        assert len({region["id"] for region in draft["result"]}) == len(draft["result"])
        (region, *_) = draft["result"]
        assert (region["from_name"], region["to_name"]) == ("mask", "image")
        assert region["type"] == "brushlabels"


def test_an_image_is_drawn_upright(address):
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.fromarray(blocks(0)).save(buffer, "PNG", exif=exif)
    inside = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    ((draft,),) = predict(address, inside).json["results"]
    turned = np.rot90(blocks(0), -1)
    mask = painted(draft["result"], turned.shape[:2])
    np.testing.assert_array_equal(mask, tiny_models.expected_mask(turned))


def test_polygons_for_projects_that_want_them(doubting, photos):
    config = CONFIG.replace("BrushLabels", "PolygonLabels")
    options = ("--address", doubting.address, "--images-root", photos, "--simplify", 0)
    with backend(*options) as address:
        ((draft,),) = predict(address, "0.png", config=config).json["results"]
    height, width = blocks(0).shape[:2]
    shapes = []
    for region in draft["result"]:
        value = region["value"]
        points = np.array(value["points"]) / 100 * (width, height)
        label = tiny_models.CLASSES.index(value["polygonlabels"][0]) + 1
        shapes.append((label, points.round().astype(int)))
        np.testing.assert_allclose(points, points.round(), atol=1e-9)
    mask = np.zeros((height, width), np.uint8)
    for label, points in shapes:
        mask += fill([(label, [points])], height, width)
    np.testing.assert_array_equal(mask, tiny_models.expected_mask(blocks(0)))


def test_one_bad_task_leaves_the_others_their_masks(address):
    reply = predict(address, "0.png", "missing.png", None, "broken.png", "1.png")
    assert reply.status == 200
    assert [len(drafts) for drafts in reply.json["results"]] == [1, 0, 0, 0, 1]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("missing.png", "below --images-root"),
        ("/etc/passwd", "below --images-root"),
        ("http://169.254.169.254/latest/meta-data", "may not read"),
        (None, "no image"),
        ("broken.png", "no image"),
    ],
)
def test_a_bad_task_alone_is_an_error(address, value, text):
    reply = predict(address, value)
    assert reply.status == 400
    assert text in reply.json["detail"]
    assert reply.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("path", "body", "status", "text"),
    [
        ("/setup", {"schema": CONFIG.replace("blue", "blau")}, 400, "no label 'blue'"),
        ("/setup", {}, 400, "no labelling configuration"),
        ("/predict", {"label_config": CONFIG}, 400, "no list of tasks"),
        ("/predict", {"tasks": ["x"], "label_config": CONFIG}, 400, "no list of tasks"),
        ("/predict", {"tasks": [{"data": [1]}], "label_config": CONFIG}, 400, "no image"),
        ("/predict", {"tasks": [{}], "label_config": "<View/>"}, 400, "no BrushLabels"),
        ("/predict", [], 400, "no JSON object"),
        ("/predict", b"{", 400, "no JSON"),
        ("/predict", b"\xff\xfe", 400, "no JSON"),
        ("/predict", b"[" * 200_000, 400, "no JSON"),
        ("/train", {}, 400, "does not train"),
        ("/nothing", {}, 404, "no path"),
        ("/health", {}, 405, "POST of /health"),
    ],
)
def test_bad_requests_are_told_why(address, path, body, status, text):
    reply = post(address, path, body)
    assert (reply.status, reply.json["status"]) == (status, status)
    assert text in reply.json["detail"]
    assert ask(address, "/health").status == 200


def test_a_page_of_another_site_cannot_ask(address):
    body = json.dumps({"tasks": [], "label_config": CONFIG}).encode()
    assert ask(address, "/predict", body, {"content-type": "text/plain"}).status == 415
    reply = ask(address, "/health", headers={"origin": "https://evil.example"})
    assert "access-control-allow-origin" not in reply.headers


def test_no_task_is_no_error(address):
    assert predict(address).json == {"results": [], "model_version": "colours/1"}


def test_a_repository_needs_no_server_and_a_login_is_asked_for(tmp_path, photos):
    tiny_models.export(tmp_path / "exported", doubt=False)
    options = ("--repository", tmp_path / "exported", "--images-root", photos)
    login = base64.b64encode(b"me:secret").decode()
    with backend(*options, "--login", "me:secret", "--classes", "red, blue") as address:
        assert ask(address, "/health").status == 401
        for wrong in ("Basic abc", f"Bearer {login}", "Basic " + login[:-1], "Basic \xe9"):
            reply = ask(address, "/health", headers={"authorization": wrong.encode("latin-1")})
            assert (reply.status, reply.headers["www-authenticate"]) == (401, "Basic")
        right = {"authorization": f"Basic {login}"}
        body = {"tasks": [{"data": {"image": "0.png"}}], "label_config": example(["red", "blue"])}
        reply = post(address, "/predict", body, **right)
    ((draft,),) = reply.json["results"]
    mask = painted(draft["result"], blocks(0).shape[:2])
    expected = tiny_models.expected_mask(blocks(0))
    np.testing.assert_array_equal(mask, np.where(expected == 2, 0, expected))
    # Without doubt the scores of the classes count.
    mean = np.mean([blocks(0)[..., k].mean() / 255 for k in (0, 2)])
    assert draft["score"] == pytest.approx(mean, abs=1e-4)


def test_a_caller_who_leaves_ends_its_drafts(photos):
    root = photos.parent / "leaving"
    tiny_models.export(root)
    with running(configured(root)) as server, backend("--address", server.address) as address:
        image = base64.b64encode((photos / "0.png").read_bytes()).decode()
        task = {"data": {"image": f"data:image/png;base64,{image}"}}
        body = json.dumps({"tasks": [task], "label_config": CONFIG}).encode()
        head = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        head += b"content-length: %d\r\n\r\n"
        host, _, port = address.rpartition(":")
        with held(server):
            with socket.create_connection((host, int(port))) as caller:
                caller.sendall(head % len(body) + body)
                until(lambda: admitted(server) == 1)
            until(lambda: admitted(server) == 0, 20)
        with socket.create_connection((host, int(port))) as caller:
            caller.sendall(head % len(body) + body[:100])
        with socket.create_connection((host, int(port)), timeout=20) as caller:
            caller.sendall(head % 10**12)
            assert caller.recv(100).startswith(b"HTTP/1.1 413 ")
        assert ask(address, "/health").status == 200


def test_the_limit_of_an_image_is_that_of_a_repository_too(doubting, photos):
    """Above the limit that a server has by default."""
    Image.fromarray(np.zeros((3000, 4000, 3), np.uint8)).save(photos / "large.bmp")
    options = ("--repository", doubting._config.repository, "--images-root", photos)
    with backend(*options) as address:
        assert "bytes" in predict(address, "large.bmp").json["detail"]
    with backend(*options, "--max-bytes", 40_000_000) as address:
        assert predict(address, "large.bmp").status == 200


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--address", "127.0.0.1:1", "--timeout", "1"), "127.0.0.1:1"),
        (("--model", "colour"), "nearest: colours"),
        (("--classes", "rd"), "nearest: red"),
        (("--host", "0.0.0.0"), "--login USER:PASSWORD"),
        (("--login", "me"), "no password"),
        (("--images-root", "missing"), "no folder"),
        (("--label-studio-url", "localhost"), "no address"),
        (("--address", "127.0.0.1:1", "--repository", "exported"), "one of them"),
        (("--port", "{port}"), "in use"),
    ],
)
def test_mistakes_at_the_start(options, text, doubting):
    port = doubting.address.rpartition(":")[2]
    words = [word.format(port=port) for word in options]
    if "--address" not in words:
        words += ["--address", doubting.address]
    done = subprocess.run(
        [*COMMAND, *words], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2, done.stderr
    assert text in done.stderr
    assert "Traceback" not in done.stderr
