"""Stage ``scores``."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_nets import TinyBackbone, pictures

from trainer.data.pixels import read_image
from trainer.data.transforms import normalise, to_tensor
from trainer.evaluation.image_scores import FILE, ImageScores
from trainer.evaluation.measure_classifier import VIEWS
from trainer.maps.protocols import CamsConfig
from trainer.methods.cam import Cam, Config
from trainer.methods.recipes import ClassifyConfig
from trainer.run import Output
from trainer.stages import scores


class Killed(BaseException):
    """As a signal ends a process."""


@pytest.fixture
def context(tmp_path) -> Any:
    data = pictures(tmp_path / "data")
    return SimpleNamespace(
        run=SimpleNamespace(path=tmp_path / "run"),
        dataset=data,
        scored=data.subset("all"),
        configs=SimpleNamespace(cams=CamsConfig(batch=1, workers=0), classify=ClassifyConfig()),
        device="cpu",
    )


@pytest.fixture
def method(monkeypatch) -> Cam:
    torch.manual_seed(0)
    method = Cam(Config(), TinyBackbone(), 3)
    monkeypatch.setattr(scores, "trained_method", lambda _: method)
    return method


@pytest.fixture
def seen(method) -> list[int]:
    """The number of images of each batch that the network sees."""
    batches: list[int] = []
    method.register_forward_pre_hook(lambda _, inputs: batches.append(len(inputs[0])))
    return batches


def work(context: Any) -> tuple[ImageScores, dict[str, Any]]:
    output = Output(context.run.path / "scores")
    scores.stage().work(context, output)
    return ImageScores.read(context.run.path / FILE), output.outputs


def test_a_killed_stage_keeps_the_scores_that_it_has(context, seen, tmp_path, monkeypatch):
    whole, outputs = work(context)
    assert whole.ids == tuple(record.id for record in context.scored)
    assert outputs == {"count": 6, "made": 6}
    seen.clear()
    context.run.path = tmp_path / "killed"
    monkeypatch.setattr(scores, "SAVE_EVERY", 0.0)
    write, tables = ImageScores.write, []

    def killed_at_four(table: ImageScores, path: Any) -> None:
        tables.append(len(table.ids))
        write(table, path)
        if tables == [1, 2, 3, 4]:
            raise Killed

    monkeypatch.setattr(ImageScores, "write", killed_at_four)
    with pytest.raises(Killed):
        work(context)
    # Each image, and its mirror image.
    assert sum(seen) == 4 * 2
    resumed, outputs = work(context)
    assert sum(seen) == 6 * 2
    assert outputs == {"count": 6, "made": 2}
    assert (resumed.ids, resumed.class_names) == (whole.ids, whole.class_names)
    np.testing.assert_allclose(resumed.scores, whole.scores, atol=1e-6)


@pytest.mark.parametrize(
    ("upright", "axes"), [(True, [(), (1,)]), (False, [(), (1,), (0,), (0, 1)])]
)
def test_a_score_is_that_of_all_orientations_that_the_training_saw(context, method, upright, axes):
    context.configs.classify = ClassifyConfig(upright=upright)
    output = Output(context.run.path / "scores")
    scores.stage().work(context, output)
    # Protocol lines say so.
    assert output.metrics["views"] == len(axes)
    assert len(axes) in VIEWS
    table = ImageScores.read(context.run.path / FILE)
    method.eval()
    for record, row in zip(context.scored, table.scores, strict=True):
        pixels = read_image(record.image)
        views = [to_tensor(normalise(np.flip(pixels, axis).copy()))[None] for axis in axes]
        with torch.no_grad():
            logits = torch.stack([method(view)[0] for view in views])
        np.testing.assert_allclose(row, logits.mean(0).sigmoid(), atol=1e-5)


def test_a_damaged_table_is_made_again(context, seen):
    whole, _ = work(context)
    path = context.run.path / FILE
    path.write_bytes(path.read_bytes()[:-20])
    again, outputs = work(context)
    assert outputs["made"] == 6
    assert np.array_equal(again.scores, whole.scores)
