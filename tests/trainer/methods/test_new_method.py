"""A new method is one new file: the one on the page about it is put into a folder, and trains."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from documented import blocks
from refined import fit

import trainer.methods
from trainer.commands.catalogue import describe_method
from trainer.errors import ConfigError
from trainer.methods.registry import declaration, method_names

PAGE = Path(__file__).parents[3] / "docs" / "develop" / "add-a-method.md"
FILE = next(block.body for block in blocks(PAGE) if block.language == "python")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch):
    """A folder whose files are methods too."""
    place = tmp_path / "methods"
    place.mkdir()
    monkeypatch.setattr(trainer.methods, "__path__", [*trainer.methods.__path__, str(place)])
    before = set(sys.modules)
    yield place
    for name in set(sys.modules) - before:
        if name.startswith("trainer.methods."):
            del sys.modules[name]
            delattr(trainer.methods, name.rpartition(".")[2])


def test_it_is_found_described_and_trained(folder, scenes, tmp_path):
    (folder / "bright_cam.py").write_text(FILE)
    assert "bright_cam" in method_names()
    about = describe_method("bright_cam")
    assert about["knobs"][-1]["meaning"] == "weight of the brightness."
    run = tmp_path / "run"
    fit(scenes, run, "cams.batch=2", method="bright_cam", preset="bright", until="cams")
    state = torch.load(run / "classify" / "model.pt", weights_only=True)
    assert state["identity"]["method_config"]["share"] == 1.0
    assert torch.isfinite(state["state"]["bright.weight"]).all()
    assert len(list((run / "brightness").glob("*.npy"))) == 8
    assert len(list((run / "cams").glob("*.npz"))) == 10
    assert "loss_bright" in (run / "metrics.csv").read_text()


@pytest.mark.parametrize(
    ("ending", "problem"),
    [
        ("METHOD = Declaration(BrightCam, Config, preset={})", "argument 'preset'"),
        ("METHOD = Declaration(BrightCam, Config, presets={'a': 1})", "presets or training"),
        ("METHOD = Declaration(nn.Linear, Config)", "a method of another type"),
        ("METHOD = Declaration(BrightCam, dict)", "a config of another type"),
        ("METHOD = Declaration(BrightCam, Config, prepared=3)", "a prepared of another type"),
        ("METHOD = Declaration(BrightCam, Config, protocol=3)", "a protocol of another type"),
        ("", "declares no method"),
    ],
)
def test_a_file_that_declares_something_else_is_refused(folder, ending, problem):
    (folder / "odd_cam.py").write_text(FILE.partition("METHOD = ")[0] + ending + "\n")
    with pytest.raises(ConfigError, match=problem) as caught:
        declaration("odd_cam")
    assert caught.value.expected
