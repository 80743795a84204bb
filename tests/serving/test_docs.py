"""The pages on the server say what it does: settings and their defaults, metrics, codes and
reasons.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

from serving import errors
from serving.config import ServerConfig
from serving.http.openapi import description
from serving.http.operations import CAM, SEGMENT
from serving.http.problems import STATUS
from serving.telemetry.metrics import COUNTERS, GAUGES, STAGES, Telemetry
from serving.telemetry.port import TOO_LONG

DOCS = Path(__file__).resolve().parents[2] / "docs"


def shown(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if value in (None, (), {}):
        return "-"
    return f"{value:g}" if isinstance(value, float) else str(value)


def settings(config: Any, where: str = "") -> dict[str, str]:
    found = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        nested = dataclasses.is_dataclass(value)
        found |= (
            settings(value, f"{field.name}.") if nested else {f"{where}{field.name}": shown(value)}
        )
    return found


def test_every_setting_is_documented_with_its_default() -> None:
    page = (DOCS / "serving-settings.md").read_text()
    documented = dict(re.findall(r"^\| `([\w.]+)` \| (.*?) \| \S.* \|$", page, re.MULTILINE))
    assert documented == settings(ServerConfig())


def test_every_metric_is_documented_with_its_labels() -> None:
    page = (DOCS / "operation.md").read_text()
    documented = {
        name: tuple(re.findall(r"`(\w+)`", labels))
        for name, labels in re.findall(r"^\| `(wsss_\w+)` \|(.*?)\| ", page, re.MULTILINE)
    }
    own = {f"{name}_total" for name, _, _ in COUNTERS} | {name for name, _, _ in GAUGES}
    for metric in Telemetry().registry.collect():
        if metric.name.startswith("wsss_"):
            own.add(f"{metric.name}_total" if metric.type == "counter" else metric.name)
    assert set(documented) == own | {"wsss_model_info", "wsss_model_ready"}
    assert all(documented[f"{name}_total"] == ("model", "version") for name, _, _ in COUNTERS)
    assert documented["wsss_requests_total"] == ("rpc", "model", "code", "reason")
    (meaning,) = re.findall(r"`wsss_request_seconds` .*Histogram: (.*)\.", page)
    assert tuple(re.findall(r"`(\w+)`", meaning)) == STAGES


def kinds(kind: type[errors.RequestError]) -> set[type[errors.RequestError]]:
    return {kind}.union(*map(kinds, kind.__subclasses__()))


def test_every_reason_is_documented_beside_its_code() -> None:
    page = (DOCS / "serving-client.md").read_text()
    rows = re.findall(r"^\| `([A-Z_]+)` \| (`[A-Z_`, ]+`) \| ", page, re.MULTILINE)
    documented = {
        (code, reason) for code, reasons in rows for reason in re.findall(r"[A-Z_]+", reasons)
    }
    # What stands for a whole group, and is raised as one of them.
    abstract = {"INVALID_REQUEST", "RETRY_LATER", "UNAVAILABLE"}
    own = {
        (kind.code, kind.reason)
        for kind in kinds(errors.RequestError)
        if kind.reason not in abstract
    }
    assert own <= documented


def test_every_path_and_option_of_http_is_documented() -> None:
    page = (DOCS / "serving-http.md").read_text()
    paths = set(re.findall(r"^\| `(?:GET|POST) (/v1\S*)` \|", page, re.MULTILINE))
    assert paths == set(description()["paths"])
    rows = re.findall(r"^\| (`[a-z_`, ]+`) \| ([a-z`, ]+) \| ", page, re.MULTILINE)
    documented = {name for names, _ in rows for name in re.findall(r"\w+", names)}
    assert documented == {"format", "timeout", *SEGMENT.names, *CAM.names}


def test_every_status_of_http_is_documented() -> None:
    page = (DOCS / "serving-http.md").read_text()
    rows = re.findall(r"^\| ([0-9, ]+) \| ", page, re.MULTILINE)
    documented = {int(status) for row in rows for status in row.split(",")}
    assert documented == {status.value for status in STATUS.values()} | {500, TOO_LONG[0].value}
