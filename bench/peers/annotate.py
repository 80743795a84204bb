"""Let the annotation tools themselves ask for masks: Label Studio's server asks the backend of
``wsss-serving annotate``, and CVAT's own driver runs its function.

Label Studio runs for real, with a database of its own in a temporary folder. It gets a project for
brush strokes and one for polygons, images that were uploaded to it, that lie in a folder, and that
are in the task, and then the backend. What it has stored as predictions is decoded by its own
converter. For CVAT there is no server: ``annotate_task`` of its SDK runs on images of this script,
and what it would upload is decoded by its SDK. Every mask is compared with that of the server.

Prints for each way how many masks are equal in every pixel, and for polygons the lowest IoU.

    bench/peers/setup.sh /somewhere/peers
    python bench/peers/annotate.py /somewhere/peers exported/ photos/ --model photos
"""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from skimage.draw import polygon2mask

from serving.annotation.project import example
from serving.client import Client
from serving.listing import list_images

sys.path.append(str(Path(__file__).resolve().parents[1]))

import command_line
from servers import environment

ROOT = Path(__file__).resolve().parents[2]
TOOLS = Path(__file__).with_name("annotate_tools.py")
TOKEN = "0123456789abcdef" * 2 + "01234567"
# Its database is new, which takes minutes on a busy machine.
READY_SECONDS = 1800
Masks = dict[str, Any]


def main() -> None:
    parser = command_line.parser(__doc__)
    parser.add_argument("peers", type=Path, help="folder that setup.sh filled")
    parser.add_argument("repository", type=Path, help="folder of models")
    parser.add_argument("images", type=Path, help="folder of images")
    parser.add_argument("--model", default="", help="name of a model")
    parser.add_argument("--count", type=int, default=9, help="number of images")
    options = parser.parse_args()
    files = [options.images / path for path in list_images(options.images).images][: options.count]
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        serve = ["serve", "--repository", str(options.repository), "--port", "0"]
        address = stack.enter_context(ours(serve)).split()[-1]
        client = stack.enter_context(Client(address))
        masks, labels = expected(client, files, options.model)
        np.savez(place / "masks.npz", **masks)
        cvat(place, files, environment(options.peers, "cvat"), address, options.model)
        studio = stack.enter_context(label_studio(environment(options.peers, "labelstudio"), place))
        backend = [
            *("annotate", "--address", address, "--model", options.model, "--port", "0"),
            *("--images-root", str(options.images), "--label-studio-url", studio.url),
            *("--label-studio-token", TOKEN),
        ]
        url = stack.enter_context(ours(backend)).split(": ")[0].split()[-1]
        strokes(studio, url, files, masks, labels, options.peers)
        outlines(studio, url, files, masks, labels)
        refusals(studio, url, labels)


def expected(client: Client, files: list[Path], model: str) -> tuple[Masks, dict[str, int]]:
    """The masks of the server by name, and its labels."""
    results = [client.segment(file, model) for file in files]
    masks = {file.stem: result.mask for file, result in zip(files, results)}
    return masks, results[0].labels


