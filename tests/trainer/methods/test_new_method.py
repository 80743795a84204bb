"""A new method is one new file: this one lies in a folder of its own and is trained by ``fit``."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from refined import fit

import trainer.methods
from trainer.commands.catalogue import describe_method
from trainer.errors import ConfigError
from trainer.methods.registry import declaration, method_names

FILE = '''"""Class activation maps of a classifier that also predicts how bright an image is.

Nobody, "Nowhere", 2026.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import nn

from trainer.data.pixels import read_image
from trainer.methods.base import Method
from trainer.methods.cam import Cam
from trainer.methods.cam import Config as CamConfig
from trainer.methods.declaration import Declaration
from trainer.methods.inputs import Input
from trainer.methods.pooling import gap


@dataclass(frozen=True)
class Config(CamConfig):
    """Knobs of ``bright_cam``, besides those of ``cam``.

    Attributes:
        share: weight of the brightness.
    """

    share: float = 0.5


def brightness(record, folder):
    return np.loadtxt(folder / f"{record.id}.txt", dtype=np.float32).reshape(1)


def measure(records, folder, workers):
    folder.mkdir(parents=True, exist_ok=True)
    for record in records:
        np.savetxt(folder / f"{record.id}.txt", [read_image(record.image).mean() / 255])


def luminance(record):
    return np.asarray(read_image(record.image).mean(2), np.uint16) + 1


class BrightCam(Cam):
    """``Cam`` with a second head."""

    def __init__(self, config, backbone, num_classes):
        super().__init__(config, backbone, num_classes)
        self.bright = nn.Linear(backbone.channels[backbone.top], 1)

    def needs(self, run):
        folder = run / "brightness"
        make = partial(measure, folder=folder)
        return {
            "brightness": Input(partial(brightness, folder=folder), make=make),
            "luminance": Input(luminance, follows_image=True, finish=np.int64),
        }

    def loss(self, batch, rng):
        assert batch["luminance"].shape == batch["image"][:, 0].shape
        f = self.features(batch["image"])
        error = (self.bright(gap(f)) - batch["brightness"]).abs().mean()
        cls = nn.functional.multilabel_soft_margin_loss(self.logits(f), batch["tags"])
        return {"cls": cls, "bright": self.config.share * error}


METHOD = Declaration(BrightCam, Config, presets={"bright": {"method.share": 1.0}})
'''


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
    assert len(list((run / "brightness").glob("*.txt"))) == 8
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
