"""Memory of a process and of those that it started, as Linux counts it, in bytes. A process that
has ended has none.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

Process = int | str
"""Its number, or ``self``."""


def resident(pid: Process = "self") -> int:
    """In memory now."""
    return _field("status", "VmRSS:", pid)


def peak(pid: Process = "self") -> int:
    """The most that was in memory.

    Not ``ru_maxrss``, which a process inherits from the one that started it.
    """
    return _field("status", "VmHWM:", pid)


def reset_peak() -> None:
    """Let ``peak`` of this process count from now on, where the kernel allows that."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def private(pid: Process = "self") -> int:
    """In memory now, and shared with no other process."""
    return _field("smaps_rollup", "Private_", pid)


def children(pid: Process = "self") -> list[int]:
    """Numbers of the processes that a process started, at any depth."""
    numbers = []
    for task in Path(f"/proc/{pid}/task").glob("*"):
        for child in _text(task / "children").split():
            numbers += [int(child), *children(int(child))]
    return numbers


def command(pid: Process) -> str:
    """The command line, which a process may rewrite."""
    return _text(Path(f"/proc/{pid}/cmdline"))


def _field(file: str, prefix: str, pid: Process) -> int:
    lines = _text(Path(f"/proc/{pid}/{file}")).splitlines()
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith(prefix))


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
