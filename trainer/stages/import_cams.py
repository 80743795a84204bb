"""Stage ``cams`` from a folder of maps that others made: ours (.npz), and the .npy of PSA, SEAM,
CPN, IRN, VWE and MVA.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

from trainer.context import Context, Stage
from trainer.data.dataset import Dataset, Record
from trainer.data.pixels import image_size
from trainer.errors import DataError, RunError, some
from trainer.evaluation.foreign_files import CAM_SUFFIXES, Files, files_of
from trainer.files import is_whole
from trainer.maps.camfile import cam_path, no_maps, read_cam, reduced, stride4, write_cam
from trainer.maps.foreign import read_foreign
from trainer.pool import over_images, raise_together
from trainer.ranks import rank
from trainer.run import Output

REPAIR = "bring or repair these files and run the same command again"


def stage() -> Stage:
    """The stage that takes the maps of ``--cams`` instead of making them."""
    return Stage("cams", ("data",), _knobs, _work)


def _knobs(context: Context) -> Any:
    folder = context.cams_folder
    assert folder is not None
    # Sizes and times, not bytes: maps of a large data set would take minutes to hash.
    files = [
        [path.relative_to(folder).as_posix(), path.stat().st_size, path.stat().st_mtime_ns]
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in CAM_SUFFIXES
    ]
    return [files, context.configs.cams.bad, [record.id for record in context.images]]


def _work(context: Context, output: Output) -> None:
    folder = context.cams_folder
    assert folder is not None
    if rank() == 0:
        bad = context.configs.cams.bad
        import_cams(context.dataset, context.images, folder, output, bad, progress=True)
        output.metrics.update(protocol=f"as in {folder}", scales=[])


def import_cams(
    dataset: Dataset,
    records: Sequence[Record],
    folder: Path,
    output: Output,
    bad: Literal["stop", "skip"] = "stop",
    workers: int | None = None,
    progress: bool = False,
) -> None:
    """Write ``<id>.npz`` of every record from ``folder``'s ``<id>.npz`` or ``<id>.npy``; files that
    load are kept.

    The maps of an image are of all its tags, and of those unknown classes that it shows. An image
    without tags needs no file.

    Args:
        dataset: the data set of ``records``.
        records: images.
        folder: maps by image id.
        output: of the stage.
        bad: ``stop`` raises once every image was tried; ``skip`` leaves bad ones out and notes
            them.
        workers: processes; None for one a core, 0 for none.
        progress: show a bar.

    Raises:
        DataError: no such folder, or maps that are missing, damaged, of another size or of other
            classes, listed.
        RunError: no space left.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder", "a folder of <id>.npz or <id>.npy maps")
    files = files_of(folder, dataset, "cams")
    foreign = [name for name in files.others if Path(name).suffix.lower() in CAM_SUFFIXES]
    work = partial(_import_one, len(dataset.classes), files, output.folder)
    problems = _problems(work, records, workers, progress)
    if bad == "stop":
        what = "images have no usable maps (cams.bad=skip leaves them out)"
        raise_together(list(problems.values()), len(records), what)
    if not any(record.tags and record.id not in problems for record in records):
        what = "images have no usable maps: none is left"
        raise_together(list(problems.values()), len(records), what)
    output.outputs.update(
        count=len(records) - len(problems),
        taken_from=str(folder),
        left_out=list(problems),
        foreign=foreign,
    )


def _problems(
    work: Callable[[Record], None],
    records: Sequence[Record],
    workers: int | None,
    progress: bool,
) -> dict[str, DataError]:
    """What is wrong with the maps of single images, by id, after ``work`` on all of them."""
    problems: dict[str, DataError] = {}
    name = attrgetter("id")
    for record, outcome in over_images(work, records, workers, "maps", progress, name):
        if isinstance(outcome, RunError):
            raise outcome
        if isinstance(outcome, DataError):
            problems[record.id] = outcome
    return problems


def _import_one(num_classes: int, files: Files, out: Path, record: Record) -> None:
    target, size = cam_path(out, record.id), image_size(record.image)
    if is_whole(read_cam, target):
        return
    # Where an image has files of both kinds, ours (.npz) counts.
    source = files.used.get(record.id)
    if names := files.unclear.get(record.id):
        raise DataError(f"maps of {record.id} are several: {some(names)}", "one file", REPAIR)
    if not record.possible or (not record.tags and source is None):
        write_cam(target, *no_maps(size))
        return
    if source is None:
        raise DataError(f"maps of {record.id} are missing", "<id>.npz or <id>.npy", REPAIR)
    try:
        is_ours = source.suffix.lower() == ".npz"
        cam = read_cam(source) if is_ours else read_foreign(source, size)
    except DataError as error:
        # The hint of the reader is for maps of a run, which another run makes anew.
        raise DataError(error.found, error.expected, REPAIR) from error
    if cam.size != size:
        raise DataError(
            f"maps of {record.id} are for {cam.size} pixels and the image has {size}",
            "maps of this image",
        )
    if not set(record.tags) <= set(cam.classes.tolist()) <= set(record.possible):
        what = f"maps of {record.id} are of the classes {cam.classes.tolist()}"
        if cam.classes.max(initial=-1) >= num_classes:
            raise DataError(what, f"0 to {num_classes - 1}: the class tables differ")
        also = f", and any of the unknown {sorted(record.unknown)}" if record.unknown else ""
        raise DataError(what, f"those of its tags, {sorted(record.tags)}{also}")
    write_cam(target, cam.classes, reduced(cam.maps, stride4(size)), size)
