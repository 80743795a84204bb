"""ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from serving.engines import Inputs, Outputs, Stop, TensorSpec, check_outputs
from serving.errors import OutputError, RepositoryError
from serving.repository import HINT, OUTPUTS, Card

DTYPES = {
    "tensor(bool)": "bool",
    "tensor(float16)": "float16",
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    **{f"tensor({sign}int{bits})": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}


class OnnxRuntimeEngine:
    """One session. Threads do not spin and memory plans are not kept a shape: both cost more than they give where
    images come in all sizes and other work needs the processors.

    Args:
        card: of a verified model.
        threads: within one run.

    Raises:
        RepositoryError: the file does not load, its inputs and outputs are not those of its kind, or a small grey
            image does not give what the card promises.
    """

    def __init__(self, card: Card, threads: int = 1) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.enable_mem_pattern = False
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session: Any = onnxruntime.InferenceSession(
                str(card.graph_path), options, providers=["CPUExecutionProvider"]
            )
        # The library raises its own types, derived from Exception alone.
        except Exception as error:
            raise RepositoryError(f"{card.graph_path} does not load: {error}", "an ONNX graph", HINT) from error
        self._run_options = onnxruntime.RunOptions
        self.description = f"onnxruntime {onnxruntime.__version__} CPU"
        self.inputs = _specs(self._session.get_inputs(), card)
        outputs = _specs(self._session.get_outputs(), card)
        # A graph may have more outputs than its kind promises; those are not computed.
        self.outputs = tuple(spec for spec in outputs if card.kind == "tensor" or spec.name in OUTPUTS[card.kind])
        self._names = [spec.name for spec in self.outputs]
        if card.kind == "tensor":
            self._check_batch_axes(card)
        else:
            self._try(card)

    def run(self, inputs: Inputs, stop: Stop | None = None) -> Outputs:
        """Every output by name; see :class:`serving.engines.Engine`."""
        if stop is None:
            return self._outputs(self._session.run(self._names, inputs))
        options = self._run_options()
        with stop.ending(partial(setattr, options, "terminate", True)):
            return self._outputs(self._session.run(self._names, inputs, options))

    def close(self) -> None:
        """Free the session."""
        self._session = None

    def _outputs(self, values: Iterable[Any]) -> Outputs:
        return dict(zip(self._names, cast("list[npt.NDArray[np.generic]]", values)))

    def _check_batch_axes(self, card: Card) -> None:
        fixed = [spec for spec in (*self.inputs, *self.outputs) if not spec.shape or spec.shape[0] != -1]
        if fixed or not self.inputs or not self.outputs:
            named = ", ".join(f"{spec.name} {list(spec.shape)}" for spec in fixed)
            raise RepositoryError(
                f"{card.graph_path} has tensors without a free batch axis: {named or 'it has no input or output'}",
                "inputs and outputs whose first axis is the batch, of any size",
                "export the graph with a dynamic first axis",
            )

    def _try(self, card: Card) -> None:
        """A run at the smallest size, so that a wrong graph is found before the first caller finds it."""
        inputs = [(spec.name, spec.dtype) for spec in self.inputs]
        if inputs != [("image", "uint8")] or not set(OUTPUTS[card.kind]) <= set(self._names):
            raise RepositoryError(
                f"{card.graph_path} has the inputs {inputs} and outputs {sorted(self._names)}",
                f"the input 'image' of uint8 and the outputs {list(OUTPUTS[card.kind])}",
                HINT,
            )
        side = card.min_side
        try:
            outputs = self.run({"image": np.full((1, side, side, 3), 128, np.uint8)})
            check_outputs(card, outputs, 1, side, side)
        except OutputError as error:
            raise RepositoryError(f"{card.graph_path}: {error.found}", error.expected, HINT) from error
        except Exception as error:
            raise RepositoryError(
                f"{card.graph_path} fails on an image of {side}x{side}: {error}", "a run without error", HINT
            ) from error


def _specs(nodes: Iterable[Any], card: Card) -> tuple[TensorSpec, ...]:
    specs = []
    for node in nodes:
        if node.type not in DTYPES:
            raise RepositoryError(f"{card.graph_path}: {node.name!r} is a {node.type}", f"one of {', '.join(DTYPES)}")
        shape = tuple(size if isinstance(size, int) else -1 for size in node.shape)
        specs.append(TensorSpec(node.name, DTYPES[node.type], shape))
    return tuple(specs)
