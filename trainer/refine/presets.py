"""The changes of ``--refine NAME``."""

from __future__ import annotations

from typing import Any

from trainer.errors import ConfigError, nearest
from trainer.refine import affinitynet, irnet
from trainer.refine.vote import SUPERPIXELS


def named_refinement(name: str) -> dict[str, dict[str, Any]]:
    """The changes of a kind of refinement, or of a published preset of one, by section of knobs.

    Raises:
        ConfigError: no such name.
    """
    table: dict[str, dict[str, dict[str, Any]]] = {
        way: {"refine": {"refine": way}} for way in ("none", "crf", "affinity", "irn")
    }
    table["segments"] = {"refine": {"refine": "none", "segments": SUPERPIXELS}}
    for way, presets in (("affinity", affinitynet.PRESETS), ("irn", irnet.PRESETS)):
        for preset, changes in presets.items():
            table[preset] = {"refine": {"refine": way}, way: changes}
    # After ReCAM's maps, the walk ends at another background.
    table["irn-recam"]["refine"]["threshold"] = 0.28
    # The papers of psa, SC-CAM and Mixup-CAM have a dense CRF after the walk, psa's code has none.
    table["psa-crf"] = {
        "refine": {"refine": "affinity", "crf_after_walk": True, "crf": "P1"},
        "affinity": affinitynet.PRESETS["psa"],
    }
    if name not in table:
        raise ConfigError(f"there is no refinement {name!r}", nearest(name, table))
    return table[name]
