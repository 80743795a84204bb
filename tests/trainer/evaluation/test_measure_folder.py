"""Folders of masks and maps that others made: what is accepted, what is refused, and how that is
said.
"""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from measured import write_cams, write_masks, write_run
from PIL import Image
from typer.testing import CliRunner

from trainer.cli import app
from trainer.data.dataset import read_index_png
from trainer.data.formats.opening import open_dataset
from trainer.data.palette import voc_palette, write_index_png
from trainer.errors import ConfigError, DataError, RunError, UserError
from trainer.evaluation.foreign_files import kind_of
from trainer.evaluation.measure_folder import Folder, keep, measure_folder
from trainer.evaluation.over_lists import evaluate_cams, evaluate_folder
from trainer.maps.camfile import cam_path, read_cam, upsample_cam
from trainer.scenes.writing import write_synthetic

THEIRS = (3, 8, 10, 12, 13, 15)
"""Values of the six classes in the second data set's own masks."""


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr("trainer.pool.cores", lambda: 1)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder: Path = tmp_path_factory.mktemp("folders") / "data"
    write_synthetic(folder, 16, 48)
    return folder


@pytest.fixture(scope="module")
def renumbered(data, tmp_path_factory) -> Path:
    """The same data with VOC-like values in its own masks."""
    folder: Path = tmp_path_factory.mktemp("folders") / "renumbered"
    dataset = open_dataset(data)
    (folder / "ImageSets" / "Segmentation").mkdir(parents=True)
    for part in (
        "JPEGImages",
        "image_labels.csv",
        "ImageSets/Segmentation/train.txt",
        "ImageSets/Segmentation/val.txt",
    ):
        (folder / part).symlink_to(data / part)
    classes = [{"voc_index": v, "name": n} for v, n in zip(THEIRS, dataset.classes, strict=True)]
    (folder / "classes.json").write_text(json.dumps({"classes": classes, "ignore": 255}))
    for record in dataset.records.values():
        write_index_png(
            folder / "SegmentationClass" / f"{record.id}.png",
            in_their_numbers(dataset.read_mask(record)),
        )
    return folder


def in_their_numbers(labels: np.ndarray) -> np.ndarray:
    table = np.full(256, 255, np.uint8)
    table[: len(THEIRS) + 1] = (0, *THEIRS)
    return table[labels]


@pytest.fixture
def dataset(data):
    return open_dataset(data)


@pytest.fixture
def masks(dataset, tmp_path) -> Path:
    write_masks(dataset, tmp_path / "masks", 0.4)
    return tmp_path / "masks"


@pytest.fixture
def cams(dataset, tmp_path) -> Path:
    write_cams(dataset, tmp_path / "cams", 0.3)
    return tmp_path / "cams"


def entry(path: Path, data: Path, **options) -> dict:
    return measure_folder(Folder(path, data, options.pop("list", "val"), **options)).entry


def refused(path: Path, data: Path, **options) -> UserError:
    with pytest.raises(UserError) as caught:
        measure_folder(Folder(path, data, options.pop("list", "val"), **options))
    return caught.value


def test_masks_give_the_figures_of_a_run(data, dataset, masks):
    found = entry(masks, data, protocol="made by hand")
    own = evaluate_folder(dataset, dataset.subset("val"), masks).report("")
    assert found["confusion"] == own["confusion"]
    assert found["threshold"] is None
    assert found["images"] == len(dataset.lists["val"])
    assert found["protocol"].endswith(f"masks of {masks}, made by hand")
    assert found["boundary_f"] > 0
    assert not found["left_out"]
    assert not found["extra"]
    json.dumps(found, allow_nan=False)


