"""A run directory: manifest, stages, lock. A stage is done only when the manifest says so, and that
is written last.
"""

from __future__ import annotations

import contextlib
import csv
import datetime
import fcntl
import hashlib
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from trainer.cores import cores
from trainer.errors import RunError
from trainer.files import write_atomic
from trainer.ranks import rank
from trainer.seed_folder import seed_run, seed_runs

FORMAT = 1


def stage_key(name: str, config: Any, inputs: Sequence[str]) -> str:
    """Hash of what a stage's outputs depend on: its name, config, the keys of its inputs and the
    format version.
    """
    # Sorted, because the order of knobs must not change the key.
    text = json.dumps([FORMAT, name, config, list(inputs)], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run; ``Run`` says whether it can be read."""
    return (folder / "manifest.json").is_file()


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole or not at all."""
    write_atomic(path, (json.dumps(value, indent=1) + "\n").encode())


class Output:
    """What a stage writes while it runs: its folder, and what the manifest is to remember."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.places = [folder]
        """Folders and files of its results, to notice later when some are gone."""
        self.outputs: dict[str, Any] = {}
        self.metrics: dict[str, Any] = {}


class Run:
    """A run directory.

    Args:
        path: the folder, ``runs/<name>``.

    Raises:
        RunError: the manifest cannot be read.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        # Of the processes of torchrun, only the first one writes.
        self.second = rank() > 0
        self.manifest: dict[str, Any] = {"format": FORMAT, "created": _now(), "stages": {}}
        self.reload()

    def reload(self) -> None:
        """Read the manifest again, which another process may have written.

        Raises:
            RunError: it cannot be read.
        """
        if self.manifest_path.exists():
            try:
                content = json.loads(self.manifest_path.read_text())
            except (OSError, ValueError) as error:
                raise RunError(
                    f"{self.manifest_path} cannot be read: {error}", "a run's manifest"
                ) from error
            version = content.get("format") if isinstance(content, dict) else None
            if version != FORMAT or not isinstance(content.get("stages"), dict):
                raise RunError(
                    f"{self.manifest_path} is no run of this version (format {version})",
                    f"the manifest of a run of format {FORMAT}",
                    "use a new --run folder",
                )
            self.manifest = content

    @classmethod
    def existing(cls, path: str | Path) -> Run:
        """Open a run that is there.

        Raises:
            RunError: the folder is no run.
        """
        path = Path(path)
        if seeds := seed_runs(path):
            raise RunError(
                f"{path} holds runs of the seeds {', '.join(map(str, seeds))}",
                "one run",
                f"one of them, such as {seed_run(path, min(seeds))}",
            )
        if not is_run(path):
            raise RunError(
                f"{path} is not a run",
                "a folder with a manifest.json",
                "wsss-trainer fit DATA --run runs/name",
            )
        return cls(path)

    @property
    def manifest_path(self) -> Path:
        """``manifest.json``."""
        return self.path / "manifest.json"

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run; the kernel lets go of it however this process ends.

        Raises:
            RunError: another process holds it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        if self.second:
            yield
            return
        # Not "w", which would empty the holder's note before the lock is tried.
        with open(self.path / ".lock", "a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                file.seek(0)
                holder = file.read().strip() or "another process"
                raise RunError(
                    f"{self.path} is in use by {holder}",
                    "one run in a folder",
                    "wait, or choose another --run",
                ) from error
            # For the message of whoever finds the run in use.
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}")
            file.flush()
            yield

    def save(self) -> None:
        """Write the manifest (the first process only, where torchrun started several)."""
        if self.second:
            return
        self.manifest["updated"] = _now()
        write_json(self.manifest_path, self.manifest)

    def describe(self, **entries: Any) -> None:
        """Record what the run is made of: command, versions, host, and the given entries."""
        self.manifest.update(
            command=sys.argv, versions=_versions(), commit=_commit(), host=_host(), **entries
        )
        self.save()

    def done(self, name: str, key: str) -> bool:
        """Whether the stage is complete with this key, and its files are there."""
        stage = self.manifest["stages"].get(name, {})
        return bool(
            stage.get("status") == "done" and stage.get("key") == key and not self.lost(name)
        )

    @property
    def complete(self) -> dict[str, str]:
        """The keys of the stages that are done, by name."""
        stages = self.manifest["stages"]
        return {name: entry["key"] for name, entry in stages.items() if entry["status"] == "done"}

    def key(self, name: str) -> str | None:
        """The key that a stage's outputs have, or are being made with."""
        key: str | None = self.manifest["stages"].get(name, {}).get("key")
        return key

    def lost(self, name: str) -> int:
        """How many files of a stage are gone since it was done."""
        files = self.manifest["stages"].get(name, {}).get("files", {})
        return sum(max(0, count - _files(self.path / folder)) for folder, count in files.items())

    def metrics(self, name: str) -> dict[str, Any]:
        """What a stage measured of itself, as in the manifest."""
        values: dict[str, Any] = self.manifest["stages"].get(name, {}).get("metrics", {})
        return values

    @property
    def left_out(self) -> set[str]:
        """Images without usable maps, where maps were imported and such images were to be
        skipped.
        """
        return set(self.manifest["stages"].get("cams", {}).get("outputs", {}).get("left_out", ()))

    def is_stale(self, name: str, key: str) -> bool:
        """Whether the folder holds outputs made with another key."""
        stage = self.manifest["stages"].get(name)
        return stage is not None and stage.get("key") != key

    def standing(self, name: str, key: str) -> str:
        """What is going to happen to a stage, in words."""
        if self.done(name, key):
            return "done, kept"
        if self.is_stale(name, key):
            return "settings or inputs changed since it was made, will be made again"
        return (
            f"{lost} of its files are gone, will be made again"
            if (lost := self.lost(name))
            else "to do"
        )

    @contextlib.contextmanager
    def stage(self, name: str, key: str, folder: str | None = None) -> Iterator[Output]:
        """Run a stage: outputs of another key are set aside first, those of this key are there to
        resume from.
        """
        target = self.path / (folder or name)
        if self.is_stale(name, key) and target.exists() and not self.second:
            self.set_aside(name, target)
        target.mkdir(parents=True, exist_ok=True)
        previous = self.manifest["stages"].get(name, {})
        spent = previous.get("seconds", 0.0) if previous.get("key") == key else 0.0
        entry = {"status": "running", "key": key, "started": _now(), "seconds": spent}
        self.manifest["stages"][name] = entry
        # Before the work: a stage that is killed is found as running, with its key.
        self.save()
        stage, start = Output(target), time.monotonic()
        try:
            yield stage
            entry["status"] = "done"
            entry["files"] = {str(f.relative_to(self.path)): _files(f) for f in stage.places}
        except BaseException:
            entry["status"] = "failed"
            raise
        finally:
            entry["seconds"] = round(spent + time.monotonic() - start, 2)
            entry["peak_memory_mb"] = peak_memory_mb()
            entry["outputs"], entry["metrics"] = stage.outputs, stage.metrics
            self.save()

    def set_aside(self, name: str, target: Path) -> None:
        """Trained weights are moved to ``stale/``, since nobody wants to lose hours; per-image
        files are remade.
        """
        old = self.manifest["stages"][name]["key"]
        if list(target.glob("*.pt")):
            stale = self.path / "stale" / f"{name}-{old}"
            stale.parent.mkdir(exist_ok=True)
            # From a change to this key and back.
            shutil.rmtree(stale, ignore_errors=True)
            target.rename(stale)
        else:
            shutil.rmtree(target)


class Metrics:
    """``metrics.csv`` in long form: stage, epoch, step, name, value."""

    def __init__(self, path: Path, stage: str) -> None:
        self.path, self.stage = path, stage
        path.parent.mkdir(parents=True, exist_ok=True)

    def rewind(self, step: int) -> None:
        """Drop this stage's rows after ``step``: a resumed run writes them again."""
        if not self.path.exists():
            return
        with open(self.path, newline="") as file:
            rows = list(csv.reader(file))
        # A killed process may have left half a row.
        rows = [r for r in rows if r[:1] != [self.stage] or (len(r) == 5 and int(r[2]) <= step)]
        temporary = self.path.with_suffix(".tmp")
        with open(temporary, "w", newline="") as file:
            csv.writer(file).writerows(rows)
        temporary.replace(self.path)

    def write(self, epoch: int, step: int, values: dict[str, float]) -> None:
        """Append one row a value."""
        new = not self.path.exists()
        with open(self.path, "a", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(["stage", "epoch", "step", "name", "value"])
            writer.writerows(
                [self.stage, epoch, step, name, f"{value:.6g}"] for name, value in values.items()
            )


def peak_memory_mb() -> float:
    """Largest resident size of this process and of its children so far, in MiB."""
    usage = max(
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    # Linux counts in KiB.
    return round(usage / 1024, 1)


def _files(place: Path) -> int:
    """How many files a folder holds; 1 for a file."""
    paths = [place] if place.is_file() else place.rglob("*")
    return sum(path.is_file() and not path.name.startswith(".") for path in paths)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in ("wsss", "torch", "torchvision", "lightning", "numpy", "pydensecrf2"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def _commit() -> str | None:
    folder = Path(__file__).parent
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        text = subprocess.check_output(
            ["git", "rev-parse", "HEAD"], cwd=folder, text=True, stderr=subprocess.DEVNULL
        )
        return text.strip()
    return None


def _host() -> dict[str, Any]:
    import torch

    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu"
    return {"name": platform.node(), "cpus": cores(), "device": device}
