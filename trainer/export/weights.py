"""``wsss-trainer weights export``: a trained segmenter as a plain state dict, with a note of its
origin.
"""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainer.errors import ConfigError, RunError, one_of
from trainer.files import file_sha256, write_atomic
from trainer.outputs import check_file
from trainer.run import Run
from trainer.segmenters import prediction
from trainer.weights.checkpoints import Checkpoint, read_checkpoint

KIND = "exported wsss run"


def export_weights(run_dir: Path, out: Path, stage: str = "segment") -> dict[str, Any]:
    """Write the segmenter of a run to ``out``, under the released names where its network has some.

    ``deeplab-v2-r101`` has the names of deeplab-pytorch with its wrapper (``base.``),
    ``largefov-r38`` those of SEAM's segmentation code, ``aspp`` torchvision's after ``backbone.``.
    Whoever loads ``out`` again needs the JSON beside it.

    Args:
        run_dir: the run.
        out: the file, ending in ``.pth`` or the like.
        stage: ``segment``, or ``segment_full`` for the one that learnt from true masks.

    Returns:
        The note in the JSON: network, classes, supervision, tensors, sha256.

    Raises:
        RunError: the run has no such segmenter, or ``out`` cannot be written.
        ConfigError: an unknown stage, or a name that the note needs.
        TargetError: ``out`` or its note is there, and is no earlier export.
    """
    one_of(stage, ("segment", "segment_full"), "the segmenter")
    _check_name(out)
    path = _model_path(Run.existing(run_dir), stage)
    note_path = out.with_suffix(".json")
    _check_targets(out, note_path, path)
    segmenter, network, _ = prediction.load(path, {})
    checkpoint = read_checkpoint(path)
    buffer = io.BytesIO()
    torch.save(network.state_dict(), buffer)
    # Weights before their note: the digest in a note is never that of a file that is not there yet.
    write_atomic(out, buffer.getvalue())
    note = {
        "sha256": file_sha256(out),
        "source": str(run_dir.resolve()),
        "network": segmenter.config.network,
        **_facts(network, checkpoint),
    }
    write_atomic(note_path, (json.dumps(note, indent=1) + "\n").encode())
    return note


def _check_name(out: Path) -> None:
    if out.suffix in ("", ".json"):
        raise ConfigError(
            f"--out {out}",
            "a file for weights, whose note gets the ending .json",
            "--out segmenter.pth",
        )


def _check_targets(out: Path, note_path: Path, model: Path) -> None:
    # Only an unchanged export may be replaced: the note tells by its digest.
    check_file(
        out, [model], lambda file: _note(note_path).get("sha256") == file_sha256(file), "--out"
    )
    check_file(note_path, is_ours=lambda file: _note(file).get("kind") == KIND, option="the note")


def _facts(network: nn.Module, checkpoint: Checkpoint) -> dict[str, Any]:
    facts = {
        "classes": checkpoint.classes,
        "supervision": checkpoint.supervision,
        "kind": KIND,
        "exported": datetime.now(UTC).isoformat(timespec="seconds"),
        "tensors": len(network.state_dict()),
    }
    # The layout of DeepLab-v2's ResNet-101, which the tensors alone do not tell.
    if hasattr(network, "stride_on"):
        facts |= {"stride_on": network.stride_on, "input": network.input}
    return facts


def _model_path(run: Run, stage: str) -> Path:
    path = run.path / stage / "model.pt"
    if run.manifest["stages"].get(stage, {}).get("status") != "done" or not path.exists():
        raise RunError(
            f"{run.path} has no finished stage {stage!r}", "a trained segmenter", "wsss-trainer fit"
        )
    return path


def _note(path: Path) -> dict[str, Any]:
    """The note of an earlier export; empty for any other file."""
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) and note.get("kind") == KIND else {}
