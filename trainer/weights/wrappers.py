"""Where in a checkpoint the weights are: training scripts wrap a state dict in their own ways."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from trainer.errors import WeightsError

PLAIN = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "net",
    "network",
    "state",
    "module",
    "params",
    "weights",
    "student",
)
AVERAGED = (
    "state_dict_ema",
    "ema_state_dict",
    "model_ema",
    "model_ema_state_dict",
    "ema_model",
    "params_ema",
    "ema",
    "teacher",
)
"""Moving averages of the weights, under the names of timm, BasicSR, YOLO, mmengine and DINO."""
NO_WEIGHTS = ("optim", "sched", "scaler", "criterion", "loss", "momentum_buffer", "callback")
DEPTH = 4

Path_ = tuple[str, ...]


def state_dict(path: Path, content: Any) -> tuple[dict[str, Tensor], str]:
    """The named tensors of a loaded checkpoint, unwrapped, and what was chosen among what, in
    words; empty where there was no choice.

    Plain weights go before averaged ones, which are taken where there is nothing else.

    Raises:
        WeightsError: no named tensors, or several groups of them under unknown names.
    """
    groups = dict(_groups(content, ())) if isinstance(content, Mapping) else {}
    # A few numbers beside a wrapper, such as a step or a temperature, are no weights.
    most = max(map(len, groups.values()), default=0)
    groups = {keys: tensors for keys, tensors in groups.items() if 2 * len(tensors) >= most}
    if not groups:
        keys = ", ".join(map(str, list(content)[:8])) if isinstance(content, Mapping) else ""
        raise WeightsError(
            f"{path} holds a {type(content).__name__} without named tensors"
            + (f"; its keys: {keys}" if keys else ""),
            "a state dict, alone or under " + ", ".join(repr(key) for key in (*PLAIN, *AVERAGED)),
            "torch.save(model.state_dict(), FILE)",
        )
    best = min(map(_rank, groups))
    chosen = [keys for keys in groups if _rank(keys) == best]
    if best == UNKNOWN and len(chosen) > 1:
        raise WeightsError(
            f"{path} holds several groups of tensors: {', '.join(map(_named, chosen[:8]))}",
            "one state dict",
            f"keep one: torch.save(torch.load(FILE){_indexed(chosen[0])}, NEW_FILE)",
        )
    return groups[chosen[0]], _choice(chosen[0], [k for k in groups if k != chosen[0]])


# The lowest rank is taken: a wrapped state dict, then tensors at the top, then averages.
FLAT, WRAPPED, EMA, UNKNOWN = 1, 0, 2, 3


def _rank(keys: Path_) -> int:
    if not keys:
        return FLAT
    if all(key in PLAIN for key in keys):
        return WRAPPED
    return EMA if all(key in (*PLAIN, *AVERAGED) for key in keys) else UNKNOWN


def _groups(content: Mapping[Any, Any], keys: Path_) -> Iterator[tuple[Path_, dict[str, Tensor]]]:
    """Every dictionary with tensors of its own, by the keys that lead to it."""
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if tensors:
        yield keys, tensors
    for name, value in content.items():
        may_hold = not any(word in str(name).lower() for word in NO_WEIGHTS)
        if isinstance(value, Mapping) and len(keys) < DEPTH and may_hold:
            yield from _groups(value, (*keys, str(name)))


def _choice(chosen: Path_, others: list[Path_]) -> str:
    """What was taken, where that is not plain."""
    said = f"taken: {_named(chosen)}" if chosen and (others or _rank(chosen) >= EMA) else ""
    if _rank(chosen) == EMA:
        said += ", averaged weights (EMA)"
    if others:
        ema = [keys for keys in others if _rank(keys) == EMA]
        said = (said or "taken: the tensors at the top") + "; not taken: "
        said += ", ".join(map(_named, others[:4]))
        if ema:
            said += (
                " (averaged weights, EMA; to take them:"
                f" torch.save(torch.load(FILE){_indexed(ema[0])}, NEW_FILE))"
            )
    return said


def _named(keys: Path_) -> str:
    return ".".join(keys)


def _indexed(keys: Path_) -> str:
    return "".join(f"[{key!r}]" for key in keys)
