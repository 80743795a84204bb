"""From records to batches. The content of a batch depends on (seed, epoch, index) only, never on
the number of workers or on resuming.
"""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from types import FrameType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from trainer.cores import cores, use_all_cores
from trainer.data.dataset import Record
from trainer.data.sampling import Order
from trainer.data.transforms import Rng, sample_rng
from trainer.errors import UserError
from trainer.ranks import local_world_size

STOPPED_SECONDS = 60
"""How long a loader process lives after a stop signal: the step in progress waits for its batch."""

Sample = dict[str, Any]
"""``id``, ``image``, and whatever else the training needs, by name."""
Batch = Mapping[str, torch.Tensor]
"""Stacked samples under the same names; the loop takes the ids out before the loss sees it."""
MakeSample = Callable[[Record, Rng], dict[str, torch.Tensor]]


class Samples(TorchDataset[Sample]):
    """Samples addressed by (epoch, index), and the order in which epochs draw them, where it is not
    the usual one.
    """

    def __init__(
        self, records: Sequence[Record], make: MakeSample, seed: int, order: Order | None = None
    ) -> None:
        self.records, self.make, self.seed, self.order = list(records), make, seed, order

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        """One sample; its randomness is a pure function of (seed, epoch, index)."""
        epoch, index = key
        record = self.records[index]
        try:
            return {"id": record.id, **self.make(record, sample_rng(self.seed, epoch, index))}
        except UserError:
            raise
        except Exception as error:
            raise RuntimeError(f"image {record.id!r}: {type(error).__name__}: {error}") from error


class Batches:
    """The whole training plan as lists of (epoch, index), from any step on.

    Args:
        count: number of samples. The last incomplete batch of an epoch is dropped.
        batch: samples per step over all processes; where there are fewer, the largest number that
            the processes divide evenly.
        epochs: passes over the data.
        seed: of the shuffling.
        start: first step (for resuming).
        rank: this process.
        world: number of processes; each takes its part of a batch.
        updates: number of steps; 0 derives it from ``epochs``.
        order: what each epoch draws, instead of every sample once. Here the last batch of an epoch
            is filled up from its start, so that nothing is dropped.
    """

    def __init__(
        self,
        count: int,
        batch: int,
        epochs: int,
        seed: int,
        start: int = 0,
        rank: int = 0,
        world: int = 1,
        updates: int = 0,
        order: Order | None = None,
    ) -> None:
        # A list shorter than a batch makes batches of the whole list.
        self.count = count if order is None else len(order)
        self.batch, self.seed, self.start = min(batch, self.count), seed, start
        self.batch -= self.batch % world
        self.order = order
        self.rank, self.world = rank, world
        self.total = (updates or self.per_epoch * epochs) if self.per_epoch else 0

    @property
    def per_epoch(self) -> int:
        """Steps of one epoch."""
        if not self.batch:
            return 0
        return -(-self.count // self.batch) if self.order is not None else self.count // self.batch

    def __len__(self) -> int:
        return self.total - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in range(self.start, self.total):
            epoch, place = divmod(step, self.per_epoch)
            # A resumed run may begin in the middle of an epoch.
            if place == 0 or step == self.start:
                images = self.images(epoch)
            # A run of neighbours, not every ``world``-th sample: an order may alternate between
            # images with and without tags, and then one process would never see a tag.
            size = self.batch // self.world
            first = place * self.batch + self.rank * size
            yield [(epoch, int(i)) for i in images[first : first + size]]

    def images(self, epoch: int) -> npt.NDArray[np.int64]:
        """Positions of the samples of an epoch in the order of their use."""
        if self.order is not None:
            return np.resize(self.order(epoch), self.per_epoch * self.batch)
        return np.random.default_rng((self.seed, epoch)).permutation(self.count)


class LoadError(Exception):
    """What failed in a loader process, with the traceback of that process as text."""


class Guarded(TorchDataset[Any]):
    """The items of ``dataset``. An exception is returned in place of its item.

    If a loader process raised it, a ``UserError`` would arrive as a traceback, and that traceback
    would keep the loader alive when the command ends. ``unguarded`` raises it in this process.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Any) -> Any:
        try:
            return self.dataset[key]
        except UserError as error:
            return error
        except Exception as error:
            return LoadError(f"{error}\nin a loader process:\n{traceback.format_exc()}")


def unguarded(loader: Iterable[Any]) -> Generator[Any, None, None]:
    """The items of ``loader``. The first exception among them is raised.

    Raises:
        UserError: of an item.
        LoadError: any other failure.
    """
    items = iter(loader)
    try:
        for item in items:
            if isinstance(item, Exception):
                raise item
            yield item
    finally:
        # The loader processes end with the iterator, which a traceback would keep alive.
        del items


def training_loader(
    samples: Samples, batches: Batches, workers: int, pin: bool
) -> Generator[Any, None, None]:
    """Yield batches with channels-last images. One loader serves all epochs, so workers start once.

    Raises:
        UserError: what a sample raised.
    """
    loader = DataLoader(
        Guarded(samples),
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin,
        persistent_workers=False,
        prefetch_factor=4 if workers else None,
        worker_init_fn=start_worker,
    )
    return unguarded(loader)


def collate(samples: Sequence[Sample | Exception]) -> Sample | Exception:
    """Stack samples by name, or return the first error among them. Images stay channels-last."""
    whole = []
    for sample in samples:
        if isinstance(sample, Exception):
            return sample
        whole.append(sample)
    columns = {name: [sample[name] for sample in whole] for name in whole[0]}
    return {name: x if name == "id" else _stack(x) for name, x in columns.items()}


def _stack(column: Sequence[torch.Tensor]) -> torch.Tensor:
    if column[0].ndim != 3:
        return torch.stack(list(column))
    # Stacked with the channels last and seen with them second: no copy makes it channels-last
    # again.
    return torch.stack([c.permute(1, 2, 0) for c in column]).permute(0, 3, 1, 2)


def start_worker(_: int = 0) -> None:
    """Limit a loader process to one thread, and let it outlive the first stop signal.

    Ctrl-C and some schedulers signal every process of a job at once, but the step in progress still
    needs its batch. The process ends after ``STOPPED_SECONDS``, because a parent that exits waits
    for its processes.
    """
    torch.set_num_threads(1)
    use_all_cores()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _outlive_once)


def _outlive_once(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGALRM, lambda *_: os._exit(0))
    signal.alarm(STOPPED_SECONDS)


def default_workers() -> int:
    """Number of loader processes by default."""
    # One core stays for this process; the others of this machine need their own.
    return max(1, min(8, cores() // local_world_size() - 1))
