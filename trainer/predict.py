"""Masks of any list of a run's data, true masks or not, by the run's own segmenter: what ``fit``
measures, and what an evaluation server wants.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from trainer.config import as_dict, parse_settings, replace
from trainer.cores import shared_cores
from trainer.data.dataset import Dataset, Record, check_images
from trainer.data.formats.opening import reopen_data
from trainer.errors import ConfigError, DataError, RunError
from trainer.files import file_sha256
from trainer.interrupt import terminated
from trainer.outputs import check_folder
from trainer.run import Run, write_json
from trainer.segmenters import prediction
from trainer.segmenters.config import TEST_KNOBS, SegmentConfig
from trainer.training.collectives import wait_for_all
from trainer.training.devices import check_device, launch
from trainer.training.model_file import knobs_of

NOTE = "predictions.json"
"""What made the masks of a folder, beside them."""
Layout = Literal["ids", "voc-server"]


def predict_list(
    run_dir: Path,
    name: str,
    out: Path,
    stage: str = "segment",
    layout: Layout = "ids",
    settings: Sequence[str] = (),
    device: str = "auto",
) -> dict[str, Any]:
    """Write one palette PNG for each image of list ``name``, as large as the image. The same call
    continues an interrupted prediction.

    Args:
        run_dir: a run with a trained segmenter.
        name: of a list of the run's data.
        out: folder to write; new, empty, or of the same prediction.
        stage: ``segment``, or ``segment_full`` for the one that learnt from true masks.
        layout: ``ids``, OUT/ID.png with classes 1 to K; or ``voc-server``,
            OUT/results/VOC2012/Segmentation/comp6_LIST_cls/ID.png with the values of the data set's
            own masks, which are VOC's.
        settings: ``segment.KEY=VALUE`` of knobs of the test; the others are the run's.
        device: ``auto``, ``cpu`` or ``cuda``.

    Returns:
        What was written, as ``OUT/predictions.json`` has it.

    Raises:
        RunError: no run, or one without that segmenter.
        DataError: no such list, an empty one, or images that cannot be read.
        ConfigError: a knob that the test does not have, or no such device.
        TargetError: OUT holds something else, or is what is read.
    """
    check_device(device)
    run = Run.existing(run_dir)
    weights = segmenter_weights(run, stage)
    dataset = reopen_data(run.manifest)
    records = _records(dataset, name)
    config = segmenter_config(run, settings)
    segmenter, network, identity = prediction.load(
        weights, {"classes": list(dataset.classes)}, config
    )
    values = dataset.mask_values if layout == "voc-server" else range(1, len(dataset.classes) + 1)
    least = list(run.metrics(stage).get("least", ()))
    # Everything that the masks depend on: masks of another note are never continued.
    note = {
        "run": str(run.path.resolve()),
        "stage": stage,
        "weights": file_sha256(weights),
        "supervision": identity["supervision"],
        "list": name,
        "images": len(records),
        "layout": layout,
        "values": dict(zip(dataset.classes, values, strict=True)),
        "test": {knob: as_dict(config)[knob] for knob in sorted(TEST_KNOBS)},
        # Left out where there is none, so that folders of earlier versions are continued.
        **({"least": least} if least else {}),
    }
    _check_out(out, note, [*dataset.places(), run.path])
    check_images(records)
    inside = f"results/VOC2012/Segmentation/comp6_{name}_cls" if layout == "voc-server" else ""
    with terminated(), shared_cores():
        launch(device)
        write_json(out / NOTE, note)
        prediction.predict(
            segmenter,
            network,
            records,
            out / inside,
            f"{stage} {name}",
            device,
            values,
            least=least,
        )
        wait_for_all()
    return {**note, "path": str(out / inside)}


def _records(dataset: Dataset, name: str) -> list[Record]:
    records = dataset.subset(name)
    if not records:
        raise DataError(f"list {name!r} of {dataset.root} is empty", "a list with images")
    return records


def _check_out(out: Path, note: dict[str, Any], inputs: Sequence[Path]) -> None:
    """Refuse a folder that holds anything but predictions with this note."""
    hint = "a new folder: the one that is there holds predictions of something else"
    # As JSON reads it back: tuples become lists.
    content = json.loads(json.dumps(note))
    check_folder(out, lambda folder: _note(folder) == content, inputs, "--out", hint)


def segmenter_weights(run: Run, stage: str) -> Path:
    """The weights of a run's trained segmenter.

    Raises:
        RunError: it has none.
    """
    path = run.path / stage / "model.pt"
    if not path.is_file():
        raise RunError(
            f"{run.path} has no trained segmenter in {stage!r}",
            "a run until segment",
            "wsss-trainer fit DATA --run RUN, or --supervision full for segment_full",
        )
    return path


def segmenter_config(run: Run, settings: Sequence[str]) -> SegmentConfig:
    """Knobs of the run's segmenter, with the test's knobs of ``settings`` in their place.

    Raises:
        ConfigError: a knob that the test does not have.
    """
    changes = parse_settings(settings, ("segment",))["segment"]
    for knob in changes:
        if knob not in TEST_KNOBS:
            raise ConfigError(
                f"segment.{knob} is not a knob of the test",
                f"one of {', '.join(sorted(TEST_KNOBS))}",
                "wsss-trainer fit trains with others",
            )
    config = replace(SegmentConfig(), knobs_of(run.manifest["config"]["segment"]), "segment")
    return replace(config, changes, "segment")


def _note(folder: Path) -> Any:
    try:
        return json.loads((folder / NOTE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
