"""Calls over a plain channel, for what the client hides."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from wsss.v1 import segmentation_pb2 as pb
from wsss.v1 import segmentation_pb2_grpc

IMAGE = pb.Image(raw=pb.RawImage(height=1, width=2, pixels=bytes(6)))


def failure(
    server: Any, method: str, request: Any, **options: Any
) -> tuple[Any, Any, dict[str, Any], str]:
    """Code, ErrorInfo and the other details of a call that must fail."""
    with grpc.insecure_channel(server.address) as channel:
        stub = segmentation_pb2_grpc.SegmentationStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            getattr(stub, method)(request, timeout=20, **options)
    details = {}
    for packed in rpc_status.from_call(caught.value).details:
        for kind in (
            error_details_pb2.ErrorInfo,
            error_details_pb2.BadRequest,
            error_details_pb2.ResourceInfo,
            error_details_pb2.RetryInfo,
        ):
            if packed.Is(kind.DESCRIPTOR):
                details[kind.DESCRIPTOR.name] = kind.FromString(packed.value)
    return caught.value.code(), details.pop("ErrorInfo"), details, caught.value.details()
