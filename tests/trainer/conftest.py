"""Small data sets and runs that several tests use. They are made once: copy what you want to
change.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from refined import PLAIN, fit, made

from trainer.data.formats.opening import open_dataset
from trainer.maps.camfile import cam_path, read_cam, write_cam
from trainer.scenes.writing import write_synthetic


@pytest.fixture
def one_process(monkeypatch):
    """Images are worked on in this process: to start others would take longer than the work."""
    monkeypatch.setattr("trainer.pool.cores", lambda: 1)


@pytest.fixture(scope="session")
def scenes(tmp_path_factory) -> Path:
    """Ten scenes of 64 pixels."""
    folder: Path = tmp_path_factory.mktemp("scenes") / "data"
    write_synthetic(folder, 10, 64)
    return folder


@pytest.fixture(scope="session")
def theirs(scenes, tmp_path_factory) -> Path:
    """Maps of every image: 1 on the true masks, 0.1 elsewhere."""
    dataset, folder = open_dataset(scenes), tmp_path_factory.mktemp("maps") / "theirs"
    for record in dataset.records.values():
        truth = dataset.read_mask(record)
        maps = [0.1 + 0.9 * (truth[::4, ::4] == tag + 1) for tag in record.tags]
        write_cam(cam_path(folder, record.id), record.tags, np.stack(maps), truth.shape)
    return folder


@pytest.fixture(scope="session")
def bare(scenes, tmp_path_factory) -> Path:
    """The scenes, one of them without its tags."""
    folder = Path(shutil.copytree(scenes, tmp_path_factory.mktemp("bare") / "data"))
    table = folder / "image_labels.csv"
    lines = table.read_text().splitlines()
    untagged = [
        f"{PLAIN}{',0' * line.count(',')}" if line.startswith(PLAIN) else line for line in lines
    ]
    table.write_text("\n".join(untagged) + "\n")
    return folder


@pytest.fixture(scope="session")
def mapped(bare) -> Path:
    """A run until its maps, which are replaced by blurred true masks: an untrained network may
    leave a class empty.
    """
    run = bare.parent / "mapped"
    fit(bare, run, until="cams")
    dataset = open_dataset(bare)
    for record in dataset.records.values():
        truth, shape = (
            dataset.read_mask(record),
            read_cam(cam_path(run / "cams", record.id)).maps.shape[1:],
        )
        planes = [Image.fromarray(np.uint8(255) * (truth == tag + 1)) for tag in record.tags]
        maps = [np.asarray(plane.resize((3, 3)).resize(shape[::-1]), float) for plane in planes]
        full = np.array([m / m.max() for m in maps]).reshape(-1, *shape)
        write_cam(cam_path(run / "cams", record.id), record.tags, full, truth.shape)
    return run


@pytest.fixture(scope="session")
def affinity(bare, mapped) -> Path:
    """A run refined by AffinityNet."""
    return made(bare, mapped, "affinity")


@pytest.fixture(scope="session")
def irn(bare, mapped) -> Path:
    """A run refined by IRNet, with instances."""
    return made(bare, mapped, "irn")


@pytest.fixture
def finished(request, tmp_path):
    """A copy of a refined run: ``finished("irn")``."""
    return lambda way: Path(shutil.copytree(request.getfixturevalue(way), tmp_path / way))
