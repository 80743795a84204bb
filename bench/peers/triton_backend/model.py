"""Run ONNX Runtime under Triton's Python backend, by the name ``onnxruntime``, where its C++
backend is missing.

The wheel that Triton comes in has only the Python backend. Copied to
``backends/onnxruntime/model.py``, this file lets Triton load repositories whose ``config.pbtxt``
says ``backend: "onnxruntime"``, exported ones too, unchanged. The session has our settings: one
thread, no spinning.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as triton


class TritonPythonModel:
    def initialize(self, arguments: dict[str, str]) -> None:
        config = json.loads(arguments["model_config"])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.enable_mem_pattern = False
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        file = config["default_model_filename"] or "model.onnx"
        path = Path(arguments["model_repository"], arguments["model_version"], file)
        self.session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        self.inputs = [tensor["name"] for tensor in config["input"]]
        self.outputs = [tensor["name"] for tensor in config["output"]]

    def execute(self, requests: list[Any]) -> list[Any]:
        inputs = [
            [triton.get_input_tensor_by_name(r, name).as_numpy() for r in requests]
            for name in self.inputs
        ]
        # Triton gives requests of equal shapes in one call; the batch is formed here.
        together = {
            name: parts[0] if len(parts) == 1 else np.concatenate(parts)
            for name, parts in zip(self.inputs, inputs)
        }
        values = self.session.run(self.outputs, together)
        responses, first = [], 0
        for part in inputs[0]:
            last = first + len(part)
            tensors = [
                triton.Tensor(name, value[first:last]) for name, value in zip(self.outputs, values)
            ]
            responses.append(triton.InferenceResponse(tensors))
            first = last
        return responses
