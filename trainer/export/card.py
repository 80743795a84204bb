"""What stands beside an exported graph: its card ``model.json``, and ``config.pbtxt`` for NVIDIA
Triton (design 6).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from trainer.data.palette import voc_palette
from trainer.nets.graphs import OPSET, PixelGraph
from trainer.weights.supervision import initial_weights

MAX_BATCH = 8
LIMITS = {"min_side": 32, "max_side": 4096, "max_pixels": 4_194_304}


def finished_card(
    graph: PixelGraph,
    fields: Mapping[str, Any],
    name: str,
    version: int,
    digests: Mapping[str, str],
    parities: Mapping[str, Mapping[str, Any]],
    golden: Mapping[str, Any],
) -> dict[str, Any]:
    """The whole ``model.json``: the given fields, and what only the finished graph and its files
    can tell.

    Args:
        graph: that was exported.
        fields: see ``export_model``.
        name, version: of the model.
        digests: SHA-256 by file.
        parities: by file: of the graph, and, second, of its half-precision form if there is one.
        golden: see ``write_golden``.
    """
    full, *half = parities
    classes = list(fields["classes"])
    return {
        "format": 1,
        "name": name,
        "version": version,
        "kind": graph.kind,
        "graph": full,
        "sha256": dict(digests),
        "opset": OPSET,
        "classes": classes,
        "labels": ["background", *classes],
        "palette": [[int(c) for c in colour] for colour in fields["palette"]],
        "input": {
            "name": "image",
            "dtype": "uint8",
            "layout": "NHWC",
            "color": "RGB",
            **fields["input"],
        },
        "outputs": [
            {"name": key, "dtype": dtype, "shape": [len(classes) if d == "K" else d for d in shape]}
            for key, (dtype, shape) in graph.outputs.items()
        ],
        "scales": list(graph.scales),
        "flip": graph.flip,
        "thresholds": dict(fields["thresholds"]),
        "protocol": graph.protocol(),
        "supervision": fields["supervision"],
        "source": dict(fields["source"]),
        "metrics": dict(fields["metrics"]),
        "parity": dict(parities[full]),
        "golden": dict(golden),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        **({"half_graph": half[0], "half_parity": dict(parities[half[0]])} if half else {}),
    }


def triton_config(graph: PixelGraph, name: str, classes: int) -> str:
    """``config.pbtxt`` of NVIDIA Triton: the batch axis left out of ``dims``, free axes -1, the
    newest version served.
    """

    def tensor(key: str, dtype: str, dims: Sequence[int]) -> str:
        kind = {"uint8": "TYPE_UINT8", "float32": "TYPE_FP32"}[dtype]
        return f'  {{ name: "{key}" data_type: {kind} dims: [ {", ".join(map(str, dims))} ] }}'

    sizes = {"K": classes}
    outputs = [
        tensor(k, dtype, [sizes.get(d, -1) for d in shape[1:]])
        for k, (dtype, shape) in graph.outputs.items()
    ]
    return "\n".join(
        [
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
            "",
        ]
    )


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
        evaluation: content of its ``evaluation.json``, if there is one; its long tables are left
            out.
        limits: ``min_side``, ``max_side`` and ``max_pixels`` of an input image.

    Returns:
        ``card_fields`` of ``export_model``. ``thresholds.background`` of a CAM model is the one
        measured on ``val``, else on another list; None where it was only chosen on the truth of the
        very list (``oracle``), or for a segmenter.
    """
    classes = list(manifest["data"]["classes"])
    measured = (evaluation or {}).get({"segmenter": "segment", "cam": "cam"}[kind], {})
    honest = [
        name
        for name in sorted(measured, key=lambda n: n != "val")
        if measured[name].get("threshold_from") != "oracle"
    ]
    threshold = measured[honest[0]].get("threshold") if kind == "cam" and honest else None
    return {
        "kind": kind,
        "classes": classes,
        "palette": voc_palette(len(classes) + 1).tolist(),
        "input": dict(limits),
        "thresholds": {"background": threshold, "score": 0.5},
        "supervision": initial_weights(manifest, {"segmenter": "segment", "cam": "cams"}[kind]),
        "source": {
            "run": run,
            "method": manifest["method"],
            "backbone": manifest["backbone"],
            **({"segmenter": manifest.get("segmenter", "aspp")} if kind == "segmenter" else {}),
            "seed": manifest["seed"],
            "commit": manifest.get("commit"),
            "data_fingerprint": manifest["data"]["fingerprint"],
        },
        "metrics": {
            name: {
                k: v
                for k, v in entry.items()
                if k not in ("confusion", "sweep", "worst", "conditions")
            }
            for name, entry in measured.items()
        },
    }