def test_their_numbers_and_colours(data, renumbered, dataset, masks, tmp_path):
    expected = entry(masks, data)["confusion"]
    for name in dataset.lists["val"]:
        theirs = in_their_numbers(read_index_png(masks / f"{name}.png"))
        write_index_png(tmp_path / "numbers" / f"{name}.png", theirs)
        (tmp_path / "colours").mkdir(exist_ok=True)
        Image.fromarray(voc_palette()[theirs]).save(tmp_path / "colours" / f"{name}.png")
    assert entry(tmp_path / "numbers", renumbered, labels="data")["confusion"] == expected
    assert (
        entry(tmp_path / "colours", renumbered, labels="data", masks="colours")["confusion"]
        == expected
    )
    assert entry(masks, renumbered)["confusion"] == expected
    error = refused(tmp_path / "numbers", renumbered)
    assert "hold labels that no class has" in error.found
    assert "--labels data as the data set does: 3, 8, 10, 12, 13, 15" in error.hint
    assert "--bad skip" not in error.hint
    colours = refused(tmp_path / "colours", renumbered, labels="data")
    assert "are colour pictures, not class indices" in colours.found
    assert (
        f"wsss-trainer convert {tmp_path / 'colours'} NEW --to masks --set data.masks=colours"
        in colours.hint
    )


def test_every_fault_is_listed_at_once_with_counts(data, dataset, tmp_path):
    folder, names = tmp_path / "bad", list(dataset.lists["all"])
    write_masks(dataset, folder, 0.4)
    good = read_index_png(folder / f"{names[0]}.png")
    (folder / f"{names[0]}.png").unlink()
    write_index_png(folder / f"{names[1]}.png", good[:-2, :-3])
    (folder / f"{names[2]}.png").write_bytes(b"nothing")
    Image.fromarray(voc_palette()[read_index_png(folder / f"{names[3]}.png")]).save(
        folder / f"{names[3]}.png"
    )
    write_index_png(
        folder / f"{names[4]}.png", read_index_png(folder / f"{names[4]}.png") + np.uint8(40)
    )
    (folder / f"{names[5]}.png").rename(folder / f"{names[5]}_pred.png")
    fractions = read_index_png(folder / f"{names[6]}.png").astype(np.float32) + 0.25
    (folder / f"{names[6]}.png").unlink()
    np.save(folder / f"{names[6]}.npy", fractions)
    deep = read_index_png(folder / f"{names[7]}.png").astype(np.uint16)
    Image.fromarray(deep * 1000).save(folder / f"{names[7]}.png")
    (folder / f"{names[8]}.png").unlink()
    Image.fromarray(good).save(folder / f"{names[8]}.jpg")
    error = refused(folder, data, list="all", kind="masks")
    for part in (
        f"9 of {len(names)} masks of {folder} cannot be used",
        f"2 have no file: {names[0]}, {names[5]}",
        f"1 are neither PNG, TIFF or BMP nor arrays: {names[8]}.jpg",
        f"1 hold numbers with fractions, not class indices: {names[6]}.npy",
        f"1 are colour pictures, not class indices: {names[3]} is RGB",
        f"2 are damaged or something else: {names[2]}",
        f"mask {names[7]} holds numbers from 0 to ",
        f"1 are of another size than their image: {names[1]} is ",
        f"1 hold labels that no class has: {names[4]} holds",
        f"1 files are not used: {names[5]}_pred.png",
    ):
        assert part in error.found, part
    assert f"rename: {names[5]}_pred.png would be {names[5]}.png" in error.hint
    assert "--bad skip" in error.hint
    skipped = entry(folder, data, list="all", kind="masks", bad="skip")
    assert skipped["images"] == len(names) - 9
    assert set(skipped["left_out"]) == set(names[:9])
    assert skipped["extra"] == [f"{names[5]}_pred.png"]
    assert (
        f"({len(names)} images, 9 of them left out: they lack a usable file), true masks of Seg"
        in skipped["protocol"]
    )


@pytest.mark.parametrize(
    ("change", "suffix"),
    [
        (lambda m: np.dstack([m] * 3), "png"),
        (lambda m: m.astype(np.uint16), "png"),
        (lambda m: m.astype(np.int32), "tif"),
        (lambda m: m, "BMP"),
    ],
)
def test_other_files_of_the_same_masks(data, dataset, masks, change, suffix):
    plain = entry(masks, data)
    for name in dataset.lists["val"]:
        index = read_index_png(masks / f"{name}.png")
        (masks / f"{name}.png").unlink()
        Image.fromarray(change(index)).save(masks / f"{name}.{suffix}")
    assert entry(masks, data)["confusion"] == plain["confusion"]


