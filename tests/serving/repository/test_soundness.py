from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import tiny_models
from configs import EXACT
from onnx import TensorProto, helper

from serving.card import read_card
from serving.config import ScheduleConfig
from serving.engines import Plan
from serving.engines.onnxruntime import OnnxRuntimeEngine
from serving.errors import ConfigError, RepositoryError
from serving.repository.loading import open_engine, open_warm_engine
from serving.repository.soundness import check_promise, read_size, warm_inputs, warm_up


class Lying:
    """A sound engine with some outputs exchanged."""

    def __init__(self, card, **changes):
        self.engine = OnnxRuntimeEngine(card)
        self.inputs, self.outputs = self.engine.inputs, self.engine.outputs
        self.changes = changes
        self.shapes = []

    def run(self, inputs, stop=None):
        self.shapes.append({name: values.shape for name, values in inputs.items()})
        outputs = self.engine.run(inputs)
        return outputs | {name: change(outputs[name]) for name, change in self.changes.items()}


def test_sound_models_open(repository, tmp_path):
    for name in ("colours", "maps"):
        assert open_engine(
            read_card(repository / name / "1"), Plan(), EXACT
        ).description.startswith("onnxruntime")
    assert open_engine(read_card(tiny_models.export(tmp_path, "sums", "tensor")), Plan(), EXACT)


def test_the_graph_must_keep_its_cards_promise(tmp_path):
    folder = tiny_models.export(tmp_path, "maps", "cam")
    segmenter = tiny_models.card("maps", 1, "segmenter", "")
    tiny_models.change_card(folder, kind="segmenter", outputs=segmenter["outputs"])
    with pytest.raises(RepositoryError, match="outputs"):
        open_engine(read_card(folder), Plan(), EXACT)
    cam = tiny_models.card("maps", 1, "cam", "")
    few = {"classes": ["a"], "labels": ["b", "a"], "palette": [[0, 0, 0], [1, 1, 1]]}
    tiny_models.change_card(folder, kind="cam", outputs=cam["outputs"], **few)
    with pytest.raises(RepositoryError, match="is float32"):
        open_engine(read_card(folder), Plan(), EXACT)
    (folder / "model.onnx").write_bytes(b"")
    with pytest.raises(RepositoryError, match="SHA-256"):
        open_engine(read_card(folder), Plan(), EXACT)


def test_doubt_is_part_of_the_promise_of_a_card_that_has_it(tmp_path):
    folder = tiny_models.export(tmp_path, golden=True, doubt=True)
    card = read_card(folder)
    assert card.gives_doubt
    assert card.doubt["from"] == "pseudo masks of train"
    check_promise(card, OnnxRuntimeEngine(card))
    for change, problem in (
        (lambda a: a + 2, "doubt of colours are 2"),
        (lambda a: a * 0, "scores are up to 0."),
        (lambda a: a[:, 0], "output 'doubt' of colours is float32"),
    ):
        with pytest.raises(RepositoryError, match=problem):
            check_promise(card, Lying(card, doubt=change))
    golden = json.loads((folder / "model.json").read_text())["golden"]
    # Golden images of other exporters may know nothing of it.
    tiny_models.change_card(folder, golden={k: v for k, v in golden.items() if k != "doubt"})
    card = read_card(folder)
    check_promise(card, Lying(card, doubt=lambda a: a * 0))
    other = tiny_models.export(tmp_path, "other", doubt=True)
    tiny_models.save_graph(other, tiny_models.graph("segmenter"))
    with pytest.raises(RepositoryError, match="'doubt'"):
        open_engine(read_card(other), Plan(), EXACT)


def test_a_graph_with_doubt_and_a_card_without_it_has_none(tmp_path):
    folder = tiny_models.export(tmp_path)
    tiny_models.save_graph(folder, tiny_models.graph("segmenter", doubt=True))
    card = read_card(folder)
    assert not card.gives_doubt
    image = np.zeros((1, 16, 16, 3), np.uint8)
    assert "doubt" not in OnnxRuntimeEngine(card).run({"image": image})


