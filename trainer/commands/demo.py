"""``wsss-trainer demo``: the whole path on synthetic scenes, as a new user would type it."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from trainer.errors import RunError
from trainer.outputs import check_folder

IMAGES = 400
SIZE = 112
DIFFICULTY = 0.0
MODEL = "scenes"


def run_demo(folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Synth, fit, export, serve, segment, label, report, all below ``folder``; run again, it goes
    on.

    Returns:
        Mean IoU by stage on the validation list, seconds, and where to look.

    Raises:
        RunError: a step failed, or the serving half is not installed.
        TargetError: the folder holds something else.
    """
    check_folder(folder, lambda there: (there / "data" / "synthetic.json").is_file())
    start = time.monotonic()
    data, run, exported, masks = (folder / name for name in ("data", "run", "exported", "masks"))
    trainer = ["-m", "trainer"]
    _step(
        say,
        [
            *trainer,
            "synth",
            str(data),
            "--count",
            str(IMAGES),
            "--size",
            str(SIZE),
            "--difficulty",
            str(DIFFICULTY),
        ],
    )
    fit = [
        "--run",
        str(run),
        "--backbone",
        "resnet18",
        "--weights",
        "none",
        "--set",
        "cams.precision=auto",
    ]
    _step(say, [*trainer, "fit", str(data), *fit])
    _step(say, [*trainer, "export", str(run), "--name", MODEL, "--repository", str(exported)])
    photo = (
        data
        / "JPEGImages"
        / f"{(data / 'ImageSets' / 'Segmentation' / 'val.txt').read_text().split()[0]}.jpg"
    )
    _serve_and_segment(say, exported, photo, folder / "segmented.png")
    serving = ["-m", "serving.cli", "label", str(data / "JPEGImages"), str(masks)]
    _step(say, [*serving, "--model", MODEL, "--repository", str(exported)])
    _step(say, [*trainer, "report", str(run)])
    figures = json.loads(_read(["-m", "trainer", "eval", str(run), "--json"]))
    miou = {stage: lines["val"]["miou"] for stage, lines in figures.items()}
    seconds = time.monotonic() - start
    places = {
        "report": run / "report.html",
        "masks": masks,
        "one image through the server": folder / "segmented.png",
        "models": exported,
    }
    shown = ", ".join(f"{stage} {value:.3f}" for stage, value in miou.items())
    say(f"\nmIoU on val: {shown}\ndone in {seconds:.0f} s; look at:")
    for name, path in places.items():
        say(f"  {name}: {path}")
    return {
        "miou": miou,
        "seconds": round(seconds, 1),
        "look_at": {k: str(v) for k, v in places.items()},
    }


def _serve_and_segment(say: Callable[[str], None], exported: Path, photo: Path, out: Path) -> None:
    """Start the server on a free port, segment one image through it, stop it as a supervisor
    would.
    """
    command = ["-m", "serving.cli", "serve", "--repository", str(exported), "--port", "0"]
    say(f"\n$ wsss-serving {shlex.join(command[2:])} &")
    with subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            ready = server.stdout.readline().strip()
            if not ready:
                raise RunError(
                    "the server did not start", "the serving half", "pip install 'wsss[serve]'"
                )
            say(ready)
            address = ready.rpartition(" ")[2]
            _step(
                say,
                [
                    "-m",
                    "serving.cli",
                    "segment",
                    str(photo),
                    str(out),
                    "--model",
                    MODEL,
                    "--address",
                    address,
                    "--force",
                ],
            )
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(timeout=60)


def _step(say: Callable[[str], None], arguments: Sequence[str]) -> None:
    """Run a command of ours, shown as a user would type it."""
    script = "wsss-trainer" if arguments[1] == "trainer" else "wsss-serving"
    say(f"\n$ {script} {shlex.join(arguments[2:])}")
    done = subprocess.run([sys.executable, *arguments], check=False, stdout=sys.stderr)
    if done.returncode:
        raise RunError(
            f"{script} {arguments[2]} ended with code {done.returncode}",
            "",
            "see the message above, then run the demo again",
        )


def _read(arguments: Sequence[str]) -> str:
    return subprocess.run(
        [sys.executable, *arguments], check=True, capture_output=True, text=True
    ).stdout
