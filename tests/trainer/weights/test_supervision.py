"""Extra supervision is named wherever numbers stand."""

from __future__ import annotations

import pytest
import torch

from trainer.export.card import card_from_manifest
from trainer.weights.checkpoints import read_checkpoint
from trainer.weights.supervision import chained, initial_weights, is_extra, named


@pytest.mark.parametrize(
    "text", ["COCO masks", "masks", "pixel labels", "bounding boxes", "Points of 3 classes"]
)
def test_labels_that_say_where(text):
    assert is_extra(text)
    assert named(text) == f"{text} (EXTRA SUPERVISION: more than image tags)"


@pytest.mark.parametrize(
    "text", ["ImageNet tags", "image tags", "none (from scratch)", "pointed hats"]
)
def test_labels_that_do_not(text):
    assert not is_extra(text)
    assert named(text) == text


def test_what_nobody_knows_is_said():
    assert "unknown supervision" in named("unknown")
    assert "unknown supervision" in initial_weights({})


def test_a_training_on_tags_does_not_wash_masks_away():
    once = chained("image tags", "COCO masks")
    assert once == "image tags, from COCO masks"
    assert is_extra(chained("image tags", once))
    assert chained("image tags", "ImageNet tags") == "image tags"
    assert chained("masks", "COCO masks") == "masks"


def test_a_stage_answers_for_its_own_weights():
    manifest = {"supervision": "ImageNet tags", "segmenter_supervision": "COCO masks"}
    assert (
        initial_weights(manifest, "cams") == initial_weights(manifest, "refine") == "ImageNet tags"
    )
    assert (
        initial_weights(manifest, "segment")
        == f"ImageNet tags; of the segmenter: {named('COCO masks')}"
    )
    assert initial_weights(manifest, "segment_full") == named("COCO masks")
    assert "EXTRA" in initial_weights(manifest)
    assert initial_weights({"supervision": "masks"}, "segment") == named("masks")


def test_the_card_of_a_model_says_it():
    manifest = {
        "supervision": "ImageNet tags",
        "segmenter_supervision": "COCO masks",
        "method": "cam",
        "backbone": "resnet38",
        "seed": 0,
        "data": {"classes": ["cat"], "fingerprint": "f"},
    }
    assert "EXTRA SUPERVISION" in card_from_manifest(manifest, "segmenter", "run")["supervision"]
    assert card_from_manifest(manifest, "cam", "run")["supervision"] == "ImageNet tags"


@pytest.mark.parametrize(
    ("identity", "supervision"),
    [
        ({"classes": ["cat"]}, "image tags"),
        ({"initial": "COCO masks", "supervision": "tags"}, "image tags, from COCO masks"),
        ({"initial": "ImageNet tags", "supervision": "true masks"}, "masks"),
    ],
)
def test_a_file_of_a_run_remembers_what_it_started_from(tmp_path, identity, supervision):
    torch.save({"identity": identity, "state": {"w": torch.zeros(1)}}, tmp_path / "model.pt")
    assert read_checkpoint(tmp_path / "model.pt").supervision == supervision
