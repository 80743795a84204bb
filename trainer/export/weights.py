"""``wsss-trainer weights export``: a trained segmenter as a plain state dict, and a note of what
made it beside it.
"""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from trainer.errors import ConfigError, RunError
from trainer.files import file_sha256, write_atomic
from trainer.outputs import check_file
from trainer.run import Run
from trainer.segmenters import prediction
from trainer.weights.checkpoints import read_checkpoint

KIND = "exported wsss run"


def export_weights(run_dir: Path, out: Path, stage: str = "segment") -> dict[str, Any]:
    """Write the segmenter of a run to ``out``, under the released names where its network has some.

    ``deeplab-v2-r101`` has those of deeplab-pytorch with its wrapper (``base.``), ``largefov-r38``
    those of SEAM's segmentation code base, ``aspp`` torchvision's after ``backbone.``. The JSON
    beside ``out`` is what reading it again goes by.

    Args:
        run_dir: the run.
        out: the file, ending in ``.pth`` or the like.
        stage: ``segment``, or ``segment_full`` for the one that learnt from true masks.

    Returns:
        What was written beside it: network, classes, supervision, tensors, sha256.

    Raises:
        RunError: the run has no such segmenter, or ``out`` cannot be written.
        ConfigError: ``out`` is its own note.
        TargetError: ``out`` or its note is there, and is no earlier export.
    """
    if out.suffix in ("", ".json"):
        raise ConfigError(
            f"--out {out}",
            "a file for weights, whose note gets the ending .json",
            "--out segmenter.pth",
        )
    run = Run.existing(run_dir)
    path = run.path / stage / "model.pt"
    if run.manifest["stages"].get(stage, {}).get("status") != "done" or not path.exists():
        raise RunError(
            f"{run_dir} has no finished stage {stage!r}", "a trained segmenter", "wsss-trainer fit"
        )
    note_path = out.with_suffix(".json")
    check_file(
        out, [path], lambda file: _note(note_path).get("sha256") == file_sha256(file), "--out"
    )
    check_file(note_path, is_ours=lambda file: _note(file).get("kind") == KIND, option="the note")
    segmenter, network, _ = prediction.load(path, {})
    checkpoint = read_checkpoint(path)
    buffer = io.BytesIO()
    torch.save(network.state_dict(), buffer)
    write_atomic(out, buffer.getvalue())
    note = {
        "sha256": file_sha256(out),
        "source": str(run.path.resolve()),
        "network": segmenter.config.network,
        "classes": checkpoint.classes,
        "supervision": checkpoint.supervision,
        "kind": KIND,
        "exported": datetime.now(UTC).isoformat(timespec="seconds"),
        "tensors": len(network.state_dict()),
        **(
            {"stride_on": network.stride_on, "input": network.input}
            if hasattr(network, "stride_on")
            else {}
        ),
    }
    write_atomic(note_path, (json.dumps(note, indent=1) + "\n").encode())
    return note


def _note(path: Path) -> dict[str, Any]:
    """What a note says; nothing if it is none of an export."""
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) and note.get("kind") == KIND else {}
