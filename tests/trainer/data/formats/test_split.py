"""Lists that share no group and have every class in the same proportion."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from trainer.cli import app
from trainer.data.dataset import Dataset, Record
from trainer.data.formats.opening import open_dataset
from trainer.data.formats.split import split
from trainer.data.knobs import DataConfig
from trainer.errors import ConfigError, DataError

CLASSES = ("common", "rare", "rarer")


def dataset(records: list[Record], lists: dict[str, tuple[str, ...]] | None = None) -> Dataset:
    by_id = {record.id: record for record in records}
    all_lists = {**(lists or {}), "all": tuple(by_id)}
    return Dataset(Path("data"), "folder", CLASSES, (1, 2, 3), by_id, all_lists, "a table")


def parts(seed: int = 0) -> list[Record]:
    """300 parts of one to six images: 3 show ``rarer``, 9 ``rare``, 90 ``common``."""
    rng = np.random.default_rng(seed)
    records = []
    for part in rng.permutation(300).tolist():
        tags = (2, 0) if part < 3 else (1,) if part < 12 else (0,) if part < 102 else ()
        for n in range(int(rng.integers(1, 7))):
            key = f"{part}-{n}"
            records.append(
                Record(key, Path("data", f"{key}.png"), tuple(sorted(tags)), None, (), str(part))
            )
    return records


@pytest.mark.parametrize("seed", range(3))
def test_groups_stay_together_and_classes_in_proportion(seed: int) -> None:
    data = dataset(parts(seed))
    result = split(data, {"val": 0.2, "test": 0.1}, seed)
    assert list(result.lists) == ["train", "val", "test"]
    members = [record.id for records in result.lists.values() for record in records]
    assert sorted(members) == sorted(data.records)
    owners = [{record.group for record in records} for records in result.lists.values()]
    assert not owners[0] & owners[1] | owners[0] & owners[2] | owners[1] & owners[2]
    facts = result.facts()
    for name, share in (("train", 0.7), ("val", 0.2), ("test", 0.1)):
        images, common = facts[name]["images"], facts[name]["classes"]["common"]
        assert abs(images / len(data.records) - share) < 0.02
        total = sum(entry["classes"]["common"] for entry in facts.values())
        assert abs(common / total - share) < 0.03
        # Three parts show the rarest class, and there are three lists.
        assert facts[name]["classes"]["rarer"] > 0
        assert facts[name]["classes"]["rare"] > 0
    assert result.warnings() == []
    again = split(data, {"val": 0.2, "test": 0.1}, seed)
    assert again.table() == result.table()
    assert split(data, {"val": 0.2, "test": 0.1}, seed + 1).table() != result.table()


def test_images_without_groups_are_divided_one_by_one() -> None:
    records = [dataclasses.replace(record, group="") for record in parts()]
    facts = split(dataset(records), {"val": 0.25}).facts()
    assert facts["val"]["images"] == facts["val"]["groups"]
    assert abs(facts["val"]["images"] - len(records) / 4) < 2


def test_a_class_of_one_group_is_told() -> None:
    records = [Record(f"{n}", Path(f"{n}.png"), (0,)) for n in range(10)]
    records += [Record(f"r{n}", Path(f"r{n}.png"), (1,), group="one") for n in range(3)]
    result = split(dataset(records), {"val": 0.3})
    assert {len(result.facts()[name]["classes"]) for name in result.lists} == {3}
    (text,) = result.warnings()
    assert text in (
        "no image of 'val' shows 'rare': its images belong to 1 group",
        "no image of 'train' shows 'rare': its images belong to 1 group",
    )


def test_one_list_is_divided_and_others_stay() -> None:
    records = parts()
    ids = tuple(record.id for record in records)
    lists = {"train": ids[:400], "trainval": ids[:500], "test": ids[500:600]}
    result = split(dataset(records, lists), {"val": 0.2}, source="train")
    assert list(result.lists) == ["train", "val", "test"]
    assert sum(len(result.lists[name]) for name in ("train", "val")) == 400
    assert tuple(record.id for record in result.lists["test"]) == ids[500:600]


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({"val": 0.0}, "--val 0 leaves no share"),
        ({"val": 0.6, "test": 0.4}, "--test 0.4"),
        ({"val": -1}, "--val -1"),
    ],
)
def test_impossible_shares(shares: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        split(dataset(parts()), shares)


def test_too_few_groups() -> None:
    records = [Record(f"{n}", Path(f"{n}.png"), (0,), group="one") for n in range(9)]
    with pytest.raises(DataError, match="9 images of list 'all' belong to 1 groups") as error:
        split(dataset(records), {"val": 0.2})
    assert "data.group=none" in error.value.hint


def photos(root: Path) -> Path:
    for kind in ("cat", "dog"):
        (root / kind).mkdir(parents=True)
        for n in range(10):
            Image.new("RGB", (4, 3)).save(root / kind / f"{n}.png")
    return root


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["split", *arguments], catch_exceptions=True)
    error = result.exception if result.exception and result.exit_code == 1 else ""
    return result.exit_code, result.stdout, str(error)


def test_the_command_writes_a_file_that_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = photos(tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    files = sorted(root.rglob("*"))
    code, text, _ = run("photos", "--val", "0.3")
    assert code == 0
    assert "next: wsss-trainer fit photos --set data.lists=photos-lists.csv" in text
    assert sorted(root.rglob("*")) == files
    rows = (tmp_path / "photos-lists.csv").read_text().splitlines()
    assert rows[0] == "image,list"
    assert rows[1].startswith("cat/0.png,")
    assert len(rows) == 21
    data = open_dataset(root, config=DataConfig(lists="photos-lists.csv"))
    assert {name: len(ids) for name, ids in data.lists.items()} == {
        "train": 14,
        "val": 6,
        "all": 20,
    }
    assert (data.tag_matrix(data.subset("val")).sum(0) == 3).all()
    code, text, _ = run("photos", "--val", "0.3", "--out", "photos/lists.csv", "--json")
    assert code == 0
    facts = json.loads(text)
    assert facts["lists"]["val"]["classes"] == {"cat": 3, "dog": 3}
    assert open_dataset(root).lists["val"] == data.lists["val"]


def test_no_file_of_the_user_is_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos(tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.csv").write_text("image,list\n")
    code, _, error = run("photos", "--out", "mine.csv")
    assert code == 1
    assert "mine.csv is there already" in error
    assert (tmp_path / "mine.csv").read_text() == "image,list\n"
    assert run("photos", "--out", "new.csv")[0] == 0
    assert run("photos", "--out", "new.csv")[0] == 0
    assert run("photos", "--out", "new.csv", "--seed", "1")[0] == 1