@pytest.mark.parametrize(
    ("name", "output", "change", "told"),
    [
        ("colours", "scores", lambda a: a * np.float32("nan"), "scores of colours are nan to nan"),
        ("colours", "scores", lambda a: a + 3, "scores of colours are 3.5 to 3.5"),
        ("colours", "mask", lambda a: a + np.uint8(9), "label 1[012]"),
        ("colours", "mask", lambda a: a[:, 1:], "'mask' of colours is uint8"),
        ("colours", "confidence", lambda a: a.astype(np.float32), "'confidence'"),
        ("maps", "cam", lambda a: a * np.float32("inf"), "cam of maps are inf to inf"),
        ("maps", "cam", lambda a: a - 1, "cam of maps are -0.498 to"),
        ("maps", "cam", lambda a: a[:, :2], "'cam'"),
    ],
)
def test_lies_of_a_graph_are_named(repository, name, output, change, told):
    card = read_card(repository / name / "1")
    with pytest.raises(RepositoryError, match=told):
        check_promise(card, Lying(card, **{output: change}))


def test_a_graph_that_fails_is_refused(repository):
    card = read_card(repository / "colours" / "1")

    def fail(values):
        raise RuntimeError("no memory")

    with pytest.raises(RepositoryError, match=r"fails on an image of 8x8: no memory"):
        check_promise(card, Lying(card, mask=fail))


def test_a_tensor_graph_without_a_free_batch_axis_is_refused(tmp_path):
    folder = tiny_models.export(tmp_path, "sums", "tensor")
    node = helper.make_node("Add", ["x", "x"], ["y"])
    tiny_models.save_graph(folder, tiny_models.small_graph([node], [1, 3]))
    with pytest.raises(RepositoryError, match=r"without a free batch axis: x \[1, 3\], y \[1, 3\]"):
        open_engine(read_card(folder), Plan(), EXACT)


def test_types_that_no_array_has_are_refused(tmp_path):
    folder = tiny_models.export(tmp_path, "sums", "tensor")
    info = helper.make_tensor_value_info
    node = helper.make_node("Identity", ["x"], ["y"])
    text = [info(name, TensorProto.STRING, ["N"]) for name in "xy"]
    made = helper.make_graph([node], "text", text[:1], text[1:])
    tiny_models.save_graph(
        folder, helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    )
    with pytest.raises(RepositoryError, match=r"'x' is a tensor\(string\)"):
        open_engine(read_card(folder), Plan(), EXACT)


@pytest.mark.parametrize(("name", "kind"), [("colours", "segmenter"), ("maps", "cam")])
def test_the_golden_image_is_run_and_compared(tmp_path, name, kind):
    folder = tiny_models.export(tmp_path, name, kind, golden=True)
    card = read_card(folder)
    assert card.golden
    engine = Lying(card)
    check_promise(card, engine)
    assert engine.shapes == [{"image": (1, 40, 56, 3)}]
    output = "mask" if kind == "segmenter" else "cam"

    def some(values):
        changed = values.copy()
        changed.reshape(-1)[:1] = 0
        return changed

    check_promise(card, Lying(card, **{output: some}))
    with pytest.raises(RepositoryError, match=r"matches [0-9.]+% of its golden output"):
        check_promise(card, Lying(card, **{output: lambda a: np.roll(a, 9, 2)}))
    with pytest.raises(RepositoryError, match=r"scores are up to 0\.150 off"):
        check_promise(card, Lying(card, scores=lambda a: a + np.float32(0.15)))


def test_the_golden_image_keeps_its_size_where_photographs_get_another(tmp_path):
    card = replace(read_card(tiny_models.export(tmp_path, golden=True)), side=100)
    engine = Lying(card)
    check_promise(card, engine)
    assert engine.shapes == [{"image": (1, 40, 56, 3)}]


