from __future__ import annotations

import json
from pathlib import Path

import pytest
from report_run import TRAIN, VAL, make_run

from trainer.report.choice import choose_sheets, worst_lists
from trainer.report.facts import Facts, read_facts


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Facts:
    return read_facts(make_run(tmp_path_factory.mktemp("choice")))


def chosen(facts: Facts, count: int) -> dict[str, tuple[str, ...]]:
    assert facts.dataset is not None
    return {sheet.title: sheet.ids for sheet in choose_sheets(facts, facts.dataset, count)}


@pytest.mark.parametrize(
    ("count", "first", "worst", "train"),
    [(24, 6, 0, 4), (6, 2, 2, 2), (2, 1, 1, 0), (1, 1, 0, 0), (0, 0, 0, 0)],
)
def test_sheets_hold_first_worst_and_refined(
    facts: Facts, count: int, first: int, worst: int, train: int
) -> None:
    sheets = chosen(facts, count)
    assert sheets.get("First images of val", ()) == VAL[:first]
    assert (
        len(sheets.get("Worst images of val", ())) + len(sheets.get("Worst images of train", ()))
        == worst
    )
    assert sheets.get("First images of train", ()) == TRAIN[:train]
    ids = [i for ids in sheets.values() for i in ids]
    assert len(ids) == len(set(ids)) <= count


def test_places_that_no_worst_image_takes_go_to_first_images(facts: Facts) -> None:
    bare = Facts(facts.run, facts.manifest, {}, {}, facts.dataset, ())
    assert chosen(bare, 7) == {"First images of val": VAL[:5], "First images of train": TRAIN[:2]}


def test_stages_and_lists_take_turns_with_their_worst_images(facts: Facts) -> None:
    def worst(*ids: str) -> dict[str, list[dict[str, object]]]:
        return {"worst": [{"id": i, "miou": 0.1} for i in ids]}

    figures = {
        "cam": {"val": worst(VAL[5], VAL[1]), "train": worst(TRAIN[3], "not in the data set")},
        "segment": {"val": worst(VAL[4], VAL[3])},
    }
    turns = Facts(facts.run, facts.manifest, figures, {}, facts.dataset, ())
    assert [(w.stage, w.list) for w in worst_lists(turns)] == [
        ("segment", "val"),
        ("cam", "val"),
        ("cam", "train"),
    ]
    sheets = chosen(turns, 9)
    assert sheets["First images of val"] == VAL[:3]
    assert sheets["Worst images of val"] == (VAL[4], VAL[5])
    assert sheets["Worst images of train"] == (TRAIN[3],)


def test_a_worst_list_of_another_shape_is_passed_over(facts: Facts) -> None:
    figures = json.loads(json.dumps(facts.evaluation))
    figures["cam"]["val"]["worst"] = ["val_0", 3]
    figures["segment"]["val"]["worst"] = None
    damaged = Facts(facts.run, facts.manifest, figures, {}, facts.dataset, ())
    assert [(w.stage, w.list) for w in worst_lists(damaged)] == [
        ("refined", "train"),
        ("segment_full", "val"),
    ]


def test_lists_without_outputs_are_passed_over(facts: Facts, tmp_path: Path) -> None:
    empty = Facts(tmp_path, facts.manifest, facts.evaluation, {}, facts.dataset, ())
    assert chosen(empty, 24) == {}
