"""Two processes of torchrun do what one does: the same losses, weights, maps, masks and
predictions. When one is killed, the other ends too, and the same command goes on.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import processes_job
import pytest
import torch
from processes_runs import UPDATES, plan_of, words

from trainer.cli import main
from trainer.data.dataset import Record
from trainer.data.loader import Batches
from trainer.data.sampling import MixedOrder, Order
from trainer.errors import ConfigError, explained
from trainer.fit import fit
from trainer.scenes.writing import write_synthetic
from trainer.training.devices import check_device, target_device
from trainer.training.model_file import read_model
from trainer.training.optimiser import Training

HERE = Path(__file__).parent
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
NETWORKS = {
    "classify": ("affinity", "classify", "classify"),
    "affinity": ("affinity", "affinity", "affinity"),
    "segment": ("affinity", "segment", "segment"),
    "irn": ("irn", "irn", "irn"),
}
"""Network -> run, folder of its weights, and its name in ``metrics.csv``."""


def torchrun(*words: object) -> subprocess.Popen[str]:
    paths = (HERE.parents[1], HERE, HERE.parent)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*TORCHRUN, *map(str, words)], env=env, stderr=subprocess.PIPE, text=True
    )


def ended(process: subprocess.Popen[str], seconds: float = 500) -> tuple[int, str]:
    """Exit status and what was said."""
    try:
        _, said = process.communicate(timeout=seconds)
    finally:
        process.kill()
    return process.returncode, said


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> Path:
    """A folder of runs of one process."""
    folder = tmp_path_factory.mktemp("one")
    write_synthetic(folder / "data", 12, 48)
    threads = torch.get_num_threads()
    # As torchrun does: sums over another number of parts are rounded in other ways.
    torch.set_num_threads(1)
    fit(plan_of(folder / "affinity", "affinity"), print)
    fit(plan_of(folder / "irn", "irn"), print, [folder / "affinity"])
    torch.set_num_threads(threads)
    return folder


@pytest.fixture(scope="module")
def two(one, tmp_path_factory) -> Path:
    """Copies of these runs, whose files two processes have made anew."""
    folder = tmp_path_factory.mktemp("two") / "runs"
    shutil.copytree(one, folder)
    for run in folder.glob("*/metrics.csv"):
        run.unlink()
    code, said = ended(torchrun(processes_job.__file__, folder))
    assert code == 0, said
    return folder


def losses(run: Path, stage: str) -> np.ndarray:
    with open(run / "metrics.csv", newline="") as file:
        rows = [row for row in csv.reader(file) if row[0] == stage and row[3].startswith("loss")]
    assert max(int(row[2]) for row in rows) == UPDATES
    return np.array([float(row[4]) for row in rows])


def weights(run: Path, folder: str) -> dict[str, torch.Tensor]:
    return read_model(run / folder / "model.pt", {})[1]


def check_close(state: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for name, value in expected.items():
        torch.testing.assert_close(state[name], value, rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.parametrize("network", NETWORKS)
def test_losses_and_weights_are_those_of_one_process(network, one, two):
    run, folder, stage = NETWORKS[network]
    expected = losses(one / run, stage)
    np.testing.assert_allclose(losses(two / run, stage), expected, rtol=1e-5)
    assert np.ptp(expected) > 0.01
    check_close(weights(two / run, folder), weights(one / run, folder))


@pytest.mark.parametrize("place", ["cams", "walk", "masks", "segment/predictions"])
def test_images_are_shared_out_and_their_files_are_those_of_one_process(place, one, two):
    for way in ("affinity", "irn"):
        folder = one / way / place
        files = sorted(f.relative_to(folder) for f in folder.rglob("*") if f.is_file())
        assert len(files) >= 12 or place not in ("cams", "walk")
        again = two / way / place
        assert files == sorted(f.relative_to(again) for f in again.rglob("*") if f.is_file())
        for file in files:
            assert (folder / file).read_bytes() == (again / file).read_bytes(), file


def test_every_process_sees_the_same_clusters(two):
    for first, second in json.loads((two / "hashes.json").read_text()).values():
        assert first == second
        assert sum(first[0]) > 0


def worker(process: subprocess.Popen[str], number: int) -> int:
    """The id of one of the processes that torchrun has started."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    own = f"RANK={number}".encode()
    (child,) = (c for c in children if own in Path(f"/proc/{c}/environ").read_bytes().split(b"\0"))
    return int(child)