def test_golden_files_that_are_none(tmp_path):
    folder = tiny_models.export(tmp_path, golden=True)
    card = read_card(folder)
    for name in ("golden_image.png", "golden_output.png"):
        good = (folder / name).read_bytes()
        (folder / name).write_bytes(b"no picture")
        with pytest.raises(RepositoryError, match=f"{name} cannot be read"):
            check_promise(card, OnnxRuntimeEngine(card))
        (folder / name).write_bytes(good)
    (folder / "golden_output.png").write_bytes((folder / "golden_image.png").read_bytes())
    with pytest.raises(RepositoryError, match="cannot be read: a RGB picture"):
        check_promise(card, OnnxRuntimeEngine(card))
    for wrong in ({"image": "other.png"}, {"scores": [0.5]}):
        tiny_models.change_card(
            folder, golden={"image": "golden_image.png", "output": "golden_output.png"} | wrong
        )
        with pytest.raises(RepositoryError, match=r"golden (names|does)|no field 'scores'"):
            read_card(folder)


def test_every_size_and_batch_is_warmed_up(repository):
    card = read_card(repository / "colours" / "1")
    engine = Lying(card)
    warm_up(card, engine, ["40x50", "30x33", "600x300"], bucket=16, max_batch=3)
    assert [shapes["image"] for shapes in engine.shapes] == [
        (batch, *size, 3)
        for size in ((16, 16), (48, 64), (32, 48), (256, 128))
        for batch in (1, 2, 3)
    ]


def test_shapes_of_tensor_models_to_warm_up(tmp_path):
    folder = tiny_models.export(tmp_path, "sums", "tensor")
    card = read_card(folder)
    assert [
        {name: (values.shape, values.dtype.name) for name, values in inputs.items()}
        for inputs in warm_inputs(card, OnnxRuntimeEngine(card), (), 1)
    ] == [{"x": ((1, 3), "float32"), "y": ((1, 3), "float32")}]
    free = tiny_models.small_graph([helper.make_node("Add", ["x", "x"], ["y"])], ["N", "H"])
    tiny_models.save_graph(folder, free)
    assert list(warm_inputs(read_card(folder), OnnxRuntimeEngine(read_card(folder)), (), 1)) == []
    tiny_models.change_card(folder, warm=[{"x": [5]}, {"x": [7]}, {"x": [5]}, {"z": [1]}])
    card = read_card(folder)
    assert [inputs["x"].shape for inputs in warm_inputs(card, OnnxRuntimeEngine(card), (), 1)] == [
        (1, 5),
        (1, 7),
    ]


def test_a_size_at_which_the_graph_fails_is_found_before_the_first_request(tmp_path):
    folder = tiny_models.export(tmp_path, "sums", "tensor")
    node = helper.make_node("MatMul", ["x", "x"], ["y"])
    tiny_models.save_graph(folder, tiny_models.small_graph([node], ["N", "H", "W"]))
    tiny_models.change_card(folder, warm=[{"x": [4, 4]}, {"x": [4, 5]}])
    with pytest.raises(RepositoryError, match=r"fails on x \[1, 4, 5\]"):
        open_warm_engine(read_card(folder), ScheduleConfig(), EXACT)


@pytest.mark.parametrize("text", ["", "40", "40x", "0x5", "40x50x3", "40 x 50", "-4x5"])
def test_sizes_that_are_none(text):
    with pytest.raises(ConfigError, match=r"schedule\.warm"):
        read_size(text)


def test_a_size_too_elongated_for_the_model_is_a_fault_of_the_configuration(repository):
    card = read_card(repository / "colours" / "1")
    with pytest.raises(ConfigError, match=r"schedule\.warm has 8x4000: .*too elongated"):
        warm_up(card, OnnxRuntimeEngine(card), ["8x4000"], 1, 1)
