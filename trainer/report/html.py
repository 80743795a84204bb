"""Pages from the templates beside this module.

Every value that a template prints is escaped; only charts and rendered templates are markup.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from trainer.data.palette import voc_palette
from trainer.outputs import MARK
from trainer.report.facts import STAGES
from trainer.report.words import duration, memory, moment, percent

# CSS colour of each evaluated stage, the same in cards, bars and curves.
COLOURS = {
    "cam": "var(--cam)",
    "refined": "var(--refined)",
    "segment": "var(--segment)",
    "segment_full": "var(--full)",
}


@dataclass(frozen=True)
class Section:
    """A part of a page with its own heading; ``anchor`` is its name in links."""

    anchor: str
    heading: str
    body: Markup


def render(template: str, **values: Any) -> Markup:
    """Fill a template of this package. A name that the template uses must be in ``values``."""
    return Markup(_environment().get_template(template).render(values))


def draw(chart: str, **values: Any) -> Markup:
    """Fill a macro of ``charts.html``."""
    return Markup(getattr(_environment().get_template("charts.html").module, chart)(**values))


def render_page(template: str, title: str, sections: Sequence[Section], **values: Any) -> bytes:
    """A whole document, which loads nothing and runs no script but its own.

    Args:
        template: one that extends ``page.html``.
        title: plain text.
        sections: in order.
        values: further names of the template.
    """
    # The page allows only the script with this digest: names of a data set may hold markup.
    # Inside the page, so that one file can be mailed, kept, and opened from a disk.
    style, script = (Markup(_source(f"report.{kind}")) for kind in ("css", "js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assets = {"style": style, "script": script, "digest": digest, "mark": MARK}
    return render(template, title=title, sections=sections, **assets, **values).encode()


def rgb(label: int) -> str:
    """CSS colour of a label."""
    return "rgb({} {} {})".format(*voc_palette(label + 1)[label].tolist())


@cache
def _environment() -> Environment:
    # Names of classes and images may hold markup, and a misspelt name in a template must not print
    # as nothing.
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    words = (percent, duration, memory, moment, rgb)
    environment.filters |= {word.__name__: word for word in words}
    environment.filters["css"] = lambda colour: "rgb({} {} {})".format(*map(int, colour))
    environment.filters["px"] = "{:.1f}".format
    environment.filters["compact"] = partial(json.dumps, separators=(",", ":"))
    environment.globals |= {"STAGES": STAGES, "COLOURS": COLOURS}
    return environment


def _source(name: str) -> str:
    return Path(__file__).with_name("templates").joinpath(name).read_text(encoding="utf-8")
