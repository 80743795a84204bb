"""The Python of the page on calling the server runs as it stands there, but for the address."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import tiny_models
from configs import configured
from PIL import Image

PAGE = Path(__file__).resolve().parents[3] / "docs" / "serving-client.md"
EXAMPLES = re.findall(
    r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
)


@pytest.fixture
def address(tmp_path, run_server, monkeypatch):
    """A server with the models that the page names, and a folder with its pictures to work in."""
    names = {"classes": ["cat", "dog", "bird"], "labels": ["background", "cat", "dog", "bird"]}
    tiny_models.export(tmp_path / "exported", "pets", changes=names)
    tiny_models.export(tmp_path / "exported", "pets-cam", "cam", changes=names)
    (tmp_path / "photos").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    for name in ("cat.jpg", "photos/one.jpg", "photos/two.jpg"):
        Image.fromarray(pixels).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    with run_server(configured(tmp_path / "exported")) as server:
        yield server.address


@pytest.mark.parametrize("code", EXAMPLES)
def test_an_example_runs(code, address, capsys):
    found: dict = {}
    exec(compile(code.replace("127.0.0.1:8500", address), str(PAGE), "exec"), found)
    assert found["both"].cam.classes == ["cat"]
    assert found["both"].mask.shape == (40, 50)
    assert set(np.unique(found["cats"].mask)) <= {0, 1}
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines() if ".jpg" in line] == [
        "one.jpg",
        "two.jpg",
    ]
