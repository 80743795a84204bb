"""A run that can be answered, and its data."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from trainer.data.dataset import Dataset
from trainer.data.formats.opening import open_dataset


@pytest.fixture
def run(mapped: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(mapped / "manifest.json", folder)
    return folder


@pytest.fixture
def dataset(bare: Path) -> Dataset:
    return open_dataset(bare)
