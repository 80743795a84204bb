"""Stage ``evaluate`` in a plan: when it is to do, when it is done, and when it is made again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from measured import write_run

from trainer.config import as_dict
from trainer.data.formats.opening import open_dataset
from trainer.evaluation.figures_table import print_evaluation
from trainer.evaluation.image_scores import FILE, ImageScores
from trainer.evaluation.measure import current_evaluation
from trainer.evaluation.over_lists import rank_pixels
from trainer.fit import work
from trainer.maps.camfile import cam_path, write_cam
from trainer.options import Options, make_configs
from trainer.plan import Plan, make_plan, open_context, stage_keys
from trainer.run import Run, stage_key
from trainer.scenes.writing import write_synthetic
from trainer.stages import evaluate


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr("trainer.pool.cores", lambda: 1)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate") / "data"
    write_synthetic(folder, 8, 48)
    return folder


@pytest.fixture
def run(data, tmp_path) -> Path:
    return write_run(tmp_path / "run", data, 0.4)


def plan_of(data: Path, run: Path, *settings: str) -> Plan:
    """``evaluate`` alone, of what the run has."""
    options = Options(data, run, device="cpu", settings=settings)
    context = open_context(options, make_configs(options))
    stages = [evaluate.stage(context.run.complete)]
    return Plan(context, tuple(stages), stage_keys(context, stages), "evaluate")


def standing(plan: Plan) -> str:
    return plan.context.run.standing("evaluate", plan.keys["evaluate"])


def test_it_is_done_once_and_eval_agrees(data, run):
    plan = plan_of(data, run)
    assert standing(plan) == "to do"
    work(plan, plan.stages[0])
    path = run / "evaluation.json"
    before = path.stat().st_mtime_ns
    assert current_evaluation(run) == json.loads(path.read_text())
    assert standing(plan_of(data, run)) == "done, kept"
    assert path.stat().st_mtime_ns == before
    entry = Run(run).manifest["stages"]["evaluate"]
    assert entry["files"] == {"evaluation": 6, "evaluation.json": 1}
    assert set(entry["metrics"]) == {
        f"{stage} {name}" for stage in ("cam", "refined", "segment") for name in ("train", "val")
    }


def test_another_knob_or_mask_or_stage_measures_again(data, run, tmp_path):
    current_evaluation(run)
    again = "settings or inputs changed since it was made, will be made again"
    assert standing(plan_of(data, run, "evaluate.boundary_tolerance=3")) == again
    mended = shutil.copytree(data, tmp_path / "mended")
    name = open_dataset(mended).lists["val"][0]
    other = open_dataset(mended).lists["val"][1]
    masks = mended / "SegmentationClass"
    shutil.copyfile(masks / f"{other}.png", masks / f"{name}.png")
    assert standing(plan_of(mended, run)) == again
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["stages"]["refine"]["key"] = "another"
    (run / "manifest.json").write_text(json.dumps(manifest))
    assert standing(plan_of(data, run)) == again


def test_figures_that_are_gone_are_measured_again(data, run):
    current_evaluation(run)
    (run / "evaluation.json").unlink()
    plan = plan_of(data, run)
    assert standing(plan) == "1 of its files are gone, will be made again"
    work(plan, plan.stages[0])
    assert standing(plan_of(data, run)) == "done, kept"


def test_figures_of_an_earlier_version_are_measured_again(data, run):
    dataset, made = open_dataset(data), Run(run)
    truth = {n: dataset.mask_fingerprint(dataset.masked(n)) for n in ("train", "val")}
    knobs = [3, as_dict(make_configs(Options(data, run)).evaluate), truth]
    with made.stage("evaluate", stage_key("evaluate", knobs, ["0.4None"] * 3)):
        (run / "evaluation.json").write_text("{}")
    assert "will be made again" in standing(plan_of(data, run))
    assert "cam" in current_evaluation(run)


def test_a_plan_ends_with_it_whether_there_are_masks_or_not(data, run, tmp_path):
    options = Options(data, run, weights="none", size=48, epochs=1, device="cpu")
    scoring, last = make_plan(options).stages[-2:]
    assert (scoring.name, scoring.inputs) == ("scores", ("classify",))
    assert (last.name, last.inputs) == ("evaluate", ("scores", "cams", "refine", "segment"))
    bare = shutil.copytree(data, tmp_path / "bare")
    shutil.rmtree(bare / "SegmentationClass")
    options = Options(bare, tmp_path / "other", weights="none", size=48, epochs=1, device="cpu")
    assert [stage.name for stage in make_plan(options).stages[-2:]] == ["scores", "evaluate"]
    # Maps of others come without a classifier, and so without scores.
    options = Options(bare, tmp_path / "maps", cams=run / "cams", segmenter_weights="none")
    assert make_plan(options).stages[-1].name == "segment"


def test_without_masks_there_are_figures_of_image_scores(data, run, tmp_path, capsys):
    bare = shutil.copytree(data, tmp_path / "bare")
    shutil.rmtree(bare / "SegmentationClass")
    dataset = open_dataset(bare)
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["data"] |= {"path": str(bare), "fingerprint": dataset.fingerprint()}
    manifest["stages"]["scores"] = {"status": "done", "key": "s", "outputs": {}, "metrics": {}}
    (run / "manifest.json").write_text(json.dumps(manifest))
    records = list(dataset.records.values())
    tags = dataset.tag_matrix(records).astype(float)
    # The first class is ranked perfectly, the others the wrong way round.
    scores = np.where(np.arange(tags.shape[1]) == 0, tags, 1 - tags)
    ids = tuple(record.id for record in records)
    ImageScores(ids, dataset.classes, scores).write(run / FILE)
    evaluation = current_evaluation(run)
    assert list(evaluation) == ["classifier"]
    assert set(evaluation["classifier"]) == {"train", "val"}
    firsts, rest = set(), set()
    for name, figures in evaluation["classifier"].items():
        first, *others = figures["classes"].values()
        firsts |= {first["auroc"], first["average_precision"]}
        rest |= {entry["auroc"] for entry in others}
        assert figures["images"] == len(dataset.lists[name])
        assert figures["trained_on"] == (figures["images"] if name == "train" else 0)
        assert ("optimistic" in figures["protocol"]) == (name == "train")
    # A list of few images may show a class on all of them, or on none.
    assert firsts - {None} == {1}
    assert rest - {None} == {0}
    print_evaluation(evaluation)
    printed = capsys.readouterr().out
    assert "any class" in printed
    assert "No figures of masks" in printed


def test_a_stage_of_an_earlier_plan_is_measured_too(data, tmp_path):
    run = write_run(tmp_path / "run", data, 0.4, full=0.1)
    options = Options(data, run, weights="none", size=48, epochs=1, device="cpu")
    plan = make_plan(options)
    assert plan.stages[-1].inputs == ("scores", "cams", "refine", "segment", "segment_full")
    assert plan.keys["segment_full"] == "0.40.1"


def test_the_pixels_of_a_segmenter_are_ranked_by_its_own_maps(data, run):
    before = current_evaluation(run)["segment"]["val"]
    assert "pixel_ap" not in before
    dataset = open_dataset(data)
    folder = run / "segment" / "predictions" / "maps" / "val"
    for record in dataset.subset("val"):
        truth = dataset.read_mask(record)
        # Right about one class, and never sure of another.
        maps = [np.where(truth[::4, ::4] == 1, 0.9, 0.1), np.full(truth[::4, ::4].shape, 0.1)]
        write_cam(cam_path(folder, record.id), [0, 1], maps, truth.shape)
    (run / "evaluation.json").unlink()
    after = current_evaluation(run)["segment"]["val"]
    ranking = rank_pixels(dataset, dataset.subset("val"), folder, 0).report(dataset.classes)
    assert {key: after[key] for key in ranking} == ranking
    assert after["miou"] == before["miou"]
    first, second = list(ranking["pixel_ap_by_class"].values())[:2]
    assert first is None or second is None or first > second
