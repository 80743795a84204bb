"""A pixel graph as one ONNX model: traced in three parts, then wired together."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from trainer.errors import ExportError
from trainer.nets.pixel_graph import OPSET, PixelGraph

if TYPE_CHECKING:
    import onnx


class Part(nn.Module):
    """One function as a module with only the weights that it uses, for a trace of its own."""

    def __init__(self, call: Callable[..., Any], net: nn.Module | None = None) -> None:
        super().__init__()
        self.call = call
        self.net = net

    def forward(self, *inputs: Any) -> Any:
        """``call(*inputs)``."""
        return self.call(*inputs)


def to_onnx(graph: PixelGraph) -> onnx.ModelProto:
    """The graph as ONNX, with free N, H and W.

    Raises:
        ExportError: see :func:`traced_parts`.
    """
    return assembled(graph, *traced_parts(graph))


def to_onnx_with_half(graph: PixelGraph) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """The graph, and the same with the network in float16, for engines that take types literally.

    Pixels, up-sampling, soft-max and arg-max stay in float32.

    Raises:
        ExportError: see :func:`traced_parts`.
    """
    before, net, after = traced_parts(graph)
    # Copies, because assembling renames the weights in place.
    half = assembled(graph, copied(before), halved(copied(net)), copied(after))
    return assembled(graph, before, net, after), half


def traced_parts(graph: PixelGraph) -> tuple[onnx.ModelProto, onnx.ModelProto, onnx.ModelProto]:
    """The steps before the network, the network, and the steps after it, as ONNX.

    The network is traced once, with its batch norms folded by the exporter, and later wired in once
    per scale on shared weights. A trace of the whole would hold one network per scale (minutes),
    and its shared weights would prevent the folding.

    Raises:
        ExportError: ONNX cannot express the network, or it depends on the image size.
    """
    # A batch of two, since torch.export takes a size of 0 or 1 as fixed.
    image = torch.zeros(2, 96, 128, 3, dtype=torch.uint8)
    batch, free = torch.export.Dim("batch"), torch.export.Dim.DYNAMIC
    many = batch * 2 if graph.flip else batch
    with torch.no_grad():
        views = graph.views(image)
        results = [graph.run(view) for view in views]
        frees = [
            tuple({0: many, **dict.fromkeys(range(2, t.dim()), free)} for t in result)
            for result in results
        ]
        image_free = dict.fromkeys(range(3), free)
        before = trace(Part(graph.views), (image,), (image_free,))
        net = trace(Part(graph.run, graph.net), (views[0],), ({0: free, 2: free, 3: free},))
        after = trace(Part(graph.after), (image, results), ({**image_free, 0: batch}, frees))
    return before, net, after


def halved(net: onnx.ModelProto) -> onnx.ModelProto:
    """The network in float16 between inputs and outputs in float32."""
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    half = OnnxModel(convert_float_to_float16(net, keep_io_types=True))
    # The converter appends its casts at the end.
    half.topological_sort()
    return half.model


def copied(model: onnx.ModelProto) -> onnx.ModelProto:
    """Another one of the same content."""
    return type(model).FromString(model.SerializeToString())


def trace(part: Part, inputs: tuple[Any, ...], free: tuple[Any, ...]) -> onnx.ModelProto:
    """One part as ONNX, functions inlined."""
    import onnx.inliner

    try:
        program = torch.export.export(part.eval(), inputs, dynamic_shapes=(free,))
        export = torch.onnx.export(
            program, dynamo=True, opset_version=OPSET, verbose=False, external_data=False
        )
    except (RuntimeError, torch.onnx.errors.OnnxExporterError) as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise ExportError(
            f"the network cannot be exported: {reason}",
            "a forward pass without data-dependent control flow, at any image size",
        ) from error
    assert export is not None
    # Local functions would hide their nodes from ``wired``, which renames them.
    return onnx.inliner.inline_local_functions(export.model_proto)


def assembled(
    graph: PixelGraph, before: onnx.ModelProto, net: onnx.ModelProto, after: onnx.ModelProto
) -> onnx.ModelProto:
    """``before`` -> one ``net`` per scale -> ``after``."""
    from onnx import TensorProto, checker, helper

    width, scales = len(net.graph.output), range(len(graph.scales))
    channels = net.graph.output[-1].type.tensor_type.shape.dim[1].dim_value
    # The labels of a segmenter include the background.
    classes = channels - (graph.kind == "segmenter")
    results = [[f"result{i}/{j}" for j in range(width)] for i in scales]
    nodes = wired(before, "before", "", ["image"], [f"view{i}" for i in scales])
    for i in scales:
        nodes += wired(net, "net", str(i), [f"view{i}"], results[i])
    nodes += wired(after, "after", "", ["image", *chain(*results)], list(graph.outputs))
    nodes = needed(nodes, graph.outputs)
    inputs = {name for node in nodes for name in node.input}
    parts = (("before", before), ("net", net), ("after", after))
    weights = [t for label, part in parts for t in named(part, label) if t.name in inputs]
    types = {"float32": TensorProto.FLOAT, "uint8": TensorProto.UINT8}
    value = helper.make_tensor_value_info
    outputs = [
        value(name, types[dtype], graph.shape(name, classes))
        for name, (dtype, _) in graph.outputs.items()
    ]
    body = helper.make_graph(
        nodes, graph.kind, [value("image", TensorProto.UINT8, ["N", "H", "W", 3])], outputs, weights
    )
    model = helper.make_model(
        body, producer_name="wsss", opset_imports=list(net.opset_import), ir_version=net.ir_version
    )
    # The full check also infers all shapes, which finds parts that are wired wrongly.
    checker.check_model(model, full_check=True)
    return model


def named(part: onnx.ModelProto, label: str) -> Iterable[onnx.TensorProto]:
    """The weights of a part under their names in the whole."""
    for tensor in part.graph.initializer:
        tensor.name = f"{label}/{tensor.name}"
        yield tensor


def wired(
    part: onnx.ModelProto, label: str, copy: str, inputs: list[str], outputs: list[str]
) -> list[onnx.NodeProto]:
    """The nodes of a part with its inputs and outputs on the given wires.

    Names of weights begin with the part, all others with the part and ``copy``. The exporter's
    notes about source files are left out.
    """
    import onnx

    weights = {t.name for t in part.graph.initializer}
    wires = dict(zip((v.name for v in part.graph.input), inputs, strict=True))
    wires |= dict(zip((v.name for v in part.graph.output), outputs, strict=True))

    def rename(name: str) -> str:
        return wires.get(name) or (name and f"{label if name in weights else label + copy}/{name}")

    nodes = []
    for node in part.graph.node:
        if any(a.HasField("g") or a.graphs for a in node.attribute):
            raise ExportError(
                f"the network holds {node.op_type}, a branch or loop", "a plain chain of operators"
            )
        fresh = onnx.NodeProto(
            op_type=node.op_type, domain=node.domain, name=f"{label}{copy}/{node.name}"
        )
        fresh.input.extend(map(rename, node.input))
        fresh.output.extend(map(rename, node.output))
        fresh.attribute.extend(node.attribute)
        nodes.append(fresh)
    return nodes


def needed(nodes: list[onnx.NodeProto], outputs: Iterable[str]) -> list[onnx.NodeProto]:
    """The nodes that an output depends on; image scores, for example, come from one scale only."""
    values, path = set(outputs), []
    # ONNX lists nodes after those they depend on, so one pass from the end suffices.
    for node in reversed(nodes):
        if values & set(node.output):
            values |= set(node.input)
            path.append(node)
    return path[::-1]
