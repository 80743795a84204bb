"""Read what a person answered, check it against what was asked, and keep it as corrections.

Everything is read and checked before anything is written.
"""

from __future__ import annotations

import dataclasses
import datetime
import fcntl
import os
import shlex
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np

from trainer.data.dataset import IGNORE, Dataset, read_index_png
from trainer.data.formats.opening import reopen_data
from trainer.errors import DataError, some
from trainer.files import place_image, write_atomic
from trainer.outputs import check_folder
from trainer.review.exam import Exam, Verdict
from trainer.review.files import Files
from trainer.review.form import Form
from trainer.review.forms import opened_export
from trainer.review.ledger import FILE as LEDGER
from trainer.review.ledger import Correction, Ledger, is_ledger, read_ledger
from trainer.review.record import FILE, is_review, read_review, reviews_of
from trainer.review.tag_table import TABLE, TagAnswer, read_tag_answers
from trainer.run import Run
from trainer.seed_folder import is_seed_folder

Unchanged = Literal["leave", "take"]
IMAGES, EARLIER = "images", "earlier"


def default_folder(dataset: Dataset) -> Path:
    """Where corrections of a data set go unless the user says so: never into the data."""
    return Path(f"{dataset.root.resolve().name}-corrections")


def answer(
    run_dir: Path, place: Path, out: Path | None = None, unchanged: Unchanged = "leave"
) -> dict[str, Any]:
    """Read the answers to a review into a folder of corrections. The data are not touched.

    Args:
        run_dir: the run that ``ask`` was given.
        place: the folder of the review, or what the tool exports: a zip, a JSON file or a folder.
        out: folder of corrections, new or with earlier ones; None for ``default_folder``.
        unchanged: whether masks that are as predicted, and that no one declared finished, are
            left out or taken as correct.

    Returns:
        What changed, as ``--json`` prints it.

    Raises:
        RunError: no run.
        DataError: answers that are damaged, contradict each other, or belong to another review.
        TargetError: ``out`` holds something else.
    """
    run = Run.existing(run_dir)
    # Tags as the data have them: corrections of the run's training would hide what changed.
    dataset = reopen_data({**run.manifest, "masks": None})
    exam = Exam(run.path, dataset, reviews_of(run.path))
    form, tags = _read(place, exam)
    masks = {n: v for n, v in exam.verdicts.items() if v.is_new or unchanged == "take"}
    verdicts = _with_tags(masks, tags)
    out = out or default_folder(dataset)
    if verdicts:
        with _alone(out):
            ledger = _opened(out, dataset, run.path)
            _check_masks(ledger, verdicts)
            _check_sources(ledger, verdicts, exam)
            _write(ledger, verdicts, form.name, exam)
    summary = _summary(exam, verdicts, form.name, place, out)
    return {**summary, "next": _next(run, dataset, out) if is_ledger(out) else None}


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Wait for other processes that answer into the same folder: each writes the book of all
    corrections. The kernel lets go however this process ends.
    """
    # The folder around it, since ``out`` need not be there, and no file that would be left behind.
    around = next(place for place in out.resolve().parents if place.is_dir())
    handle = os.open(around, os.O_RDONLY)
    try:
        # Some network disks lock no folder.
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _read(place: Path, exam: Exam) -> tuple[Form, list[TagAnswer]]:
    """Let ``exam`` see every mask; return the form that they came in, and answers about tags.

    Raises:
        DataError: there is neither.
    """
    form, files = opened_export(place)
    if is_review(place):
        exam.expect(read_review(place / FILE), place)
    for entry in form.read(files, exam.labels):
        exam.take(entry)
    exam.check_strangers()
    tags = read_tag_answers(Files(place), exam.dataset)
    if is_ledger(place):
        tags += _tags_of(read_ledger(place))
    if not exam.verdicts and not tags:
        raise DataError(
            f"{place} holds no answers",
            f"masks or submitted tasks of {form.tool}, or answers in {TABLE}",
            "; ".join(step.format(review=place) for step in form.steps)
            if is_review(place)
            else "submit or correct some, and export again",
        )
    return form, tags


def _with_tags(verdicts: dict[str, Verdict], tags: list[TagAnswer]) -> dict[str, Verdict]:
    """The verdicts with what was said of single tags.

    Raises:
        DataError: a mask says otherwise.
    """
    result = dict(verdicts)
    for tag in tags:
        verdict = result.get(tag.id, Verdict(where=tag.where))
        opposite = (
            {*verdict.denies, *verdict.tags_removed}
            if tag.is_present
            else {*verdict.shows, *verdict.tags_added}
        )
        if tag.name in opposite:
            raise DataError(
                f"image {tag.id!r} has two answers about {tag.name!r}: in {tag.where} and in"
                f" {verdict.where}",
                "one answer an image",
                f"change the mask, or empty the answer in {TABLE}",
            )
        added = {*verdict.tags_added, *([tag.name] if tag.is_present else ())}
        removed = {*verdict.tags_removed, *(() if tag.is_present else [tag.name])}
        result[tag.id] = dataclasses.replace(
            verdict, tags_added=tuple(sorted(added)), tags_removed=tuple(sorted(removed))
        )
    return result


def _tags_of(ledger: Ledger) -> list[TagAnswer]:
    """What other corrections say of images without a mask; a mask speaks for itself."""
    return [
        TagAnswer(record_id, name, is_present, f"{ledger.folder}/{LEDGER}")
        for record_id, entry in ledger.images.items()
        if not entry.mask
        for names, is_present in ((entry.added, True), (entry.removed, False))
        for name in names
    ]


def _opened(out: Path, dataset: Dataset, run: Path) -> Ledger:
    """The corrections that are there, or none yet.

    Raises:
        DataError: of another class table.
        TargetError: the folder holds something else.
    """
    hint = "--out with a new folder, or with earlier corrections"
    check_folder(out, is_ledger, [*dataset.places(), run], "--out", hint)
    if not is_ledger(out):
        return Ledger(out, dataset.classes)
    ledger = read_ledger(out)
    if ledger.classes != dataset.classes:
        raise DataError(
            f"{out} has corrections of the classes {some(ledger.classes)}",
            f"those of the run: {some(dataset.classes)}",
            hint,
        )
    return ledger


def _check_masks(ledger: Ledger, verdicts: dict[str, Verdict]) -> None:
    """Check answers about tags against masks of earlier answers.

    Raises:
        DataError: an earlier mask says otherwise.
    """
    for record_id, verdict in verdicts.items():
        before = ledger.images.get(record_id)
        if verdict.png or not before or not before.mask:
            continue
        path = ledger.mask_path(record_id)
        values = set(np.unique(read_index_png(path)).tolist())
        visible = {name for k, name in enumerate(ledger.classes, 1) if k in values}
        missing = set() if IGNORE in values else {*verdict.tags_added} - visible
        if wrong := sorted(missing | (visible & {*verdict.tags_removed})):
            raise DataError(
                f"image {record_id!r} has two answers about {some(wrong)}: in {verdict.where} and"
                f" in the earlier mask {path}",
                "tags and a mask that agree",
                "correct the mask too, or empty the answer",
            )


def _write(ledger: Ledger, verdicts: dict[str, Verdict], tool: str, exam: Exam) -> None:
    moment = datetime.datetime.now(datetime.UTC)
    time = moment.isoformat(timespec="seconds")
    earlier = ledger.folder / EARLIER / moment.isoformat().replace(":", "-")
    images = dict(ledger.images)
    for record_id, verdict in verdicts.items():
        before = images.get(record_id)
        entry = _entry(verdict, before, str(exam.run.resolve()), tool, time)
        entry = dataclasses.replace(entry, image=_image(ledger, record_id, exam))
        is_same = before is not None and _said(entry) == _said(before)
        path = ledger.mask_path(record_id)
        if verdict.png and not (path.is_file() and path.read_bytes() == verdict.png):
            is_same = False
            if path.exists():
                # An earlier answer is never lost, nor away for a moment.
                write_atomic(earlier / f"{record_id}.png", path.read_bytes())
            write_atomic(path, verdict.png)
        # The same answer again changes nothing, not even its time.
        if not is_same:
            images[record_id] = entry
    dataclasses.replace(ledger, images=images).write()


def _said(entry: Correction) -> tuple[object, ...]:
    return entry.mask, entry.added, entry.removed


def _entry(
    verdict: Verdict, before: Correction | None, run: str, tool: str, time: str
) -> Correction:
    """The correction after an answer. A mask says all of an image; tags are added to what is
    there.
    """
    added, removed = set(verdict.tags_added), set(verdict.tags_removed)
    is_whole = bool(verdict.png)
    if before and not is_whole:
        added |= set(before.added) - removed
        removed |= set(before.removed) - added
    mask = is_whole or bool(before and before.mask)
    return Correction(mask, tuple(sorted(added)), tuple(sorted(removed)), run, tool, time)


def _check_sources(ledger: Ledger, verdicts: Iterable[str], exam: Exam) -> None:
    """Check that images that the data set lacks are still there to be copied.

    Raises:
        DataError: one is not.
    """
    for record_id in verdicts:
        source = _source(record_id, exam)
        if source and not (source.is_file() or _copy(ledger, record_id, source).is_file()):
            raise DataError(
                f"image {record_id!r} is not at {source} any more",
                "the images of --also where ask saw them",
                "put the image back, and answer again",
            )


def _source(record_id: str, exam: Exam) -> Path | None:
    """The file of an image that the data set lacks; None for others."""
    if record_id in exam.dataset.records:
        return None
    review = next(review for review in exam.reviews if record_id in review.images)
    return Path(review.images[record_id].source)


def _image(ledger: Ledger, record_id: str, exam: Exam) -> str:
    """The copy of an image that the data set lacks; empty for others."""
    source = _source(record_id, exam)
    if source is None:
        return ""
    target = _copy(ledger, record_id, source)
    if not target.exists():
        place_image(source, target, "copy")
    return target.relative_to(ledger.folder).as_posix()


def _copy(ledger: Ledger, record_id: str, source: Path) -> Path:
    return ledger.folder / IMAGES / f"{record_id}{source.suffix.lower()}"


def _summary(
    exam: Exam, verdicts: dict[str, Verdict], tool: str, place: Path, out: Path
) -> dict[str, Any]:
    questions = {i for review in exam.reviews if review.key in exam.keys for i in review.images}
    masks = [name for name, verdict in verdicts.items() if verdict.png]
    pixels: dict[str, int] = {}
    for verdict in verdicts.values():
        for name, change in verdict.change.items():
            pixels[name] = pixels.get(name, 0) + change
    return {
        "review": str(place),
        "tool": tool,
        "corrections": str(out),
        "images": {name: _facts(verdict) for name, verdict in verdicts.items()},
        "pixels": pixels,
        "unchanged": sorted(exam.verdicts.keys() - masks),
        "waiting": sorted(questions - exam.verdicts.keys()),
        "not_asked": [name for name in masks if not verdicts[name].in_review],
    }


def _next(run: Run, dataset: Dataset, out: Path) -> str:
    """The command of a run again, with the corrections and into a folder of its own."""
    words = [str(word) for word in run.manifest.get("command", ())][1:]
    # Other commands train too, and hand their own options on.
    if words[:1] != ["fit"]:
        words = ["fit", str(dataset.root)]
    folder = run.path.parent if is_seed_folder(run.path.parent) else run.path
    target = folder.with_name(f"{folder.resolve().name}-corrected")
    options = ["--run", str(target), "--corrections", str(out)]
    return shlex.join(["wsss-trainer", *_without(words, options[::2]), *options])


def _without(words: list[str], options: list[str]) -> Iterator[str]:
    """Words of a command line without some options and their values."""
    rest = iter(words)
    for word in rest:
        if word in options:
            next(rest, "")
        elif word.partition("=")[0] not in options:
            yield word


def _facts(verdict: Verdict) -> dict[str, Any]:
    return {
        "mask": bool(verdict.png),
        "asked": verdict.in_review,
        "pixels": verdict.change,
        "tags_added": list(verdict.tags_added),
        "tags_removed": list(verdict.tags_removed),
    }
