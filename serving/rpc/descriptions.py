"""Models and their counters in the messages of the Open Inference Protocol."""

from __future__ import annotations

from typing import Any

from serving.config import ServerConfig
from serving.engines import TensorSpec
from serving.repository.served import Served
from serving.rpc import tensors
from serving.scheduling.counters import Statistics
from wsss.inference import open_inference_pb2 as pb

EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "parameters",
    "schedule_policy",
    "statistics",
)


def extensions(config: ServerConfig) -> list[str]:
    """Extensions of the server and its limits, in Triton's form for details: ``name(...)``."""
    limits = {
        "message_bytes": config.limits.message_bytes,
        "image_bytes": config.limits.max_bytes,
        "image_pixels": config.limits.max_pixels,
        "batch": config.limits.max_batch,
        "queue": config.schedule.queue,
        "streams": config.limits.max_streams,
        "per_caller": config.limits.calls_per_caller,
    }
    return [*EXTENSIONS, f"limits({','.join(f'{name}={value}' for name, value in limits.items())})"]


def metadata(model: Served, versions: list[int], config: ServerConfig) -> Any:
    """``ModelMetadataResponse`` of a model; its properties give kind, engine and limits."""
    card = model.card
    properties = {
        "kind": card.kind,
        "engine": model.engine.description,
        "sha256": card.graph_sha256,
        "max_batch": str(config.limits.max_batch),
        "queue": str(config.schedule.for_model(card.name).queue),
    }
    if card.kind != "tensor":
        sides = {
            "min_side": card.min_side,
            "max_side": card.max_side,
            "max_pixels": card.max_pixels,
        }
        properties |= {name: str(value) for name, value in sides.items()}
        if card.side:
            properties["side"] = str(card.side)
        properties["labels"] = ",".join(card.labels)
    return pb.ModelMetadataResponse(
        name=card.name,
        versions=[str(version) for version in versions],
        platform=_platform(model),
        inputs=[_tensor(spec) for spec in model.engine.inputs],
        outputs=[_tensor(spec) for spec in model.engine.outputs],
        properties=properties,
    )


def configuration(model: Served, config: ServerConfig) -> Any:
    """``ModelConfig`` of a model."""
    return pb.ModelConfig(
        name=model.card.name,
        platform=_platform(model),
        backend=model.engine.description.split()[0],
        max_batch_size=config.limits.max_batch,
        input=[
            pb.ModelInput(name=spec.name, data_type=_type(spec), dims=spec.shape[1:])
            for spec in model.engine.inputs
        ],
        output=[
            pb.ModelOutput(name=spec.name, data_type=_type(spec), dims=spec.shape[1:])
            for spec in model.engine.outputs
        ],
        default_model_filename=model.card.graph,
        dynamic_batching=pb.ModelDynamicBatching(),
    )


def statistics(model: Served, decode_seconds: float, encode_seconds: float) -> Any:
    """``ModelStatistics`` of a model.

    Args:
        decode_seconds, encode_seconds: spent on the messages of all answered requests.
    """
    counts: Statistics = model.batcher.statistics()
    successes, failures = counts.requests, counts.failures
    total = counts.queue_seconds + counts.run_seconds + decode_seconds + encode_seconds
    return pb.ModelStatistics(
        name=model.card.name,
        version=str(model.card.version),
        last_inference=int(counts.last_run * 1e3),
        inference_count=counts.inferences,
        execution_count=counts.executions,
        inference_stats=pb.InferStatistics(
            success=_duration(successes, total),
            fail=_duration(failures, counts.failure_seconds),
            queue=_duration(successes, counts.queue_seconds),
            compute_input=_duration(successes, decode_seconds),
            compute_infer=_duration(successes, counts.run_seconds),
            compute_output=_duration(successes, encode_seconds),
            cache_hit=_duration(0, 0.0),
            cache_miss=_duration(0, 0.0),
        ),
        batch_stats=[
            pb.InferBatchStatistics(
                batch_size=size, compute_infer=_duration(batch.executions, batch.seconds)
            )
            for size, batch in sorted(counts.batches.items())
        ],
    )


def _platform(model: Served) -> str:
    """Triton's name of the platform where it has one."""
    library = model.engine.description.split()[0]
    return {"onnxruntime": "onnxruntime_onnx", "tensorrt": "tensorrt_plan"}.get(library, library)


def _tensor(spec: TensorSpec) -> Any:
    return pb.ModelMetadataResponse.TensorMetadata(
        name=spec.name, datatype=tensors.DATATYPES[spec.dtype], shape=(-1, *spec.shape[1:])
    )


def _type(spec: TensorSpec) -> Any:
    return pb.DataType.Value(f"TYPE_{tensors.DATATYPES[spec.dtype]}")


def _duration(count: int, seconds: float) -> Any:
    return pb.StatisticDuration(count=count, ns=int(seconds * 1e9))
