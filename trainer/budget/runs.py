"""The runs of a budget curve: one training on tags alone, then one for each number of true masks.

The true masks of the data stand in for a person who draws them. A run with masks takes over what
the run without has done, so that classifier, maps and walks are made once for each seed.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from trainer.budget.choice import asked_order, random_order
from trainer.context import Context
from trainer.data.dataset import Dataset, Record
from trainer.data.tables.training_masks import choose_masks
from trainer.errors import ConfigError, DataError
from trainer.files import write_atomic
from trainer.options import Options
from trainer.ranks import rank
from trainer.training.collectives import wait_for_all

TAGS, BOTH, ALONE = "tags alone", "tags and masks", "masks alone"
ASK, RANDOM = "ask", "random"
FOLDER = "budget"
"""Of the first run, where the others lie."""
LIST = "few"
"""Training list of the runs on masks alone."""


@dataclass(frozen=True)
class Wish:
    """What the curve is to show.

    Attributes:
        masks_of: list whose true masks stand in for the person; None for the training list.
        steps: numbers of masks, ascending, without 0.
        ways: how images are chosen, ``ask`` or ``random`` or both.
        alone: whether the masks without the tags are trained on too.
        seeds: of everything random; one curve each, and their mean.
        draws: random choices for each seed.
        seconds: of work a mask, for the minutes of annotation.
    """

    masks_of: str | None = None
    steps: tuple[int, ...] = (8, 16, 32, 64)
    ways: tuple[str, ...] = (ASK,)
    alone: bool = False
    seeds: tuple[int, ...] = (0,)
    draws: int = 1
    seconds: tuple[int, ...] = (20, 240)


@dataclass(frozen=True)
class Member:
    """One run of the curve.

    Attributes:
        system: ``TAGS``, ``BOTH`` or ``ALONE``.
        way: how its images were chosen; empty without masks.
        count: of its masks.
        seed: of everything random.
        draw: of the random choice.
        folder: of the run.
    """

    system: str
    way: str
    count: int
    seed: int
    draw: int
    folder: Path

    @property
    def title(self) -> str:
        """In words."""
        way = f"at random, draw {self.draw}" if self.way == RANDOM else f"by {self.way}"
        masks = f", {self.count} masks chosen {way}" if self.count else ""
        return f"{self.system}{masks}, seed {self.seed}"

    @property
    def stage(self) -> str:
        """The stage of its segmenter."""
        return "segment_full" if self.system == ALONE else "segment"


def members(run: Path, wish: Wish) -> list[Member]:
    """All runs in the order of work: seed by seed, few masks first."""
    return [member for seed in wish.seeds for member in _of_seed(run, seed, wish)]


def _of_seed(run: Path, seed: int, wish: Wish) -> Iterator[Member]:
    folder = run / FOLDER
    base = run if seed == wish.seeds[0] else folder / f"tags-seed{seed}"
    yield Member(TAGS, "", 0, seed, 0, base)
    systems = {BOTH: "", ALONE: "alone-"} if wish.alone else {BOTH: ""}
    for count in wish.steps:
        for way in wish.ways:
            for draw in range(wish.draws if way == RANDOM else 1):
                name = f"{way}-{count}-seed{seed}" + (f"-draw{draw}" if way == RANDOM else "")
                for system, prefix in systems.items():
                    yield Member(system, way, count, seed, draw, folder / f"{prefix}{name}")


def check_options(options: Options) -> None:
    """Refuse options of ``fit`` that contradict the curve.

    Raises:
        ConfigError: as said.
    """
    for name in ("masks", "corrections"):
        if getattr(options, name):
            raise ConfigError(
                f"--{name} with budget, which chooses the masks that train itself",
                "--masks-of LIST",
            )
    if options.supervision == "full":
        raise ConfigError(
            "--supervision full with budget, which trains on tags",
            "--supervision both to train the upper bound on all true masks too, or nothing",
        )
    if options.until != Options.until:
        raise ConfigError("--until with budget, which measures every run", "no --until")


def check_lists(context: Context) -> None:
    """Check that something is measured, and never what trains.

    Raises:
        DataError: as said.
    """
    name, root = context.val_list, context.dataset.root
    if name is None or not context.dataset.masked(name):
        raise DataError(
            f"{root} has no true masks to measure on" + (f" in list {name!r}" if name else ""),
            "a validation list with masks, which never train",
            "--val-list LIST, or wsss-trainer split",
        )
    if shared := {record.id for record in context.training} & set(context.dataset.lists[name]):
        raise DataError(
            f"{len(shared)} images are in the training list {context.train_list!r} and in {name!r},"
            " which is measured",
            "two lists without a common image",
            "--train-list and --val-list, or wsss-trainer split",
        )


def pool_of(context: Context, wish: Wish) -> list[Record]:
    """The images whose true mask a person could draw. Where the tags say that an image shows
    nothing, its mask is known already.

    Raises:
        DataError: none, or fewer than the steps need; or see ``choose_masks``.
    """
    name = wish.masks_of or context.train_list
    masks = choose_masks(context.dataset, name, None, context.train_list, context.val_list)
    pool = [record for record in masks.images if record.possible] if masks else []
    # ``ask`` never chooses two images of one group.
    count = len({record.unit for record in pool}) if ASK in wish.ways else len(pool)
    if wish.steps and wish.steps[-1] > count:
        units = "images of different groups" if count < len(pool) else "images"
        raise DataError(
            f"--steps goes up to {wish.steps[-1]} masks, and list {name!r} has {count} {units} with"
            " a tag and a true mask",
            f"at most {count}",
        )
    return pool


@dataclass(frozen=True)
class Annotator:
    """Who brings the masks.

    Attributes:
        options: of the run on tags alone.
        dataset: of it.
        val_list: that is measured.
        pool: images to choose from.
        wish: what the curve is to show.
    """

    options: Options
    dataset: Dataset
    val_list: str
    pool: Sequence[Record]
    wish: Wish

    def options_of(self, member: Member, base: Path) -> Options:
        """The options of a run, after the choice of its masks.

        Args:
            member: the run.
            base: the finished run of its seed on tags alone.
        """
        options = replace(self.options, run=member.folder, seed=member.seed, until="evaluate")
        if not member.count:
            return options
        ids = self._chosen(member, base)
        file = self.options.run / FOLDER / "lists" / f"{member.folder.name}.txt"
        if member.system == ALONE:
            return self._alone(options, ids, file.with_suffix(".csv"))
        if rank() == 0:
            write_atomic(file, "\n".join(ids).encode())
        wait_for_all()
        return replace(options, masks=str(file))

    def _chosen(self, member: Member, base: Path) -> list[str]:
        if member.way == RANDOM:
            order = random_order(self.pool, member.seed, member.draw)
        else:
            file = self.options.run / FOLDER / "lists" / f"asked-seed{member.seed}.json"
            device = self.options.device
            order = asked_order(base, self.dataset, self.pool, self.wish.steps[-1], file, device)
        return sorted(order[: member.count])

    def _alone(self, options: Options, ids: Sequence[str], file: Path) -> Options:
        """A table of lists makes the images of ``ids`` the training list."""
        lists = {LIST: ids, self.val_list: self.dataset.lists[self.val_list]}
        records = [(self.dataset.records[i], name) for name, own in lists.items() for i in own]
        buffer = io.StringIO()
        # Groups too: a table that the user typed may be where they come from.
        has_groups = any(record.group for record, _ in records)
        rows = [(r.id, name, r.group) for r, name in records]
        head = ("image", "list", "group")
        csv.writer(buffer).writerows(row[: 2 + has_groups] for row in (head, *rows))
        if rank() == 0:
            write_atomic(file, buffer.getvalue().encode())
        wait_for_all()
        settings = (*options.settings, f"data.lists={file.resolve()}")
        return replace(
            options,
            supervision="full",
            train_list=LIST,
            val_list=self.val_list,
            settings=settings,
        )
