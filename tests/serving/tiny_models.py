"""Tiny exported models of known behaviour: three classes, the colour channels; the brightest one
wins if above 0.5.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, checker, helper, numpy_helper, save
from PIL import Image

CLASSES = ("red", "green", "blue")
PALETTE = [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]
OPSET = 17


def expected_mask(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """What the segmenter says of uint8 [H,W,3], in NumPy."""
    winner = pixels.argmax(axis=2).astype(np.uint8) + 1
    return np.where(pixels.max(axis=2) > 127, winner, 0).astype(np.uint8)


def segmenter_nodes() -> list[Any]:
    node = helper.make_node
    return [
        node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        node("ReduceMax", ["pixels"], ["brightest"], axes=[3], keepdims=0),
        node("Cast", ["brightest"], ["confidence"], to=TensorProto.UINT8),
        node("ArgMax", ["pixels"], ["winner"], axis=3, keepdims=0),
        node("Cast", ["winner"], ["winner_float"], to=TensorProto.FLOAT),
        node("Add", ["winner_float", "one"], ["label"]),
        node("Greater", ["brightest", "half"], ["lit"]),
        node("Where", ["lit", "label", "zero"], ["mask_float"]),
        node("Cast", ["mask_float"], ["mask"], to=TensorProto.UINT8),
        node("ReduceMean", ["pixels"], ["mean"], axes=[1, 2], keepdims=0),
        node("Div", ["mean", "white"], ["scores"]),
    ]


def expected_doubt(pixels: npt.NDArray[np.uint8]) -> float:
    """What a segmenter with doubt says of uint8 [H,W,3]: the darker, the more doubtful."""
    return float(1 - pixels.max(axis=2).mean() / 255)


def doubt_nodes() -> list[Any]:
    node = helper.make_node
    return [
        node("ReduceMax", ["pixels"], ["lights"], axes=[3], keepdims=1),
        node("ReduceMean", ["lights"], ["light"], axes=[1, 2], keepdims=0),
        node("Div", ["light", "white"], ["certainty"]),
        node("Sub", ["one", "certainty"], ["doubt"]),
    ]


def cam_nodes() -> list[Any]:
    node = helper.make_node
    return [
        node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        node("Slice", ["pixels", "starts", "ends", "axes", "steps"], ["coarse"]),
        node("Div", ["coarse", "white"], ["activation"]),
        node("Transpose", ["activation"], ["cam"], perm=[0, 3, 1, 2]),
        node("ReduceMean", ["pixels"], ["mean"], axes=[1, 2], keepdims=0),
        node("Div", ["mean", "white"], ["scores"]),
    ]


OUTPUTS = {
    "segmenter": {"mask": ("uint8", 3), "scores": ("float32", 2), "confidence": ("uint8", 3)},
    "cam": {"cam": ("float32", 4), "scores": ("float32", 2)},
}
DOUBT = {"doubt": ("float32", 2)}
TENSOR_INPUTS, TENSOR_OUTPUTS = ("x", "y"), ("sum", "twice")
TYPES = {"uint8": TensorProto.UINT8, "float32": TensorProto.FLOAT}


def outputs_of(kind: str, doubt: bool) -> dict[str, tuple[str, int]]:
    return OUTPUTS[kind] | (DOUBT if doubt else {})


def graph(kind: str, doubt: bool = False) -> Any:
    far = 2**31 - 1
    constants = {
        "one": np.float32(1),
        "zero": np.float32(0),
        "half": np.float32(127.5),
        "white": np.float32(255),
        "starts": np.array([0, 0]),
        "ends": np.array([far, far]),
        "axes": np.array([1, 2]),
        "steps": np.array([4, 4]),
    }
    nodes = segmenter_nodes() if kind == "segmenter" else cam_nodes()
    nodes += doubt_nodes() if doubt else []
    used = {name for node in nodes for name in node.input}
    outputs = [
        helper.make_tensor_value_info(name, TYPES[dtype], [f"{name}{axis}" for axis in range(rank)])
        for name, (dtype, rank) in outputs_of(kind, doubt).items()
    ]
    made = helper.make_graph(
        nodes,
        "colours",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", "H", "W", 3])],
        outputs,
        [
            numpy_helper.from_array(np.asarray(value), name)
            for name, value in constants.items()
            if name in used
        ],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
    checker.check_model(model)
    return model


def tensor_graph() -> Any:
    """``sum = x + y`` and ``twice = 2 x`` of float32 [N,3]."""
    info = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Add", ["x", "y"], ["sum"]),
        helper.make_node("Add", ["x", "x"], ["twice"]),
    ]
    inputs, outputs = (
        [info(name, TensorProto.FLOAT, ["N", 3]) for name in names]
        for names in (TENSOR_INPUTS, TENSOR_OUTPUTS)
    )
    made = helper.make_graph(nodes, "sums", inputs, outputs)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)


def card(name: str, version: int, kind: str, digest: str, doubt: bool = False) -> dict[str, Any]:
    return {
        "format": 1,
        "name": name,
        "version": version,
        "kind": kind,
        "graph": "model.onnx",
        "sha256": {"model.onnx": digest},
        "opset": OPSET,
        "classes": list(CLASSES),
        "labels": ["background", *CLASSES],
        "palette": PALETTE,
        "input": {
            "name": "image",
            "dtype": "uint8",
            "layout": "NHWC",
            "color": "RGB",
            "min_side": 8,
            "max_side": 256,
            "max_pixels": 65536,
        },
        "outputs": [
            {"name": output, "dtype": dtype, "shape": ["N"] * rank}
            for output, (dtype, rank) in outputs_of(kind, doubt).items()
        ],
        **(
            {"doubt": {"from": "pseudo masks of train", "wrong": [[0, 0.5], [255, 0.0]]}}
            if doubt
            else {}
        ),
        "scales": [1.0],
        "flip": False,
        "thresholds": {"background": 0.5, "score": 0.3},
        "protocol": "single scale",
        "supervision": "image tags",
        "source": {
            "run": "runs/colours",
            "method": "cam",
            "backbone": "none",
            "seed": 1,
            "commit": None,
        },
        "metrics": {"miou": 0.5, "iou": {"red": 0.25}},
        "parity": {"images": 0, "max_abs_cam": None, "equal_pixels": None},
        "created": "2026-11-21T00:00:00+00:00",
    }


def tensor_card(name: str, version: int, digest: str) -> dict[str, Any]:
    files = {"graph": "model.onnx", "sha256": {"model.onnx": digest}}
    return {"format": 1, "name": name, "version": version, "kind": "tensor", **files}


def save_graph(folder: Path, model: Any) -> None:
    """Exchange the graph of an exported model, and the hash in its card."""
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    change_card(folder, sha256={"model.onnx": hashlib.sha256(path.read_bytes()).hexdigest()})


def change_card(folder: Path, **changes: Any) -> None:
    """Change fields of an exported model's card."""
    path = folder / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def small_graph(
    nodes: list[Any],
    shape: list[Any] | None = None,
    constants: list[Any] | None = None,
    **options: Any,
) -> Any:
    """A graph from the float32 ``x`` to ``y``, both of ``shape``; unchecked."""
    info = helper.make_tensor_value_info
    shape = shape or ["N", 3]
    inputs, outputs = ([info(name, TensorProto.FLOAT, shape)] for name in "xy")
    made = helper.make_graph(nodes, "small", inputs, outputs, constants or [])
    return helper.make_model(
        made, **{"opset_imports": [helper.make_opsetid("", OPSET)], "ir_version": 9} | options
    )


