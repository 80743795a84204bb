"""The one training loop: samples in, trained weights and ``model.pt`` out.

Everything random is a function of (seed, step). On a CPU, a run that was killed and started again
ends with the same weights to the last bit.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from trainer.data.loader import Batch, Batches, Samples, default_workers, training_loader
from trainer.data.sampling import make_order
from trainer.errors import ConfigError, TrainingError, WeightsError, explained
from trainer.interrupt import Interrupted, stop_signals
from trainer.progress import make_progress
from trainer.run import Metrics, Output
from trainer.training.averaging import Teacher, make_average
from trainer.training.checkpoints import Checkpoints
from trainer.training.collectives import agreed, check_same, gathered, process_mean
from trainer.training.devices import make_fabric
from trainer.training.events import make_events
from trainer.training.model_file import save_model
from trainer.training.optimiser import Training, make_optimizer, set_rate
from trainer.training.synced_norms import synced
from trainer.weights.numbers import not_finite

Terms = dict[str, torch.Tensor]
Loss = Callable[[Any, Batch, np.random.Generator], Terms]
"""``loss(module, batch, rng)``: terms by name, whose sum is minimised."""
LOG_EVERY = 10


def step_rng(seed: int, step: int) -> np.random.Generator:
    """Seed every generator for one step and return one for the loss.

    Dropout draws from torch's global generator, colour jitter from Python's.
    """
    # Neighbouring steps must not get neighbouring states, which SeedSequence prevents.
    state = int(np.random.SeedSequence((seed, step)).generate_state(1)[0])
    torch.manual_seed(state)
    random.seed(state)
    return np.random.default_rng(state)


class Trainer:
    """One training of one module, resumed from the newest checkpoint in ``folder``.

    Args:
        module: what trains, in place.
        loss: see ``Loss``.
        groups: optimiser groups.
        samples: training samples.
        config: knobs.
        folder: of the checkpoints and of ``model.pt``.
        metrics: log; its stage is also the title of the progress bar.
        seed: of everything random.
        device: ``auto``, ``cuda`` or ``cpu``.

    Attributes:
        teacher: the averaged network, or None without ``config.ema``.
        last: the last logged values by name.

    Raises:
        ConfigError: no image to train on, or a batch that the processes cannot share.
        RunError: a checkpoint that only some processes see.
        WeightsError: a checkpoint of another model.
    """

    def __init__(
        self,
        module: nn.Module,
        loss: Loss,
        groups: list[dict[str, Any]],
        samples: Samples,
        config: Training,
        folder: Path,
        metrics: Metrics,
        seed: int,
        device: str = "auto",
    ) -> None:
        self.module, self.samples, self.config = module, samples, config
        self.folder, self.metrics, self.seed = folder, metrics, seed
        config.check_processes(len(samples.records))
        self.fabric = fabric = make_fabric(config.precision, device)
        self.checkpoints = Checkpoints(folder)
        self.step = 0
        self.last: dict[str, float] = {}
        module.to(memory_format=torch.channels_last)
        optimizer = make_optimizer(groups, config)
        self.average = make_average(module, config.ema)
        self.restore(optimizer)
        self.events = None
        if fabric.is_global_zero:
            metrics.rewind(self.step)
            self.events = make_events(folder) if config.tensorboard else None
        self.wrapped, self.optimizer = fabric.setup(_LossModule(module, loss), optimizer)
        self.teacher = None
        if self.average is not None:
            self.average.to(fabric.device).module.eval()
            self.teacher = Teacher(self.average.module)
        self.batches = Batches(
            len(samples.records),
            config.batch,
            config.epochs,
            seed,
            self.step,
            fabric.global_rank,
            fabric.world_size,
            config.updates,
            samples.order or make_order(samples.records, config.negatives, config.balance, seed),
        )
        if not self.batches.per_epoch:
            raise ConfigError("there is no image to train on", "a training list with images")
        self.total = self.batches.total
        self.unlogged: list[tuple[int, list[str], Terms]] = []
        self.waiting = self.busy = 0.0
        self.finite_loss: float | None = None

    def run(self, after_epoch: Callable[[int], dict[str, float]] | None = None) -> None:
        """Train to the end; the module then holds the final (or averaged) weights, on the CPU.

        Args:
            after_epoch: called with the number of each epoch after it; its values are logged.

        Raises:
            TrainingError: a loss or weights that are not finite.
            Interrupted: SIGTERM or Ctrl-C, after a checkpoint was written.
        """
        try:
            self.loop(after_epoch)
        except (RuntimeError, ValueError, MemoryError) as error:
            if explanation := explained(error):
                raise explanation from error
            raise
        if self.average is not None:
            self.module.load_state_dict(self.average.module.state_dict())
        self.module.to("cpu")
        if wrong := not_finite(self.module.state_dict()):
            raise self.failure(f"the last updates left NaN or inf in {wrong}", "finite weights")

    def loop(self, after_epoch: Callable[[int], dict[str, float]] | None) -> None:
        """Every step from ``self.step`` to the last."""
        fabric, config, title = self.fabric, self.config, self.metrics.stage
        workers = default_workers() if config.workers < 0 else config.workers
        pin = fabric.device.type == "cuda"
        loader = training_loader(self.samples, self.batches, workers, pin)
        self.module.train()
        with (
            make_progress(images=self.batches.batch) as bar,
            stop_signals() as stop,
            contextlib.closing(loader),
        ):
            task = bar.add_task(title, total=self.total, completed=self.step, status="")
            checkpoint_time = idle_since = time.monotonic()
            for batch in loader:
                start = time.monotonic()
                self.waiting += start - idle_since
                self.update(batch)
                self.step += 1
                if self.step % LOG_EVERY == 0 or self.step == self.total:
                    self.log_losses()
                    bar.update(task, status=f"loss {self.last['loss']:.4f}", losses=self.last)
                bar.update(task, completed=self.step)
                self.busy += time.monotonic() - start
                if after_epoch and self.step % self.batches.per_epoch == 0:
                    self.end_epoch(after_epoch)
                minutes = (time.monotonic() - checkpoint_time) / 60
                # A signal may reach one process only, and their clocks differ.
                stops, is_due = agreed(stop.is_set(), minutes > config.checkpoint_minutes)
                if stops or is_due:
                    self.save_checkpoint()
                    checkpoint_time = time.monotonic()
                if stops:
                    raise Interrupted(
                        f"{title}: stopped after step {self.step} of {self.total}; run the same"
                        " command to go on"
                    )
                idle_since = time.monotonic()

    def update(self, batch: dict[str, Any]) -> None:
        """One optimiser step over the parts of a batch."""
        fabric, config = self.fabric, self.config
        rng = step_rng(self.seed, self.step * fabric.world_size + fabric.global_rank)
        set_rate(self.optimizer, self.step, self.total, config)
        if self.teacher is not None:
            self.teacher.progress = self.step / self.total
        # Names are no tensors. They stay here for the messages.
        ids = batch.pop("id")
        sums: Terms = {}
        parts = split({name: fabric.to_device(x) for name, x in batch.items()}, config.accumulate)
        for i, part in enumerate(parts):
            # The last part may be smaller.
            share = len(part["image"]) / len(batch["image"])
            # Processes exchange gradients once an update, with the last part.
            silent = i < len(parts) - 1 and fabric.world_size > 1
            with fabric.no_backward_sync(self.wrapped, enabled=silent):
                terms = self.wrapped(part, rng)
                fabric.backward(torch.stack([t.float() for t in terms.values()]).sum() * share)
            for name, term in terms.items():
                sums[name] = sums.get(name, 0) + term.detach().float() * share
        if config.clip:
            fabric.clip_gradients(self.wrapped, self.optimizer, max_norm=config.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update_parameters(self.module)
        self.unlogged.append((self.step, ids, sums))

    def log_losses(self) -> None:
        """Check and log the losses since the last log.

        A GPU would stall if each loss were read in its own step.
        """
        values: dict[str, float] = {}
        sums = torch.stack([torch.stack([*terms.values()]) for _, _, terms in self.unlogged])
        for (step, ids, terms), row in zip(self.unlogged, process_mean(sums).tolist(), strict=True):
            values = {f"loss_{name}": value for name, value in zip(terms, row, strict=True)}
            values["loss"] = sum(values.values())
            if not np.isfinite(values["loss"]):
                texts = ", ".join(f"{name} {value}" for name, value in values.items())
                problem = f"the loss is not finite at step {step}: {texts}"
                raise self.failure(problem, "a finite loss", gathered(ids))
            self.finite_loss = values["loss"]
        images = len(self.unlogged) * self.batches.batch
        seconds = max(self.busy + self.waiting, 1e-9)
        values["lr"] = float(self.optimizer.param_groups[0]["lr"])
        values["data_wait"] = self.waiting / seconds
        values["images_per_second"] = images / seconds
        self.waiting = self.busy = 0.0
        self.unlogged = []
        self.last = values
        self.log(values)

    def end_epoch(self, after_epoch: Callable[[int], dict[str, float]]) -> None:
        """Call ``after_epoch`` with the module in evaluation mode and log what it returns."""
        if self.unlogged:
            self.log_losses()
        self.module.eval()
        values = after_epoch(self.step // self.batches.per_epoch)
        self.module.train()
        self.last.update({name: float(value) for name, value in values.items()})
        self.log(values)

    def log(self, values: dict[str, float]) -> None:
        """Write values to ``metrics.csv`` and TensorBoard."""
        if not self.fabric.is_global_zero or not values:
            return
        epoch = (self.step - 1) // self.batches.per_epoch + 1
        self.metrics.write(epoch, self.step, values)
        if self.events is not None:
            for name, value in values.items():
                self.events.add_scalar(f"{self.metrics.stage}/{name}", value, self.step)
            self.events.flush()

    def save_checkpoint(self) -> None:
        """Write everything that ``restore`` reads."""
        if self.unlogged:
            self.log_losses()
        state = {
            "model": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "last": self.last,
            "precision": self.fabric.strategy.precision.state_dict(),
        }
        if self.average is not None:
            state["ema"] = self.average.state_dict()
        if self.fabric.is_global_zero:
            self.checkpoints.save(state)

    def restore(self, optimizer: torch.optim.Optimizer) -> None:
        """Go on from the newest checkpoint, if there is one."""
        state = self.checkpoints.latest()
        check_same(
            state and state["step"],
            f"the processes do not see the same checkpoint in {self.folder}",
            "one folder for all machines, where each sees at once what another has written",
            "run the same command again",
        )
        if state is None:
            return
        try:
            self.module.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise WeightsError(
                f"the checkpoint in {self.folder} belongs to another model:"
                f" {str(error).splitlines()[0]}",
                "a checkpoint of the same method, backbone and classes",
                "choose another --run, or remove the checkpoint",
            ) from error
        self.fabric.strategy.precision.load_state_dict(state["precision"])
        if self.average is not None:
            self.average.load_state_dict(state["ema"])
        self.step, self.last = int(state["step"]), state.get("last", {})

    def save(self, output: Output, identity: dict[str, Any]) -> None:
        """Write ``model.pt`` and what the manifest remembers of the training.

        Args:
            output: of the stage.
            identity: what the weights are, for ``read_model``.
        """
        save_model(self.folder, self.module, identity)
        output.metrics.update({name: float(f"{value:.6g}") for name, value in self.last.items()})
        output.outputs.update(count=1, weights="model.pt", images=len(self.samples.records))

    def failure(self, problem: str, expected: str, ids: list[str] | None = None) -> TrainingError:
        """The error of a training that diverged, with the images of the batch where it did."""
        section, config = self.config.section, self.config
        last = self.last.get("loss") if self.finite_loss is None else self.finite_loss
        before = (
            "no loss before was finite" if last is None else f"the last finite loss is {last:g}"
        )
        images = f"; images of that batch: {', '.join(ids)}" if ids else ""
        return TrainingError(
            f"{problem}; {before}{images}",
            expected,
            f"a lower rate (--set {section}.lr=..., it was {config.lr:g}), --set {section}.clip=1,"
            f" or --set {section}.precision=fp32",
        )


class _LossModule(nn.Module):
    """Makes the loss the forward pass, which is what Fabric and DDP wrap."""

    def __init__(self, module: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.module, self.loss = module, loss

    def forward(self, batch: Batch, rng: np.random.Generator) -> Terms:
        with synced(self.module):
            return self.loss(self.module, batch, rng)


def split(batch: Batch, count: int) -> list[Batch]:
    """``count`` parts of a batch, or fewer where it has fewer samples."""
    columns = [x.chunk(count) for x in batch.values()]
    return [dict(zip(batch, part)) for part in zip(*columns)]
