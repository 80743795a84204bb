from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_models

from serving.engines.onnxruntime import OnnxRuntimeEngine
from serving.errors import ConfigError, FieldError, ModelNotFound, RepositoryError, WrongModelKind
from serving.repository import choose, read_card, read_repository, select, verify


def test_a_sound_repository(repository: Path):
    cards = read_repository(repository)
    assert list(cards) == ["colours", "maps"]
    card = cards["colours"][1]
    assert card.classes == tiny_models.CLASSES
    assert card.labels == ("background", *tiny_models.CLASSES)
    assert (card.min_side, card.max_side, card.score_threshold, card.background_threshold) == (8, 256, 0.3, 0.5)
    verify(card)


def test_versions_are_numbers_and_the_newest_wins(tmp_path: Path):
    for version in (2, 10):
        tiny_models.export(tmp_path, version=version)
    (tmp_path / "colours" / "tmp-3").mkdir()
    (tmp_path / "README.md").write_text("no model")
    (tmp_path / ".hidden").mkdir()
    cards = read_repository(tmp_path)
    assert list(cards["colours"]) == [2, 10]
    for policy, chosen in {"latest": [10], "latest:2": [10, 2], "all": [10, 2], "2": [2], "10,3,2": [10, 2]}.items():
        assert [card.version for card in select(cards["colours"], policy)] == chosen
    for policy in ("latest:0", "newest", "", "1,", "-1"):
        with pytest.raises(ConfigError, match=r"models\.versions"):
            select(cards["colours"], policy)
    assert choose(cards, "", 0, "segmenter").version == 10
    assert choose(cards, "colours", 2, None).version == 2
    with pytest.raises(ModelNotFound) as caught:
        choose(cards, "colours", 3, None)
    assert caught.value.metadata == {"known": "2,10"}


def test_choosing(repository: Path):
    cards = read_repository(repository)
    assert choose(cards, "", 0, "cam").name == "maps"
    with pytest.raises(FieldError, match="no model named"):
        choose(cards, "", 0, None)
    with pytest.raises(ModelNotFound, match="nothing") as caught:
        choose(cards, "nothing", 0, "cam")
    assert caught.value.metadata == {"known": "colours,maps"}
    with pytest.raises(WrongModelKind) as wrong:
        choose(cards, "colours", 0, "cam")
    assert wrong.value.metadata == {"usable": "maps"}


def test_missing_and_empty_folders(tmp_path: Path):
    with pytest.raises(RepositoryError, match="no folder"):
        read_repository(tmp_path / "none")
    with pytest.raises(RepositoryError, match="holds no model"):
        read_repository(tmp_path)
    (tmp_path / "colours").mkdir()
    with pytest.raises(RepositoryError, match="has no version"):
        read_repository(tmp_path)
    (tmp_path / "colours" / "1").mkdir()
    with pytest.raises(RepositoryError, match=r"no model.json"):
        read_repository(tmp_path)


def test_checksums(tmp_path: Path):
    folder = tiny_models.export(tmp_path)
    card = read_card(folder)
    with (folder / "model.onnx").open("ab") as file:
        file.write(b"x")
    with pytest.raises(RepositoryError, match="SHA-256"):
        verify(card)
    (folder / "model.onnx").unlink()
    with pytest.raises(RepositoryError, match=r"no model\.onnx"):
        verify(card)
    (tmp_path / "elsewhere.onnx").write_bytes(b"x")
    (folder / "model.onnx").symlink_to(tmp_path / "elsewhere.onnx")
    with pytest.raises(RepositoryError, match="outside"):
        verify(card)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"format": 2}, "format is 2"),
        ({"name": "other"}, "other version 1"),
        ({"version": 3}, "version 3"),
        ({"kind": "detector"}, "detector"),
        ({"graph": "../model.onnx"}, "sha256 does not list"),
        ({"sha256": {"model.onnx": "00", "../../x": "00"}}, "folder in it"),
        ({"labels": ["background", "red"]}, "labels"),
        ({"classes": ["red", "red", "blue"], "labels": ["background", "red", "red", "blue"]}, "labels"),
        ({"palette": [[0, 0, 0]]}, "palette"),
        ({"palette": [[0, 0, 999]] * 4}, "palette"),
        ({"input": {"name": "image"}}, "no field 'min_side'"),
        ({"thresholds": {}}, "no field 'score'"),
        ({"outputs": []}, "outputs"),
        ({"created": "yesterday"}, "yesterday"),
    ],
)
def test_every_lie_of_a_card_is_named(tmp_path: Path, changes, told):
    with pytest.raises(RepositoryError) as caught:
        read_card(tiny_models.export(tmp_path, changes=changes))
    assert told in caught.value.found
    assert "model.json" in caught.value.found


def test_a_card_that_is_no_json(tmp_path: Path):
    folder = tiny_models.export(tmp_path)
    for text in ("{", "[]", "3"):
        (folder / "model.json").write_text(text)
        with pytest.raises(RepositoryError, match=r"model\.json"):
            read_card(folder)


def test_the_graph_must_keep_its_cards_promise(tmp_path: Path):
    folder = tiny_models.export(tmp_path, "maps", "cam")
    raw = json.loads((folder / "model.json").read_text())
    raw |= {"kind": "segmenter", "outputs": tiny_models.card("maps", 1, "segmenter", "")["outputs"]}
    (folder / "model.json").write_text(json.dumps(raw))
    with pytest.raises(RepositoryError, match="outputs"):
        OnnxRuntimeEngine(read_card(folder))
    raw = tiny_models.card("maps", 1, "cam", raw["sha256"]["model.onnx"])
    raw |= {"classes": ["a"], "labels": ["b", "a"], "palette": [[0, 0, 0], [1, 1, 1]]}
    (folder / "model.json").write_text(json.dumps(raw))
    with pytest.raises(RepositoryError, match="is float32"):
        OnnxRuntimeEngine(read_card(folder))
    (folder / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(RepositoryError, match="does not load"):
        OnnxRuntimeEngine(read_card(folder))
