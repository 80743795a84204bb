"""Write random models for measurements, as a repository.

``resnet`` is a segmenter with the layout of a ResNet-18 at output stride 32, and at width 64 its
cost. The other three are nine depthwise blocks with the same weights, about 4 ms at 256x256 on one
core: ``segmenter`` takes pixels; ``mask`` and ``logits`` take float32 [N,3,H,W], as most servers
do.

    python bench/models.py FOLDER
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import command_line
import numpy as np

CLASSES = 20


class Graph:
    """Nodes and weights of a growing graph; ``add`` returns the name of the node's output."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self._rng = np.random.default_rng(0)

    def add(self, kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        from onnx import helper

        name = output or f"{kind}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def constant(self, value: Any) -> str:
        from onnx import numpy_helper

        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def conv(
        self, source: str, inputs: int, outputs: int, size: int, stride: int = 1, group: int = 1
    ) -> str:
        scale = np.sqrt(2 * group / (inputs * size * size))
        kernel = self._rng.standard_normal((outputs, inputs // group, size, size)) * scale
        weights = self.constant(kernel.astype(np.float32))
        return self.add(
            "Conv", source, weights, strides=[stride] * 2, pads=[size // 2] * 4, group=group
        )

    def pixels(self) -> str:
        """Normalised float32 [N,3,H,W] of the input ``image``."""
        from onnx import TensorProto

        planes = self.add(
            "Transpose", self.add("Cast", "image", to=TensorProto.FLOAT), perm=[0, 3, 1, 2]
        )
        centred = self.add("Sub", planes, self.constant(np.float32(120)))
        return self.add("Div", centred, self.constant(np.float32(60)))

    def full(self, logits: str, source: str, height_axis: int, output: str = "") -> str:
        """Logits at the height and width of ``source``."""
        one, two = (self.constant(np.array([value])) for value in (height_axis, height_axis + 2))
        size = self.add("Slice", self.add("Shape", source), one, two)
        zero, end = self.constant(np.array([0])), self.constant(np.array([2]))
        head = self.add("Slice", self.add("Shape", logits), zero, end)
        sizes = self.add("Concat", head, size, axis=0)
        return self.add("Resize", logits, "", "", sizes, mode="linear", output=output)

    def mask(self, full: str) -> None:
        """The output ``mask``."""
        from onnx import TensorProto

        self.add(
            "Cast",
            self.add("ArgMax", full, axis=1, keepdims=0),
            to=TensorProto.UINT8,
            output="mask",
        )

    def resampling(self, old: str, new: str) -> str:
        """Matrix [new,old] of the bilinear resize between two lengths, as ``wsss-trainer export``
        writes it.
        """
        from onnx import TensorProto

        def centres(length: str) -> str:
            numbers = self.add(
                "Range", self.constant(np.int64(0)), length, self.constant(np.int64(1))
            )
            return self.add(
                "Add",
                self.add("Mul", numbers, self.constant(np.int64(2))),
                self.constant(np.int64(1)),
            )

        first, last = self.constant(np.array([0])), self.constant(np.array([1]))
        rows = self.add("Mul", self.add("Unsqueeze", centres(new), last), old)
        columns = self.add("Mul", self.add("Unsqueeze", centres(old), first), new)
        apart = self.add(
            "Cast", self.add("Abs", self.add("Sub", columns, rows)), to=TensorProto.FLOAT
        )
        unit = self.add(
            "Mul", self.add("Cast", new, to=TensorProto.FLOAT), self.constant(np.float32(2))
        )
        near = self.add(
            "Relu", self.add("Sub", self.constant(np.float32(1)), self.add("Div", apart, unit))
        )
        return self.add("Div", near, self.add("ReduceSum", near, last, keepdims=1))

    def planes(self, logits: str) -> list[str]:
        """Each label's logits at the height and width of the input ``image``."""

        def length(source: str, axis: int) -> str:
            return self.add(
                "Gather", self.add("Shape", source), self.constant(np.int64(axis)), axis=0
            )

        rows = self.resampling(length(logits, 2), length("image", 1))
        columns = self.add(
            "Transpose", self.resampling(length(logits, 3), length("image", 2)), perm=[1, 0]
        )
        small = [
            self.add("Gather", logits, self.constant(np.int64(k)), axis=1)
            for k in range(CLASSES + 1)
        ]
        return [self.add("MatMul", rows, self.add("MatMul", plane, columns)) for plane in small]

    def largest(self, planes: list[str]) -> str:
        """The output ``mask``, label by label as ``wsss-trainer export`` writes it; returns the
        winners' logits.
        """
        from onnx import TensorProto

        best, zero = planes[0], self.constant(np.float32(0))
        index = self.add("Cast", self.add("Mul", best, zero), to=TensorProto.UINT8)
        for k, plane in enumerate(planes[1:], 1):
            larger = self.add("Greater", plane, best)
            last = {"output": "mask"} if k == CLASSES else {}
            index = self.add("Where", larger, self.constant(np.uint8(k)), index, **last)
            best = self.add("Max", best, plane)
        return best

    def segmenter(self, logits: str) -> None:
        """The outputs of a segmenter."""
        from onnx import TensorProto

        best = self.largest(self.planes(logits))
        white = self.add("Mul", self.add("Sigmoid", best), self.constant(np.float32(255)))
        self.add("Cast", white, to=TensorProto.UINT8, output="confidence")
        mean = self.add("Sigmoid", self.add("ReduceMean", logits, axes=[2, 3], keepdims=0))
        one, last = self.constant(np.array([1])), self.constant(np.array([CLASSES + 1]))
        self.add("Slice", mean, one, last, one, output="scores")


def resnet(graph: Graph, x: str, width: int) -> str:
    x = graph.add("Relu", graph.conv(x, 3, width, 7, 2))
    x = graph.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    channels = width
    for factor, stride in ((1, 1), (1, 1), (2, 2), (2, 1), (4, 2), (4, 1), (8, 2), (8, 1)):
        outputs = factor * width
        inner = graph.add("Relu", graph.conv(x, channels, outputs, 3, stride))
        short = (
            x if (channels, stride) == (outputs, 1) else graph.conv(x, channels, outputs, 1, stride)
        )
        x = graph.add("Relu", graph.add("Add", graph.conv(inner, outputs, outputs, 3), short))
        channels = outputs
    return graph.conv(x, channels, CLASSES + 1, 1)


def depthwise(graph: Graph, x: str) -> str:
    x, channels = graph.add("Relu", graph.conv(x, 3, 16, 3, 2)), 16
    for outputs, stride in (
        (24, 2),
        (32, 2),
        (48, 1),
        (64, 2),
        (64, 1),
        (96, 1),
        (96, 1),
        (128, 1),
        (128, 1),
    ):
        x = graph.add("Relu", graph.conv(x, channels, channels, 3, stride, channels))
        x, channels = graph.add("Relu", graph.conv(x, channels, outputs, 1)), outputs
    return graph.conv(x, channels, CLASSES + 1, 1)


def write_resnet(root: Path, width: int = 64, name: str = "resnet") -> Path:
    graph = Graph()
    graph.segmenter(resnet(graph, graph.pixels(), width))
    return _write(root, name, graph, *segmenter_shapes(), segmenter_card())


def write_segmenter(root: Path, name: str = "segmenter") -> Path:
    graph = Graph()
    graph.segmenter(depthwise(graph, graph.pixels()))
    return _write(root, name, graph, *segmenter_shapes(), segmenter_card())


def write_mask(root: Path, side: int = 256, name: str = "mask") -> Path:
    graph = Graph()
    graph.mask(graph.full(depthwise(graph, "x"), "x", 2))
    return _write(
        root, name, graph, {"x": ("float32", [3, side, side])}, {"mask": ("uint8", [side, side])}
    )


def write_logits(root: Path, side: int = 512, name: str = "logits") -> Path:
    graph = Graph()
    graph.full(depthwise(graph, "x"), "x", 2, output="logits")
    outputs = {"logits": ("float32", [CLASSES + 1, side, side])}
    return _write(root, name, graph, {"x": ("float32", [3, side, side])}, outputs)


def write_triton(folder: Path, inputs: dict[str, Any], outputs: dict[str, Any]) -> None:
    """Write ``config.pbtxt`` as ``wsss-trainer export`` does."""
    types = {"float32": "TYPE_FP32", "uint8": "TYPE_UINT8"}

    def tensors(shapes: dict[str, Any]) -> str:
        return ", ".join(
            f'{{ name: "{name}" data_type: {types[dtype]} dims: [{", ".join(map(str, dims))}] }}'
            for name, (dtype, dims) in shapes.items()
        )

    text = (
        f'name: "{folder.name}"\nbackend: "onnxruntime"\nmax_batch_size: 8\ndynamic_batching {{'
        " }\n"
    )
    text += f"input [ {tensors(inputs)} ]\noutput [ {tensors(outputs)} ]\n"
    (folder / "config.pbtxt").write_text(text)


def segmenter_shapes() -> tuple[dict[str, Any], dict[str, Any]]:
    outputs = {
        "mask": ("uint8", [-1, -1]),
        "scores": ("float32", [CLASSES]),
        "confidence": ("uint8", [-1, -1]),
    }
    return {"image": ("uint8", [-1, -1, 3])}, outputs


def segmenter_card() -> dict[str, Any]:
    names = [f"class{k}" for k in range(CLASSES)]
    shapes = {"mask": ["N", "H", "W"], "scores": ["N", CLASSES], "confidence": ["N", "H", "W"]}
    return {
        "kind": "segmenter",
        "classes": names,
        "labels": ["background", *names],
        "palette": [[10 * k, 5 * k, 255 - 10 * k] for k in range(CLASSES + 1)],
        "input": {
            **{"name": "image", "dtype": "uint8", "layout": "NHWC", "color": "RGB"},
            **{"min_side": 32, "max_side": 2048, "max_pixels": 4_000_000},
        },
        "outputs": [
            {"name": name, "dtype": "float32" if name == "scores" else "uint8", "shape": shape}
            for name, shape in shapes.items()
        ],
        "thresholds": {"background": None, "score": 0.5},
    }


def _write(
    root: Path,
    name: str,
    graph: Graph,
    inputs: dict[str, Any],
    outputs: dict[str, Any],
    card: dict[str, Any] | None = None,
) -> Path:
    """Write a graph as a model; axes of -1 are free, and the batch is the first axis."""
    from onnx import TensorProto, helper

    types = {"float32": TensorProto.FLOAT, "uint8": TensorProto.UINT8}

    def infos(shapes: dict[str, Any]) -> list[Any]:
        return [
            helper.make_tensor_value_info(
                key,
                types[dtype],
                ["N", *(f"{key}{k}" if dim == -1 else dim for k, dim in enumerate(dims))],
            )
            for key, (dtype, dims) in shapes.items()
        ]

    onnx_graph = helper.make_graph(graph.nodes, name, infos(inputs), infos(outputs), graph.weights)
    model = helper.make_model(onnx_graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return write(root, name, model, inputs, outputs, card)


def write(
    root: Path,
    name: str,
    model: Any,
    inputs: dict[str, Any],
    outputs: dict[str, Any],
    card: dict[str, Any] | None,
) -> Path:
    """Write the graph, its card and Triton's configuration; without fields of a card the model is
    of kind tensor.
    """
    folder = root / name / "1"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    digest = hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()
    fields = {"format": 1, "name": name, "version": 1, "kind": "tensor", "graph": "model.onnx"}
    fields |= {"opset": model.opset_import[0].version, "sha256": {"model.onnx": digest}}
    (folder / "model.json").write_text(json.dumps(fields | (card or {})))
    write_triton(folder.parent, inputs, outputs)
    return root


def main() -> None:
    parser = command_line.parser(__doc__)
    parser.add_argument("folder", type=Path, help="repository to write them into")
    folder = parser.parse_args().folder
    for write_one in (write_resnet, write_segmenter, write_mask, write_logits):
        write_one(folder)


if __name__ == "__main__":
    main()
