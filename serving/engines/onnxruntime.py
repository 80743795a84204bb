"""ONNX Runtime: options shared by its sessions, and the engine on the processors."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from serving.card import HINT, Card
from serving.engines import Inputs, Outputs, Stop, TensorSpec
from serving.errors import RepositoryError

DTYPES = {
    "tensor(bool)": "bool",
    "tensor(float16)": "float16",
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    **{
        f"tensor({sign}int{bits})": f"{sign}int{bits}"
        for sign in ("", "u")
        for bits in (8, 16, 32, 64)
    },
}


class OnnxRuntimeEngine:
    """One session on the processors.

    Args:
        card: of a verified model.
        threads: per run.

    Raises:
        RepositoryError: the file does not load.
    """

    def __init__(self, card: Card, threads: int = 1) -> None:
        import onnxruntime

        session = open_session(card, session_options(threads), ["CPUExecutionProvider"])
        self.take(session, card, f"onnxruntime {onnxruntime.__version__} CPU")

    def take(self, session: Any, card: Card, description: str) -> None:
        """Become the engine of a session."""
        import onnxruntime

        self._session: Any = session
        self._run_options = onnxruntime.RunOptions
        self.description = description
        self.inputs = _specs(session.get_inputs(), card)
        outputs = _specs(session.get_outputs(), card)
        # A graph may have more outputs than its kind promises; those are not computed.
        self.outputs = tuple(
            spec for spec in outputs if card.kind == "tensor" or spec.name in card.outputs
        )
        self._names = [spec.name for spec in self.outputs]

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


def session_options(threads: int) -> Any:
    """Options of every session."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # A memory plan belongs to one input shape. Images come in all sizes, so plans would be made for
    # each of them and hardly ever used again.
    options.enable_mem_pattern = False
    # Errors only: warnings about unused initializers are of no use to an operator.
    options.log_severity_level = 3
    # Idle threads that spin would take processor time from decoding and from other models.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def open_session(card: Card, options: Any, providers: list[Any]) -> Any:
    """A session of the model's graph.

    Raises:
        RepositoryError: the library does not load it.
    """
    import onnxruntime

    try:
        # Without the fallback a missing GPU library is an error, not a session on processors.
        return onnxruntime.InferenceSession(
            str(card.graph_path), options, providers=providers, enable_fallback=0
        )
    # The exception types of the library derive from Exception directly.
    except Exception as error:
        raise RepositoryError(
            f"{card.graph_path} does not load: {error}", "an ONNX graph", HINT
        ) from error


def graph_inputs(card: Card) -> tuple[TensorSpec, ...]:
    """The inputs of a graph, before an engine is built for it.

    Raises:
        RepositoryError: the file does not load.
    """
    if card.kind != "tensor":
        return (TensorSpec("image", "uint8", (-1, -1, -1, 3)),)
    return _specs(
        open_session(card, session_options(1), ["CPUExecutionProvider"]).get_inputs(), card
    )


def _specs(nodes: Iterable[Any], card: Card) -> tuple[TensorSpec, ...]:
    specs = []
    for node in nodes:
        if node.type not in DTYPES:
            raise RepositoryError(
                f"{card.graph_path}: {node.name!r} is a {node.type}", f"one of {', '.join(DTYPES)}"
            )
        shape = tuple(size if isinstance(size, int) else -1 for size in node.shape)
        specs.append(TensorSpec(node.name, DTYPES[node.type], shape))
    return tuple(specs)
