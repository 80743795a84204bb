"""A folder of runs that differ in their seed alone, as ``fit --seeds`` makes it.

It holds ``seeds.json``, which marks it as ours, and one ordinary run a seed: ``seed-0``, ``seed-1``
and so on.
"""

from __future__ import annotations

import re
from pathlib import Path

from trainer.errors import ConfigError
from trainer.files import write_atomic

MARKER = "seeds.json"
_RUN = re.compile(r"seed-(\d+)")


def parse_seeds(text: str) -> tuple[int, ...]:
    """The seeds of ``0,1,2``, in the order in which they stand there.

    Raises:
        ConfigError: not a list of whole numbers, or one of them twice.
    """
    parts = [part.strip() for part in text.split(",")]
    seeds = tuple(int(part) for part in parts if part.isdecimal())
    if len(seeds) < len(parts) or len(set(seeds)) < len(seeds):
        raise ConfigError(
            f"--seeds {text}",
            "different whole numbers separated by commas",
            "--seeds 0,1,2",
        )
    return seeds


def is_seed_folder(folder: Path) -> bool:
    """Whether ``fit --seeds`` made a folder."""
    return (folder / MARKER).is_file()


def mark(folder: Path) -> None:
    """Make a folder for runs of several seeds."""
    write_atomic(folder / MARKER, b'{"format": 1}\n')


def seed_run(folder: Path, seed: int) -> Path:
    """The folder of the run of one seed."""
    return folder / f"seed-{seed}"


def seed_runs(folder: Path) -> dict[int, Path]:
    """The runs of a folder by their seeds, ascending; empty where ``fit --seeds`` did not make it.

    A run counts from its first manifest on.
    """
    if not is_seed_folder(folder):
        return {}
    # The folders and not a list in the file: two commands may train different seeds at a time.
    names = {path: _RUN.fullmatch(path.name) for path in folder.iterdir()}
    runs = {int(match[1]): path for path, match in names.items() if match}
    return {seed: runs[seed] for seed in sorted(runs) if (runs[seed] / "manifest.json").is_file()}
