"""Runs that train on few true masks beside tags: what they choose, what stands in the manifest, and
which stages a change makes again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from refined import again, fit, pipeline

from trainer.data.dataset import read_index_png
from trainer.data.formats.opening import open_dataset, reopen_data
from trainer.data.palette import write_index_png
from trainer.errors import ConfigError, DataError
from trainer.evaluation.measure import current_evaluation
from trainer.training.model_file import read_model

QUICK = (
    "segment.workers=0",
    "segment.precision=fp32",
    "segment.scales=1",
    "segment.flip=off",
    "segment.crf=none",
)
FEW = ("scene_00001", "scene_00005", "scene_00009")
AFTER_REFINE = {"refine", "sure_masks", "segment_train", "segment"}


def run_with(data: Path, run: Path, *settings: str, **more: Any) -> dict[str, str]:
    return fit(data, run, *QUICK, *settings, until=more.pop("until", "segment"), **more)


@pytest.fixture(scope="module", autouse=True)
def alone() -> Iterator[None]:
    """Images are worked on in this process: to start others would take longer than the work."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainer.pool.cores", lambda: 1)
        yield


@pytest.fixture(scope="module")
def few(tmp_path_factory) -> Path:
    path: Path = tmp_path_factory.mktemp("lists") / "few.txt"
    path.write_text("\n".join(FEW))
    return path


@pytest.fixture(scope="module")
def trained(scenes, alone, few, tmp_path_factory) -> Path:
    run: Path = tmp_path_factory.mktemp("masks") / "run"
    run_with(scenes, run, masks=str(few), until="evaluate")
    return run


def manifest_of(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "manifest.json").read_text())
    return content


def test_true_masks_choose_threshold_and_crf(trained):
    manifest = manifest_of(trained)
    metrics = manifest["stages"]["refine"]["metrics"]
    best = max(metrics["tuning"], key=lambda row: row["miou"])
    assert metrics["crf"] == best["crf"]
    assert metrics["threshold"] == pytest.approx(best["threshold"], abs=1e-4)
    assert {row["crf"] for row in metrics["tuning"]} == {"P7", "P3", "P1", "none"}
    assert "tuned on the 3 masks" in metrics["threshold_detail"]
    assert manifest["masks"]["ids"] == list(FEW)
    knobs = manifest["config"]["segment"]
    assert (knobs["teacher"], knobs["teacher_confidence"]) == ("fill", 0.95)
    assert any("true masks of 3 images" in reason for reason in manifest["choices"])


def test_figures_say_what_trained_and_leave_these_images_out(scenes, trained):
    evaluation, listed = current_evaluation(trained), open_dataset(scenes).lists["train"]
    for stage in ("refined", "segment"):
        for entry in evaluation[stage].values():
            assert "trained on tags of 8 images of train" in entry["protocol"]
            assert "and masks of 3" in entry["protocol"]
            assert entry["conditions"]["masks"] == 3
    assert "3 true masks and on pseudo masks of train" in evaluation["segment"]["val"]["protocol"]
    assert "and masks of" not in evaluation["cam"]["val"]["protocol"]
    measured = evaluation["segment"]["train"]["conditions"]
    assert (measured["measured"], measured["listed"]) == (len(listed) - 3, len(listed))
    dataset = reopen_data(manifest_of(trained))
    assert dataset.withheld == {*FEW}


def test_weights_say_that_masks_made_them(trained):
    identity, _ = read_model(trained / "segment" / "model.pt", {})
    assert identity["supervision"] == "tags and masks of 3 images"


def test_other_images_lose_only_unsure_pixels(scenes, trained):
    ids = {path.stem for path in (trained / "sure_masks").glob("*.png")}
    assert ids == {*open_dataset(scenes).lists["train"]} - {*FEW}
    for record_id in ids:
        sure, pseudo = (
            read_index_png(trained / folder / f"{record_id}.png")
            for folder in ("sure_masks", "masks")
        )
        assert np.array_equal(sure[sure != 255], pseudo[sure != 255])
    levels = manifest_of(trained)["stages"]["sure_masks"]["metrics"]["levels"]
    assert len(levels) == 7


def test_other_masks_repeat_what_looks_at_them(scenes, few, trained, tmp_path):
    assert again(run_with(scenes, trained, masks=str(few))) == set()
    fewer = tmp_path / "fewer.txt"
    fewer.write_text("\n".join(FEW[:2]))
    said = run_with(scenes, trained, masks=str(fewer))
    assert again(said) == AFTER_REFINE
    changed = run_with(scenes, trained, "segment.mask_precision=0.5", masks=str(fewer))
    assert again(changed) == AFTER_REFINE - {"refine"}
    without = run_with(scenes, trained)
    assert again(without) == AFTER_REFINE - {"sure_masks"}


