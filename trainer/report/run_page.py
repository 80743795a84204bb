"""``report.html``: one self-contained page about a run, for people.

Style, drawings and thumbnails are inside the file; opening it makes no request. Every section says
what is not there yet, so a run that stopped half-way has a report too.
"""

from __future__ import annotations

from html import escape as esc
from pathlib import Path

from trainer.files import write_atomic
from trainer.report.classes import classes
from trainer.report.confusion import confusion
from trainer.report.facts import read_facts
from trainer.report.page import page
from trainer.report.plots import sweep, training
from trainer.report.sections import header, provenance, results, stages
from trainer.report.sheets import images
from trainer.report.subcategories import subcategories


def write_report(run_dir: Path, max_images: int = 24, progress: bool = False) -> Path:
    """Write ``run_dir/report.html`` from what the run directory holds, and return its path.

    Args:
        run_dir: a run directory; of its files only manifest.json must be there.
        max_images: rows of the image sheets in all: first and worst images of val, and of train
            where only that has refined masks. 0 leaves the images out.
        progress: show a bar while rows are made.

    Raises:
        RunError: no readable manifest.json, or the report cannot be written.
    """
    facts = read_facts(Path(run_dir))
    sections = [
        ("results", "Results", results(facts)),
        ("classes", "Classes", classes(facts)),
        ("images", "Images", images(facts, max_images, progress)),
        ("subcategories", "Sub-categories", subcategories(facts, max_images)),
        ("threshold", "Threshold", sweep(facts)),
        ("confusion", "Confusion", confusion(facts)),
        ("training", "Training", training(facts)),
        ("stages", "Stages", stages(facts)),
        ("provenance", "Provenance", provenance(facts)),
    ]
    sections = [section for section in sections if section[2]]
    footer = (
        f"<p>Written by wsss-trainer from <code>{esc(facts.run.name)}</code>. Makes no network"
        " request.</p>"
    )
    path = facts.run / "report.html"
    write_atomic(
        path, page(f"{facts.run.name}: wsss report", header(facts), sections, footer).encode()
    )
    return path