def export(
    root: Path,
    name: str = "colours",
    kind: str = "segmenter",
    version: int = 1,
    changes: dict[str, Any] | None = None,
    golden: bool = False,
    doubt: bool = False,
) -> Path:
    """Write a model below ``root`` with a right card, then apply ``changes`` to the card; returns
    the folder.
    """
    folder = root / name / str(version)
    folder.mkdir(parents=True)
    save(tensor_graph() if kind == "tensor" else graph(kind, doubt), folder / "model.onnx")
    digest = hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()
    made = (
        tensor_card(name, version, digest)
        if kind == "tensor"
        else card(name, version, kind, digest, doubt)
    )
    if golden:
        add_golden(folder, made)
    (folder / "model.json").write_text(json.dumps(made | (changes or {})))
    return folder


def add_golden(folder: Path, card: dict[str, Any]) -> None:
    """Write a golden image and what the model says of it, as the exporter does."""
    pixels = np.random.default_rng(3).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    maps = pixels[::4, ::4].transpose(2, 0, 1).reshape(-1, 14)
    output = expected_mask(pixels) if card["kind"] == "segmenter" else maps
    Image.fromarray(pixels).save(folder / "golden_image.png")
    Image.fromarray(output).save(folder / "golden_output.png")
    scores = [float(value) for value in pixels.mean((0, 1)) / 255]
    card["golden"] = {"image": "golden_image.png", "output": "golden_output.png", "scores": scores}
    if "doubt" in card:
        card["golden"]["doubt"] = expected_doubt(pixels)
    for name in ("golden_image.png", "golden_output.png"):
        card["sha256"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
