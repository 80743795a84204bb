"""Messages of the Open Inference Protocol over a plain channel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from wsss.inference import open_inference_pb2 as pb
from wsss.inference import open_inference_pb2_grpc

X = np.arange(6, dtype=np.float32).reshape(2, 3)
Y = np.ones((2, 3), np.float32)


@contextmanager
def stub(address: str) -> Iterator[Any]:
    with grpc.insecure_channel(address) as channel:
        yield open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)


def sums(raw: bool = True, **fields: Any) -> Any:
    """A request that the model of kind tensor answers."""
    request = pb.ModelInferRequest(model_name="sums", **fields)
    for name, values in (("x", X), ("y", Y)):
        tensor = request.inputs.add(name=name, datatype="FP32", shape=values.shape)
        if raw:
            request.raw_input_contents.append(values.tobytes())
        else:
            tensor.contents.fp32_contents.extend(values.ravel().tolist())
    return request


def outputs(reply: Any) -> dict[str, Any]:
    types = {"FP32": np.float32, "UINT8": np.uint8}
    return {
        tensor.name: np.frombuffer(raw, types[tensor.datatype]).reshape(tensor.shape)
        for tensor, raw in zip(reply.outputs, reply.raw_output_contents)
    }


def code(call: Any, request: Any, **options: Any) -> tuple[str, str, str]:
    """Name of the status, ``ErrorInfo.reason`` and text with which a call fails; OK if it does
    not.
    """
    try:
        call(request, timeout=20, **options)
    except grpc.RpcError as error:
        found = rpc_status.from_call(error)
        info = error_details_pb2.ErrorInfo()
        told = found is not None and any(detail.Unpack(info) for detail in found.details)
        return error.code().name, info.reason if told else "", error.details()
    return "OK", "", ""
