"""Sub-category Teaching: teacher, clusters and student, and what a changed knob makes again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_nets import TinyBackbone

from trainer.data.transforms import MEAN, STD
from trainer.errors import ConfigError, WeightsError
from trainer.fit import fit as run_plan
from trainer.methods import subcategory_teaching
from trainer.methods.clustering import finch_labels
from trainer.methods.subcategories import Embeddings, Subcategories
from trainer.methods.subcategory_teaching import Config, SubcategoryTeaching, Teacher
from trainer.nets.vit import Vit, VitShape
from trainer.options import Options, make_configs
from trainer.plan import make_plan
from trainer.scenes.writing import write_synthetic
from trainer.training.optimiser import Training, cosine, make_optimizer, set_rate

TINY = VitShape(layers=2, heads=2, width=128, mlp=160, patch=16, image_size=48)
SETTINGS = (
    "classify.workers=0",
    "classify.precision=fp32",
    "classify.validate=off",
    "method.teacher_epochs=2",
)


def rates(config: Training, total: int) -> list[float]:
    optimizer = make_optimizer(
        [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": config.lr}], config
    )
    return [set_rate(optimizer, step, total, config) for step in range(total)]


def test_cosine_after_a_linear_warm_up():
    config = Training(schedule="cosine", warmup=4, lr=0.2)
    found = rates(config, 12)
    assert found[:5] == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])
    assert found[8] == pytest.approx(0.1)
    assert found[11] == pytest.approx(0.1 * (1 + np.cos(np.pi * 7 / 8)))
    assert cosine(12, 12, 4) == cosine(99, 12, 4) == 0
    assert found[4:] == sorted(found[4:], reverse=True)
    assert rates(Training(schedule="cosine", lr=0.2), 3)[0] == 0.2


def test_mva_counts_epochs():
    found = rates(Training(schedule="cosine_epochs", lr=0.1, epochs=15, warmup=3), 15 * 183)
    assert found[:183] == [0.0] * 183
    assert found[183:366] == pytest.approx([2e-4] * 183)
    assert found[-183:] == pytest.approx([2.8e-3] * 183)
    assert cosine(750, 1000, 500) == pytest.approx(0.5)


def test_statistics_of_the_teachers_file():
    pixels = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    mean, deviation = (torch.tensor(numbers)[:, None, None] for numbers in (MEAN, STD))
    torch.manual_seed(0)
    vit = Vit(TINY).eval()
    with torch.inference_mode():
        imagenet = (pixels - mean) / deviation
        torch.testing.assert_close(
            Teacher(vit, 3, half=True).embed(imagenet),
            vit((pixels - 0.5) / 0.5),
            rtol=1e-4,
            atol=1e-5,
        )
        assert torch.equal(Teacher(vit, 3, half=False).embed(imagenet), vit(imagenet))


def test_loss_of_the_teacher():
    torch.manual_seed(0)
    teacher = Teacher(Vit(TINY), 3, half=False).eval()
    images, tags = torch.randn(2, 3, 48, 48), torch.tensor([[1.0, 0, 1], [0, 1, 0]])
    y = teacher.head(teacher.embed(images))
    p = torch.sigmoid(y)
    expected = -(tags * p.log() + (1 - tags) * (1 - p).log()).mean()
    loss = teacher.loss({"image": images, "tags": tags}, np.random.default_rng(0))
    assert set(loss) == {"cls"}
    torch.testing.assert_close(loss["cls"], expected)


def test_the_head_of_the_subcategories_does_not_decay():
    method = SubcategoryTeaching(Config(subcategories=(2, 1, 3)), TinyBackbone(), 3)
    groups = {group["name"]: group for group in method.param_groups(0.1, 5e-4, 10.0)}
    assert groups["subcategories"]["params"] == [method.subcategory_classifier.weight]
    assert (groups["subcategories"]["lr"], groups["subcategories"]["weight_decay"]) == (1.0, 0.0)
    assert groups["new"]["weight_decay"] == 5e-4
    assert all(p is not method.subcategory_classifier.weight for p in groups["new"]["params"])
    plain = SubcategoryTeaching(Config(), TinyBackbone(), 3).param_groups(0.1, 5e-4, 10.0)
    assert [group["name"] for group in plain] == ["backbone", "new"]


def test_the_loss_is_weighted_by_1_as_in_the_report_and_by_2_in_mvas_code():
    report, mva = (
        make_configs(
            Options(
                Path("d"),
                Path("r"),
                method="subcategory_teaching",
                backbone="resnet38",
                preset=name,
            )
        )
        for name in ("paper", "mva")
    )
    assert report.method == Config(
        weight=1.0, teacher="vit_b_16", cluster="train", teacher_schedule="updates"
    )
    assert (mva.method.weight, mva.method.cluster, mva.method.teacher_schedule) == (
        2.0,
        "train+val",
        "epochs",
    )
    assert (mva.classify.batch, mva.classify.crop, mva.classify.clip, mva.classify.new_factor) == (
        8,
        300,
        1.0,
        1.0,
    )


@pytest.mark.parametrize(
    "knobs", [{"weight": -1}, {"teacher_epochs": 0}, {"teacher_batch": 0}, {"teacher_lr": 0}]
)
def test_impossible_knobs(knobs):
    with pytest.raises(ConfigError):
        Config(**knobs)


def options(data: Path, run: Path, *settings: str, **changes: Any) -> Options:
    given: dict[str, Any] = {
        "method": "subcategory_teaching",
        "weights": "none",
        "epochs": 1,
        "size": 64,
    }
    given |= {"device": "cpu", "until": "classify", **changes}
    return Options(data, run, settings=(*SETTINGS, *settings), **given)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "data"
    write_synthetic(folder, 16, 64, classes=3)
    return folder


@pytest.fixture(scope="module")
def vit_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a small ViT under torchvision's names."""
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("vit") / "vit.pth"
    torch.save(Vit(TINY).state_dict(), path)
    return path


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A student of two layers."""
    monkeypatch.setattr(
        "trainer.methods.registry.build_backbone", lambda name, **knobs: TinyBackbone()
    )


@pytest.fixture(scope="module")
def finished(
    data: Path, vit_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """A run with the small ViT as teacher of the tiny network."""
    run = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "trainer.methods.registry.build_backbone", lambda name, **knobs: TinyBackbone()
        )
        fit(options(data, run, f"method.teacher_weights={vit_file}"))
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


def stages(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "manifest.json").read_text())["stages"]
    return found


@pytest.mark.parametrize("weights", ["", "nothing.pth"])
def test_a_teacher_without_weights_says_which_file_to_bring(data, tmp_path, tiny, weights):
    with pytest.raises(ConfigError, match=weights or "the teacher has no weights") as caught:
        make_plan(
            options(
                data, tmp_path / "run", *([f"method.teacher_weights={weights}"] if weights else [])
            )
        )
    assert "vit_b_16-c867db91.pth" in caught.value.expected
    assert "vit_base_patch16_224.orig_in21k_ft_in1k" in caught.value.expected
    for way in (
        "method.teacher_weights=FILE",
        "method.teacher=backbone",
        "method.teacher_weights=none",
    ):
        assert way in caught.value.hint
    assert not (tmp_path / "run").exists()


def test_a_file_that_is_no_vit_is_refused(data, tmp_path, tiny):
    torch.save({"conv1.weight": torch.zeros(3, 3)}, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match="does not fit"):
        fit(options(data, tmp_path / "run", f"method.teacher_weights={tmp_path / 'x.pth'}"))


def test_a_small_vit_file_is_a_teacher(data, finished, vit_file):
    assert {name: stage["status"] for name, stage in stages(finished).items()} == dict.fromkeys(
        ("teacher", "subcategories", "classify"), "done"
    )
    assert sorted(p.name for p in (finished / "teacher").iterdir()) == [
        "embeddings.npz",
        "model.pt",
    ]
    features = Embeddings.read(finished / "teacher" / "embeddings.npz")
    stored = Subcategories.read(finished / "subcategories" / "subcategories.npz")
    assert features.values.shape == (12, 128)
    pipeline = make_plan(options(data, finished, f"method.teacher_weights={vit_file}"))
    tags = pipeline.context.dataset.tag_matrix(
        [pipeline.context.dataset.records[i] for i in features.ids]
    )
    labels, counts = finch_labels(features.values, tags, early_exit=True)
    assert stored.counts == tuple(counts)
    assert np.array_equal(stored.labels, labels)
    assert stored.labels.sum(1).tolist() == tags.sum(1).tolist()
    assert list(stages(finished)["subcategories"]["metrics"].values())[:3] == counts.tolist()
    state = torch.load(finished / "classify" / "model.pt", weights_only=True)["state"]
    assert state["subcategory_classifier.weight"].shape == (counts.sum(), 6, 1, 1)
    start, end = (
        torch.load(path, weights_only=True)
        for path in (vit_file, finished / "teacher" / "model.pt")
    )
    moved = {
        name
        for name, tensor in start.items()
        if not torch.equal(tensor, end["state"]["vit." + name])
    }
    assert {"cls_token", "patch_embed.proj.weight", "norm.weight"} <= moved


def test_the_teachers_maps_and_training_survive_the_same_command(data, copied, vit_file):
    assert set(fit(options(data, copied, f"method.teacher_weights={vit_file}")).values()) == {
        "done"
    }


@pytest.mark.parametrize(
    "setting",
    ["method.weight=2", "method.pooling=gmp", "method.maps=subcategory", "classify.lr=1e-4"],
)
def test_a_knob_of_the_student_does_not_train_the_teacher_again(data, copied, vit_file, setting):
    found = fit(options(data, copied, f"method.teacher_weights={vit_file}", setting))
    assert found == {"teacher": "done", "subcategories": "done", "classify": "settings"}


def test_a_knob_of_the_clusters_keeps_the_embeddings(data, copied, vit_file):
    found = fit(
        options(data, copied, f"method.teacher_weights={vit_file}", "method.early_exit=off")
    )
    assert found == {"teacher": "done", "subcategories": "settings", "classify": "settings"}


@pytest.mark.parametrize("setting", ["method.teacher_lr=0.01", "method.teacher_input=half"])
def test_a_knob_of_the_teacher_makes_everything_again(data, copied, vit_file, setting):
    found = fit(options(data, copied, f"method.teacher_weights={vit_file}", setting))
    assert set(found.values()) == {"settings"}
    assert any(p.name.startswith("teacher-") for p in (copied / "stale").iterdir())


def test_other_weights_under_the_same_name_are_noticed(data, copied, vit_file, tmp_path):
    own = tmp_path / "vit.pth"
    shutil.copy(vit_file, own)
    given = options(data, copied, f"method.teacher_weights={own}")
    fit(given)
    torch.save(Vit(TINY).state_dict(), own)
    assert fit(given)["teacher"] == "settings"


def test_clusters_of_validation_images_too(data, copied, vit_file):
    found = fit(
        options(data, copied, f"method.teacher_weights={vit_file}", "method.cluster=train+val")
    )
    assert set(found.values()) == {"settings"}
    pipeline = make_plan(
        options(data, copied, f"method.teacher_weights={vit_file}", "method.cluster=train+val")
    )
    everyone = [*pipeline.context.tagged, *pipeline.context.validation]
    stored = Subcategories.read(copied / "subcategories" / "subcategories.npz")
    assert stored.ids == [record.id for record in everyone]
    assert (
        stored.labels.sum(1).tolist()
        == pipeline.context.dataset.tag_matrix(everyone).sum(1).tolist()
    )
    assert stages(copied)["classify"]["outputs"]["images"] == 12


def test_the_default_clusters_no_validation_image(data, finished):
    stored = Subcategories.read(finished / "subcategories" / "subcategories.npz")
    names = next(data.glob("ImageSets/*/train.txt")).read_text().split()
    assert stored.ids == names


def test_missing_embeddings_are_made_without_training_the_teacher(
    data, finished, tmp_path, vit_file, tiny, monkeypatch
):
    run, made = tmp_path / "run", subcategory_teaching.embed_stretched
    given = options(data, run, f"method.teacher_weights={vit_file}")

    def broken(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(subcategory_teaching, "embed_stretched", broken)
    with pytest.raises(KeyboardInterrupt):
        fit(given)
    assert stages(run)["teacher"]["status"] == "failed"
    before = (run / "teacher" / "model.pt").stat().st_mtime_ns
    monkeypatch.setattr(subcategory_teaching, "embed_stretched", made)
    assert set(fit(given).values()) == {"to do"}
    assert (run / "teacher" / "model.pt").stat().st_mtime_ns == before
    for name in ("teacher", "classify"):
        one, other = (
            torch.load(root / name / "model.pt", weights_only=True)["state"]
            for root in (run, finished)
        )
        assert all(torch.equal(tensor, other[key]) for key, tensor in one.items())


def test_the_backbone_as_teacher(data, tmp_path, tiny):
    run = tmp_path / "run"
    fit(options(data, run, "method.teacher=backbone"))
    assert Embeddings.read(run / "teacher" / "embeddings.npz").values.shape == (12, 6)
    state = torch.load(run / "teacher" / "model.pt", weights_only=True)["state"]
    assert "classifier.weight" in state
    assert "subcategory_classifier.weight" not in state
    assert fit(options(data, run, "method.teacher=backbone", "method.weight=3")) == {
        "teacher": "done",
        "subcategories": "done",
        "classify": "settings",
    }
    # This teacher is made by the student's recipe and pooling.
    assert set(
        fit(options(data, run, "method.teacher=backbone", "method.pooling=gmp")).values()
    ) == {"settings"}
    assert set(fit(options(data, run, "method.teacher=backbone", "classify.lr=1e-4")).values()) == {
        "settings"
    }
    # No file is looked for.
    make_plan(options(data, run, "method.teacher=backbone", "method.teacher_weights=nothing.pth"))


def test_a_vit_from_scratch_and_a_real_student(data, tmp_path):
    run = tmp_path / "run"
    settings = ("method.teacher=vit_tiny", "method.teacher_weights=none", "method.teacher_epochs=1")
    fit(options(data, run, *settings, backbone="resnet18"))
    assert Embeddings.read(run / "teacher" / "embeddings.npz").values.shape == (12, 192)
    rows = (run / "metrics.csv").read_text()
    assert "teacher,1,1,loss_cls" in rows
    assert "classify,1,1,loss_sub" in rows


def test_classes_with_one_or_two_images(data, tmp_path, vit_file, tiny):
    names = sorted(p.stem for p in (data / "JPEGImages").iterdir())[:9]
    folder = tmp_path / "few"
    folder.mkdir()
    rows = ["image,tag", f"{names[0]}.jpg,alone", f"{names[1]}.jpg,pair", f"{names[2]}.jpg,pair"]
    rows += [f"{name}.jpg,common" for name in names[2:]]
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    for name in names:
        shutil.copy(data / "JPEGImages" / f"{name}.jpg", folder)
    run = tmp_path / "run"
    fit(options(folder, run, f"method.teacher_weights={vit_file}", train_list="all"))
    counts = stages(run)["subcategories"]["metrics"]
    assert (counts["alone"], counts["pair"]) == (1, 1)
    assert counts["common"] >= 1
