from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trainer.errors import RunError
from trainer.report.facts import read_facts
from trainer.report.words import duration, memory, moment, percent, threshold


def test_words_for_numbers() -> None:
    assert [duration(v) for v in (8.25, 185, 4320, None)] == [
        "8.2 s",
        "3 min 05 s",
        "1 h 12 min",
        "–",
    ]
    assert [memory(v) for v in (850.4, 1434, None)] == ["850 MB", "1.4 GB", "–"]
    assert [percent(v) for v in (0.468, float("nan"), None)] == ["46.8", "–", "–"]
    assert moment("2026-11-21T03:58:40+00:00") == "21 November 2026, 03:58 UTC"
    assert (
        threshold({"threshold": 0.4, "threshold_from": "train_aug"})
        == "threshold 0.40, chosen on train_aug masks"
    )
    assert threshold({"threshold": None}) == ""


@pytest.mark.parametrize(
    ("recorded", "expected"),
    [
        ([], ["classify", "cams", "refine", "segment", "evaluate"]),
        (["classify", "round1"], ["round1", "classify", "cams", "refine", "segment", "evaluate"]),
        (["cams", "walk", "irn"], ["cams", "irn", "walk", "refine", "segment", "evaluate"]),
        (
            ["segment_full", "teacher", "subcategories", "classify"],
            [
                "teacher",
                "subcategories",
                "classify",
                "cams",
                "refine",
                "segment",
                "segment_full",
                "evaluate",
            ],
        ),
    ],
)
def test_stages_stand_in_the_order_of_work(
    tmp_path: Path, recorded: list[str], expected: list[str]
) -> None:
    manifest: dict[str, Any] = {
        "format": 1,
        "stages": {name: {"status": "done"} for name in recorded},
    }
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert read_facts(tmp_path).stages == expected


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "no manifest.json"), ("{", "cannot be read"), ("[]", "no JSON object")],
)
def test_no_manifest_is_a_user_error(tmp_path: Path, content: str | None, words: str) -> None:
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(RunError, match=words):
        read_facts(tmp_path)
