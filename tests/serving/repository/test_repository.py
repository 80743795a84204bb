from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest
import tiny_models
from configs import configured

from serving.card import read_card
from serving.errors import ConfigError, FieldError, ModelNotFound, RepositoryError, WrongModelKind
from serving.repository import versions
from serving.repository.versions import choose, others, read_repository, verify, wanted_versions


def test_a_sound_repository(repository: Path):
    cards = read_repository(repository)
    assert list(cards) == ["colours", "maps"]
    card = cards["colours"][1]
    assert card.classes == tiny_models.CLASSES
    assert card.labels == ("background", *tiny_models.CLASSES)
    assert (card.min_side, card.max_side, card.score_threshold, card.background_threshold) == (
        8,
        256,
        0.3,
        0.5,
    )
    verify(card)


def test_versions_are_numbers_and_the_newest_wins(tmp_path: Path):
    for version in (2, 10):
        tiny_models.export(tmp_path, version=version)
    (tmp_path / "colours" / "tmp-3").mkdir()
    (tmp_path / "README.md").write_text("no model")
    (tmp_path / ".hidden").mkdir()
    cards = read_repository(tmp_path)
    assert list(cards["colours"]) == [2, 10]
    assert choose(cards, "", 0, "segmenter").version == 10
    assert choose(cards, "colours", 2, None).version == 2
    with pytest.raises(ModelNotFound) as caught:
        choose(cards, "colours", 3, None)
    assert caught.value.metadata == {"known": "2,10"}


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("latest", ([10, 3, 2], 1)),
        ("latest:2", ([10, 3, 2], 2)),
        ("all", ([10, 3, 2], 3)),
        ("2", ([2], 1)),
        ("10,4,2", ([10, 2], 2)),
    ],
)
def test_policies_of_versions(policy, expected):
    assert wanted_versions(policy, [3, 10, 2]) == expected


@pytest.mark.parametrize("policy", ["latest:0", "newest", "", "1,", "-1"])
def test_policies_that_mean_nothing(policy):
    with pytest.raises(ConfigError, match=r"models\.versions"):
        wanted_versions(policy, [1])


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
    with pytest.raises(RepositoryError, match="holds no model; folders without a version: colours"):
        read_repository(tmp_path)
    (tmp_path / "colours" / "1").mkdir()
    with pytest.raises(RepositoryError, match=r"no model.json"):
        read_repository(tmp_path)


def test_a_bad_model_does_not_keep_another_from_being_read_alone(tmp_path: Path):
    tiny_models.export(tmp_path)
    tiny_models.export(tmp_path, "bad", changes={"format": 2})
    assert list(read_repository(tmp_path, "colours")) == ["colours"]
    for name in ("", "bad", "none"):
        with pytest.raises(RepositoryError, match="format is 2"):
            read_repository(tmp_path, name)


def test_checksums(tmp_path: Path):
    folder = tiny_models.export(tmp_path)
    card = read_card(folder)
    with (folder / "model.onnx").open("ab") as file:
        file.write(b"x")
    with pytest.raises(RepositoryError, match="SHA-256"):
        verify(card)
    (folder / "model.onnx").unlink()
    with pytest.raises(RepositoryError, match=r"model\.onnx: No such file"):
        verify(card)


def test_a_card_has_one_score_threshold_or_one_a_class(tmp_path: Path):
    one = read_card(tiny_models.export(tmp_path, "one"))
    assert one.score_thresholds == (0.3, 0.3, 0.3)
    thresholds = {"background": 0.5, "score": 0.2, "scores": [0.4, 0.2, 0.6]}
    many = read_card(tiny_models.export(tmp_path, "many", changes={"thresholds": thresholds}))
    assert many.score_thresholds == (0.4, 0.2, 0.6)
    assert many.score_threshold == 0.2


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
        (
            {"classes": ["red", "red", "blue"], "labels": ["background", "red", "red", "blue"]},
            "labels",
        ),
        ({"palette": [[0, 0, 0]]}, "palette"),
        ({"palette": [[0, 0, 999]] * 4}, "palette"),
        ({"input": {"name": "image"}}, "no field 'min_side'"),
        ({"thresholds": {}}, "no field 'score'"),
        ({"thresholds": {"score": float("nan")}}, "score threshold is nan"),
        ({"thresholds": {"score": 0.5, "scores": [0.5, 2, 0.5]}}, "score threshold is 2"),
        ({"thresholds": {"score": 0.5, "scores": [0.5]}}, "1 score thresholds for 3 classes"),
        ({"thresholds": {"score": 0.5, "scores": "abc"}}, "could not convert"),
        ({"source": {"seed": "one"}}, "seed is 'one'"),
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
    for text in ("{", "[]", "3", "[" * 100_000, '{"name": "' + 17_000_000 * "x" + '"}'):
        (folder / "model.json").write_text(text)
        with pytest.raises(RepositoryError, match=r"model\.json"):
            read_card(folder)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (os.mkfifo, "is not a regular file"),
        (Path.mkdir, "is not a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "is a link out of the repository"),
        (lambda path: path.symlink_to("model.json"), "cannot be read"),
        (lambda path: path.symlink_to("nothing"), "no model.json"),
    ],
)
def test_a_card_that_is_no_file(tmp_path: Path, make, told):
    folder = tiny_models.export(tmp_path)
    (folder / "model.json").unlink()
    make(folder / "model.json")
    with pytest.raises(RepositoryError, match=told):
        read_card(folder)


