"""The commands and the Python of the pages run, in order, on tiny synthetic data."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from documented import PAGES, ROOT, Block, blocks
from fast import FAST
from PIL import Image

from serving.cli import app as serving_app
from trainer.cli import app as trainer_app

ADDRESS = "127.0.0.1:8500"
CLASSES = ("cat", "cow", "dog", "person", "horse", "sheep")
RUNNABLE = {
    str(page.relative_to(ROOT)): [block for block in blocks(page) if not block.needs]
    for page in PAGES
}
PAGES_TO_TYPE = [name for name, runnable in RUNNABLE.items() if runnable and name != "README.md"]


class Terminal:
    """Types what the pages say into one folder; what README has typed is not typed again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.history: set[str] = set()  # Lines that another page shares with README.
        self.baseline: set[Path] = set()
        self.servers: list[subprocess.Popen[str]] = []

    def enter(self, block: Block) -> None:
        if block.language == "python":
            self.execute(block.body)
        for line in block.lines:
            script, *words = shlex.split(line, comments=True)
            if script == "make":
                assert f"\n{words[0]}:" in (ROOT / "Makefile").read_text(encoding="utf-8")
            elif "serve" in words:
                self.serve(words)
            elif line not in self.history:
                self.run(script, words)

    def execute(self, code: str) -> None:
        if ADDRESS in code:
            self.call_server()
        text = code.replace(ADDRESS, os.environ.get("WSSS_ADDRESS", ""))
        # A page's code has no __future__ imports but its own.
        exec(compile(text, "page", "exec", dont_inherit=True), {"__name__": "page"})

    def run(self, script: str, words: list[str]) -> None:
        """In this process: starting another one costs seconds."""
        if words[0] == "fit":
            words += FAST
        if words[0] == "segment":
            self.call_server()
        if words[0] == "synth":
            words += ["--count", "12", "--size", "48"]
        app: Any = {"wsss-trainer": trainer_app, "wsss-serving": serving_app}[script]
        app(words, standalone_mode=False)

    def call_server(self) -> None:
        """A page about clients takes a running server for granted."""
        if not self.servers:
            self.serve(["serve", "--port", "8500"])

    def serve(self, words: list[str]) -> None:
        """Start a server on free ports, and point the clients at it."""
        words = [re.sub(r"^8\d{3}$", "0", word) for word in words if word != "&"]
        server = subprocess.Popen(
            [sys.executable, "-m", "serving.cli", *words],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        self.servers.append(server)
        assert server.stdout is not None
        os.environ["WSSS_ADDRESS"] = server.stdout.readline().split()[-1]

    def files(self) -> set[Path]:
        return {*self.folder.iterdir(), *self.folder.glob("*/*")}

    def stop(self) -> None:
        """Stop the servers."""
        for server in self.servers:
            server.send_signal(signal.SIGTERM)
            server.communicate(timeout=60)
            assert server.returncode == 0
        self.servers.clear()
        os.environ.pop("WSSS_ADDRESS", None)

    def clear(self) -> None:
        """Leave the folder as it was before the page."""
        for path in sorted(self.files() - self.baseline):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def terminal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    """A folder with what the pages speak of, in which README's own lines have run."""
    folder = tmp_path_factory.mktemp("documented")
    terminal = Terminal(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("WSSS_ADDRESS", raising=False)
        make_data(terminal)
        for block in RUNNABLE["README.md"]:
            terminal.enter(block)
        terminal.stop()
        Path("mask.png").rename("served.png")
        for name in ("cam", "seam", "voc"):
            shutil.copytree("runs/photos", f"runs/{name}")
        for kind in ("", "-cam"):
            rename_model(Path(f"exported/photos{kind}"), f"pets{kind}")
        terminal.history = {line for block in RUNNABLE["README.md"] for line in block.lines}
        terminal.baseline = terminal.files()
        yield terminal


def make_data(terminal: Terminal) -> None:
    """Synthetic scenes as a VOC folder, as a folder with a table, as COCO; one photograph."""
    terminal.run("wsss-trainer", shlex.split("synth VOC2012 --count 12 --size 48"))
    scenes = json.loads(Path("VOC2012/classes.json").read_text())["classes"]
    names = dict(zip((scene["name"] for scene in scenes), CLASSES))
    for file in ("classes.json", "image_labels.csv"):
        text = Path("VOC2012", file).read_text()
        for name, other in names.items():
            text = re.sub(rf"\b{name}\b", other, text)
        Path("VOC2012", file).write_text(text)
    terminal.run("wsss-trainer", shlex.split("convert VOC2012 photos --to csv"))
    terminal.run("wsss-trainer", shlex.split("convert VOC2012 coco2014 --to coco"))
    for photo in ("photo.jpg", "cat.jpg"):
        shutil.copy("photos/scene_00000.jpg", photo)


def rename_model(source: Path, name: str) -> None:
    target = source.parent / name
    shutil.copytree(source, target)
    for card in target.glob("*/model.json"):
        card.write_text(json.dumps(json.loads(card.read_text()) | {"name": name}))


@pytest.mark.parametrize("page", PAGES_TO_TYPE)
def test_what_a_page_says_runs(page: str, terminal: Terminal) -> None:
    try:
        for block in RUNNABLE[page]:
            terminal.enter(block)
    finally:
        terminal.stop()
        terminal.clear()


def test_the_five_lines_end_in_the_mask_that_a_folder_gets(terminal: Terminal) -> None:
    card = json.loads(Path("exported/photos/1/model.json").read_text())
    manifest = json.loads(Path("runs/photos/manifest.json").read_text())
    assert card["classes"] == manifest["data"]["classes"] == list(CLASSES)
    terminal.run("wsss-serving", ["label", "photos/", "labelled/", "--model", "photos"])
    photos = sorted(path.stem for path in Path("photos").glob("*.jpg"))
    assert sorted(path.stem for path in Path("labelled").glob("*.png")) == photos
    assert Path("served.png").read_bytes() == Path("labelled/scene_00000.png").read_bytes()
    with Image.open("photo.jpg") as photo, Image.open("served.png") as mask:
        assert mask.size == photo.size
        assert int(np.asarray(mask).max()) <= len(CLASSES)