def test_a_mended_mask_is_noticed_and_an_unused_one_is_not(scenes, few, tmp_path):
    data = Path(shutil.copytree(scenes, tmp_path / "data"))
    plan = pipeline(data, tmp_path / "run", *QUICK, masks=str(few), until="segment")
    files = {record.id: record.mask for record in open_dataset(data).records.values()}

    def touched(record_id: str) -> set[str]:
        mask = files[record_id]
        assert mask is not None
        write_index_png(mask, np.zeros_like(read_index_png(mask)))
        new = pipeline(data, tmp_path / "run", *QUICK, masks=str(few), until="segment")
        return {name for name, key in new.keys.items() if key != plan.keys[name]}

    assert touched("scene_00000") == set()
    assert touched(FEW[0]) == AFTER_REFINE


def test_the_upper_bound_stays_as_it_is_without_the_few(scenes, few, tmp_path):
    both: dict[str, Any] = {"supervision": "both", "until": "segment"}
    plain = pipeline(scenes, tmp_path / "run", *QUICK, **both)
    mixed = pipeline(scenes, tmp_path / "run", *QUICK, masks=str(few), **both)
    assert mixed.keys["segment_full_train"] == plain.keys["segment_full_train"]
    assert mixed.keys["segment_train"] != plain.keys["segment_train"]


def test_corrected_tags_reach_the_classifier(scenes, tmp_path):
    corrections = tmp_path / "corrections"
    corrections.mkdir()
    change = {"tags": {FEW[0]: {"added": ["owl"], "removed": []}}}
    (corrections / "corrections.json").write_text(json.dumps(change))
    plain = pipeline(scenes, tmp_path / "run", *QUICK, until="segment")
    mended = pipeline(scenes, tmp_path / "run", *QUICK, until="segment", corrections=corrections)
    # Tags alone bring no mask: the run has the stages of one without.
    assert mended.keys.keys() == plain.keys.keys()
    assert all(mended.keys[name] != key for name, key in plain.keys.items())
    record = mended.context.dataset.records[FEW[0]]
    assert mended.context.dataset.classes.index("owl") in record.tags


def test_corrected_masks_train_and_the_run_needs_the_folder_no_more(scenes, tmp_path):
    corrections, dataset = tmp_path / "corrections", open_dataset(scenes)
    (corrections / "masks").mkdir(parents=True)
    (corrections / "classes.txt").write_text("\n".join(dataset.classes))
    record = dataset.records[FEW[1]]
    mask = dataset.read_mask(record)
    mask[:4, :4] = dataset.classes.index("owl") + 1
    write_index_png(corrections / "masks" / f"{record.id}.png", mask)
    run = tmp_path / "run"
    run_with(scenes, run, corrections=corrections, until="evaluate")
    shutil.rmtree(corrections)
    evaluation = current_evaluation(run)
    assert "and masks of 1" in evaluation["segment"]["val"]["protocol"]
    again_open = reopen_data(manifest_of(run))
    assert dataset.classes.index("owl") in again_open.records[record.id].tags
    assert again_open.withheld == {record.id}


def test_what_corrections_do_not_touch_is_taken_over(scenes, trained, tmp_path):
    corrections, dataset = tmp_path / "corrections", open_dataset(scenes)
    (corrections / "classes.txt").parent.mkdir()
    (corrections / "classes.txt").write_text("\n".join(dataset.classes))
    mask = dataset.read_mask(dataset.records[FEW[1]])
    write_index_png(corrections / "masks" / f"{FEW[1]}.png", mask)
    images = {FEW[1]: {"mask": True, "run": str(trained)}, "other": {"run": "nowhere"}}
    (corrections / "corrections.json").write_text(json.dumps({"images": images}))
    said = run_with(scenes, tmp_path / "run", corrections=corrections, until="refine")
    assert again(said) == {"refine"}
    stages = manifest_of(tmp_path / "run")["stages"]
    assert stages["classify"]["taken_from"].endswith(trained.name)


def test_rounds_and_masks_go_together(scenes, few, tmp_path):
    run = tmp_path / "run"
    run_with(scenes, run, "segment.rounds=2", masks=str(few))
    stages = manifest_of(run)["stages"]
    assert stages["segment_round1"]["metrics"]["crf"] == stages["refine"]["metrics"]["crf"]
    assert again(run_with(scenes, run, "segment.rounds=2", masks=str(few))) == set()
    ids = {path.stem for path in (run / "rounds/1/masks").glob("*.png")}
    assert ids == {*open_dataset(scenes).lists["train"]} - {*FEW}


def test_every_image_may_have_a_true_mask(scenes, tmp_path):
    run_with(scenes, tmp_path / "run", masks="train")
    assert not list((tmp_path / "run" / "sure_masks").glob("*.png"))


def test_impossible_masks_end_before_the_work(scenes, few, tmp_path):
    with pytest.raises(ConfigError, match="--masks with --supervision full") as caught:
        pipeline(scenes, tmp_path / "run", masks=str(few), supervision="full", until="segment")
    assert "--train-list" in caught.value.hint
    with pytest.raises(ConfigError, match=r"refine\.crf=masks, and no true masks train"):
        pipeline(scenes, tmp_path / "run", "refine.crf=masks")
    with pytest.raises(DataError, match="are in 'val', which is measured"):
        pipeline(scenes, tmp_path / "run", masks="val")
    assert not (tmp_path / "run").exists()
