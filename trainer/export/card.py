"""The files beside an exported graph: its card ``model.json``, and Triton's ``config.pbtxt``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from trainer.data.palette import voc_palette
from trainer.nets.pixel_graph import OPSET, PixelGraph
from trainer.weights.supervision import initial_weights

MAX_BATCH = 8
LIMITS = {"min_side": 32, "max_side": 4096, "max_pixels": 4_194_304}
# Tables of evaluation.json that are too long for a card, which servers send with every answer about
# the model.
LONG = ("confusion", "sweep", "worst", "conditions")


def finished_card(
    graph: PixelGraph,
    fields: Mapping[str, Any],
    name: str,
    version: int,
    digests: Mapping[str, str],
    parities: Mapping[str, Mapping[str, Any]],
    golden: Mapping[str, Any],
) -> dict[str, Any]:
    """The whole ``model.json``: ``fields``, and the facts about the finished graph and its files.

    Args:
        fields: see ``export_model``.
        digests: SHA-256 by file.
        parities: by file: of the graph, then of its half-precision form if there is one.
        golden: see ``write_golden``.
    """
    full, *half = parities
    return {
        "format": 1,
        "name": name,
        "version": version,
        "kind": graph.kind,
        "graph": full,
        "sha256": dict(digests),
        "opset": OPSET,
        **_labels(fields),
        **_tensors(graph, len(fields["classes"]), fields["input"]),
        "scales": list(graph.scales),
        "flip": graph.flip,
        "thresholds": dict(fields["thresholds"]),
        "protocol": graph.protocol(),
        "supervision": fields["supervision"],
        "source": dict(fields["source"]),
        "metrics": dict(fields["metrics"]),
        **({"doubt": dict(fields.get("doubt") or {})} if "doubt" in graph.outputs else {}),
        "parity": dict(parities[full]),
        "golden": dict(golden),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        **({"half_graph": half[0], "half_parity": dict(parities[half[0]])} if half else {}),
    }


def _labels(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The card's ``classes``, ``labels`` and ``palette``."""
    classes = list(fields["classes"])
    return {
        "classes": classes,
        "labels": ["background", *classes],
        "palette": [[int(c) for c in colour] for colour in fields["palette"]],
    }


def _tensors(graph: PixelGraph, classes: int, limits: Mapping[str, int]) -> dict[str, Any]:
    """The card's ``input`` and ``outputs``."""
    pixels = {"name": "image", "dtype": "uint8", "layout": "NHWC", "color": "RGB"}
    outputs = [
        {"name": key, "dtype": dtype, "shape": graph.shape(key, classes)}
        for key, (dtype, _) in graph.outputs.items()
    ]
    return {"input": pixels | dict(limits), "outputs": outputs}


def triton_config(graph: PixelGraph, name: str, classes: int) -> str:
    """``config.pbtxt`` of NVIDIA Triton, which serves the newest version."""

    # Triton adds the batch axis to ``dims`` itself; -1 is a free axis.
    def tensor(key: str, dtype: str, dims: Sequence[int]) -> str:
        kind = {"uint8": "TYPE_UINT8", "float32": "TYPE_FP32"}[dtype]
        return f'  {{ name: "{key}" data_type: {kind} dims: [ {", ".join(map(str, dims))} ] }}'

    outputs = [
        tensor(k, dtype, [d if isinstance(d, int) else -1 for d in graph.shape(k, classes)[1:]])
        for k, (dtype, _) in graph.outputs.items()
    ]
    lines = [
        f'name: "{name}"',
        'backend: "onnxruntime"',
        'default_model_filename: "model.onnx"',
        f"max_batch_size: {MAX_BATCH}",
        "input [",
        tensor("image", "uint8", (-1, -1, 3)),
        "]",
        "output [",
        ",\n".join(outputs),
        "]",
        "version_policy { latest { num_versions: 1 } }",
        "dynamic_batching { }",
    ]
    return "\n".join(lines) + "\n"


def card_from_manifest(
    manifest: Mapping[str, Any],
    kind: Literal["segmenter", "cam"],
    run: str,
    evaluation: Mapping[str, Any] | None = None,
    limits: Mapping[str, int] = LIMITS,
) -> dict[str, Any]:
    """The card fields that a run knows.

    Args:
        manifest: content of the run's ``manifest.json``.
        kind: of the graph to export.
        run: name of the run.
        evaluation: content of its ``evaluation.json``, if there is one.
        limits: ``min_side``, ``max_side`` and ``max_pixels`` of an input image.

    Returns:
        ``card_fields`` of ``export_model``. ``thresholds.background`` of a CAM model is the one
        reported on ``val``, else on another list; None for a segmenter, and where every threshold
        was chosen on the true masks of the same list (``oracle``).
    """
    classes = list(manifest["data"]["classes"])
    figures = (evaluation or {}).get({"segmenter": "segment", "cam": "cam"}[kind], {})
    threshold = _threshold(figures) if kind == "cam" else None
    return {
        "kind": kind,
        "classes": classes,
        "palette": voc_palette(len(classes) + 1).tolist(),
        "input": dict(limits),
        "thresholds": {"background": threshold, "score": 0.5},
        "supervision": initial_weights(manifest, {"segmenter": "segment", "cam": "cams"}[kind]),
        "source": _source(manifest, kind, run),
        "metrics": {
            name: {k: v for k, v in entry.items() if k not in LONG}
            for name, entry in figures.items()
        },
    }


def _threshold(figures: Mapping[str, Any]) -> float | None:
    # val first: no training has seen it. An oracle's threshold is no advice for other images.
    for name in sorted(figures, key=lambda n: n != "val"):
        if figures[name].get("threshold_from") != "oracle":
            value: float | None = figures[name].get("threshold")
            return value
    return None


def _source(manifest: Mapping[str, Any], kind: str, run: str) -> dict[str, Any]:
    return {
        "run": run,
        "method": manifest["method"],
        "backbone": manifest["backbone"],
        **({"segmenter": manifest.get("segmenter", "aspp")} if kind == "segmenter" else {}),
        "seed": manifest["seed"],
        "commit": manifest.get("commit"),
        "data_fingerprint": manifest["data"]["fingerprint"],
    }
