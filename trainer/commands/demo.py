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

MODEL = "scenes"
# Few, small and easy enough for figures that rise from stage to stage in a few minutes.
SCENES = ("--count", "280", "--size", "96", "--classes", "4", "--difficulty", "0.0")
# A small network at the size of the scenes. Their maps peak at heads: the threshold that is found
# without masks, about 0.3, leaves little more, and from a low one the CRF finds the bodies.
KNOBS = (
    "classify.updates=200",
    "classify.resize=96,128",
    "classify.crop=96",
    "cams.precision=auto",
    "refine.threshold_from=fixed",
    "refine.threshold=0.12",
    "segment.updates=150",
    "segment.crop=96",
    "segment.scales=1",
    "segment.test_precision=auto",
)
FIT = (
    *("--backbone", "timm/resnet10t", "--weights", "none"),
    *(word for knob in KNOBS for word in ("--set", knob)),
)


def run_demo(folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Run every command of the path below ``folder``; a second call continues an interrupted one.

    Returns:
        Mean IoU by stage on the validation list, seconds, and the places of the results.

    Raises:
        RunError: a step failed, or the serving half is not installed.
        TargetError: the folder holds something else.
    """
    check_folder(folder, lambda there: (there / "data" / "synthetic.json").is_file())
    start = time.monotonic()
    data, run, models, masks = (folder / name for name in ("data", "run", "exported", "masks"))
    trainer, repository = ["-m", "trainer"], ["--repository", str(models)]
    _step(say, [*trainer, "synth", str(data), *SCENES])
    _step(say, [*trainer, "fit", str(data), "--run", str(run), *FIT])
    _step(say, [*trainer, "export", str(run), "--name", MODEL, *repository])
    first = (data / "ImageSets" / "Segmentation" / "val.txt").read_text().split()[0]
    photo = data / "JPEGImages" / f"{first}.jpg"
    _serve_and_segment(say, models, photo, folder / "segmented.png")
    # A process of its own, because the trainer never imports the serving half.
    label = ["-m", "serving.cli", "label", str(data / "JPEGImages"), str(masks)]
    _step(say, [*label, "--model", MODEL, *repository])
    evaluate = [sys.executable, *trainer, "eval", str(run), "--json"]
    output = subprocess.run(evaluate, check=True, capture_output=True, text=True).stdout
    on_val = {stage: lines["val"] for stage, lines in json.loads(output).items()}
    # The classifier is measured on tags alone.
    miou = {stage: entry["miou"] for stage, entry in on_val.items() if "miou" in entry}
    seconds = time.monotonic() - start
    places = {
        "report": run / "report.html",
        "masks": masks,
        "one image through the server": folder / "segmented.png",
        "models": models,
    }
    text = ", ".join(f"{stage} {value:.3f}" for stage, value in miou.items())
    say(f"\nmIoU on val: {text}\ndone in {seconds:.0f} s; look at:")
    for name, path in places.items():
        say(f"  {name}: {path}")
    look_at = {name: str(path) for name, path in places.items()}
    return {"miou": miou, "seconds": round(seconds, 1), "look_at": look_at}


def _serve_and_segment(say: Callable[[str], None], models: Path, photo: Path, out: Path) -> None:
    """Segment one image through a server on a free port."""
    command = ["-m", "serving.cli", "serve", "--repository", str(models), "--port", "0"]
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
            segment = ["-m", "serving.cli", "segment", str(photo), str(out), "--force"]
            _step(say, [*segment, "--model", MODEL, "--address", ready.rpartition(" ")[2]])
        finally:
            # The signal of a supervisor: the server finishes what it has begun.
            server.send_signal(signal.SIGTERM)
            server.wait(timeout=60)


def _step(say: Callable[[str], None], arguments: Sequence[str]) -> None:
    """Print a command as a user would type it, and run it."""
    script = "wsss-trainer" if arguments[1] == "trainer" else "wsss-serving"
    say(f"\n$ {script} {shlex.join(arguments[2:])}")
    # stdout is left to the result of the demo.
    code = subprocess.run([sys.executable, *arguments], check=False, stdout=sys.stderr).returncode
    if code:
        raise RunError(
            f"{script} {arguments[2]} ended with code {code}",
            "",
            "see the message above, then run the demo again",
        )
