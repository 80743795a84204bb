"""SC-CAM: its loss and labels by hand, and its rounds as stages of a run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden import U
from tiny_nets import TinyBackbone

from trainer.context import Context
from trainer.data.dataset import Record
from trainer.errors import ConfigError, DataError, WeightsError
from trainer.fit import fit as run_plan
from trainer.methods import sc_cam
from trainer.methods.cam import Cam
from trainer.methods.cam import Config as CamConfig
from trainer.methods.clustering import subcategory_labels
from trainer.methods.preparation import Prepared
from trainer.methods.sc_cam import Config, ScCam
from trainer.methods.subcategories import (
    Embeddings,
    Subcategories,
    over_joint_maximum,
    subcategory_maps,
)
from trainer.nets.backbone import Traits
from trainer.options import Options, make_configs
from trainer.plan import make_plan
from trainer.scenes.writing import write_synthetic
from trainer.stages.classify import fresh_method
from trainer.training.loop import step_rng

SETTINGS = (
    "classify.workers=0",
    "classify.precision=fp32",
    "classify.validate=off",
    "method.k=2",
    "method.rounds=2",
)


def test_golden_maps_of_subcategories():
    maps = U((8, 40, 5, 6), 74).sum(0, keepdim=True)
    blocks = over_joint_maximum(maps, (2,) * 20)
    assert torch.cat(blocks, 1).mean().item() == pytest.approx(0.683337613, rel=1e-8)
    assert blocks[0].max().item() == pytest.approx(0.999998309, rel=1e-9)
    best = subcategory_maps(maps, (2,) * 20)
    assert best.shape == (1, 20, 5, 6)
    assert torch.equal(best[:, 7], torch.maximum(blocks[7][:, 0], blocks[7][:, 1]))


def test_a_class_without_subcategories_has_an_empty_map():
    maps = subcategory_maps(U((2, 5, 3, 4), 3), (2, 0, 3))
    assert maps.shape == (2, 3, 3, 4)
    assert not maps[:, 1].any()
    assert torch.equal(maps.amax((2, 3))[:, [0, 2]] > 0.99, torch.ones(2, 2, dtype=torch.bool))


def test_labels_lie_in_the_blocks_of_the_classes():
    rng = np.random.default_rng(0)
    tags = rng.random((60, 5)) < 0.4
    labels = subcategory_labels(rng.normal(size=(60, 7)), tags, k=4, seed=1)
    assert labels.sum(1).tolist() == tags.sum(1).tolist()
    for row, present in zip(labels, tags):
        assert (np.flatnonzero(row) // 4).tolist() == np.flatnonzero(present).tolist()


def method(**knobs: Any) -> ScCam:
    torch.manual_seed(0)
    return ScCam(Config(**knobs), TinyBackbone(), 3).train()


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)), torch.tensor(
        [[1.0, 0, 1], [0, 1, 0]]
    )


def test_the_loss_by_hand():
    images, tags = batch()
    module = method(subcategories=(2, 2, 2), weight=3.0)
    labels = torch.tensor([[0.0, 1, 0, 0, 1, 0], [0, 0, 1, 0, 0, 0]])
    sample = {"image": images, "tags": tags, "subcategories": labels}
    terms = module.loss(sample, step_rng(0, 0))
    f = module.features(images).mean((2, 3))

    def margin(head: torch.nn.Conv2d, t: torch.Tensor) -> torch.Tensor:
        y = f @ head.weight.flatten(1).T
        return -(t * F.logsigmoid(y) + (1 - t) * F.logsigmoid(-y)).mean()

    assert terms["cls"].item() == pytest.approx(margin(module.classifier, tags).item(), rel=1e-6)
    assert terms["sub"].item() == pytest.approx(
        3 * margin(module.subcategory_classifier, labels).item(), rel=1e-6
    )
    assert set(terms) == {"cls", "sub"}


def test_without_subcategories_it_is_cam():
    images, tags = batch()
    torch.manual_seed(0)
    plain = Cam(CamConfig(), TinyBackbone(), 3)
    module = method()
    assert list(module.state_dict()) == list(plain.state_dict())
    assert torch.equal(
        module.loss({"image": images, "tags": tags}, step_rng(0, 0))["cls"],
        plain.loss({"image": images, "tags": tags}, step_rng(0, 0))["cls"],
    )
    assert torch.equal(module.eval().cams(images), plain.eval().cams(images))


def test_maps_of_subcategories_are_a_knob():
    images, _ = batch()
    parent = method(subcategories=(2, 1, 2)).eval()
    module = method(subcategories=(2, 1, 2), maps="subcategory").eval()
    with torch.inference_mode():
        maps, logits = module.cams_and_logits(images)
        expected = subcategory_maps(
            F.relu(module.subcategory_classifier(module.features(images))), (2, 1, 2)
        )
        assert torch.equal(maps, expected)
        torch.testing.assert_close(logits, parent.cams_and_logits(images)[1])
        torch.testing.assert_close(module.embed(images), module.features(images).mean((2, 3)))


def options(
    data: Path = Path("data"), run: Path = Path("run"), *settings: str, **changes: Any
) -> Options:
    given: dict[str, Any] = {
        "method": "sc_cam",
        "weights": "none",
        "epochs": 1,
        "size": 64,
        "device": "cpu",
    }
    given |= {"until": "classify", **changes}
    return Options(data, run, settings=(*SETTINGS, *settings), **given)


def test_presets_and_published_training():
    code = make_configs(
        Options(Path("d"), Path("r"), method="sc_cam", backbone="resnet38", preset="code")
    )
    assert code.method == Config(weight=5.0, k=10, rounds=3)
    assert (code.classify.lr, code.classify.crop, code.classify.epochs) == (0.01, 224, 61)
    paper = make_configs(
        Options(Path("d"), Path("r"), method="sc_cam", backbone="resnet38", preset="paper")
    )
    assert paper.method == Config(adapt_conv=512, warm_start=True)
    assert (paper.classify.lr, paper.classify.crop, paper.classify.optimizer) == (1e-3, 448, "adam")


@pytest.mark.parametrize(
    "knobs", [{"k": 0}, {"rounds": 0}, {"weight": -1}, {"round0": "nothing.pt"}]
)
def test_impossible_knobs(knobs):
    with pytest.raises(ConfigError):
        Config(**knobs)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "data"
    write_synthetic(folder, 16, 64, classes=3)
    return folder


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network of two layers, for tests of what is trained when."""
    monkeypatch.setattr(
        "trainer.methods.registry.build_backbone", lambda name, **knobs: TinyBackbone()
    )


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run of two rounds on the tiny network."""
    run = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "trainer.methods.registry.build_backbone", lambda name, **knobs: TinyBackbone()
        )
        fit(options(data, run))
        yield run


@pytest.fixture
def copied(finished: Path, tmp_path: Path, tiny: None) -> Path:
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def fit(given: Options) -> dict[str, str]:
    """What was said of each stage: ``done``, ``to do`` or ``settings``."""
    lines: list[str] = []
    run_plan(make_plan(given), lines.append)
    return {line.split(": ")[0]: line.split(": ")[1].split(",")[0][:8].strip() for line in lines}


def state(run: Path, stage: str) -> dict[str, torch.Tensor]:
    content: dict[str, dict[str, torch.Tensor]] = torch.load(
        run / stage / "model.pt", weights_only=True
    )
    return content["state"]


def test_a_run_on_a_real_network(data, tmp_path):
    run = tmp_path / "run"
    assert fit(options(data, run, "cams.scales=1", "cams.workers=0", until="cams")) == {
        "round0": "to do",
        "round1": "to do",
        "classify": "to do",
        "cams": "to do",
    }
    for name in ("round0", "round1"):
        assert sorted(p.name for p in (run / name).iterdir()) == [
            "embeddings.npz",
            "model.pt",
            "subcategories.npz",
        ]
    stored = Subcategories.read(run / "round1" / "subcategories.npz")
    assert stored.counts == (2, 2, 2)
    assert Embeddings.read(run / "round1" / "embeddings.npz").values.shape == (12, 1280)
    assert stored.ids == Embeddings.read(run / "round0" / "embeddings.npz").ids
    assert "subcategory_classifier.weight" not in state(run, "round0")
    assert state(run, "round1")["subcategory_classifier.weight"].shape == (6, 1280, 1, 1)
    assert state(run, "classify")["subcategory_classifier.weight"].shape == (6, 1280, 1, 1)
    assert len(list((run / "cams").rglob("*.npz"))) == 16
    rows = (run / "metrics.csv").read_text()
    assert "round0,1,1,loss_sub" not in rows
    assert "round1,1,1,loss_sub" in rows
    assert "classify,1,1,loss_sub" in rows
    assert set(
        fit(options(data, run, "cams.scales=1", "cams.workers=0", until="cams")).values()
    ) == {"done"}


def test_the_labels_of_a_round_follow_from_its_features(data, copied):
    pipeline = make_plan(options(data, copied))
    stored = Subcategories.read(copied / "round0" / "subcategories.npz")
    features = Embeddings.read(copied / "round0" / "embeddings.npz")
    tags = pipeline.context.dataset.tag_matrix(
        [pipeline.context.dataset.records[i] for i in stored.ids]
    )
    assert np.array_equal(stored.labels, subcategory_labels(features.values, tags, 2, 0))
    assert stored.labels.sum(1).tolist() == tags.sum(1).tolist()
    record = Record(stored.ids[3], Path(), (0,))
    assert stored.of(record).tolist() == stored.labels[3].tolist()


def test_images_without_a_class_and_unknown_classes_have_labels_too():
    labels = np.array([[1, 0, 0, 0, 0], [0, 0, 0, 1, 0]], np.uint8)
    stored = Subcategories(["a", "b"], labels, (2, 1, 2))
    assert stored.of(Record("free", Path(), ())).tolist() == [0] * 5
    partly = stored.of(Record("a", Path(), (0,), unknown=(2,))).tolist()
    assert partly[:3] == [1, 0, 0]
    assert np.isnan(partly[3:]).all()
    assert np.isnan(stored.of(Record("open", Path(), (), unknown=(0, 1, 2)))).all()
    with pytest.raises(KeyError):
        stored.of(Record("not clustered", Path(), (1,)))


def test_an_interrupted_run_goes_on(data, finished, tmp_path, tiny, monkeypatch):
    run, explore = tmp_path / "run", sc_cam.explore

    def broken(r: int, *arguments: Any) -> None:
        if r == 1:
            raise KeyboardInterrupt
        explore(r, *arguments)

    monkeypatch.setattr(sc_cam, "explore", broken)
    with pytest.raises(KeyboardInterrupt):
        fit(options(data, run))
    monkeypatch.setattr(sc_cam, "explore", explore)
    first = (run / "round0" / "model.pt").stat().st_mtime_ns
    assert fit(options(data, run)) == {"round0": "done", "round1": "to do", "classify": "to do"}
    assert (run / "round0" / "model.pt").stat().st_mtime_ns == first
    for name in ("round1", "classify"):
        assert (run / name / "model.pt").read_bytes() == (finished / name / "model.pt").read_bytes()


def test_a_round_whose_clusters_are_missing_is_not_trained_again(data, copied):
    manifest = json.loads((copied / "manifest.json").read_text())
    manifest["stages"]["round1"]["status"] = "failed"
    (copied / "manifest.json").write_text(json.dumps(manifest))
    (copied / "round1" / "subcategories.npz").unlink()
    before = (copied / "round1" / "model.pt").stat().st_mtime_ns
    assert fit(options(data, copied)) == {
        "round0": "done",
        "round1": "1 of its",
        "classify": "done",
    }
    assert (copied / "round1" / "model.pt").stat().st_mtime_ns == before
    assert Subcategories.read(copied / "round1" / "subcategories.npz").counts == (2, 2, 2)


def test_more_rounds_keep_the_earlier_ones(data, copied):
    assert fit(options(data, copied, "method.rounds=3")) == {
        "round0": "done",
        "round1": "done",
        "round2": "to do",
        "classify": "settings",
    }


def test_another_weight_keeps_round_0_only(data, copied):
    kept = (copied / "round0" / "model.pt").read_bytes()
    assert fit(options(data, copied, "method.weight=1")) == {
        "round0": "done",
        "round1": "settings",
        "classify": "settings",
    }
    assert (copied / "round0" / "model.pt").read_bytes() == kept
    assert sorted(p.name.split("-")[0] for p in (copied / "stale").iterdir()) == [
        "classify",
        "round1",
    ]


def test_another_learning_rate_keeps_no_round(data, copied):
    assert set(fit(options(data, copied, "classify.lr=0.01")).values()) == {"settings"}


def test_rounds_start_from_the_initial_weights_unless_told_otherwise(data, tmp_path, tiny):
    # With a learning rate too small for float32 a training ends where it started.
    fit(options(data, tmp_path / "still", "method.rounds=1", "classify.lr=1e-30"))
    fit(options(data, tmp_path / "cold", "method.rounds=1"))
    fit(options(data, tmp_path / "warm", "method.rounds=1", "method.warm_start=on"))
    initial, trained = state(tmp_path / "still", "round0"), state(tmp_path / "warm", "round0")
    assert not torch.equal(initial["classifier.weight"], trained["classifier.weight"])
    for run, start in (("cold", initial), ("warm", trained)):
        pipeline = make_plan(options(data, tmp_path / run, "method.rounds=1"))
        config, stage = Config(subcategories=(2, 2, 2)), "round0" if run == "warm" else None
        method = fresh_method(pipeline.context, Prepared(config, weights_from=stage))
        assert torch.equal(method.classifier.weight, start["classifier.weight"])
        assert torch.equal(method.backbone.second.weight, start["backbone.second.weight"])


def test_warm_start_reaches_the_next_training(data, tmp_path, tiny, monkeypatch):
    seen: list[str | None] = []

    def spy(context: Context, prepared: Prepared) -> Any:
        seen.append(prepared.weights_from)
        return fresh_method(context, prepared)

    for module in ("classify", "prepare"):
        monkeypatch.setattr(f"trainer.stages.{module}.fresh_method", spy)
    pipeline = make_plan(options(data, tmp_path / "run", "method.warm_start=on"))
    run_plan(pipeline, lambda line: None)
    assert seen == [None, "round0", "round1"]


@pytest.fixture
def parent(data: Path, tmp_path: Path, tiny: None) -> Path:
    """``model.pt`` of a run of ``cam``."""
    settings = [s for s in SETTINGS if not s.startswith("method")]
    run_plan(
        make_plan(replace(options(data, tmp_path / "cam", method="cam"), settings=tuple(settings))),
        lambda line: None,
    )
    return tmp_path / "cam" / "classify" / "model.pt"


@pytest.mark.parametrize("warm", ["off", "on"])
def test_a_given_round_0_is_not_trained(data, tmp_path, parent, warm):
    run = tmp_path / "run"
    given = options(
        data, run, "method.rounds=1", f"method.round0={parent}", f"method.warm_start={warm}"
    )
    assert fit(given) == {"round0": "to do", "classify": "to do"}
    assert "round0" not in (run / "metrics.csv").read_text()
    taken = torch.load(parent, weights_only=True)["state"]
    assert all(torch.equal(tensor, taken[name]) for name, tensor in state(run, "round0").items())
    assert (run / "round0" / "subcategories.npz").exists()
    assert set(fit(given).values()) == {"done"}
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["stages"]["round0"]["outputs"]["taken_from"] == str(parent)


def test_a_round_0_of_other_classes_is_refused(tmp_path, data, parent):
    content = torch.load(parent, weights_only=True)
    content["identity"]["classes"] = ["cow", "dog", "owl"]
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(WeightsError, match="trained for the 3 classes cow, dog, owl"):
        fit(options(data, tmp_path / "run", f"method.round0={tmp_path / 'other.pt'}"))


def rewrite_tags(data: Path, folder: Path, tags: dict[str, list[str]], names: list[str]) -> None:
    """A copy of the images of ``data`` with other tags, as a folder with a ``labels.csv``."""
    folder.mkdir()
    rows = ["image,tag"]
    for name in names:
        shutil.copy(data / "JPEGImages" / f"{name}.jpg", folder / f"{name}.jpg")
        rows += [f"{name}.jpg,{tag}" for tag in tags.get(name, ["common"])]
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")


def test_classes_with_few_images(data, tmp_path, tiny):
    names = sorted(p.stem for p in (data / "JPEGImages").iterdir())[:9]
    tags = {names[0]: ["alone"], names[1]: ["pair"], names[2]: ["pair", "common"]}
    rewrite_tags(data, tmp_path / "few", tags, names)
    run = tmp_path / "run"
    fit(options(tmp_path / "few", run, "method.k=4", "method.rounds=1", train_list="all"))
    stored = Subcategories.read(run / "round0" / "subcategories.npz")
    classes = json.loads((run / "manifest.json").read_text())["data"]["classes"]
    per_class = stored.labels.reshape(9, 3, 4)
    used = {name: int(per_class[:, k].any(0).sum()) for k, name in enumerate(classes)}
    assert used == {"alone": 1, "pair": 2, "common": 4}
    assert (
        json.loads((run / "manifest.json").read_text())["stages"]["round0"]["metrics"][
            "subcategories"
        ]
        == 7
    )


def test_finch_decides_how_many_subcategories_each_class_has(data, tmp_path, tiny):
    run = tmp_path / "run"
    given = options(data, run, "method.k=auto")
    assert fit(given) == {"round0": "to do", "round1": "to do", "classify": "to do"}
    stored = Subcategories.read(run / "round1" / "subcategories.npz")
    tags = make_plan(given).context.dataset
    matrix = tags.tag_matrix([tags.records[i] for i in stored.ids])
    assert stored.labels.sum(1).tolist() == matrix.sum(1).tolist()
    assert stored.labels.shape[1] == sum(stored.counts)
    assert all(block.any(0).all() for block in np.split(stored.labels, np.cumsum(stored.counts), 1))
    head = state(run, "classify")["subcategory_classifier.weight"]
    assert head.shape[0] == sum(stored.counts)


def test_the_number_of_subcategories_follows_the_groups_of_a_class():
    """Class 0 has five groups of images, class 1 two."""
    rng = np.random.default_rng(0)
    centres = 10 * rng.normal(size=(7, 16))
    group = np.repeat(np.arange(7), 40)
    points = (centres[group] + 0.1 * rng.normal(size=(280, 16))).astype(np.float32)
    tags = np.stack([group < 5, group >= 5], 1).astype(np.float32)
    labels, counts = sc_cam.clusters(points, tags, "auto", 0)
    assert counts == (5, 2)
    # One column a group, whatever its number.
    assert len({(int(row.argmax()), int(g)) for row, g in zip(labels, group)}) == 7
    assert sc_cam.clusters(points, tags, 3, 0)[1] == (3, 3)


def test_an_image_that_is_twice_in_a_list_counts_once(data, tmp_path, tiny):
    pipeline = make_plan(options(data, tmp_path / "run", "method.rounds=1"))
    a, b, c, d, *_ = pipeline.context.tagged
    twice = [a, c, b, c, a, c, d]
    pipeline.context.__dict__.update(tagged=twice, taught=twice)
    run_plan(pipeline, lambda line: None)
    stored = Subcategories.read(tmp_path / "run" / "round0" / "subcategories.npz")
    assert stored.ids == [a.id, c.id, b.id, d.id]
    assert stored.labels.shape == (4, 6)


def test_a_damaged_file_of_a_round_says_what_to_do(tmp_path):
    for kind in (Embeddings, Subcategories):
        (tmp_path / "x.npz").write_bytes(b"PK")
        with pytest.raises(DataError, match="cannot be read") as caught:
            kind.read(tmp_path / "x.npz")
        assert "run the same command again" in caught.value.hint


@pytest.mark.parametrize("channels", [6, 1280])
@pytest.mark.parametrize("head", ["kaiming", "xavier"])
def test_both_heads_start_alike(channels, head):
    """A head that starts larger than the other outweighs it before anything is learned."""
    backbone = TinyBackbone()
    backbone.channels["b"] = channels
    backbone.traits = Traits(head=head)
    torch.manual_seed(0)
    module = ScCam(Config(subcategories=(10,) * 6), backbone, 6)
    largest = [
        head.weight.abs().max().item()
        for head in (module.classifier, module.subcategory_classifier)
    ]
    # Xavier counts the outputs too, 6 and 60 here, as released.
    bounds = [(6 / (channels + n)) ** 0.5 if head == "xavier" else channels**-0.5 for n in (6, 60)]
    assert largest == pytest.approx(bounds, rel=0.15)
    if head == "kaiming":
        assert largest[0] == pytest.approx(largest[1], rel=0.15)
