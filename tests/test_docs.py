"""The documentation says what the code does: knobs, their defaults and ranges, links."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from documented import PAGES, ROOT

from trainer import config as knobs
from trainer.config import ranges
from trainer.data.knobs import DataConfig
from trainer.evaluation.knobs import EvaluateConfig
from trainer.maps.protocols import CamsConfig
from trainer.methods import recipes
from trainer.methods.registry import method_classes, method_names
from trainer.refine import affinitynet, irnet
from trainer.refine.affinitynet import AffinityConfig
from trainer.refine.irnet import IrnConfig
from trainer.refine.pseudo_masks import RefineConfig
from trainer.segmenters import segmenter_class
from trainer.segmenters.config import PRESETS, SCRATCH, SegmentConfig
from trainer.training.optimiser import Training

LINKED = [*PAGES, ROOT / "CHANGELOG.md"]
SECTIONS: dict[str, list[Any]] = {
    "data": [DataConfig()],
    "classify": [recipes.PSA, recipes.IRN, recipes.SMALL, recipes.SCRATCH],
    "cams": [CamsConfig()],
    "refine": [RefineConfig()],
    "affinity": [
        AffinityConfig(),
        knobs.replace(AffinityConfig(), affinitynet.SMALL, "affinity"),
    ],
    "irn": [IrnConfig(), knobs.replace(IrnConfig(), irnet.SMALL, "irn")],
    "segment": [PRESETS["aspp"], SCRATCH, PRESETS["deeplab-v2-r101"], PRESETS["largefov-r38"]],
    "evaluate": [EvaluateConfig()],
}
METHODS = {f"method {name}": [method_classes(name)[1]()] for name in method_names()}


def shown(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return ", ".join(map(shown, value)) or "-"
    return f"{value:g}" if isinstance(value, float) else str(value)


def expected(configs: list[Any]) -> dict[str, list[str]]:
    names = [field.name for field in dataclasses.fields(configs[0])]
    return {name: [cell(config, name) for config in configs] for name in names}


def cell(config: Any, knob: str) -> str:
    """The value, or a dash where a segmenter does not have this knob."""
    if isinstance(config, SegmentConfig) and knob in segmenter_class(config.network).unused:
        return "-"
    return shown(getattr(config, knob))


def documented(page: Path, section: str, columns: int) -> dict[str, list[str]]:
    rows = re.findall(
        rf"^\| `{section}\.(\w+)` \| (.*) \|$", page.read_text(encoding="utf-8"), re.MULTILINE
    )
    return {name: cells.split(" | ")[:columns] for name, cells in rows}


@pytest.mark.parametrize("section", SECTIONS)
def test_the_tables_of_knobs_are_true(section: str) -> None:
    page = ROOT / "docs" / ("methods/cam.md" if section == "classify" else "knobs.md")
    configs = SECTIONS[section]
    assert documented(page, section, len(configs)) == expected(configs)


@pytest.mark.parametrize("name", method_names())
def test_a_method_has_a_page_with_its_knobs(name: str) -> None:
    page = ROOT / "docs" / "methods" / f"{name}.md"
    assert documented(page, "method", 1) == expected([method_classes(name)[1]()])


@pytest.mark.parametrize(
    ("heading", "folder"),
    [
        ("From the ground up", "trainer"),
        ("Where to look", "trainer"),
        ("Labelling", "serving/labelling"),
    ],
)
def test_the_page_of_the_structure_names_files_that_are_there(heading: str, folder: str) -> None:
    page = (ROOT / "docs" / "develop" / "structure.md").read_text(encoding="utf-8")
    part = page.partition(f"## {heading}")[2].partition("\n## ")[0].partition("\n")[2]
    names = set(re.findall(r"`([a-z_/]+(?:\.py|/))`", part))
    assert len(names) > 5
    assert not [name for name in names if not (ROOT / folder / name).exists()]
    if heading == "From the ground up":
        files = {path.name for path in (ROOT / folder).glob("[a-z]*.py")}
        assert not files - names


def ranges_by_text() -> dict[str, list[str]]:
    """Names of knobs by their range, those of every training without a section."""
    found: dict[str, set[str]] = {}
    sections = {name: type(configs[0]) for name, configs in SECTIONS.items()}
    sections |= {f"method {name}": method_classes(name)[1] for name in method_names()}
    shared = {name: str(limits) for name, limits in ranges(Training).items()}
    for section, config in [("", Training), *sections.items()]:
        for name, limits in ranges(config).items():
            if not section or shared.get(name) != str(limits):
                prefix = f"{section.split()[0]}." if section else ""
                found.setdefault(str(limits), set()).add(f"`{prefix}{name}`")
    return {text: sorted(names) for text, names in found.items()}


def test_the_table_of_ranges_is_true() -> None:
    text = (ROOT / "docs" / "knobs.md").read_text(encoding="utf-8").partition("## Ranges")[2]
    rows = re.findall(r"^\| ([^|`]*\d[^|`]*) \| (`.*`) \|$", text, re.MULTILINE)
    assert {limits: names.split(", ") for limits, names in rows} == ranges_by_text()


@pytest.mark.parametrize("page", LINKED, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
