import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from trainer.data.dataset import Record
from trainer.outcome import logged_losses, signs
from trainer.run import Metrics

CLASSES = ("crack", "blowhole")
SWITCHES = dict.fromkeys(("balance", "balanced", "verdict"), False)


def context(
    folder: Path, records: list[Record], stability: float = 0.6, detail: str = "coarse"
) -> SimpleNamespace:
    dataset = SimpleNamespace(classes=CLASSES, subset=lambda name: records)
    training = SimpleNamespace(lr=0.1, detail=detail, **SWITCHES)
    return SimpleNamespace(
        run=SimpleNamespace(path=folder, metrics=lambda name: {"stability": stability}),
        dataset=dataset,
        labelled=[record for record in records if record.tags],
        measured_lists=["val"],
        configs=SimpleNamespace(classify=training, segment=training),
    )


def with_masks(folder: Path, *masks: tuple[tuple[int, ...], int, int]) -> list[Record]:
    """Records with tags, whose masks of 100 x 100 pixels have so many pixels of a label."""
    folder.mkdir(parents=True)
    records = []
    for i, (tags, label, pixels) in enumerate(masks):
        mask = np.zeros(10_000, np.uint8)
        mask[:pixels] = label
        Image.fromarray(mask.reshape(100, 100)).save(folder / f"m{i}.png")
        records.append(Record(f"m{i}", Path("x.jpg"), tags))
    return records


def logs(folder: Path, stage: str, losses: list[float]) -> None:
    metrics = Metrics(folder / "metrics.csv", stage)
    for step, loss in enumerate(losses, 1):
        metrics.write(1, 10 * step, {"loss_cls": 0.5, "loss": loss})


def test_a_loss_that_does_not_fall_is_told_with_the_rate(tmp_path):
    logs(tmp_path, "classify", [0.7, 0.69, 0.71, 0.7, 0.69, 0.7])
    logs(tmp_path, "segment", [0.7, 0.6, 0.5, 0.4, 0.3, 0.3])
    assert logged_losses(tmp_path / "metrics.csv", "segment") == [0.7, 0.6, 0.5, 0.4, 0.3, 0.3]
    run = context(tmp_path, [])
    (text,) = signs("classify", run)
    assert "did not fall: 0.7 at the start" in text
    assert "it was 0.1" in text
    assert signs("segment_train", run) == []


def test_a_loss_that_diverged_asks_for_a_lower_rate(tmp_path):
    logs(tmp_path, "segment", [2.0, 6.7, 11.0, 46.0, 114.0, 386.0])
    (text,) = signs("segment_train", context(tmp_path, []))
    assert "386 at the end; try a lower rate (--set segment.lr=..., it was 0.1)" in text
    assert "--set segment.clip=1" in text


def test_maps_that_differ_between_scales_are_told(tmp_path):
    assert signs("cams", context(tmp_path, [])) == []
    (text,) = signs("cams", context(tmp_path, [], stability=0.1))
    assert "IoU 0.10" in text
    assert "--detail fine" in text
    (text,) = signs("cams", context(tmp_path, [], stability=0.1, detail="fine"))
    assert "--detail" not in text


def test_too_few_losses_say_nothing(tmp_path):
    logs(tmp_path, "classify", [0.7, 0.7])
    assert signs("classify", context(tmp_path, [])) == []


@pytest.mark.parametrize(
    ("masks", "words"),
    [
        ([((0,), 1, 9_900), ((1,), 2, 9_900)], "cover 99 %"),
        ([((0,), 1, 0), ((1,), 2, 1)], "cover 0.005 %"),
        ([((0,), 1, 400), ((1,), 1, 400)], "no mask shows blowhole"),
        ([((0,), 1, 400), ((1,), 2, 40)], ""),
    ],
)
def test_masks_of_everything_or_nothing_and_classes_that_never_win(tmp_path, masks, words):
    records = with_masks(tmp_path / "masks", *masks)
    texts = signs("refine", context(tmp_path, records))
    assert [words in text for text in texts] == ([True] if words else [])


@pytest.mark.parametrize(
    ("masks", "words"),
    [
        (
            [((0,), 1, 0), ((1,), 1, 0), ((), 1, 500)],
            "the segmenter predicts background alone",
        ),
        ([((0,), 1, 30), ((1,), 1, 30)], "predicts no pixel of blowhole"),
        ([((0,), 1, 30), ((1,), 2, 30)], ""),
        (
            [((0,), 1, 30), ((1,), 2, 30), *[((), 1, 5)] * 2, *[((), 0, 5)] * 3],
            "sees objects in 2 of 5 images that show no class",
        ),
        ([((0,), 1, 30), ((1,), 2, 30), ((), 1, 5), *[((), 0, 5)] * 4], ""),
    ],
)
def test_a_segmenter_that_sees_background_alone(tmp_path, masks, words):
    records = with_masks(tmp_path / "segment" / "predictions" / "val", *masks)
    texts = signs("segment", context(tmp_path, records))
    assert [words in text for text in texts] == ([True] if words else [])


def test_nobody_is_told_to_set_what_is_set(tmp_path):
    folder = tmp_path / "segment" / "predictions" / "val"
    records = with_masks(folder, ((0,), 1, 30), *[((), 1, 5)] * 5)
    run = context(tmp_path, records)
    (text,) = signs("segment", run)
    assert text.endswith("try --set segment.verdict=on, or wsss-trainer ask for a few true masks")
    vars(run.configs.segment).update(verdict=True, balanced=True)
    (text,) = signs("segment", run)
    assert text.endswith("try --set segment.balanced=off, or wsss-trainer ask for a few true masks")
    records[0] = Record("m0", Path("x.jpg"), (0, 1))
    (_, text) = signs("segment", run)
    assert "try --set classify.balance=on, --set segment.balance=on, or more images" in text
    run.configs.classify.balance = True
    (_, text) = signs("segment", run)
    assert text.endswith("try more images of them")


def figures(auroc: float, low: float) -> dict[str, object]:
    return {"auroc": auroc, "auroc_interval": {"low": low, "high": 1.0}}


def test_a_classifier_no_better_than_chance_on_other_images(tmp_path):
    classes = {"crack": figures(0.95, 0.9), "blowhole": figures(0.52, 0.41)}
    entry = {"any": figures(0.9, 0.8), "classes": classes}
    evaluation = {"val": entry | {"trained_on": 0}, "train": entry | {"trained_on": 9}}
    (tmp_path / "evaluation.json").write_text(json.dumps({"classifier": evaluation}))
    (text,) = signs("evaluate", context(tmp_path, []))
    assert "on 'val' the classifier finds blowhole no better than chance (AUROC 0.52" in text


def test_other_stages_show_nothing(tmp_path):
    assert signs("cams", context(tmp_path, [])) == []
