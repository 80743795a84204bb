"""Threads of a step on a machine that others use too.

The threads of one step wait for each other, so a step is as slow as the thread that another process
has taken the core from. How many threads share a step must not change while it trains: sums over
another number of parts are rounded in other ways, and a training would not end with the same bits
again. What changes here is how threads wait, and how many cores they run on.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Collection, Iterator
from pathlib import Path

from trainer.progress import say
from trainer.ranks import local_world_size

POLICIES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
SPINS = "1000"
"""How often a thread looks whether its wait is over, some microseconds in all, before it sleeps."""
PERIOD = 10.0
"""Seconds between two looks."""
CROWDED = 0.2
"""Share of its time that a thread waits for a core, from which on the cores are not free."""
BUSY = 0.5
"""Cores that the threads of a process use at least, where it matters how they wait."""
FREE = 0.7
"""Share of its time that a core is idle, or busy with work that gives way, from which on it is
free.
"""
TASKS = Path("/proc/self/task")
STAT = Path("/proc/stat")
LOAD = Path("/proc/loadavg")
AUTOGROUPS = Path("/proc/sys/kernel/sched_autogroup_enabled")

_own: set[int] = set()
"""The cores that this process started with, inside ``shared_cores``."""


def cores() -> int:
    """How many cores this process may use."""
    return len(own_cores()) or os.cpu_count() or 1


def own_cores() -> Collection[int]:
    """The cores that this process may use, those too that ``shared_cores`` leaves to others for
    now; empty where the system does not say.
    """
    if _own or not hasattr(os, "sched_getaffinity"):
        return _own
    return os.sched_getaffinity(0)


def wait_briefly() -> None:
    """Let threads spin for a moment only while they wait for each other, and sleep at once where
    other processes want the cores; nothing where the environment says otherwise. Call it before
    torch is imported.

    A thread that spins uses up the time slice that the thread it waits for needs. On free cores, to
    wake a thread that sleeps costs a step a sixth of its speed, and a short spin 4 % at most.
    """
    if any(name in os.environ for name in POLICIES):
        return
    if crowded():
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    else:
        os.environ["GOMP_SPINCOUNT"] = SPINS


def crowded() -> bool:
    """Whether other processes run that leave this one too few cores for all its threads."""
    try:
        running, _, _ = LOAD.read_text().split()[3].partition("/")
    except OSError:
        return False
    # One of those that run is this process.
    return int(running) - 1 + cores() > (os.cpu_count() or 1)


@contextlib.contextmanager
def shared_cores() -> Iterator[None]:
    """Keep this process to one of its two cores while other processes want them too.

    On one core the two threads of a step take turns; one thread instead of two would change the
    rounding. With more cores, threads that take turns would slow down the others, so nothing is
    done there.
    """
    global _own
    # Several processes of torchrun would all choose the same core.
    if _own or cores() != 2 or not TASKS.is_dir() or local_world_size() > 1:
        yield
        return
    _own = os.sched_getaffinity(0)
    watch, stopped = Watch(_own), threading.Event()
    thread = threading.Thread(target=watch.run, args=(stopped,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()
        watch.keep_to(_own)
        _own = set()


def use_all_cores(own: Collection[int] = ()) -> None:
    """Let a process that was started inside ``shared_cores`` run on every core: it has one thread,
    which waits for no other.

    Args:
        own: the cores of the parent, in a process that is no fork of it and does not know them.
    """
    if own or _own:
        os.sched_setaffinity(0, own or _own)


class Watch:
    """Looks at the cores now and then, and moves the threads of this process.

    Args:
        own: the two cores that this process may use.
    """

    def __init__(self, own: set[int]) -> None:
        self.both = own
        # Not the first core, which serves the interrupts.
        self.other, self.chosen = sorted(own)
        self.shares = False
        self.times = thread_times()
        self.idle = idle_times()

    def run(self, stopped: threading.Event) -> None:
        """Look every ``PERIOD`` seconds until ``stopped``."""
        while not stopped.wait(PERIOD):
            self.look()

    def look(self) -> None:
        """Compare the time since the last look with the limits."""
        times, idle = thread_times(), idle_times()
        working, waiting = (now - before for now, before in zip(times, self.times))
        other_idle = idle[self.other] - self.idle[self.other]
        self.times, self.idle = times, idle
        if self.shares:
            # On one core its own threads wait for each other, which says nothing about the rest.
            if other_idle > FREE * PERIOD:
                self.keep_to(self.both)
                say("both cores are free again: threads run on both")
        elif working > BUSY * PERIOD and waiting > CROWDED * (working + waiting):
            self.keep_to({self.chosen})
            share = waiting / (working + waiting)
            say(
                f"other processes use the cores too (threads waited {share:.0%} of their time):"
                " threads run on one of two cores until both are free"
            )

    def keep_to(self, chosen: set[int]) -> None:
        """Let every thread of this process run on these cores only."""
        self.shares = chosen != self.both
        for task in TASKS.iterdir():
            # A thread may have ended since it was listed.
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(int(task.name), chosen)


def thread_times() -> tuple[float, float]:
    """Seconds that the threads of this process have worked, and have waited for a core."""
    working = waiting = 0
    for task in TASKS.iterdir():
        with contextlib.suppress(OSError, ValueError):
            ran, delayed, _ = (task / "schedstat").read_text().split()
            working, waiting = working + int(ran), waiting + int(delayed)
    return working / 1e9, waiting / 1e9


def idle_times() -> dict[int, float]:
    """Core -> seconds that it was idle or ran niced work, where that gives way."""
    ticks = os.sysconf("SC_CLK_TCK")
    # With autogroups, each session gets the same share of a core: nice counts inside a session only
    # (sched(7)).
    gives_way = not (AUTOGROUPS.is_file() and AUTOGROUPS.read_text().strip() == "1")
    times: dict[int, float] = {}
    for line in STAT.read_text().splitlines():
        name, *fields = line.split()
        if name.startswith("cpu") and name != "cpu":
            _, nice, _, idle, waiting = (int(field) for field in fields[:5])
            times[int(name[3:])] = (nice * gives_way + idle + waiting) / ticks
    return times
