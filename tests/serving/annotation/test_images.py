"""A task names an image; only the places that the operator allowed are read."""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from serving.annotation.images import Images
from serving.errors import ConfigError, FieldError, ImageTooLarge

JWT = "head.body.signature"


class Handler(BaseHTTPRequestHandler):
    """Hands out ``image`` below /data and /ls/data, redirects from /away, and lists what it was
    asked.
    """

    def do_GET(self):
        self.server.asked.append((self.path, self.headers.get("Authorization")))
        if self.path.startswith("/away"):
            self.send_response(302)
            self.send_header("Location", "/data/upload/1/a.png")
            self.end_headers()
            return
        known = self.path.startswith(("/data", "/ls/data", "/public"))
        self.send_response(200 if known else 403)
        self.end_headers()
        self.wfile.write(b"image")

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, body))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"access": "fresh"}')

    def log_message(self, *_):
        pass


@pytest.fixture
def studio():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked = []
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "a b.png").write_bytes(b"file")
    (tmp_path / "secret.png").write_bytes(b"secret")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    return folder


def test_an_image_inside_of_the_task_needs_no_permission():
    text = base64.b64encode(b"image").decode()
    assert Images().read(f"data:image/png;base64,{text}") == b"image"
    for value in ("data:image/png,abc", "data:image/png;base64,@@", "data:"):
        with pytest.raises(FieldError, match="data: URI"):
            Images().read(value)
    with pytest.raises(ImageTooLarge):
        Images(max_bytes=3).read(f"data:image/png;base64,{text}")


@pytest.mark.parametrize("value", [None, 3, "", "  ", ["a.png"], {"url": "a.png"}])
def test_a_task_without_an_image_says_so(value, root):
    with pytest.raises(FieldError, match="no image"):
        Images(root).read(value)


@pytest.mark.parametrize(
    "value",
    ["deep/a%20b.png", "/data/local-files/?d=deep/a%20b.png", "/deep/a b.png", "{}/deep/a b.png"],
)
def test_files_below_the_root_are_read(value, root):
    assert Images(root).read(value.format(root)) == b"file"
    assert Images(root).read(f"file://{root}/deep/a%20b.png") == b"file"


@pytest.mark.parametrize(
    "value",
    [
        "../secret.png",
        "deep/../../secret.png",
        "%2e%2e/secret.png",
        "/data/local-files/?d=../secret.png",
        "/data/local-files/?d=%2E%2E%2Fsecret.png",
        "/data/local-files/",
        "link.png",
        "/etc/passwd",
        "file:///etc/passwd",
        "{}/secret.png",
        "deep",
        "deep/a b.png/x",
        "no\x00thing.png",
        "x" * 5000,
    ],
)
def test_nothing_outside_of_the_root_is_read(value, root, tmp_path):
    errors = []
    for place in (value.format(tmp_path), "missing.png"):
        with pytest.raises(FieldError, match="below --images-root") as caught:
            Images(root).read(place)
        errors.append(str(caught.value).replace(repr(place[:80]), ""))
    # The same words as for a file that is not there.
    assert errors[0].split("below")[1] == errors[1].split("below")[1]


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        ("/etc/passwd", "--images-root"),
        ("a.png", "--images-root"),
        ("file:///etc/passwd", "--images-root"),
        ("/data/upload/1/a.png", "--label-studio-url"),
        ("http://127.0.0.1:1/a.png", "--image-url http://127.0.0.1:1/"),
        ("HTTPS://user@host/a.png", "--image-url"),
        ("s3://bucket/a.png", "proxied storage"),
        ("ftp://host/a.png", "Label Studio"),
        ("http://[/a.png", ""),
        ("//host/a.png", "--label-studio-url"),
    ],
)
def test_nothing_is_read_without_permission(value, hint):
    with pytest.raises(FieldError) as caught:
        Images().read(value)
    assert hint in str(caught.value)


def test_uploads_come_from_label_studio_with_its_token(studio):
    images = Images(studio=studio.url, token="abc")
    assert images.read("/data/upload/1/a.png?x=1") == b"image"
    assert images.read(f"{studio.url}/data/upload/1/a.png") == b"image"
    assert images.read("/data/local-files/?d=a.png") == b"image"
    assert studio.asked == [
        ("/data/upload/1/a.png?x=1", "Token abc"),
        ("/data/upload/1/a.png", "Token abc"),
        ("/data/local-files/?d=a.png", "Token abc"),
    ]
    below = Images(studio=f"{studio.url}/ls/")
    assert below.read("/data/upload/1/a.png") == below.read("/ls/data/upload/1/a.png") == b"image"
    assert studio.asked[3:] == [("/ls/data/upload/1/a.png", None)] * 2


def test_a_personal_token_buys_another_one(studio):
    assert Images(studio=studio.url, token=JWT).read("/data/upload/1/a.png") == b"image"
    assert studio.asked == [
        ("/api/token/refresh", {"refresh": JWT}),
        ("/data/upload/1/a.png", "Bearer fresh"),
    ]


def test_the_token_goes_to_label_studio_only(studio):
    images = Images(studio="http://127.0.0.1:1", token="abc", prefixes=[f"{studio.url}/public"])
    assert images.read(f"{studio.url}/public/a.png") == b"image"
    assert studio.asked == [("/public/a.png", None)]
    for path in ("/data/a.png", "/publicity/a.png", "/public/../data/a.png", "/public/%2e%2e/data"):
        with pytest.raises(FieldError, match="may not read"):
            images.read(studio.url + path)
    port = studio.url.rpartition(":")[2]
    for host in (f"me@127.0.0.1:{port}", "127.0.0.1.evil.example", "localhost"):
        with pytest.raises(FieldError, match="may not read"):
            images.read(f"http://{host}/public/a.png")
    assert len(studio.asked) == 1


def test_a_redirect_leads_nowhere_and_errors_are_told(studio):
    images = Images(studio=studio.url)
    with pytest.raises(FieldError, match="302 to another place"):
        images.read("/away/a.png")
    with pytest.raises(FieldError, match="answers 403") as caught:
        images.read("/private/a.png")
    assert "--label-studio-token" in str(caught.value)
    assert len(studio.asked) == 2
    with pytest.raises(ImageTooLarge):
        Images(studio=studio.url, max_bytes=4).read("/data/a.png")
    with pytest.raises(FieldError, match="cannot be read"):
        Images(studio="http://127.0.0.1:1").read("/data/a.png")


def test_places_are_checked_at_the_start(tmp_path):
    with pytest.raises(ConfigError, match="is no folder"):
        Images(tmp_path / "missing")
    for bad in ("localhost:8080", "ftp://host", "http://"):
        with pytest.raises(ConfigError, match="--label-studio-url"):
            Images(studio=bad)
        with pytest.raises(ConfigError, match="--image-url"):
            Images(prefixes=[bad])
