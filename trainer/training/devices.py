"""Devices, precision, and the processes of torchrun, by Lightning Fabric."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Literal, TypeVar

import torch
from lightning.fabric import Fabric

from trainer.errors import ConfigError
from trainer.training.memory import keep_freed_memory

T = TypeVar("T")
DEVICES = ("auto", "cpu", "cuda")
"""``auto`` is ``cuda`` where there is a GPU."""
Precision = Literal["auto", "fp32", "bf16", "fp16"]


def make_fabric(precision: Precision, device: str = "auto") -> Fabric:
    """Fabric for one process, or for the processes that torchrun started."""
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    names = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
    gpu = torch.cuda.is_available() and device != "cpu"
    if precision == "auto":
        precision = "bf16" if has_bf16_units(gpu) else "fp32"
    if precision == "fp16" and not gpu:
        raise ConfigError("precision=fp16 needs a GPU", "fp32 or bf16 on a CPU")
    if not gpu:
        keep_freed_memory()
    # torchrun tells each process how many there are in all and on its own machine.
    world = world_size()
    fabric = Fabric(
        accelerator="gpu" if gpu else "cpu",
        devices=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        num_nodes=world // int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        strategy="ddp" if world > 1 else "auto",
        precision=names[precision],
    )
    fabric.launch()
    return fabric


def check_device(device: str) -> None:
    """Refuse a device that has no name of ``DEVICES`` or is not in this machine.

    Raises:
        ConfigError: says what is there.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device not in DEVICES:
        here = f"{gpus} GPU{'s' if gpus > 1 else ''}" if gpus else "no GPU, only the CPU"
        raise ConfigError(f"--device {device}", f"{', '.join(DEVICES)} (here: {here})")
    if device == "cuda" and not gpus:
        raise ConfigError(f"--device {device}: torch finds no GPU here", "auto or cpu")


def launch(device: str) -> None:
    """Join the processes that torchrun started, if any, before the first stage."""
    if world_size() > 1:
        make_fabric("fp32", device)


def wait_for_all() -> None:
    """Wait until every process is here: the next step reads files of all of them."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()


def has_bf16_units(gpu: bool) -> bool:
    """Whether the device multiplies bfloat16 matrices in hardware."""
    if gpu:
        return bool(torch.cuda.is_bf16_supported())
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def world_size() -> int:
    """Processes that torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """This process among those of torchrun; 0 without it."""
    return int(os.environ.get("RANK", "0"))


def shard(items: Sequence[T]) -> Sequence[T]:
    """This process's part of a list of images."""
    return items[rank() :: world_size()]