def test_a_run_ends_soon_when_a_process_is_killed_and_goes_on_later(one, tmp_path):
    run = tmp_path / "run"
    command = ("-m", "trainer", "--", *words(one / "data", run, "classify.checkpoint_minutes=0"))
    process, folder = torchrun(*command), run / "seed-0" / "classify"
    while process.poll() is None and not list(folder.glob("checkpoint-*.pt")):
        time.sleep(0.05)
    os.kill(worker(process, 1), signal.SIGKILL)
    start = time.monotonic()
    code, said = ended(process)
    assert code == 1, said
    assert time.monotonic() - start < 60
    # What the other process says depends on what reaches it first: the closed connection, or the
    # SIGTERM of torchrun. It never ends in a traceback; the only one is torchrun's own heading.
    assert said.count("Traceback") == 1, said
    assert "rank      : 1" in said
    assert not (folder / "model.pt").exists()
    step = max(int(file.stem.split("-")[1]) for file in folder.glob("checkpoint-*.pt"))
    assert 0 < step < UPDATES
    code, said = ended(torchrun(*command))
    assert code == 0, said
    assert said.count("classify: started") == said.count(f"classify {UPDATES}/{UPDATES}") == 1
    check_close(weights(run / "seed-0", "classify"), weights(one / "affinity", "classify"))
    # With a checkpoint after each step, each step is logged: once, whoever was killed.
    logged = losses(run / "seed-0", "classify")
    assert len(logged) == 2 * UPDATES
    np.testing.assert_allclose(logged[-2:], losses(one / "affinity", "classify")[-2:], rtol=1e-5)


@pytest.mark.parametrize(
    "text", ["Connection closed by peer [::1]:9", "writev [::1]:9: Broken pipe", "Socket closed"]
)
def test_a_closed_connection_means_that_another_process_has_ended(text):
    cause = explained(RuntimeError(f"[gloo/transport/tcp/pair.cc:547] {text}"))
    assert cause is not None
    assert cause.found.startswith("another process of this run has ended: ")


def test_a_batch_that_processes_cannot_share_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    Training(batch=8).check_plan(100)
    with pytest.raises(ConfigError, match=r"classify.batch=10 images for 4 processes") as caught:
        Training(batch=10).check_plan(100)
    assert caught.value.hint == "--set classify.batch=8 or 12"
    with pytest.raises(ConfigError, match="4 processes and 3 images"):
        Training(batch=8).check_plan(3)


@pytest.mark.parametrize("few", [0, 5])
def test_each_process_sees_its_share_of_images_with_and_without_tags(few):
    records = [Record(f"r{n}", Path(f"r{n}.png"), (0,) * (n < 16)) for n in range(48)]
    order = MixedOrder(records, few, 0.5, True, 0) if few else Order(records, 0.5, True, 0)
    parts = [Batches(len(order), 8, 2, 0, 0, rank, 2, 7, order) for rank in range(2)]
    whole = Batches(len(order), 8, 2, 0, updates=7, order=order)
    assert [len(part) for part in parts] == [7, 7]
    for first, second, step in zip(*parts, whole, strict=True):
        assert first + second == step
        for part in (first, second):
            assert sum(i >= 48 for _, i in part) == (2 if few else 0)
            assert sum(16 <= i < 48 for _, i in part) == (1 if few else 2)


def test_commands_that_share_no_work_run_in_the_first_process_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(sys, "argv", ["wsss-trainer", "synth", str(tmp_path / "data")])
    main()
    assert not (tmp_path / "data").exists()


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match="4 processes on a machine with 2 GPUs") as caught:
        check_device("auto")
    assert "--nproc_per_node 2" in caught.value.hint
    check_device("cpu")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert str(target_device()) == "cuda:1"
    assert str(target_device("cpu")) == "cpu"
