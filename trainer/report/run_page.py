"""``report.html``: one self-contained page about a run, for people.

Style, drawings and thumbnails are inside the file; the page makes no request. Each section says
what is missing, so a run that stopped half-way has a report too.
"""

from __future__ import annotations

from pathlib import Path

from trainer.files import write_atomic
from trainer.report.budget import budget
from trainer.report.classes import classes
from trainer.report.confusion import confusion
from trainer.report.curves import sweep, training
from trainer.report.facts import read_facts
from trainer.report.html import Section, render, render_page
from trainer.report.image_scores import image_scores
from trainer.report.images import images
from trainer.report.provenance import provenance, stages
from trainer.report.results import header, results
from trainer.report.subcategories import subcategories


def write_report(run_dir: Path, max_images: int = 24) -> Path:
    """Write ``run_dir/report.html``, and return its path.

    Args:
        run_dir: a run directory; only its manifest.json is required.
        max_images: number of images in all: first and worst images of val, and of train where only
            that has refined masks. 0 leaves the images out.

    Raises:
        RunError: manifest.json is missing or damaged, or the report cannot be written.
    """
    facts = read_facts(Path(run_dir))
    groups = subcategories(facts, max_images)
    parts = {
        "results": results(facts),
        "budget": budget(facts),
        "image_scores": image_scores(facts),
        "classes": classes(facts),
        "images": images(facts, max_images),
        "subcategories": groups,
        "threshold": sweep(facts),
        "confusion": confusion(facts),
        "training": {"stages": training(facts)},
        "stages": stages(facts),
        "provenance": provenance(facts),
    }
    headings = {"subcategories": "Sub-categories", "image_scores": "Image scores"}
    sections = [
        Section(name, headings.get(name, name.capitalize()), render(f"{name}.html", **values))
        for name, values in parts.items()
        if values is not None
    ]
    path = facts.run / "report.html"
    title = f"{facts.run.name}: wsss report"
    write_atomic(path, render_page("run.html", title, sections, **header(facts)))
    return path
