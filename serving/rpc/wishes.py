"""The parameters of a ``ModelInferRequest``, checked."""

from __future__ import annotations

import time
from typing import Any

from serving.errors import FieldError, ImageTooLarge, nearest
from serving.repository.served import Served

# Requests with a priority, 1 the most urgent, go before those without.
PRIORITIES = 1000


def deadline(message: Any, deadline: float | None) -> float | None:
    """The earlier of the call's deadline and the request's ``timeout`` in microseconds."""
    timeout = parameter(message, "timeout", "int64", "uint64")
    if not timeout:
        return deadline
    own: float = time.monotonic() + timeout / 1e6
    return own if deadline is None else min(own, deadline)


def priority(message: Any) -> int:
    """The batcher's priority, larger first, from the protocol's, where 1 is first."""
    level = parameter(message, "priority", "int64", "uint64")
    return max(0, PRIORITIES - level) if level else 0


def parameter(tensor: Any, name: str, *kinds: str) -> Any:
    """The value of an optional parameter, None if absent.

    Raises:
        FieldError: it has another type or is negative.
    """
    if name not in tensor.parameters:
        return None
    value = tensor.parameters[name]
    kind = value.WhichOneof("parameter_choice")
    content: Any = getattr(value, kind) if kind else None
    if kind not in {f"{each}_param" for each in kinds} or content < 0:
        raise FieldError(
            f"parameter {name} is {content!r}",
            f"{' or '.join(kinds)}, not negative",
            field="parameters",
        )
    return content


def wanted_outputs(message: Any, model: Served) -> dict[str, int]:
    """The requested outputs, each with the number of best classes to return, 0 for the tensor
    itself.
    """
    names = [spec.name for spec in model.engine.outputs]
    choice: dict[str, int] = {}
    for output in message.outputs:
        if output.name not in names or output.name in choice:
            problem = "asked for twice" if output.name in choice else "not known"
            raise FieldError(
                f"output {output.name!r} is {problem}", nearest(output.name, names), field="outputs"
            )
        _refuse_shared_memory(output)
        choice[output.name] = parameter(output, "classification", "int64", "uint64") or 0
    for tensor in message.inputs:
        _refuse_shared_memory(tensor)
    return choice or dict.fromkeys(names, 0)


def _refuse_shared_memory(tensor: Any) -> None:
    if "shared_memory_region" in tensor.parameters:
        raise FieldError(
            f"{tensor.name!r} is said to be in shared memory",
            "contents in the message",
            field="parameters",
        )


def check_batch(message: Any, limit: int) -> None:
    """Refuse a request with more elements than allowed."""
    for tensor in message.inputs:
        if tensor.shape and tensor.shape[0] > limit:
            raise FieldError(
                f"input {tensor.name!r} is a batch of {tensor.shape[0]}",
                f"at most {limit} in one request",
                field=f"inputs[{tensor.name}].shape",
            )


def check_sides(pixels: Any, model: Served) -> None:
    """Refuse pixels in a size that the model does not take. Nothing is scaled: the reply is the
    graph's.
    """
    card, (height, width) = model.card, pixels.shape[1:3]
    low, high = sorted((height, width))
    if low < card.min_side or high > card.max_side or height * width > card.max_pixels:
        raise ImageTooLarge(
            f"pixels of {height}x{width}",
            f"sides of {card.min_side} to {card.max_side} and at most {card.max_pixels:,} pixels",
            "one encoded image as BYTES, which is scaled",
            field="inputs[image].shape",
        )
