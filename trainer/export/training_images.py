"""What an exported segmenter makes of the run's own images, before it is written."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import torch

from trainer.data.dataset import Record
from trainer.data.pixels import read_image
from trainer.data.sizes import PIXELS, enlarged, shrunk, working_size
from trainer.evaluation.calibration import Calibration, Reference, calibrated, error_counts
from trainer.evaluation.image_counts import group_numbers
from trainer.nets.graphs import SegmenterGraph
from trainer.progress import progress_bar
from trainer.training.inference import inference


def graph_on_images(
    graph: SegmenterGraph, records: Sequence[Record], title: str
) -> Iterator[tuple[Record, SegmenterGraph, torch.Tensor]]:
    """Each record with a copy of the graph and its image ``uint8 [1,H,W,3]``, on one device."""
    # A copy, since the network goes to the best device and layout here.
    copied = copy.deepcopy(graph)
    with inference(copied, "fp32") as target, progress_bar(title, len(records)) as advance:
        for record in records:
            pixels = read_image(record.image)
            size = working_size(pixels.shape[:2], PIXELS, max(1.0, *graph.scales), side=graph.side)
            yield record, copied, torch.tensor(shrunk(pixels, size))[None].to(target)
            advance()


def calibration_of(graph: SegmenterGraph, reference: Reference) -> Calibration | None:
    """How often the graph is wrong at each confidence; None where no mask says anything.

    The graph must have its score thresholds already: they change masks and confidences.
    """
    counts = []
    for record, copied, image_1HW3 in graph_on_images(graph, reference.records, "doubt"):
        mask, _, confidence = (output[0].cpu().numpy() for output in copied(image_1HW3))
        truth = reference.read_mask(record)
        size = truth.shape
        counts.append(error_counts(enlarged(mask, size), enlarged(confidence, size), truth))
    return calibrated(counts, group_numbers(reference.records), reference.source)
