"""Threads on a machine that others use too: how they wait, and on which cores they run."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from trainer import cores
from trainer.interrupt import Interrupted
from trainer.pool import over_images

COMMAND = "import os, trainer.cli; print(os.environ.get('OMP_WAIT_POLICY'))"


@pytest.mark.parametrize(
    ("environment", "policy"),
    [({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE"), ({"GOMP_SPINCOUNT": "9"}, "None")],
)
def test_threads_sleep_unless_the_user_says_otherwise(environment, policy):
    others = {k: v for k, v in os.environ.items() if k not in cores.POLICIES}
    ended = subprocess.run(
        [sys.executable, "-c", COMMAND], env=others | environment, capture_output=True, text=True
    )
    assert ended.stdout.strip() == policy


class Machine:
    """Times of two cores that a test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.times, self.idle = (0.0, 0.0), {0: 0.0, 1: 0.0}
        self.places: dict[int, set[int]] = {}
        monkeypatch.setattr(cores, "thread_times", lambda: self.times)
        monkeypatch.setattr(cores, "idle_times", lambda: dict(self.idle))
        monkeypatch.setattr(os, "sched_setaffinity", self.places.__setitem__)

    def passes(self, working: float, waiting: float, idle: tuple[float, float] = (0, 0)) -> None:
        self.times = self.times[0] + working, self.times[1] + waiting
        self.idle = {core: self.idle[core] + idle[core] for core in self.idle}


@pytest.fixture
def machine(monkeypatch):
    return Machine(monkeypatch)


def test_one_core_until_the_other_is_free(machine, capsys):
    watch = cores.Watch({0, 1})
    machine.passes(working=18, waiting=1)
    watch.look()
    assert machine.places == {}
    machine.passes(working=1, waiting=9)
    watch.look()
    assert machine.places == {}, "a process that hardly works has nothing to gain"
    machine.passes(working=12, waiting=8)
    watch.look()
    assert set(machine.places) == {int(task) for task in os.listdir("/proc/self/task")}
    assert all(place == {1} for place in machine.places.values())
    assert (
        "threads waited 40% of their time): threads run on one of two cores"
        in capsys.readouterr().err
    )
    machine.passes(working=10, waiting=10, idle=(1, 0))
    watch.look()
    assert capsys.readouterr().err == ""
    machine.passes(working=10, waiting=10, idle=(9, 0))
    watch.look()
    assert all(place == {0, 1} for place in machine.places.values())
    assert "both cores are free again" in capsys.readouterr().err


@pytest.mark.skipif(len(os.sched_getaffinity(0)) != 2, reason="only two cores are shared")
def test_every_thread_is_moved_and_moved_back(monkeypatch):
    own = os.sched_getaffinity(0)
    monkeypatch.setattr(cores, "PERIOD", 0.05)
    monkeypatch.setattr(cores, "BUSY", -1)
    monkeypatch.setattr(cores, "CROWDED", -1)
    monkeypatch.setattr(cores, "FREE", float("inf"))
    ended, places = threading.Event(), []

    def work() -> None:
        task = threading.get_native_id()
        while not ended.wait(0.02):
            places.append(os.sched_getaffinity(task))

    thread = threading.Thread(target=work)
    thread.start()
    with cores.shared_cores():
        for _ in range(200):
            if places and len(places[-1]) < len(own):
                break
            ended.wait(0.02)
        assert len(os.sched_getaffinity(0)) == 1
        child = subprocess.run(
            [sys.executable, "-c", "import os; print(len(os.sched_getaffinity(0)))"],
            capture_output=True,
            text=True,
            preexec_fn=cores.use_all_cores,
        )
        assert int(child.stdout) == len(own)
    assert os.sched_getaffinity(0) == own
    ended.wait(0.05)
    assert places[-1] == own
    ended.set()
    thread.join()
    cores.use_all_cores()


@pytest.mark.skipif(len(os.sched_getaffinity(0)) != 2, reason="only two cores are shared")
def test_workers_run_on_both_cores_where_their_server_started_on_one():
    # In an interpreter of its own: here the server of the workers may run already.
    code = (
        "import os; from trainer import cores; from trainer.pool import over_images;"
        "cores._own = os.sched_getaffinity(0);"
        "os.sched_setaffinity(0, {max(cores._own)});"
        "places = over_images(os.sched_getaffinity, [0] * 4, cores.cores());"
        "print([len(place) for _, place in places])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.stdout.strip() == "[2, 2, 2, 2]", ended.stderr


def test_times_are_those_of_the_kernel(tmp_path: Path, monkeypatch):
    for task, text in (("7", "2000000000 500000000 3"), ("8", "1000000000 0 1"), ("9", "")):
        (tmp_path / task).mkdir()
        (tmp_path / task / "schedstat").write_text(text)
    monkeypatch.setattr(cores, "TASKS", tmp_path)
    assert cores.thread_times() == (3.0, 0.5)
    stat = tmp_path / "stat"
    stat.write_text("cpu  9 9 9 9 9\ncpu0 5 100 7 200 50 0 0\ncpu3 5 0 7 100 0 0 0\nintr 5\n")
    monkeypatch.setattr(cores, "STAT", stat)
    monkeypatch.setattr(os, "sysconf", lambda name: 100)
    monkeypatch.setattr(cores, "AUTOGROUPS", tmp_path / "autogroups")
    assert cores.idle_times() == {0: 3.5, 3: 1.0}
    (tmp_path / "autogroups").write_text("1\n")
    assert cores.idle_times() == {0: 2.5, 3: 1.0}


@pytest.mark.parametrize(("running", "answer"), [(1, False), (2, True), (5, True)])
def test_threads_sleep_only_where_others_want_the_cores(tmp_path, monkeypatch, running, answer):
    monkeypatch.setattr(cores, "LOAD", tmp_path / "loadavg")
    (tmp_path / "loadavg").write_text(f"0.5 0.4 0.3 {running}/80 1234\n")
    monkeypatch.setattr(cores, "cores", lambda: 2)
    monkeypatch.setattr(cores.os, "cpu_count", lambda: 2)
    assert cores.crowded() is answer
    for name in cores.POLICIES:
        monkeypatch.delenv(name, raising=False)
    cores.wait_briefly()
    assert (os.environ.pop("OMP_WAIT_POLICY", None) == "PASSIVE") is answer
    assert (os.environ.pop("GOMP_SPINCOUNT", None) == cores.SPINS) is not answer


def test_without_a_load_file_nothing_is_crowded(tmp_path, monkeypatch):
    monkeypatch.setattr(cores, "LOAD", tmp_path / "none")
    assert not cores.crowded()


def test_an_interruption_is_no_failure_of_the_image_at_hand() -> None:
    def stopped(item: int) -> None:
        raise Interrupted("stopped")

    with pytest.raises(Interrupted):
        list(over_images(stopped, [1], 1))
