"""Devices, precision, and the processes of torchrun, by Lightning Fabric."""

from __future__ import annotations

import atexit
import logging
from datetime import timedelta
from typing import Literal

import torch
from lightning.fabric import Fabric
from lightning.fabric.strategies import DDPStrategy

from trainer.errors import ConfigError
from trainer.ranks import local_rank, local_world_size, world_size
from trainer.training.collectives import is_joined
from trainer.training.memory import keep_freed_memory

DEVICES = ("auto", "cpu", "cuda")
"""``auto`` is ``cuda`` where there is a GPU."""
Precision = Literal["auto", "fp32", "bf16", "fp16"]
PATIENCE = timedelta(days=30)
"""How long a process waits for the others. The first one may refine masks for days; a process that
has ended is noticed at once, because its connections close.
"""


def make_fabric(precision: Precision, device: str = "auto") -> Fabric:
    """Fabric for one process, or for the processes that torchrun started."""
    for name in ("lightning.fabric", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.WARNING)
    names = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
    gpu = target_device(device).type == "cuda"
    if precision == "auto":
        precision = "bf16" if has_bf16_units(gpu) else "fp32"
    if precision == "fp16" and not gpu:
        raise ConfigError("precision=fp16 needs a GPU", "fp32 or bf16 on a CPU")
    if not gpu:
        keep_freed_memory()
    fabric = Fabric(
        accelerator="gpu" if gpu else "cpu",
        devices=local_world_size(),
        num_nodes=world_size() // local_world_size(),
        strategy=_many(gpu) if world_size() > 1 else "auto",
        precision=names[precision],
    )
    fabric.launch()
    return fabric


def _many(gpu: bool) -> DDPStrategy:
    # What processes tell each other lies on the CPU; over NCCL, each word would stall the GPU.
    backend = "cpu:gloo,cuda:nccl" if gpu else "gloo"
    # Buffers are the same everywhere, see ``synced_norms``.
    return DDPStrategy(process_group_backend=backend, timeout=PATIENCE, forward_sync_buffers=False)


def target_device(device: str = "auto") -> torch.device:
    """The CPU, or the GPU of this process."""
    gpu = torch.cuda.is_available() and device != "cpu"
    return torch.device("cuda", local_rank()) if gpu else torch.device("cpu")


def check_device(device: str) -> None:
    """Refuse a device that has no name of ``DEVICES`` or is not in this machine.

    Raises:
        ConfigError: says what is there; or there are fewer GPUs than processes.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device not in DEVICES:
        here = f"{gpus} GPU{'s' if gpus > 1 else ''}" if gpus else "no GPU, only the CPU"
        raise ConfigError(f"--device {device}", f"{', '.join(DEVICES)} (here: {here})")
    if device == "cuda" and not gpus:
        raise ConfigError(f"--device {device}: torch finds no GPU here", "auto or cpu")
    if device != "cpu" and 0 < gpus < local_world_size():
        raise ConfigError(
            f"{local_world_size()} processes on a machine with {gpus} GPUs",
            "one process a GPU",
            f"torchrun --nproc_per_node {gpus}, or --device cpu",
        )


def launch(device: str) -> None:
    """Join the processes that torchrun started, if any, before the first stage."""
    if world_size() > 1 and not is_joined():
        make_fabric("fp32", device)
        # NCCL warns of a group that is left open.
        atexit.register(torch.distributed.destroy_process_group)


def has_bf16_units(gpu: bool) -> bool:
    """Whether the device multiplies bfloat16 matrices in hardware."""
    if gpu:
        return bool(torch.cuda.is_bf16_supported())
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
