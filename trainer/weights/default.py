"""The backbone of a run that names none."""

from __future__ import annotations

from pathlib import Path

from trainer.errors import RunError
from trainer.nets import SHORT, traits_of
from trainer.run import Run
from trainer.weights.cache import cache_folder, cached_file
from trainer.weights.places import local_file, packaged

USUAL = "mobilenet_v2"


def default_backbone(run: Path) -> tuple[str, str]:
    """The backbone, and a line that says why; empty where it is ``USUAL``.

    It is the first one that has an installed package of weights where this machine has no weights
    for ``USUAL``. A run that began so keeps its backbone, whatever the machine has by now.

    Args:
        run: folder of the run, which may be new.
    """
    here = {name: packaged(traits_of(name).package) for name in SHORT}
    usual = cached_file(USUAL, cache_folder()).is_file() or local_file(traits_of(USUAL))
    name = _backbone_of(run)
    if name not in (USUAL, *here):
        name = USUAL if usual else next((name for name, file in here.items() if file), USUAL)
    if not (file := here.get(name)):
        return name, ""
    why = "this run began with it" if usual else f"this machine has no weights for {USUAL}"
    return name, f"backbone {name} with the ImageNet weights of the package {file.source}: {why}"


def _backbone_of(run: Path) -> str:
    try:
        return str(Run(run).manifest.get("backbone", ""))
    except RunError:
        return ""
