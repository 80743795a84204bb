"""Whether a model can be served, tried in a process that may crash, hang or exhaust its memory.

``python -m serving.repository.trial FOLDER`` opens and warms up the model of a version folder and
prints a verdict as JSON: ``{"sound": true}``, or ``{"sound": false, "found": ..., "expected": ...,
"hint": ...}``. Models for a GPU are tried on the processors, because the GPU's memory belongs to
the server and building an engine takes minutes.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import resource
import signal
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from serving.config import EngineConfig, ScheduleConfig, ServerConfig
from serving.errors import RepositoryError, ServingError
from serving.scheduling.cpus import available_memory
from serving.settings import changed

log = logging.getLogger(__name__)

COMMAND = (sys.executable, "-m", "serving.repository.trial")
# Share of the available memory that a trial may take by default.
SHARE = 0.75
MEGABYTE = 1 << 20


async def try_model(folder: Path, config: ServerConfig) -> None:
    """Try the model of a version folder in a process that ends with the trial in any case.

    Raises:
        RepositoryError: it is not sound, or the trial crashed or took too long.
    """
    seconds = config.models.trial_seconds
    memory = config.models.trial_memory_mb * MEGABYTE or int(SHARE * available_memory())
    settings = {
        "schedule": asdict(config.schedule.for_model(folder.parent.name)),
        "engine": {key: value for key, value in asdict(config.engine).items() if value is not None},
        "memory": memory,
        "seconds": seconds,
    }
    process = await asyncio.create_subprocess_exec(
        *COMMAND,
        str(folder),
        json.dumps(settings, default=str),
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join((str(Path(__file__).parents[2]), *_python_path()))},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        # Signals for the server must not end its trials with a verdict of "crashed".
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(seconds):
            output, errors = await process.communicate()
    except TimeoutError:
        raise RepositoryError(
            f"the trial of {folder} took longer than {seconds:g} s",
            "a model that loads and runs in time",
            "raise models.trial_seconds",
        ) from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    _judge(folder, process.returncode, output, errors.decode(errors="replace"))


def _judge(folder: Path, code: int | None, output: bytes, errors: str) -> None:
    try:
        verdict = json.loads(output)
    except ValueError:
        log.warning("the trial of %s ended with %s: %s", folder, code, errors[-2000:])
        end = (
            f"crashed with {signal.Signals(-code).name}"
            if code and code < 0
            else f"ended with exit code {code}"
        )
        raise RepositoryError(
            f"the trial of {folder} {end}",
            "a model that loads and runs",
            "its output is in the server's log",
        ) from None
    if not verdict["sound"]:
        raise RepositoryError(verdict["found"], verdict["expected"], verdict["hint"])


def _python_path() -> list[str]:
    return [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]


def _verdict(folder: Path, schedule: ScheduleConfig, config: EngineConfig) -> dict[str, Any]:
    from serving.card import read_card
    from serving.repository.choice import limited, on_processors
    from serving.repository.loading import open_warm_engine

    try:
        card = read_card(folder)
        open_warm_engine(limited(card, config), schedule, on_processors(card, config))
    except ServingError as error:
        return _unsound(error.found, error.expected, error.hint)
    except MemoryError:
        return _unsound(
            f"{folder} needs more memory than a trial has", hint="raise models.trial_memory_mb"
        )
    return {"sound": True}


def _unsound(found: str, expected: str = "", hint: str = "") -> dict[str, Any]:
    return {"sound": False, "found": found, "expected": expected, "hint": hint}


def main() -> None:
    """The trial process: limits first, then the model."""
    folder, settings = Path(sys.argv[1]), json.loads(sys.argv[2]) if len(sys.argv) > 2 else {}
    # The alarm ends a trial whose server died.
    signal.alarm(int(settings.get("seconds", 3600)) + 5)
    # Models in service come first, for the processors and when the kernel must free memory.
    os.nice(5)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    if memory := settings.get("memory"):
        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    # Libraries write to standard output, too. It is reserved for the verdict.
    verdict_to = os.dup(1)
    # File descriptor 1 itself, because native libraries do not use sys.stdout.
    os.dup2(2, 1)
    schedule = changed(ScheduleConfig(), settings.get("schedule", {}))
    config = changed(EngineConfig(), settings.get("engine", {}))
    with os.fdopen(verdict_to, "w") as file:
        json.dump(_verdict(folder, schedule, config), file)
        file.write("\n")
    # The interpreter's own exit would tear down what a broken model left behind, which may crash.
    os._exit(0)


if __name__ == "__main__":
    main()