@contextmanager
def ours(arguments: list[str]) -> Iterator[str]:
    """A command of ours until the end of the block, and the line that it prints when ready."""
    process = subprocess.Popen(
        [sys.executable, "-m", "serving.cli", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline().strip()
        if not line:
            raise SystemExit(f"{arguments[0]} did not start")
        print(line, file=sys.stderr)
        yield line
    finally:
        process.terminate()
        process.wait(60)


class LabelStudio:
    """The API of a running Label Studio."""

    def __init__(self, url: str) -> None:
        self.url = url

    def call(self, path: str, body: Any = None, method: str = "") -> Any:
        data, headers = None, {"Authorization": f"Token {TOKEN}"}
        if isinstance(body, bytes):
            data, headers["Content-Type"] = body, "multipart/form-data; boundary=edge"
        elif body is not None:
            data, headers["Content-Type"] = json.dumps(body).encode(), "application/json"
        request = urllib.request.Request(
            self.url + path, data, headers, method=method or ("GET" if data is None else "POST")
        )
        with urllib.request.urlopen(request, timeout=300) as reply:
            return json.loads(reply.read() or b"null")

    def project(self, title: str, config: str) -> int:
        return int(self.call("/api/projects/", {"title": title, "label_config": config})["id"])

    def add(self, project: int, files: list[Path]) -> dict[int, str]:
        """A third of the files as uploads, as names, and inside of the task; names by task."""
        for file in files[0::3]:
            head = f'Content-Disposition: form-data; name="f"; filename="{file.name}"'
            body = f"--edge\r\n{head}\r\nContent-Type: image/png\r\n\r\n".encode()
            body += file.read_bytes() + b"\r\n--edge--\r\n"
            self.call(f"/api/projects/{project}/import", body)
        tasks = [{"image": f"/data/local-files/?d={file.name}"} for file in files[1::3]]
        tasks += [{"image": data_uri(file), "name": file.stem} for file in files[2::3]]
        self.call(f"/api/projects/{project}/import", tasks)
        rows = self.call(f"/api/tasks/?project={project}&page_size=100&fields=all")["tasks"]
        return {row["id"]: name_of(row["data"], files) for row in rows}

    def predictions(self, project: int, backend: str) -> dict[int, dict[str, Any]]:
        """What Label Studio stores after it has asked the backend about all tasks."""
        body = {"project": project, "url": backend, "title": "wsss"}
        connected = self.call("/api/ml", body)
        print(json.dumps({"connected": connected["url"], "state": connected["readable_state"]}))
        everything = {"selectedItems": {"all": True, "excluded": []}}
        action = f"/api/dm/actions/?id=retrieve_tasks_predictions&project={project}"
        self.call(action, everything)
        rows = self.call(f"/api/predictions/?project={project}")
        return {row["task"]: row for row in rows}


@contextmanager
def label_studio(home: Path, place: Path) -> Iterator[LabelStudio]:
    """A new Label Studio, which asks nobody else for anything."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    data = place / "studio"
    command = [
        *(str(home / "bin" / "label-studio"), "start", "--no-browser", "--port", str(port)),
        *("--data-dir", str(data), "--username", "me@example.com", "--password", "secret123"),
        *("--user-token", TOKEN, "--enable-legacy-api-token"),
    ]
    alone = {"COLLECT_ANALYTICS": "false", "LATEST_VERSION_CHECK": "false", "SENTRY_DSN": ""}
    # Otherwise it refuses backends on this machine.
    alone |= {"SSRF_PROTECTION_ENABLED": "false", "ML_BLOCK_LOCAL_IP": "false"}
    alone["HOME"] = str(place)
    with (place / "studio.log").open("w") as log:
        process = subprocess.Popen(
            command, env={**os.environ, **alone}, stdout=log, stderr=log, start_new_session=True
        )
    studio = LabelStudio(f"http://127.0.0.1:{port}")
    try:
        deadline = time.monotonic() + READY_SECONDS
        while True:
            try:
                print(json.dumps({"label studio": studio.call("/api/version")["release"]}))
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit((place / "studio.log").read_text()[-2000:]) from None
                time.sleep(1)
        yield studio
    finally:
        process.terminate()
        process.wait(60)


def strokes(
    studio: LabelStudio,
    backend: str,
    files: list[Path],
    masks: Masks,
    labels: dict[str, int],
    peers: Path,
) -> None:
    project = studio.project("strokes", example(labels))
    names = studio.add(project, files)
    stored = studio.predictions(project, backend)
    rows = {names[task]: row["result"] for task, row in stored.items()}
    python = environment(peers, "labelstudio") / "bin" / "python"
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "rows.json").write_text(json.dumps(rows))
        Path(folder, "labels.json").write_text(json.dumps(labels))
        subprocess.run([python, TOOLS, "strokes", folder], check=True)
        with np.load(Path(folder, "masks.npz")) as archive:
            report("Label Studio stores our strokes", masks, dict(archive))
    one = next(iter(stored.values()))
    print(json.dumps({key: one[key] for key in ("model_version", "score")}))


def outlines(
    studio: LabelStudio, backend: str, files: list[Path], masks: Masks, labels: dict[str, int]
) -> None:
    config = example(labels).replace("BrushLabels", "PolygonLabels")
    project = studio.project("polygons", config)
    names = studio.add(project, files)
    result = {name: np.zeros_like(mask) for name, mask in masks.items()}
    corners = 0
    for task, row in studio.predictions(project, backend).items():
        mask = result[names[task]]
        for region in row["result"]:
            points = np.array(region["value"]["points"])[:, ::-1] / 100 * mask.shape
            corners += len(points)
            label = labels[region["value"]["polygonlabels"][0]]
            mask[polygon2mask(mask.shape, points - 0.5)] = label
    ious = [
        np.mean((masks[n] == k) & (result[n] == k)) / np.mean((masks[n] == k) | (result[n] == k))
        for n in masks
        for k in np.unique(masks[n][masks[n] > 0])
    ]
    lowest = round(float(min(ious, default=1.0)), 3)
    print(json.dumps({"what": "polygons", "lowest iou": lowest, "corners": corners}))


def refusals(studio: LabelStudio, backend: str, labels: dict[str, int]) -> None:
    """A project that lacks a class of the model."""
    others = list(labels)[1:]
    project = studio.project("too few labels", example(others))
    try:
        studio.call("/api/ml", {"project": project, "url": backend, "title": "wsss"})
    except urllib.error.HTTPError as error:
        print(json.dumps({"what": "a project without a class", "status": error.code}))
        print(error.read().decode()[:600])
    else:
        raise SystemExit("Label Studio connected a project that lacks a class")


def cvat(place: Path, files: list[Path], home: Path, address: str, model: str) -> None:
    job = {"files": [str(file.resolve()) for file in files], "address": address, "model": model}
    (place / "job.json").write_text(json.dumps(job))
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([home / "bin" / "python", TOOLS, "cvat", place], env=variables, check=True)


def report(what: str, masks: Masks, result: Masks) -> None:
    equal = sum(np.array_equal(mask, result.get(name, [])) for name, mask in masks.items())
    print(json.dumps({"what": what, "masks": len(masks), "equal": equal}), flush=True)


def data_uri(file: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"


def name_of(data: dict[str, str], files: list[Path]) -> str:
    if "name" in data:
        return data["name"]
    (name,) = [file.stem for file in files if data["image"].endswith(file.name)]
    return name


if __name__ == "__main__":
    main()
