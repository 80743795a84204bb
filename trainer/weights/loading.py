"""Weight files: load them into a network by name, and say what they are."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.errors import WeightsError
from trainer.files import file_sha256
from trainer.weights.supervision import said

if TYPE_CHECKING:
    from torch import Tensor, nn

    from trainer.weights.checkpoints import Checkpoint

HEAD = "aspp."
"""Of a network that is a segmenter as a whole: a file of its backbone has none."""
COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class LoadReport:
    """What ``load_backbone`` did. ``print`` it: one line, two when something was missing or left
    over.

    Attributes:
        path: the file.
        sha256: of the file, hexadecimal.
        kind: see ``Checkpoint``.
        supervision: ``ImageNet tags``, ``image tags``, ``masks``, ``COCO masks``, ``unknown``, or
            as said at import.
        loaded: names of the module that got a value.
        missing: names of the module that the file does not have; they keep the values they had.
        unexpected: names of the file that the module does not have, such as its old head.
        choice: what was taken of a file with more than one group of weights.
    """

    path: Path
    sha256: str
    kind: str
    supervision: str
    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    choice: str = field(default="", kw_only=True)

    def __str__(self) -> str:
        total = len(self.loaded) + len(self.missing)
        about = f"{self.kind}, supervision: {said(self.supervision)}, sha256 {self.sha256[:12]}"
        line = f"{self.path.name}: loaded {len(self.loaded)} of {total} tensors ({about})"
        rest = [self.choice] if self.choice else []
        if self.missing:
            rest.append(f"not there, still random: {_some(self.missing)}")
        if self.unexpected:
            rest.append(f"not used: {_some(self.unexpected)}")
        return "\n".join([line, "  " + "; ".join(rest)]) if rest else line


def load_backbone(
    module: nn.Module, path: Path | str, content: Checkpoint | None = None
) -> LoadReport:
    """Copy the weights of a file, or its ``content`` where that is read already, into ``module``,
    offline.

    Reads torchvision ``.pth`` and ``.safetensors`` files, EfficientNet-PyTorch files, released WSSS
    checkpoints (whatever prefix their names carry) and MXNet ``.params``. Heads and counters of
    batch norm are left out. Every tensor of the network must be there. Nothing is changed on error.

    Raises:
        WeightsError: not a weight file, or of another network; says which one it looks like.
    """
    from trainer.weights.checkpoints import best_prefix, read_checkpoint

    path = Path(path)
    checkpoint = content or read_checkpoint(path)
    slots = {
        name: tensor for name, tensor in module.state_dict().items() if not name.endswith(COUNTER)
    }
    prefix = best_prefix(checkpoint.tensors, slots)
    values = {
        n.removeprefix(prefix): t for n, t in checkpoint.tensors.items() if n.startswith(prefix)
    }
    matches = {name: values[name] for name in slots if name in values}
    missing = tuple(name for name in slots if name not in values)
    _check_fit(path, checkpoint, slots, matches, missing)
    # Not strict: counters of batch norm are left out, and so is the head of a segmenter where the
    # file has none. All else was checked.
    module.load_state_dict(matches, strict=False)
    sha256 = file_sha256(path)
    note = noted_beside(path, sha256)
    return LoadReport(
        path=path,
        sha256=sha256,
        kind=note.get("kind", checkpoint.kind),
        supervision=note.get("supervision", checkpoint.supervision),
        loaded=tuple(matches),
        missing=missing,
        unexpected=tuple(
            name
            for name in checkpoint.tensors
            if not name.endswith(COUNTER)
            and not (name.startswith(prefix) and name.removeprefix(prefix) in slots)
        ),
        choice=checkpoint.choice,
    )


def _check_fit(
    path: Path,
    checkpoint: Checkpoint,
    slots: dict[str, Tensor],
    matches: dict[str, Tensor],
    missing: tuple[str, ...],
) -> None:
    """Refuse a file of another network: small ones can be contained in large ones, so names alone
    do not tell.
    """
    from trainer.weights.checkpoints import SEGMENTER_HEADS, architecture

    seen, own = architecture(checkpoint.tensors), architecture(slots)
    misfits = [name for name in matches if matches[name].shape != slots[name].shape]
    other = seen is not None and own is not None and seen != own
    lost = [name for name in missing if not name.startswith(HEAD)]
    if not (other or misfits or lost):
        return
    if other:
        reason = f"this looks like {seen}"
    elif misfits:
        name = misfits[0]
        reason = (
            f"{name} has shape {tuple(matches[name].shape)} instead of {tuple(slots[name].shape)}"
        )
        if name.endswith(SEGMENTER_HEADS):
            counts = (len(tensors[name]) - 1 for tensors in (matches, slots))
            reason += (
                ": it is a segmenter of {} classes and background, and this one has {}".format(
                    *counts
                )
            )
    else:
        reason = f"{len(lost)} of {len(slots)} tensors are missing, such as {_some(tuple(lost))}"
        reason += f"; it holds {_some(tuple(checkpoint.tensors))}"
    first = next(iter(slots))
    raise WeightsError(
        f"{path} does not fit: {reason}",
        f"weights of {own or 'the network'}: {len(slots)} tensors such as {first}"
        f" {tuple(slots[first].shape)}",
        "choose the backbone that the file is for, or see wsss-trainer weights list",
    )


def _some(names: tuple[str, ...], limit: int = 4) -> str:
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest


def noted_beside(path: Path, sha256: str | None = None) -> dict[str, Any]:
    """What was noted in the JSON beside ``path`` when it was written, or nothing when it is another
    file by now.

    Args:
        path: a weight file.
        sha256: of it, where it is known already.
    """
    try:
        note = json.loads(path.with_suffix(".json").read_text())
    except (OSError, ValueError):
        return {}
    if not isinstance(note, dict) or "sha256" not in note:
        return {}
    return note if note["sha256"] == (sha256 or file_sha256(path)) else {}
