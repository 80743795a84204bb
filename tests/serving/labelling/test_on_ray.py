"""A cluster of two nodes labels as one machine does, to the byte, also where a node dies."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
from configs import EXACT
from PIL import Image

from serving.config import EngineConfig
from serving.errors import EngineError, LabelError
from serving.labelling import on_ray
from serving.labelling.label import label
from serving.labelling.labeller import LabelConfig

IMAGES = 48
ABSENT = EngineConfig(name="tensorrt")
has_ray = pytest.mark.skipif(
    not importlib.util.find_spec("ray"), reason="Ray is not installed: pip install 'wsss[ray]'"
)
# Ray leaves sockets and files to the end of the process.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A driver's node and a worker's, of one processor each."""
    environment = {
        "RAY_USAGE_STATS_ENABLED": "0",
        # Otherwise its workers give way to everything else on the machine.
        "RAY_worker_niceness": "0",
        # A killed node is given up after a second, not after five.
        "RAY_health_check_period_ms": "300",
        "RAY_health_check_initial_delay_ms": "1000",
        "RAY_health_check_timeout_ms": "1000",
        "RAY_health_check_failure_threshold": "3",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        from ray.cluster_utils import Cluster

        nodes = Cluster()
        for _ in range(2):
            nodes.add_node(num_cpus=1, object_store_memory=80 * 2**20, include_dashboard=False)
        yield nodes
        nodes.shutdown()


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> LabelConfig:
    """Images in a folder with a bad one and one whose name is no UTF-8, labelled by one process."""
    root = tmp_path_factory.mktemp("ray")
    (root / "in" / "sub").mkdir(parents=True)
    for number in range(IMAGES):
        light = 40 + 4 * number
        pixels = np.random.default_rng(number).integers(0, light, (60, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "in" / "sub" / f"{number}.png")
    (root / "in" / "text.jpg").write_text("this is text")
    (root / "in" / os.fsdecode(b"\xff.jpg")).write_bytes(b"")
    tiny_models.export(root / "exported", doubt=True)
    config = LabelConfig(
        root / "in",
        root / "one",
        root / "exported",
        format="coco",
        engine=EXACT,
        review_below=0.4,
    )
    label(config)
    return config


def contents(folder: Path) -> dict[str, bytes]:
    """Every file, without the time of the review; the failures in one order."""
    files = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
    files["failures.jsonl"] = b"".join(sorted(files["failures.jsonl"].splitlines(keepends=True)))
    review = json.loads(files["review/review.json"])
    files["review/review.json"] = json.dumps(review | {"time": ""}).encode()
    return files


@has_ray
@pytest.mark.timeout(300)
def test_files_equal_those_of_one_process_although_a_node_dies(cluster, config, tmp_path, capfd):
    import ray

    ray_config = replace(config, target=tmp_path / "out", ray=cluster.address)
    busy: set[str] = set()

    def kill(count: int, total: int) -> None:
        if count == 6:
            actors = ray._private.state.actors().values()
            busy.update(a["Address"]["NodeID"] for a in actors if a["State"] == "ALIVE")
            cluster.remove_node(cluster.list_all_nodes()[-1], allow_graceful=False)

    summary = label(ray_config, kill)
    assert len(busy) == 2, "both nodes were at work"
    assert (summary.images, summary.written, summary.failed) == (IMAGES + 2, IMAGES, 2)
    assert 0 < (summary.review or 0) < IMAGES
    assert contents(tmp_path / "out") == contents(config.target)
    assert not ray.is_initialized()
    output = capfd.readouterr()
    assert output.out == ""
    assert "ray" not in output.err.lower()


@has_ray
@pytest.mark.timeout(300)
def test_the_command_goes_on_and_says_what_is_wrong(cluster, config, tmp_path):
    target = tmp_path / "out"
    label(replace(config, target=target))
    manifest = target / "manifest.jsonl"
    lines = manifest.read_text().splitlines(keepends=True)
    manifest.write_text("".join(lines[:-2]) + lines[-1][:30])
    for entry in map(json.loads, lines[-2:]):
        (target / entry["mask"]).unlink()
    again = label(replace(config, target=target, ray=cluster.address))
    assert (again.written, again.skipped, again.failed) == (2, IMAGES - 2, 2)
    assert contents(target) == contents(config.target)
    # What only the nodes can find out arrives as it is.
    absent = replace(config, target=tmp_path / "new", ray=cluster.address, engine=ABSENT)
    with pytest.raises(EngineError):
        label(absent)
    assert not (tmp_path / "new").exists()


@has_ray
def test_addresses_that_no_cluster_answers_at(config, tmp_path, monkeypatch):
    monkeypatch.setattr(on_ray, "ANSWER_SECONDS", 1.0)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        host, port = silent.getsockname()
        for address in (f"{host}:{port}", "127.0.0.1:1", "ray://here:10001", "nonsense"):
            start = time.monotonic()
            with pytest.raises(LabelError, match=f"--ray {address}") as caught:
                label(replace(config, target=tmp_path / "out", ray=address))
            assert time.monotonic() - start < 10
            assert caught.value.hint
    assert not (tmp_path / "out").exists()


def test_without_ray_the_error_says_what_to_install(config, tmp_path):
    code = "import sys; sys.modules['ray'] = None; from serving.cli import main; main()"
    command = [sys.executable, "-c", code, "label", config.source, tmp_path / "out", "--ray"]
    result = subprocess.run(
        [*map(str, command), "auto", "--repository", str(config.repository)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert "pip install 'wsss[serve,ray]'" in result.stderr
    assert "Traceback" not in result.stderr
