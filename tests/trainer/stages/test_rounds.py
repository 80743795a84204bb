"""Rounds of self-training as stages of a run: what is made, kept and told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from refined import again, fit, names, times, unfinished

from trainer.data.dataset import read_index_png
from trainer.data.formats.opening import open_dataset
from trainer.errors import ConfigError
from trainer.evaluation.measure import current_evaluation
from trainer.segmenters.config import SegmentConfig

QUICK = (
    "refine.refine=none",
    "segment.workers=0",
    "segment.precision=fp32",
    "segment.scales=1",
    "segment.flip=off",
    "segment.crf=none",
)


def rounds(data: Path, run: Path, number: int, *settings: str, **more: Any) -> dict[str, str]:
    until = more.pop("until", "segment")
    return fit(data, run, *QUICK, f"segment.rounds={number}", *settings, until=until, **more)


@pytest.fixture(scope="module", autouse=True)
def alone() -> Iterator[None]:
    """Images are worked on in this process: to start others would take longer than the work."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainer.pool.cores", lambda: 1)
        yield


@pytest.fixture(scope="module")
def trained(scenes, alone, tmp_path_factory) -> Path:
    """Two rounds."""
    run: Path = tmp_path_factory.mktemp("rounds") / "run"
    rounds(scenes, run, 2, until="evaluate")
    return run


def test_every_round_has_its_stages_and_files(scenes, trained):
    manifest = json.loads((trained / "manifest.json").read_text())
    order = [name for name in manifest["stages"] if name.startswith("segment")]
    assert order == ["segment_round1_train", "segment_round1", "segment_train", "segment"]
    dataset = open_dataset(scenes)
    train = dataset.subset("train")
    assert names(trained / "rounds/1/masks", ".png") == {record.id for record in train}
    for record in train:
        mask = read_index_png(trained / "rounds/1/masks" / f"{record.id}.png")
        assert mask.shape == dataset.read_mask(record).shape
        assert set(np.unique(mask)) <= {0, 255, *(k + 1 for k in record.tags)}
    before = (trained / "rounds/1/segment/model.pt").read_bytes()
    assert before != (trained / "segment/model.pt").read_bytes()


def test_figures_say_how_many_rounds(trained):
    for entry in current_evaluation(trained)["segment"].values():
        assert "trained on pseudo masks of train in 2 rounds" in entry["protocol"]
        assert entry["conditions"]["segmenter"] == "aspp in 2 rounds"


def test_losses_of_every_round_are_logged(trained):
    logged = (trained / "metrics.csv").read_text()
    assert "\nsegment_round1," in logged
    assert "\nsegment," in logged


def test_more_rounds_keep_those_that_are_there(scenes, trained):
    first, last = trained / "rounds/1/segment/model.pt", trained / "segment/model.pt"
    stamp, second = first.stat().st_mtime_ns, last.read_bytes()
    said = rounds(scenes, trained, 3)
    assert again(said) == {"segment_round2_train", "segment_round2", "segment_train", "segment"}
    assert first.stat().st_mtime_ns == stamp
    # What was the last training is now the second, and did not train anew.
    assert (trained / "rounds/2/segment/model.pt").read_bytes() == second
    assert again(rounds(scenes, trained, 2)) == {"segment_train", "segment"}
    assert last.read_bytes() == second


def test_one_round_is_what_it_was_without_them(scenes, trained, tmp_path):
    rounds(scenes, tmp_path / "run", 1)
    first = (trained / "rounds/1/segment/model.pt").read_bytes()
    assert not (tmp_path / "run/rounds").exists()
    assert (tmp_path / "run/segment/model.pt").read_bytes() == first


def test_a_round_goes_on_where_it_stopped(scenes, trained):
    folder = trained / "rounds/1/masks"
    stamps = times(folder)
    lost = sorted(stamps)[0]
    whole = (folder / lost).read_bytes()
    (folder / lost).unlink()
    unfinished(trained, "segment_round1")
    rounds(scenes, trained, 2)
    assert (folder / lost).read_bytes() == whole
    assert {k: v for k, v in times(folder).items() if k != lost} == {
        k: v for k, v in stamps.items() if k != lost
    }


def test_other_knobs_of_a_round_repeat_what_follows(scenes, trained):
    changed = rounds(scenes, trained, 2, "segment.round_confidence=0.3")
    assert again(changed) == {"segment_round1", "segment_train", "segment"}
    crf = rounds(scenes, trained, 2, "segment.round_crf=P3")
    assert again(crf) == {"segment_round1", "segment_train", "segment"}
    metrics = json.loads((trained / "manifest.json").read_text())["stages"]["segment_round1"]
    assert metrics["metrics"] == {"crf": "P3", "confidence": 0.7}


def test_impossible_rounds_are_refused():
    with pytest.raises(ConfigError, match=r"segment.rounds=0"):
        SegmentConfig(rounds=0)
    with pytest.raises(ConfigError, match="unknown CRF preset 'P99'"):
        SegmentConfig(round_crf="P99")