BESIDE = (
    "lost+found",
    "@eaDir",
    "docs",
    "$RECYCLE.BIN",
    "Ünïcode",
    "a b",
    "line\nbreak",
    "b\udcff",
)


def test_folders_without_a_version_are_no_models(tmp_path: Path, run_server, caplog):
    caplog.set_level("INFO")
    tiny_models.export(tmp_path)
    for name in BESIDE:
        (tmp_path / name / "x1").mkdir(parents=True)
    (tmp_path / "docs" / "7").write_text("no folder")
    (tmp_path / "docs" / "\u0661").mkdir()
    (tmp_path / "colours" / "1" / "@eaDir").mkdir()
    (tmp_path / "1").write_text("no folder")
    verify(read_repository(tmp_path)["colours"][1])
    assert list(read_repository(tmp_path)) == ["colours"]
    assert set(others(tmp_path)) == {n if n.isprintable() else ascii(n) for n in BESIDE}
    with run_server(configured(tmp_path, models__strict=True)) as server:
        assert server.names == ["colours"]
        assert "wsss_model_ready" in server.telemetry.page("")[0].decode()
        assert [state.name for state in server.models.index()] == ["colours"]
    assert "ignored, because they hold no version folder: $RECYCLE.BIN, @eaDir" in caplog.text


def test_01_is_version_1_and_both_are_one_too_many(tmp_path: Path, run_server):
    folder = tiny_models.export(tmp_path)
    folder.rename(folder.with_name("01"))
    tiny_models.export(tmp_path, version=2)
    tiny_models.export(tmp_path, "maps", "cam")
    assert list(read_repository(tmp_path)["colours"]) == [1, 2]
    with run_server(configured(tmp_path, models__versions="1")) as server:
        assert server.names == ["colours", "maps"]
    tiny_models.export(tmp_path)
    with pytest.raises(RepositoryError, match="holds version 1 twice: 01, 1"):
        read_repository(tmp_path)
    with run_server(configured(tmp_path, models__versions="1")) as server:
        assert server.names == ["maps"], "the others are served"


def test_a_version_beyond_the_protocol_is_refused(tmp_path: Path):
    tiny_models.export(tmp_path, version=20261130120000)
    with pytest.raises(RepositoryError, match="version is 20261130120000"):
        read_repository(tmp_path)


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_links_of_config_maps_are_read(tmp_path: Path, run_server, depth):
    """Kubernetes keeps the files in a hidden folder of a date, and links to them: here mounted as
    the version, as the model, and as the repository.
    """
    folder = tiny_models.export(tmp_path / "made")
    root = tmp_path / "exported"
    mount = {0: root / "colours" / "1", 1: root / "colours", 2: root}[depth]
    data = mount / "..2026_11_30"
    source = {0: folder, 1: folder.parent, 2: tmp_path / "made"}[depth]
    mount.mkdir(parents=True)
    shutil.copytree(source, data)
    (mount / "..data").symlink_to(data.name)
    for path in source.iterdir():
        (mount / path.name).symlink_to(Path("..data", path.name))
    verify(read_repository(root)["colours"][1])
    with run_server(configured(root, models__trial=True)) as server:
        assert server.names == ["colours"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_folder_is_said(tmp_path: Path):
    tiny_models.export(tmp_path)
    for name in ("closed", "lost+found"):
        (tmp_path / name).mkdir(mode=0)
    with pytest.raises(RepositoryError, match="closed cannot be opened: Permission denied"):
        read_repository(tmp_path)
    assert list(read_repository(tmp_path, "colours")) == ["colours"]


def test_a_model_whose_folder_is_closed_is_served_on(tmp_path: Path, run_server, monkeypatch):
    tiny_models.export(tmp_path)
    settings = {"models__control": "poll", "models__poll_seconds": 0.05}
    with run_server(configured(tmp_path, **settings)) as server:
        monkeypatch.setattr(versions, "_versions", lambda folder: {})
        time.sleep(0.4)
        assert server.names == ["colours"]
    with pytest.raises(RepositoryError, match="colours cannot be opened"):
        read_repository(tmp_path)
    with (
        pytest.raises(RepositoryError, match="colours cannot be opened"),
        run_server(configured(tmp_path)),
    ):
        raise AssertionError("it started")
