from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
from configs import configured
from servers import running

from serving.server import Server


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("exported")
    tiny_models.export(root, "colours", "segmenter")
    tiny_models.export(root, "maps", "cam")
    return root


@pytest.fixture(scope="session")
def server(repository: Path) -> Iterator[Server]:
    with running(configured(repository, limits__max_bytes=400_000)) as started:
        yield started


@pytest.fixture(scope="session")
def tensor_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of all three kinds of models."""
    root = tmp_path_factory.mktemp("all")
    for name, kind in (("colours", "segmenter"), ("maps", "cam"), ("sums", "tensor")):
        tiny_models.export(root, name, kind)
    with running(configured(root, network__http_port=0)) as started:
        yield started


@pytest.fixture
def run_server() -> Callable[..., Any]:
    return running


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (41, 57, 3), dtype=np.uint8)
