"""Time the head of an exported segmenter: matrix products label by label, against ``Resize`` and
reductions over the labels.

The head turns logits of 21 labels at stride 16 into a 512x512 mask and the winner's probability, in
onnxruntime on one thread. Both sides must give the same masks, up to pixels between two labels, and
confidences at most one level apart.

Prints the median milliseconds of processor time of each side, which other work hardly affects, and
their ratio.

    python bench/export_head.py
"""

from __future__ import annotations

import json
import statistics
import time
from typing import Any

import command_line
import numpy as np
import onnxruntime
import torch
from torch import nn

from trainer.export.onnx_graph import Part, trace
from trainer.nets.graphs import SegmenterGraph
from trainer.nets.resampling import resize_bilinear

LABELS, SIDE, STRIDE, ROUNDS = 21, 512, 16, 20


def reductions(image_NHW3: torch.Tensor, logits_NLhw: torch.Tensor) -> tuple[torch.Tensor, ...]:
    large = resize_bilinear(logits_NLhw, image_NHW3.shape[1:3])
    peak, mask = large.max(1)
    top = 1 / (large - peak.unsqueeze(1)).exp().sum(1)
    return mask.to(torch.uint8), (top * 255).round().to(torch.uint8)


def exported(image_NHW3: torch.Tensor, logits_NLhw: torch.Tensor) -> tuple[torch.Tensor, ...]:
    mask, _, confidence = SegmenterGraph(nn.Identity()).after(image_NHW3, [(logits_NLhw,)])
    return mask, confidence


def session(head: Any) -> Any:
    batch, free = torch.export.Dim("batch"), torch.export.Dim.DYNAMIC
    inputs = (torch.zeros(2, 96, 128, 3, dtype=torch.uint8), torch.randn(2, LABELS, 6, 8))
    model = trace(Part(head), inputs, ({0: batch, 1: free, 2: free}, {0: batch, 2: free, 3: free}))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


def main() -> None:
    command_line.parser(__doc__).parse_args()
    logits = (
        np.random.default_rng(0)
        .standard_normal((1, LABELS, SIDE // STRIDE, SIDE // STRIDE))
        .astype(np.float32)
    )
    sessions = {"reductions": session(reductions), "exported": session(exported)}
    times: dict[str, list[float]] = {name: [] for name in sessions}
    outputs = {}
    for number in range(ROUNDS + 1):
        for name, graph in sessions.items():
            image, values = (entry.name for entry in graph.get_inputs())
            feed = {image: np.zeros((1, SIDE, SIDE, 3), np.uint8), values: logits}
            began = time.process_time()
            outputs[name] = graph.run(None, feed)
            if number:
                times[name].append(1e3 * (time.process_time() - began))
    (mask, level), (other_mask, other_level) = outputs["exported"], outputs["reductions"]
    assert (mask == other_mask).mean() > 0.9999
    assert np.abs(level.astype(int) - other_level).max() <= 1
    medians = {f"{name}_ms": round(statistics.median(values), 1) for name, values in times.items()}
    print(
        json.dumps(medians | {"ratio": round(medians["reductions_ms"] / medians["exported_ms"], 2)})
    )


if __name__ == "__main__":
    main()
