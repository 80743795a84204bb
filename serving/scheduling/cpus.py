"""Processors and memory that this process may really use, by affinity, limits and container."""

from __future__ import annotations

import os
import resource
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def available_cpus(cgroup: Path = CGROUP) -> int:
    """Whole processors, at least 1: the smaller of affinity mask and cgroup quota (v2, else v1)."""
    # os.cpu_count() is the host's number, also inside a container.
    usable = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    quota = _quota(cgroup)
    return max(1, min(usable, int(quota) if quota else usable))


def available_memory(cgroup: Path = CGROUP) -> int:
    """Bytes: the smallest of the machine's memory, ``ulimit -v`` and the cgroup limit (v2, else
    v1).
    """
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    own = resource.getrlimit(resource.RLIMIT_AS)[0]
    if own != resource.RLIM_INFINITY:
        machine = min(machine, own)
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        limit = _words(cgroup / name)
        if limit and limit[0] != "max":
            return min(machine, int(limit[0]))
    return machine


def _quota(cgroup: Path) -> float | None:
    v2 = _words(cgroup / "cpu.max")
    if len(v2) == 2 and v2[0] != "max":
        return int(v2[0]) / int(v2[1])
    quota, period = (
        _words(cgroup / "cpu/cpu.cfs_quota_us"),
        _words(cgroup / "cpu/cpu.cfs_period_us"),
    )
    if quota and period and int(quota[0]) > 0:
        return int(quota[0]) / int(period[0])
    return None


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []
