"""ONNX Runtime on the CPU."""

from __future__ import annotations

from typing import cast

import numpy as np
import numpy.typing as npt

from serving.engines import Outputs, check_outputs
from serving.errors import OutputError, RepositoryError
from serving.repository import HINT, OUTPUTS, Card


class OnnxRuntimeEngine:
    """One session. Threads do not spin and memory plans are not kept a shape: both cost more than they give where
    images come in all sizes and other work needs the processors.

    Args:
        card: of a verified model.
        threads: within one run.

    Raises:
        RepositoryError: the file does not load, or a small grey image does not give what the card promises.
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
            self._session = onnxruntime.InferenceSession(
                str(card.graph_path), options, providers=["CPUExecutionProvider"]
            )
        # The library raises its own types, derived from Exception alone.
        except Exception as error:
            raise RepositoryError(f"{card.graph_path} does not load: {error}", "an ONNX graph", HINT) from error
        self.description = f"onnxruntime {onnxruntime.__version__} CPU"
        self._outputs = list(OUTPUTS[card.kind])
        self._try(card)

    def run(self, image: npt.NDArray[np.uint8]) -> Outputs:
        """From uint8 [N,H,W,3] RGB to the outputs of ``repository.OUTPUTS``, by name."""
        values = self._session.run(self._outputs, {"image": image})
        return dict(zip(self._outputs, cast("list[npt.NDArray[np.generic]]", values)))

    def _try(self, card: Card) -> None:
        """A run at the smallest size, so that a wrong graph is found before the first caller finds it."""
        inputs = [(node.name, node.type) for node in self._session.get_inputs()]
        found = {node.name for node in self._session.get_outputs()}
        if inputs != [("image", "tensor(uint8)")] or not set(self._outputs) <= found:
            raise RepositoryError(
                f"{card.graph_path} has the inputs {inputs} and outputs {sorted(found)}",
                f"the input 'image' of uint8 and the outputs {self._outputs}",
                HINT,
            )
        side = card.min_side
        try:
            outputs = self.run(np.full((1, side, side, 3), 128, np.uint8))
            check_outputs(card, outputs, 1, side, side)
        except OutputError as error:
            raise RepositoryError(f"{card.graph_path}: {error.found}", error.expected, HINT) from error
        except Exception as error:
            raise RepositoryError(
                f"{card.graph_path} fails on an image of {side}x{side}: {error}", "a run without error", HINT
            ) from error
