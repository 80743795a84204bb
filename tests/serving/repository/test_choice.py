from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest
import tiny_models
from configs import configured

from serving.card import read_card
from serving.config import EngineConfig, ScheduleConfig
from serving.engines import Plan, Stop
from serving.engines.onnxruntime import OnnxRuntimeEngine
from serving.errors import EngineError, OutputError, RepositoryError
from serving.repository import choice
from serving.repository.agreement import MIN_EQUAL, SCENES, agreement, made_pictures, pictures
from serving.repository.choice import choose_engine, limited, on_processors, resolve
from serving.repository.loading import plan_for
from serving.repository.served import build
from serving.repository.soundness import golden_image


class Off:
    """Another engine whose label is wrong on some share of the pixels of every mask, or whose maps
    are shifted.
    """

    precision = "bf16"

    def __init__(self, card, share=0.0, shift=0.0, precision="bf16", error=None):
        self.engine, self.share, self.shift, self.error = (
            OnnxRuntimeEngine(card),
            share,
            shift,
            error,
        )
        self.inputs, self.outputs = self.engine.inputs, self.engine.outputs
        self.description, self.precision = "openvino 1 CPU bf16", precision
        self.closed = False

    def run(self, inputs, stop=None):
        if self.error:
            raise self.error
        outputs = self.engine.run(inputs)
        if "mask" in outputs:
            mask = outputs["mask"].copy()
            mask.reshape(-1)[: round(self.share * mask.size)] ^= 1
            outputs["mask"] = mask
        else:
            outputs["cam"] = outputs["cam"] + np.float32(self.shift)
        return outputs

    def close(self):
        self.closed = True


@pytest.fixture
def card(repository):
    return read_card(repository / "colours" / "1")


@pytest.fixture
def pretend(monkeypatch):
    """OpenVINO as said by the test."""
    import serving.engines.openvino as module

    def as_if(**facts):
        monkeypatch.setattr(choice, "_has_openvino", lambda: True)
        monkeypatch.setattr(
            module, "OpenVinoEngine", lambda card, plan, exact=False: Off(card, **facts)
        )

    return as_if


def test_agreement_is_the_share_of_equal_pixels(card, repository):
    exact = OnnxRuntimeEngine(card)
    assert agreement(card, exact, exact) == 1.0
    assert agreement(card, Off(card, share=0.01), exact) == pytest.approx(0.99, abs=1e-4)
    cam = read_card(repository / "maps" / "1")
    maps = OnnxRuntimeEngine(cam)
    assert agreement(cam, Off(cam), maps) == 1.0
    assert 0.5 < agreement(cam, Off(cam, shift=0.05), maps) < 0.99
    without = replace(cam, background_threshold=None)
    assert agreement(without, Off(cam, shift=0.05), maps) < 0.99


def test_pictures_of_one_label_prove_nothing(card):
    class Blank(Off):
        def run(self, inputs, stop=None):
            outputs = super().run(inputs)
            return outputs | {"mask": np.zeros_like(outputs["mask"])}

    with pytest.raises(EngineError, match="single label"):
        agreement(card, Blank(card), Blank(card))
    assert agreement(card, Blank(card), OnnxRuntimeEngine(card)) < 0.9


def test_the_golden_image_is_compared_too(tmp_path):
    card = read_card(tiny_models.export(tmp_path, golden=True))
    first, *made = pictures(card)
    np.testing.assert_array_equal(first.pixels, golden_image(card))
    assert len(made) == len(SCENES)


def test_made_pictures_are_the_same_at_every_call():
    first, again = ([picture.pixels for picture in made_pictures()] for _ in range(2))
    assert [pixels.shape[:2] for pixels in first] == list(SCENES)
    for one, other in zip(first, again):
        np.testing.assert_array_equal(one, other)
        assert one.std() > 20


def test_numbers_that_are_not_finite_are_no_agreement(repository):
    cam = read_card(repository / "maps" / "1")
    with pytest.raises(OutputError, match="not finite"):
        agreement(cam, Off(cam, shift=np.nan), OnnxRuntimeEngine(cam))


def test_openvino_is_chosen_if_its_masks_agree(card, pretend, caplog):
    caplog.set_level(logging.INFO)
    pretend(share=0.004)
    engine = choose_engine(card, Plan(), EngineConfig())
    assert engine.description == "openvino 1 CPU bf16, 99.60% of pixels as onnxruntime fp32"
    assert "model colours runs on openvino 1 CPU bf16, 99.60%" in caplog.text


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"share": 0.006}, "99.40% of pixels are equal, 99.5% are required"),
        ({"precision": "fp32"}, "these processors do not multiply in bfloat16"),
        (
            {"error": RuntimeError("no such\noperator")},
            "model.onnx fails on an image of 8x8: no such",
        ),
    ],
)
def test_onnxruntime_is_chosen_otherwise_and_the_log_says_why(card, pretend, caplog, facts, reason):
    caplog.set_level(logging.INFO)
    pretend(**facts)
    engine = choose_engine(card, Plan(), EngineConfig())
    assert engine.description.startswith("onnxruntime ")
    assert " CPU, not on OpenVINO: " in caplog.messages[-1]
    assert caplog.messages[-1].endswith(reason)
    assert MIN_EQUAL == 0.995


