"""The one training loop: poly SGD, mixed precision, checkpoints. Everything random is a function of
(seed, step).

A run that was killed and started again gives, on CPU, the same final weights to the last bit.
"""

from __future__ import annotations

import contextlib
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import nn

from trainer.data.loader import Batches, Samples, default_workers, training_loader
from trainer.errors import ConfigError, TrainingError, WeightsError, explained
from trainer.interrupt import Interrupted
from trainer.progress import make_progress
from trainer.run import Metrics
from trainer.training.checkpoints import Checkpoints
from trainer.training.devices import make_fabric
from trainer.training.optimiser import Training, make_optimizer, set_rate
from trainer.weights.numbers import not_finite

LossFunction = Callable[..., dict[str, torch.Tensor]]
LOG_EVERY = 10


def step_rng(seed: int, step: int) -> np.random.Generator:
    """Seed every generator for one step (dropout draws from torch's) and return the method's
    own.
    """
    mixed = int(np.random.SeedSequence((seed, step)).generate_state(1)[0])
    torch.manual_seed(mixed)
    random.seed(mixed)
    return np.random.default_rng(mixed)


class Teacher:
    """The averaged network while it trains, for losses that ask it.

    Attributes:
        progress: share of the training that is done, 0..1.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network, self.progress = network, 0.0

    def __call__(self, images_B3HW: torch.Tensor) -> torch.Tensor:
        """What the network says of images, in eval mode, without gradients."""
        with torch.no_grad():
            answer: torch.Tensor = self.network(images_B3HW)
            return answer


@contextlib.contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """An event that SIGTERM and Ctrl-C set, instead of killing the process in the middle of a
    step.
    """
    stop = threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    old = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def train(
    module: nn.Module,
    loss: LossFunction,
    groups: list[dict[str, Any]],
    samples: Samples,
    config: Training,
    folder: Path,
    metrics: Metrics,
    seed: int,
    title: str,
    after_epoch: Callable[[int], dict[str, float]] | None = None,
    device: str = "auto",
    teacher: bool = False,
) -> dict[str, float]:
    """Train ``module`` in place, resuming from the newest checkpoint in ``folder``.

    Args:
        module: model; on return it holds the final (or averaged) weights, on CPU.
        loss: ``loss(module, tensors..., rng) -> terms by name``; their sum is minimised.
        groups: optimiser groups.
        samples: training samples ``(id, tensors...)``.
        config: knobs.
        folder: for checkpoints.
        metrics: where to log.
        seed: of everything random.
        title: shown beside the progress bar.
        after_epoch: called with the epoch number after each epoch; its values are logged.
        device: ``auto`` or ``cpu``.
        teacher: also give the loss ``teacher``, the averaged network; ``config.ema`` must be on.

    Returns:
        Last loss, images per second, share of time spent waiting for data.

    Raises:
        TrainingError: a loss that is not finite, with the images of that batch.
        Interrupted: SIGTERM or Ctrl-C, after a checkpoint was written.
    """
    trainer = _Trainer(
        module, loss, groups, samples, config, folder, metrics, seed, device, teacher
    )
    try:
        return trainer.run(title, after_epoch)
    except (RuntimeError, ValueError, MemoryError) as error:
        if known := explained(error):
            raise known from error
        raise


class _Trainer:
    """State of one training; ``run`` is the loop."""

    def __init__(
        self,
        module: nn.Module,
        loss: LossFunction,
        groups: list[dict[str, Any]],
        samples: Samples,
        config: Training,
        folder: Path,
        metrics: Metrics,
        seed: int,
        device: str,
        teacher: bool = False,
    ) -> None:
        self.module, self.loss, self.samples, self.config = module, loss, samples, config
        self.metrics, self.seed = metrics, seed
        self.fabric = make_fabric(config.precision, device)
        self.checkpoints = Checkpoints(folder)
        self.step = 0
        module.to(memory_format=torch.channels_last)
        optimizer = make_optimizer(groups, config)
        self.ema = _averaged(module, config.ema)
        self.last: dict[str, float] = {}
        self.events = (
            _tensorboard(folder) if config.tensorboard and self.fabric.is_global_zero else None
        )
        self._restore(optimizer)
        if self.fabric.is_global_zero:
            metrics.rewind(self.step)
        self.wrapped, self.optimizer = self.fabric.setup(_LossModule(module, loss), optimizer)
        fabric = self.fabric
        if self.ema is not None:
            self.ema.to(fabric.device).module.eval()
        self.teacher = Teacher(self.ema.module) if teacher and self.ema is not None else None
        self.batches = Batches(
            len(samples.records),
            config.batch,
            config.epochs,
            seed,
            self.step,
            fabric.global_rank,
            fabric.world_size,
            config.updates,
        )
        if not self.batches.per_epoch:
            raise ConfigError("there is no image to train on", "a training list with images")
        self.total = self.batches.total
        self.pending: list[tuple[int, list[str], dict[str, torch.Tensor]]] = []
        self.waited = self.busy = 0.0
        self.finite: float | None = None

    def _restore(self, optimizer: torch.optim.Optimizer) -> None:
        state = self.checkpoints.latest()
        if state is None:
            return
        try:
            self.module.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise WeightsError(
                f"the checkpoint in {self.checkpoints.folder} belongs to another model:"
                f" {str(error).splitlines()[0]}",
                "a checkpoint of the same method, backbone and classes",
                "choose another --run, or remove the checkpoint",
            ) from error
        self.fabric.strategy.precision.load_state_dict(state["precision"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.step, self.last = int(state["step"]), state.get("last", {})

    def run(
        self, title: str, after_epoch: Callable[[int], dict[str, float]] | None
    ) -> dict[str, float]:
        fabric, config = self.fabric, self.config
        workers = default_workers() if config.workers < 0 else config.workers
        loader = training_loader(
            self.samples, self.batches, workers, pin=fabric.device.type == "cuda"
        )
        saved = time.monotonic()
        self.module.train()
        with (
            make_progress(fabric.is_global_zero) as bar,
            stop_signals() as stop,
            contextlib.closing(loader),
        ):
            task = bar.add_task(title, total=self.total, completed=self.step, status="")
            asked = time.monotonic()
            for names, *tensors in loader:
                self.waited += time.monotonic() - asked
                start = time.monotonic()
                self._update(names, [fabric.to_device(t) for t in tensors])
                self.step += 1
                if self.step % LOG_EVERY == 0 or self.step == self.total:
                    self._flush()
                    bar.update(task, status=f"loss {self.last['loss']:.4f}")
                bar.update(task, completed=self.step)
                self.busy += time.monotonic() - start
                if after_epoch and self.step % self.batches.per_epoch == 0:
                    self._after_epoch(after_epoch)
                if stop.is_set() or time.monotonic() - saved > config.checkpoint_minutes * 60:
                    self._save()
                    saved = time.monotonic()
                if stop.is_set():
                    raise Interrupted(
                        f"{title}: stopped after step {self.step} of {self.total}; run the same"
                        " command to go on"
                    )
                asked = time.monotonic()
        if self.ema is not None:
            self.module.load_state_dict(self.ema.module.state_dict())
        self.module.to("cpu")
        if wrong := not_finite(self.module.state_dict()):
            raise TrainingError(
                f"the last updates left NaN or inf in {wrong}; {self._finite()}",
                "finite weights",
                self._remedy(),
            )
        return self.last

    def _update(self, names: list[str], tensors: list[torch.Tensor]) -> None:
        """One optimiser step over the parts of a batch."""
        rng = step_rng(self.seed, self.step * self.fabric.world_size + self.fabric.global_rank)
        set_rate(self.optimizer, self.step, self.total, self.config)
        asked = {}
        if self.teacher is not None:
            self.teacher.progress = self.step / self.total
            asked["teacher"] = self.teacher
        parts = list(zip(*(t.chunk(self.config.accumulate) for t in tensors)))
        sums: dict[str, torch.Tensor] = {}
        for i, part in enumerate(parts):
            share = len(part[0]) / len(tensors[0])
            with self.fabric.no_backward_sync(
                self.wrapped, enabled=i < len(parts) - 1 and self.fabric.world_size > 1
            ):
                terms = self.wrapped(*part, rng, **asked)
                self.fabric.backward(torch.stack([t.float() for t in terms.values()]).sum() * share)
            for name, term in terms.items():
                sums[name] = sums.get(name, 0) + term.detach().float() * share
        if self.config.clip:
            self.fabric.clip_gradients(self.wrapped, self.optimizer, max_norm=self.config.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update_parameters(self.module)
        self.pending.append((self.step, names, sums))

    def _flush(self) -> None:
        """Check and log the losses of the last steps; reading them one by one would stall a GPU."""
        values: dict[str, float] = {}
        for step, names, terms in self.pending:
            values = {f"loss_{k}": float(v) for k, v in terms.items()}
            values["loss"] = sum(values.values())
            if not np.isfinite(values["loss"]):
                shown = ", ".join(f"{k} {v}" for k, v in values.items())
                raise TrainingError(
                    f"the loss is not finite at step {step}: {shown}; {self._finite()}; images of"
                    f" that batch: {', '.join(names)}",
                    "a finite loss",
                    self._remedy(),
                )
            self.finite = values["loss"]
        images = len(self.pending) * self.batches.batch
        self.pending = []
        seconds = max(self.busy + self.waited, 1e-9)
        values["lr"] = float(self.optimizer.param_groups[0]["lr"])
        values["data_wait"] = self.waited / seconds
        values["images_per_second"] = images / seconds
        self.waited = self.busy = 0.0
        self.last = values
        self._log(values)

    def _finite(self) -> str:
        last = self.last.get("loss") if self.finite is None else self.finite
        return "no loss before was finite" if last is None else f"the last finite loss is {last:g}"

    def _remedy(self) -> str:
        section, config = self.config.section, self.config
        return (
            f"a lower rate (--set {section}.lr=..., it was {config.lr:g}), --set {section}.clip=1,"
            f" or --set {section}.precision=fp32"
        )

    def _after_epoch(self, after_epoch: Callable[[int], dict[str, float]]) -> None:
        if self.pending:
            self._flush()
        self.module.eval()
        values = after_epoch(self.step // self.batches.per_epoch)
        self.module.train()
        self.last.update({name: float(value) for name, value in values.items()})
        self._log(values)

    def _log(self, values: dict[str, float]) -> None:
        if not self.fabric.is_global_zero or not values:
            return
        epoch = (self.step - 1) // self.batches.per_epoch + 1
        self.metrics.write(epoch, self.step, values)
        if self.events is not None:
            for name, value in values.items():
                self.events.add_scalar(f"{self.metrics.stage}/{name}", value, self.step)
            self.events.flush()

    def _save(self) -> None:
        if self.pending:
            self._flush()
        state = {
            "model": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "last": self.last,
        }
        state["precision"] = self.fabric.strategy.precision.state_dict()
        if self.ema is not None:
            state["ema"] = self.ema.state_dict()
        if self.fabric.is_global_zero:
            self.checkpoints.save(state)


class _LossModule(nn.Module):
    """Makes the loss the forward pass, which is what Fabric and DDP wrap."""

    def __init__(self, module: nn.Module, loss: LossFunction) -> None:
        super().__init__()
        self.module, self.loss = module, loss

    def forward(self, *arguments: Any, **asked: Any) -> dict[str, torch.Tensor]:
        return self.loss(self.module, *arguments, **asked)


def _averaged(module: nn.Module, decay: float) -> torch.optim.swa_utils.AveragedModel | None:
    if not decay:
        return None
    average = torch.optim.swa_utils.get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    return torch.optim.swa_utils.AveragedModel(module, multi_avg_fn=average, use_buffers=True)


def _tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            "tensorboard is not installed",
            "tensorboard=off, or the package",
            "pip install 'wsss[tensorboard]'",
        ) from error
    return SummaryWriter(folder / "tensorboard")