def test_a_missing_file_does_not_shift_the_pairs_after_it(data, dataset, masks):
    """The released evaluation that pairs sorted files with the list would give other figures."""
    whole, first = entry(masks, data), dataset.lists["val"][0]
    (masks / f"{first}.png").unlink()
    part = entry(masks, data, bad="skip")
    alone = evaluate_folder(dataset, [dataset.records[i] for i in dataset.lists["val"][1:]], masks)
    assert part["confusion"] == alone.confusion.tolist()
    assert part["images"] == whole["images"] - 1


def test_negatives_without_mask_and_prediction_are_left_out(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    truth, masks = np.zeros((8, 8), np.uint8), tmp_path / "masks"
    truth[2:5, 2:5] = 1
    names = ("part", "free", "clean")
    for name in names:
        Image.new("RGB", (8, 8), (90, 90, 90)).save(folder / f"{name}.png")
    (folder / "labels.csv").write_text("image,tag,split\npart,a,val\nfree,,val\nclean,,val\n")
    write_index_png(folder / "masks" / "part.png", truth)
    for name in ("part", "free"):
        write_index_png(masks / f"{name}.png", truth)
    figures = entry(masks, folder)
    assert figures["images"] == 2
    assert figures["iou"]["a"] == 0.5
    assert set(figures["left_out"]) == {"clean"}
    assert "1 of them without a class and a mask: background" in figures["protocol"]
    (masks / "part.png").unlink()
    assert "have no file" in str(refused(masks, folder))


def test_files_of_other_lists_are_no_strangers_and_a_folder_of_none_is_refused(
    data, dataset, masks, tmp_path
):
    assert not entry(masks, data)["extra"]
    (tmp_path / "empty").mkdir()
    assert "neither masks nor maps" in str(refused(tmp_path / "empty", data))
    assert "is not a folder" in str(refused(tmp_path / "absent", data))
    assert "'val'" in str(refused(masks, data, list="vall"))
    (masks / "x.npz").write_bytes(b"")
    assert isinstance(refused(masks, data), ConfigError)


def as_psa(folder: Path, cams: Path, dataset, shift: int = 0) -> Path:
    folder.mkdir()
    for record in dataset.records.values():
        cam = read_cam(cam_path(cams, record.id))
        keys = [dataset.mask_values[k] - 1 if shift else int(k) for k in cam.classes]
        np.save(
            folder / f"{record.id}.npy",
            dict(zip(keys, upsample_cam(cam.maps, cam.size), strict=True)),
        )
    return folder


def as_irn(folder: Path, cams: Path, dataset) -> Path:
    folder.mkdir()
    for record in dataset.records.values():
        cam = read_cam(cam_path(cams, record.id))
        full = upsample_cam(cam.maps, cam.size)
        # The small maps are others, so that only high_res can give the same figures.
        content = {
            "keys": torch.tensor(cam.classes),
            "cam": torch.rand(cam.maps.shape),
            "high_res": full,
        }
        np.save(folder / f"{record.id}.npy", content)
    return folder


def test_maps_of_every_kind_give_the_same_figures(data, renumbered, dataset, cams, tmp_path):
    own = evaluate_cams(dataset, dataset.subset("val"), cams).report(0.4, "fixed", "")
    found = entry(cams, data, threshold=0.4)
    assert found["confusion"] == own["confusion"]
    assert (found["threshold"], found["threshold_from"]) == (0.4, "fixed")
    assert found["sweep"] == own["sweep"]
    assert (
        entry(as_psa(tmp_path / "psa", cams, dataset), data, threshold=0.4)["confusion"]
        == own["confusion"]
    )
    assert (
        entry(as_irn(tmp_path / "irn", cams, dataset), data, threshold=0.4)["confusion"]
        == own["confusion"]
    )
    theirs = as_psa(tmp_path / "theirs", cams, open_dataset(renumbered), shift=1)
    assert entry(theirs, renumbered, threshold=0.4, labels="data")["confusion"] == own["confusion"]
    assert "have" not in refused(theirs, renumbered, threshold=0.4).found.splitlines()[0]
    assert "hold labels that no class has" in refused(theirs, renumbered).found


def test_who_chose_the_threshold_is_always_said(data, dataset, cams, tmp_path):
    assert entry(cams, data)["threshold_from"] == "label_free"
    chosen = entry(cams, data, threshold_from="train")
    assert chosen["threshold_from"] == "train"
    assert chosen["threshold"] == pytest.approx(
        evaluate_cams(dataset, dataset.subset("train"), cams).best
    )
    oracle = entry(cams, data, threshold_from="oracle")
    assert "ORACLE" in oracle["protocol"]
    assert oracle["miou"] == oracle["sweep"]["best"]["miou"]
    assert entry(cams, data, threshold_from="val")["threshold_from"] == "oracle"
    (tmp_path / "second").mkdir()
    for name in dataset.lists["train"]:
        cam_path(cams, name).rename(cam_path(tmp_path / "second", name))
    assert "have no file" in refused(cams, data, threshold_from="train").found
    apart = entry(cams, data, threshold_from="train", threshold_cams=tmp_path / "second")
    assert apart["threshold"] == chosen["threshold"]


def test_options_that_contradict_each_other(data, masks, cams):
    assert "masks have no threshold" in refused(masks, data, threshold=0.3).found
    assert "one of them" in refused(cams, data, threshold=0.3, threshold_from="train").expected
    assert "without a value" in refused(cams, data, threshold_from="fixed").found
    assert "--threshold-from LIST" in refused(cams, data, threshold_cams=cams).expected
    assert "'label_free'" in refused(cams, data, threshold_from="label_fre").expected


def test_damaged_maps_and_pickles_that_would_run_code_are_listed(data, dataset, cams):
    first, second = dataset.lists["val"][:2]
    whole = cam_path(cams, first).read_bytes()
    cam_path(cams, first).write_bytes(whole[: len(whole) // 2])
    cam_path(cams, second).unlink()
    np.save(cams / f"{second}.npy", {0: print})
    error = refused(cams, data)
    assert f"2 of {len(dataset.lists['val'])} maps of" in error.found
    assert "2 are damaged or something else" in error.found
    assert "nothing of it was run" in error.found


def test_maps_of_another_size_are_not_stretched(data, dataset, cams, tmp_path):
    theirs = as_psa(tmp_path / "psa", cams, dataset)
    name = dataset.lists["val"][0]
    tag = dataset.records[name].tags[0]
    np.save(theirs / f"{name}.npy", {tag: np.ones((5, 7), np.float32)})
    assert (
        f"1 are of another size than their image: {name} is for 7x5" in refused(theirs, data).found
    )


def test_a_list_without_true_masks(renumbered, masks, tmp_path):
    bare = tmp_path / "bare"
    (bare / "SegmentationClass").mkdir(parents=True)
    for part in ("JPEGImages", "image_labels.csv", "ImageSets", "classes.json"):
        (bare / part).symlink_to(renumbered / part)
    assert "has a true mask" in refused(masks, bare).found


def test_kept_figures_lie_beside_each_other_and_never_in_a_run(data, masks, cams, tmp_path):
    out = tmp_path / "kept"
    for path, stage in ((masks, "refined"), (cams, None)):
        keep(measure_folder(Folder(path, data, "val", stage=stage)), "val", out)
    keep(measure_folder(Folder(masks, data, "train", stage="refined")), "train", out)
    kept = json.loads((out / "evaluation.json").read_text())
    assert {stage: list(lines) for stage, lines in kept.items()} == {
        "refined": ["val", "train"],
        "cam": ["val"],
    }
    assert sorted(p.name for p in (out / "evaluation").iterdir()) == [
        "cam-val.npz",
        "refined-train.npz",
        "refined-val.npz",
    ]
    run = write_run(tmp_path / "run", data, 0.4)
    with pytest.raises(RunError, match="is a run"):
        keep(measure_folder(Folder(masks, data, "val")), "val", run)


def command(*arguments: str | Path):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_the_command_line_prints_one_object_and_writes_pictures(data, dataset, masks, tmp_path):
    done = command(
        "eval",
        masks,
        "--data",
        data,
        "--convention",
        "seam",
        "--pictures",
        tmp_path / "worst",
        "--json",
    )
    assert done.exit_code == 0, done.output
    printed = json.loads(done.stdout)
    assert printed["segment"]["val"]["convention"] == "seam"
    assert printed["segment"]["val"]["miou"] == entry(masks, data)["miou_by_convention"]["seam"]
    with Image.open(tmp_path / "worst" / "segment-val-1.png") as sheet:
        assert sheet.height > 160 * len(dataset.lists["val"])


def test_the_command_line_refuses_what_belongs_to_the_other_kind(data, masks, tmp_path):
    run = write_run(tmp_path / "run", data, 0.4)
    both = command("eval", run, "--data", data, "--bad", "stop").exception
    assert isinstance(both, ConfigError)
    assert both.hint == "leave out --data, --bad"
    missing = command("eval", masks).exception
    assert isinstance(missing, RunError)
    assert f"wsss-trainer eval {masks} --data DATA" in missing.hint
    assert isinstance(
        command("eval", masks, "--data", data, "--convention", "seem").exception, ConfigError
    )
    assert isinstance(command("eval", masks, "--data", tmp_path / "nothing").exception, DataError)
    assert command("eval", masks, "--data", data, "--bad", "ignore").exit_code == 2
    assert "95 %" in command("eval", masks, "--data", data).output


# Other ways to write the same masks


def test_suffixes_in_capital_letters_are_taken(data, masks):
    expected = entry(masks, data)["confusion"]
    for path in masks.glob("*.png"):
        path.rename(path.with_suffix(".PNG"))
    found = entry(masks, data)
    assert (found["confusion"], found["extra"]) == (expected, [])


ARRAYS = (
    "npy",
    "npz",
    "probabilities",
    "channels last",
    "float labels",
    "whole one-hot",
    "batch of one",
)


@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_of_labels_and_probabilities_are_masks(data, dataset, masks, kind):
    expected = entry(masks, data)["confusion"]
    for path in list(masks.glob("*.png")):
        labels = read_index_png(path)
        path.unlink()
        one_hot = (labels == np.arange(len(dataset.classes) + 1)[:, None, None]).astype(np.float32)
        if kind == "npz":
            np.savez_compressed(path.with_suffix(".npz"), labels)
            continue
        arrays = {
            "npy": labels.astype(np.int64),
            "probabilities": one_hot,
            "channels last": one_hot.transpose(1, 2, 0),
            "float labels": labels.astype(np.float64),
            "whole one-hot": one_hot.astype(bool),
            "batch of one": one_hot[None],
        }
        np.save(path.with_suffix(".npy"), arrays[kind])
    assert entry(masks, data)["confusion"] == expected


@pytest.mark.parametrize(
    ("array", "found"),
    [
        (np.zeros((2, 3, 4, 5)), "are arrays of another shape"),
        (np.zeros(7), "are arrays of another shape"),
        (np.full((48, 48), 0.5), "hold numbers with fractions, not class indices"),
        (np.full((48, 48), np.nan), "are damaged or something else"),
        (np.zeros((7, 48, 48), np.uint8), "are arrays of another shape"),
        (np.full((48, 48), 3000), "hold labels that no class has"),
        (np.full((48, 48), -1), "hold labels that no class has"),
        (np.array("text"), "are arrays of another shape"),
    ],
)
def test_arrays_that_are_no_masks_are_named(data, dataset, masks, array, found):
    first = dataset.lists["val"][0]
    (masks / f"{first}.png").unlink()
    np.save(masks / f"{first}.npy", array)
    assert f"1 {found}: {first}.npy" in refused(masks, data, kind="masks").found


def test_masks_of_0_and_255_are_explained(data, dataset, masks):
    for path in masks.glob("*.png"):
        write_index_png(path, np.where(read_index_png(path) > 0, 255, 0).astype(np.uint8))
    error = refused(masks, data)
    assert "0 and 255 only, and 255 is a pixel that is left open" in error.found
    assert dataset.classes[0] in error.hint
    assert isinstance(refused(masks, data, masks="binary"), ConfigError)


def test_one_class_may_be_255(tmp_path):
    one, numbered, white = tmp_path / "one", tmp_path / "numbered", tmp_path / "white"
    for folder in (one / "masks", numbered, white):
        folder.mkdir(parents=True)
    rows = ["image,tag,split"]
    for name in ("a", "b"):
        truth = np.zeros((20, 24), np.uint8)
        truth[4:12, 5:15] = 1
        Image.fromarray(np.repeat(truth[..., None] * 90, 3, 2)).save(one / f"{name}.jpg")
        write_index_png(one / "masks" / f"{name}.png", truth)
        pred = np.roll(truth, 3, 1)
        write_index_png(numbered / f"{name}.png", pred)
        Image.fromarray(pred * 255).save(white / f"{name}.png")
        rows.append(f"{name}.jpg,cow,val")
    (one / "labels.csv").write_text("\n".join(rows) + "\n")
    assert "--masks binary" in refused(white, one).hint
    assert entry(white, one, masks="binary")["confusion"] == entry(numbered, one)["confusion"]


NAMES = {
    "relative path": lambda data, r: r.image.relative_to(data).with_suffix(".png"),
    "image's suffix": lambda data, r: f"{r.image.name}.png",
    "ending": lambda data, r: f"{r.id}_mask.png",
    "decomposed": lambda data, r: unicodedata.normalize("NFD", f"{r.id}.png"),
}


@pytest.fixture
def nested(tmp_path):
    """A data set with folders, blanks, dots and an umlaut in its names."""
    data, names = tmp_path / "nested", ("alps/a 1.jpg", "alps/b.c.jpg", "Kühe/d.png")
    for name in names:
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 8)).save(data / name)
        label = np.zeros((8, 12), np.uint8)
        label[:4] = 1
        mask = (data / "masks" / name).with_suffix(".png")
        mask.parent.mkdir(parents=True, exist_ok=True)
        write_index_png(mask, label)
    rows = "".join(f"{name},cow\n" for name in names)
    (data / "labels.csv").write_text(f"image,tag\n{rows}", encoding="utf-8")
    return data


@pytest.mark.parametrize("names", NAMES)
def test_files_may_be_called_like_images_or_masks(nested, tmp_path, names):
    dataset, out = open_dataset(nested), tmp_path / "out"
    for record in dataset.records.values():
        path = out / NAMES[names](nested, record)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_index_png(path, dataset.read_mask(record))
    figures = measure_folder(Folder(out, nested, "all"), workers=0)
    assert (figures.entry["miou"], figures.entry["extra"]) == (1.0, [])


def test_the_id_comes_first_and_two_equal_claims_are_refused(nested, tmp_path):
    dataset, out = open_dataset(nested), tmp_path / "out"
    out.mkdir()
    for record in dataset.records.values():
        write_index_png(out / f"{record.id}.png", dataset.read_mask(record))
        write_index_png(out / f"{record.id}_mask.png", np.zeros((8, 12), np.uint8))
    figures = measure_folder(Folder(out, nested, "all"), workers=0)
    assert (figures.entry["miou"], len(figures.entry["extra"])) == (1.0, 3)
    (out / "alps__a 1.png").rename(out / "alps__a 1_gt.png")
    with pytest.raises(DataError, match=r"1 have several files: alps__a 1_gt\.png, alps__a 1_mask"):
        measure_folder(Folder(out, nested, "all"), workers=0)


def test_a_folder_of_something_else_is_named_before_the_list(nested, tmp_path):
    with pytest.raises(DataError, match="nowhere is not a folder"):
        measure_folder(Folder(tmp_path / "nowhere", nested, "val"))
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.pt").write_bytes(b"")
    with pytest.raises(DataError, match=r"neither masks nor maps \(found: \.pt\)"):
        kind_of(out)
