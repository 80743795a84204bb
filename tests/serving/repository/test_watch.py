from __future__ import annotations

import shutil

import pytest
import tiny_models

from serving.errors import RepositoryError
from serving.repository.watch import Watch, signature


@pytest.fixture
def watch(tmp_path):
    tiny_models.export(tmp_path)
    return Watch(tmp_path)


def test_what_is_there_at_first_counts_as_known(watch):
    assert watch.models == ["colours"]
    assert [watch.look(), watch.look()] == [[], []]


def test_a_new_model_is_told_once_it_has_settled(watch, tmp_path):
    folder = tiny_models.export(tmp_path, "maps", "cam")
    assert watch.look() == []
    with (folder / "model.onnx").open("ab") as file:
        file.write(b"more")
    assert watch.look() == [], "it is being written still"
    assert watch.look() == ["maps"]
    assert watch.look() == []


def test_new_versions_changed_files_and_deletions(watch, tmp_path):
    changes = [
        lambda: tiny_models.export(tmp_path, version=2),
        lambda: tiny_models.change_card(tmp_path / "colours" / "2", protocol="another"),
        lambda: shutil.rmtree(tmp_path / "colours" / "1"),
        lambda: shutil.rmtree(tmp_path / "colours"),
        lambda: tiny_models.export(tmp_path),
    ]
    for change in changes:
        change()
        assert [watch.look(), watch.look(), watch.look()] == [[], ["colours"], []]


def test_a_repository_that_vanishes_is_an_error_and_nothing_is_forgotten(watch, tmp_path):
    hidden = tmp_path.with_name("hidden")
    tmp_path.rename(hidden)
    with pytest.raises(RepositoryError, match="no folder"):
        watch.look()
    hidden.rename(tmp_path)
    assert [watch.look(), watch.look()] == [[], []]


def test_signatures(tmp_path):
    folder = tiny_models.export(tmp_path)
    first = signature(folder)
    assert first == signature(folder)
    assert [entry[0] for entry in first] == ["model.json", "model.onnx"]
    (folder / "model.onnx").replace(folder / "other.onnx")
    assert signature(folder) != first
    assert signature(tmp_path / "none") == ()
