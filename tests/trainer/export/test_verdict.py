"""Mask and verdict of an exported segmenter agree, and its thresholds come from training tags."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from tiny_graphs import make
from torch import nn

from trainer.data.dataset import Dataset, Record
from trainer.evaluation.score_threshold import ScoreThreshold
from trainer.export.onnx_graph import to_onnx
from trainer.export.parity import difference
from trainer.export.score_thresholds import card_entry, segmenter_thresholds, spread
from trainer.nets.graphs import SegmenterGraph
from trainer.run import Run


def logits_graph() -> SegmenterGraph:
    graph = make("segmenter multi")
    return SegmenterGraph(graph.net, (0.5, 1), True, merge="logits")


GRAPHS = {
    "one view": lambda: make("segmenter"),
    "probabilities": lambda: make("segmenter multi"),
    "logits": logits_graph,
}


def images(count: int) -> torch.Tensor:
    rng = np.random.default_rng(0)
    cells = rng.integers(0, 256, (count, 5, 6, 3), dtype=np.uint8)
    return torch.from_numpy(np.kron(cells, np.ones((1, 8, 8, 1), np.uint8)))


def strict(graph: SegmenterGraph, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Thresholds that half of the images pass in each class, and the mask without them."""
    with torch.inference_mode():
        mask, scores, _ = graph(batch)
    return scores.median(0).values + 1e-4, mask


@pytest.mark.parametrize("kind", GRAPHS)
def test_the_mask_holds_no_class_under_its_threshold(kind: str) -> None:
    graph, batch = GRAPHS[kind](), images(12)
    least, before = strict(graph, batch)
    with torch.inference_mode():
        _, plain, sure = graph(batch)
        graph.require_scores(least.tolist())
        mask, scores, confidence = graph(batch)
    assert torch.equal(scores, plain)
    changed = 0
    for one, old, score, now, earlier in zip(mask, before, scores, confidence, sure, strict=True):
        absent = {k + 1 for k in range(3) if score[k] < least[k]}
        assert not absent & set(one.unique().tolist())
        # Where the winner may stay it does, and its share among the others can only grow.
        stays = ~torch.isin(old.int(), torch.tensor(sorted(absent)))
        assert torch.equal(one[stays], old[stays])
        assert (now[stays].int() >= earlier[stays].int() - 1).all()
        changed += int((~stays).sum())
    assert changed > 100


def test_a_score_at_its_threshold_is_no_fault_of_the_mask() -> None:
    """Rounding decides whether such a class may win; another score is a fault all the same."""
    graph, batch = make("segmenter"), images(1)
    with torch.inference_mode():
        _, scores, _ = graph(batch)
    graph.require_scores(scores[0].tolist())
    below = scores - 1e-7
    with torch.inference_mode():
        mask, confidence = graph.mask(batch, [graph.run(graph.views(batch)[0])[0]], below)
    outputs = {"mask": mask, "scores": below, "confidence": confidence}
    arrays = {name: value.numpy() for name, value in outputs.items()}
    gaps = difference(graph, batch.numpy(), arrays)
    assert gaps["mask"] == gaps["confidence"] == [1.0]
    assert 0 < gaps["scores"][0] < 1e-6
    assert not mask.any()
    gaps = difference(graph, batch.numpy(), arrays | {"mask": mask.numpy() + 1})
    assert gaps["mask"] == [0.0]


def test_pixels_of_an_absent_class_go_to_the_next_best() -> None:
    graph, batch = make("segmenter"), images(4)
    with torch.inference_mode():
        (logits,) = graph.run(graph.views(batch)[0])
        large = torch.stack(graph.to_image(list(logits.unbind(1)), batch.shape[1:3], 1.0), 1)
        graph.require_scores([2.0, 0.0, 2.0])
        mask, _, confidence = graph(batch)
    chance = large[:, [0, 2]].softmax(1)
    assert torch.equal(mask.long(), 2 * chance.argmax(1))
    assert (confidence.int() - (255 * chance.amax(1)).round().int()).abs().max() <= 1


@pytest.mark.parametrize("kind", GRAPHS)
def test_the_onnx_graph_agrees_too_image_by_image(kind: str) -> None:
    graph, batch = GRAPHS[kind](), images(6)
    least, _ = strict(graph, batch)
    graph.require_scores(least.tolist())
    session = onnxruntime.InferenceSession(
        to_onnx(graph).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    mask, scores, _ = session.run(None, {"image": batch.numpy()})
    with torch.inference_mode():
        true = graph(batch)[0].numpy()
    assert (mask == true).mean() > 0.999
    verdicts = scores >= np.float32(least.numpy())
    assert len(np.unique(verdicts, axis=0)) > 1
    for one, verdict in zip(mask, verdicts, strict=True):
        assert set(np.unique(one)) <= {0, *(np.flatnonzero(verdict) + 1).tolist()}
    assert "reach their score threshold" in graph.protocol()


class Bright(nn.Module):
    """The class of a channel where it is bright."""

    def forward(self, images_B3hw: torch.Tensor) -> torch.Tensor:
        ground = torch.zeros_like(images_B3hw[:, :1])
        return torch.cat([ground, images_B3hw], 1)


def test_thresholds_of_a_segmenter_are_chosen_on_the_tags_of_training_images(
    tmp_path: Path,
) -> None:
    rng, records = np.random.default_rng(0), {}
    for n in range(24):
        tags = (n % 3,) if n % 4 else ()
        pixels = np.zeros((20, 24, 3), np.uint8)
        for k in tags:
            pixels[4:9, 5:11, k] = rng.integers(150, 256)
        Image.fromarray(pixels).save(tmp_path / f"{n}.png")
        unknown = (0,) if n == 20 else ()
        records[str(n)] = Record(str(n), tmp_path / f"{n}.png", tags, unknown=unknown)
    lists = {"train": tuple(records)}
    dataset = Dataset(tmp_path, "folder", ("r", "g", "b"), (1, 2, 3), records, lists, "test")
    run = Run(tmp_path / "run")
    run.manifest["train_list"] = "train"
    graph = SegmenterGraph(Bright())
    thresholds = segmenter_thresholds(run, dataset, graph)
    assert all(t.folds == 5 and t.f1 == 1 for t in thresholds)
    graph.require_scores([t.value for t in thresholds])
    for record in records.values():
        image = torch.from_numpy(np.array(Image.open(record.image)))[None]
        mask, scores, _ = graph(image)
        present = {k for k in range(3) if scores[0, k] >= thresholds[k].value}
        assert present == set(record.tags)
        assert set(mask.unique().tolist()) - {0} == {k + 1 for k in present}


def test_rare_classes_are_looked_at_first() -> None:
    tags = [(0,)] * 50 + [()] * 40 + [(1,)] * 3 + [(0, 1)] * 2
    records = [Record(str(n), Path("x"), tag) for n, tag in enumerate(tags)]
    some = spread(records, 20)
    assert len(some) == 20
    assert sum(1 in record.tags for record in some) == 5
    assert sum(not record.tags for record in some) >= 7
    assert [record for record in records if record in some] == some
    assert spread(records, 1000) == records


def test_the_card_keeps_one_number_for_older_servers() -> None:
    entry = card_entry([ScoreThreshold(0.7, 5, 0.9), ScoreThreshold()], ["cat", "dog"], "train")
    assert entry["score"] == 0.5
    assert entry["scores"] == [0.7, 0.5]
    assert entry["scores_f1"] == {"cat": 0.9, "dog": None}
    assert "tags of train" in entry["scores_from"]