def test_openvino_is_not_chosen_if_it_breaks_the_cards_promise(tmp_path, pretend, caplog):
    caplog.set_level(logging.INFO)
    pretend(share=0.2)
    card = read_card(tiny_models.export(tmp_path, golden=True))
    assert choose_engine(card, Plan(), EngineConfig()).description.startswith("onnxruntime")
    assert "not on OpenVINO: " in caplog.text
    assert "of its golden output" in caplog.text


def test_no_other_engine_is_tried_for_exact_answers(card, tmp_path, pretend):
    pretend(error=AssertionError("tried"))
    assert choose_engine(card, Plan(), EngineConfig(precision="fp32")).description.startswith(
        "onnxruntime"
    )
    tensors = read_card(tiny_models.export(tmp_path, "sums", "tensor"))
    assert choose_engine(tensors, Plan(), EngineConfig()).description.startswith("onnxruntime")


def test_without_openvino(card, monkeypatch):
    monkeypatch.setattr(choice, "_has_openvino", lambda: False)
    assert choose_engine(card, Plan(), EngineConfig()).description.startswith("onnxruntime")
    with pytest.raises(
        EngineError, match=r"openvino is not installed\ntry: pip install 'wsss\[openvino\]'"
    ):
        choose_engine(card, Plan(), EngineConfig("openvino"))


def test_an_engine_that_is_named_is_used_or_nothing(card, pretend):
    pretend(share=1.0)
    assert choose_engine(card, Plan(), EngineConfig("openvino")).description.startswith("openvino")
    only = EngineConfig("openvino", models={"colours": "onnxruntime"})
    assert choose_engine(card, Plan(), only).description.startswith("onnxruntime")
    assert (resolve(card, only), resolve(replace(card, name="other"), only)) == (
        "onnxruntime",
        "openvino",
    )


def test_limits_of_the_settings(card):
    assert limited(card, EngineConfig()) is card
    assert limited(card, EngineConfig(max_side=300)) is card
    small = limited(card, EngineConfig(max_side=64))
    assert (small.max_side, small.max_pixels, small.min_side) == (64, 4096, 8)
    assert limited(card, EngineConfig(max_side=4)).max_side == card.min_side
    large = replace(card, max_side=4096, max_pixels=4096**2)
    for name in ("tensorrt", "onnxruntime-tensorrt"):
        assert limited(large, EngineConfig(name)).max_side == 1024
        assert limited(large, EngineConfig(name, max_side=2048)).max_side == 2048
    assert limited(large, EngineConfig("onnxruntime-cuda")) is large


def test_a_trial_is_on_the_processors(card):
    for name in ("onnxruntime-cuda", "onnxruntime-tensorrt", "tensorrt"):
        assert (
            on_processors(card, EngineConfig(name, models={"colours": name})).name_for("colours")
            == "onnxruntime"
        )
    assert on_processors(card, EngineConfig("openvino")).name == "openvino"


def test_plans_suit_the_engine(card):
    schedule = ScheduleConfig(warm=("30x50", "200x100"), bucket=32)
    plan = plan_for(card, schedule, EngineConfig("tensorrt"))
    assert (plan.workers, plan.threads, plan.max_batch) == (2, 1, 8)
    assert plan.sizes == ((32, 64), (224, 128))
    assert plan_for(card, schedule, EngineConfig("onnxruntime")).max_batch == 1
    own = replace(schedule, workers=3, threads=5, max_batch=7)
    assert plan_for(card, own, EngineConfig("tensorrt")) == replace(
        plan, workers=3, threads=5, max_batch=7
    )


def test_a_server_without_the_engine_that_it_is_told_to_use_does_not_start(repository, run_server):
    config = configured(repository, engine__name="onnxruntime-cuda")
    with pytest.raises(RepositoryError, match="has no CUDAExecutionProvider"), run_server(config):
        pass


def test_a_model_of_its_own_engine(repository):
    pytest.importorskip("openvino")
    config = configured(repository, engine__models={"maps": "openvino"})
    found = {name: build(repository / name / "1", config, Stop()) for name in ("colours", "maps")}
    assert {name: served.engine.description.split()[0] for name, served in found.items()} == {
        "colours": "onnxruntime",
        "maps": "openvino",
    }
    for served in found.values():
        served.batcher.close()
        served.engine.close()
