"""What a person gives back is checked, compared with what was asked, and kept."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reviews import paint, review, submitted
from typer.testing import CliRunner

from trainer.cli import app
from trainer.data.dataset import Dataset, read_index_png
from trainer.data.palette import write_index_png
from trainer.data.pixels import image_size
from trainer.data.tables.corrections import read_corrections as training_corrections
from trainer.errors import DataError, TargetError
from trainer.review.answers import answer
from trainer.review.ledger import Ledger, read_ledger
from trainer.review.tag_table import TABLE


@pytest.mark.parametrize("tool", ["folder", "cvat"])
def test_an_untouched_review_changes_nothing(
    tool: str, run: Path, dataset: Dataset, tmp_path: Path
) -> None:
    place = review(run, dataset, tool)
    summary = answer(run, place, tmp_path / "out")
    assert summary["images"] == {}
    assert len(summary["unchanged"]) == 3
    assert not (tmp_path / "out").exists()
    # Taken as correct, the masks are the predictions to the byte.
    summary = answer(run, place, tmp_path / "out", "take")
    assert summary["pixels"] == {}
    for name in summary["images"]:
        predicted = run / "reviews" / tool / "predicted" / f"{name}.png"
        assert (tmp_path / "out" / "masks" / f"{name}.png").read_bytes() == predicted.read_bytes()


def test_untouched_tasks_of_label_studio_wait(run: Path, dataset: Dataset) -> None:
    place = review(run, dataset, "labelstudio")
    with pytest.raises(DataError, match="holds no answers"):
        answer(run, place)


def test_a_corrected_mask_and_its_tags(run: Path, dataset: Dataset, tmp_path: Path) -> None:
    place = review(run, dataset)
    record = dataset.subset("train")[0]
    mask = paint(place / "masks" / f"{record.id}.png", 2)
    before = {path: path.read_bytes() for path in dataset.root.rglob("*") if path.is_file()}
    summary = answer(run, place, tmp_path / "out")
    assert set(summary["images"]) == {record.id}
    facts = summary["images"][record.id]
    assert facts["pixels"] == {dataset.classes[1]: 40}
    names = set(dataset.classes)
    tags = {dataset.classes[k] for k in record.tags}
    assert set(facts["tags_added"]) == set(dataset.classes[:2]) - tags
    assert set(facts["tags_removed"]) == tags - set(dataset.classes[:2])
    corrections = read_ledger(tmp_path / "out")
    assert (read_index_png(corrections.mask_path(record.id)) == mask).all()
    assert corrections.masks == [record.id]
    assert corrections.images[record.id].tool == "folder"
    assert set(corrections.classes) == names
    # As fit --corrections reads the folder.
    trained = training_corrections(tmp_path / "out", dataset)
    assert (trained.read(record.id) == mask).all()
    assert set(trained.tags[record.id]["removed"]) == tags - set(dataset.classes[:2])
    assert before == {path: path.read_bytes() for path in before}
    # The same answer again changes nothing, not even its time.
    content = (tmp_path / "out" / "corrections.json").read_bytes()
    answer(run, place, tmp_path / "out")
    assert (tmp_path / "out" / "corrections.json").read_bytes() == content


def test_an_earlier_answer_is_never_lost(run: Path, dataset: Dataset, tmp_path: Path) -> None:
    place = review(run, dataset)
    ids = [record.id for record in dataset.subset("train")[:2]]
    first = paint(place / "masks" / f"{ids[0]}.png", 2)
    answer(run, place, tmp_path / "out")
    second = paint(place / "masks" / f"{ids[0]}.png", 3)
    paint(place / "masks" / f"{ids[1]}.png", 3)
    answer(run, place, tmp_path / "out")
    corrections = read_ledger(tmp_path / "out")
    assert (read_index_png(corrections.mask_path(ids[0])) == second).all()
    assert set(corrections.masks) == set(ids)
    (earlier,) = (tmp_path / "out" / "earlier").rglob("*.png")
    assert (read_index_png(earlier) == first).all()


def test_ignored_pixels_survive_and_keep_tags(run: Path, dataset: Dataset, tmp_path: Path) -> None:
    place = review(run, dataset)
    record = next(r for r in dataset.subset("train") if r.tags)
    path = place / "masks" / f"{record.id}.png"
    mask = np.full(image_size(record.image), 255, np.uint8)
    write_index_png(path, mask)
    facts = answer(run, place, tmp_path / "out")["images"][record.id]
    assert facts["tags_removed"] == []
    assert (read_index_png(read_ledger(tmp_path / "out").mask_path(record.id)) == 255).all()


def test_a_mask_that_was_not_asked_for_is_taken(
    run: Path, dataset: Dataset, tmp_path: Path
) -> None:
    place = review(run, dataset)
    record = dataset.subset("train")[4]
    write_index_png(
        place / "masks" / f"{record.id}.png", np.ones(image_size(record.image), np.uint8)
    )
    summary = answer(run, place, tmp_path / "out")
    assert summary["not_asked"] == [record.id]
    assert read_ledger(tmp_path / "out").masks == [record.id]


def test_corrections_are_merged_like_a_review(run: Path, dataset: Dataset, tmp_path: Path) -> None:
    place = review(run, dataset)
    ids = [record.id for record in dataset.subset("train")[:2]]
    original = (place / "masks" / f"{ids[0]}.png").read_bytes()
    paint(place / "masks" / f"{ids[0]}.png", 2)
    answer(run, place, tmp_path / "one")
    (place / "masks" / f"{ids[0]}.png").write_bytes(original)
    paint(place / "masks" / f"{ids[1]}.png", 2)
    answer(run, place, tmp_path / "two")
    answer(run, tmp_path / "one", tmp_path / "two")
    assert set(read_ledger(tmp_path / "two").masks) == set(ids)


def test_answers_about_tags(run: Path, dataset: Dataset, tmp_path: Path) -> None:
    place = review(run, dataset)
    record = next(r for r in dataset.subset("train") if 0 < len(r.tags) < len(dataset.classes))
    present = dataset.classes[record.tags[0]]
    absent = next(name for k, name in enumerate(dataset.classes) if k not in record.tags)
    rows = [f"{record.id},{present},present,0.1,No", f"{record.id},{absent},absent,0.9,present"]
    rows.append(f"{record.id},{present},present,0.1,")
    (place / TABLE).write_text("\n".join(("id,class,tag,score,answer", *rows)))
    facts = answer(run, place, tmp_path / "out")["images"][record.id]
    assert facts == {
        "mask": False,
        "asked": True,
        "pixels": {},
        "tags_added": [absent],
        "tags_removed": [present],
    }
    correction = read_ledger(tmp_path / "out").images[record.id]
    assert (correction.mask, correction.added) == (False, (absent,))
    # The table says that the image shows the class, and the mask is empty.
    path = place / "masks" / f"{record.id}.png"
    write_index_png(path, np.zeros(image_size(record.image), np.uint8))
    with pytest.raises(DataError, match="two answers about"):
        answer(run, place, tmp_path / "out")
    (place / TABLE).write_text("id,class,tag,score,answer\nnobody,cat,present,0.1,no\n")
    with pytest.raises(DataError, match="line 2 has the image 'nobody'"):
        answer(run, place, tmp_path / "out")
    (place / TABLE).write_text(f"id,class,tag,score,answer\n{record.id},{present},x,0.1,perhaps\n")
    with pytest.raises(DataError, match="answer 'perhaps'"):
        answer(run, place, tmp_path / "out")


def test_tags_are_compared_with_the_data_not_with_earlier_corrections(
    run: Path, dataset: Dataset, tmp_path: Path
) -> None:
    place = review(run, dataset)
    record = next(r for r in dataset.subset("train")[:3] if r.tags)
    path = place / "masks" / f"{record.id}.png"
    write_index_png(path, np.zeros(image_size(record.image), np.uint8))
    names = [dataset.classes[k] for k in record.tags]
    assert answer(run, place, tmp_path / "out")["images"][record.id]["tags_removed"] == names
    # A run that was trained on the correction has the tags without them.
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["masks"] = {"ids": [], "tags": {record.id: {"added": [], "removed": names}}}
    (run / "manifest.json").write_text(json.dumps(manifest))
    assert answer(run, place, tmp_path / "out")["images"][record.id]["tags_removed"] == names


def test_tags_and_earlier_masks_agree(run: Path, dataset: Dataset, tmp_path: Path) -> None:
    place = review(run, dataset)
    record = dataset.subset("train")[0]
    other = next(k for k in range(2, len(dataset.classes)) if k not in record.tags)
    original = (place / "masks" / f"{record.id}.png").read_bytes()
    paint(place / "masks" / f"{record.id}.png", 2)
    answer(run, place, tmp_path / "out")
    (place / "masks" / f"{record.id}.png").write_bytes(original)
    row = f"{record.id},{dataset.classes[other]},absent,0.9,present"
    (place / TABLE).write_text(f"id,class,tag,score,answer\n{row}\n")
    with pytest.raises(DataError, match="the earlier mask"):
        answer(run, place, tmp_path / "out")
    # Elsewhere the tag is taken, and merging finds the same contradiction.
    answer(run, place, tmp_path / "tags")
    assert read_ledger(tmp_path / "tags").images[record.id].mask is False
    with pytest.raises(DataError, match="the earlier mask"):
        answer(run, tmp_path / "tags", tmp_path / "out")
    answer(run, tmp_path / "tags", tmp_path / "merged")
    merged = read_ledger(tmp_path / "merged").images[record.id]
    assert merged.added == (dataset.classes[other],)


def test_an_untouched_mask_of_an_earlier_review_is_no_answer(
    run: Path, dataset: Dataset, tmp_path: Path
) -> None:
    """A zip of CVAT does not say which review it answers."""
    place = review(run, dataset, "cvat")
    export = shutil.copy(place / "annotations.zip", tmp_path / "export.zip")
    later = run / "reviews" / "later"
    shutil.copytree(run / "reviews" / "cvat", later)
    content = json.loads((later / "review.json").read_text())
    (later / "review.json").write_text(json.dumps({**content, "key": "later", "time": "2027"}))
    for path in (later / "predicted").glob("*.png"):
        paint(path, 2)
    summary = answer(run, Path(export), tmp_path / "out")
    assert (summary["images"], len(summary["unchanged"])) == ({}, 3)


def test_half_a_review_of_label_studio(run: Path, dataset: Dataset, tmp_path: Path) -> None:
    place = review(run, dataset, "labelstudio")
    export = place / "project-1.json"
    export.write_text(json.dumps(submitted(place, 2)))
    # Submitted masks are answers also where nothing was changed.
    for source in (export, place):
        summary = answer(run, source, tmp_path / "out")
        assert len(summary["images"]) == 2
        assert len(summary["waiting"]) == 1
    (place / "project-2.json").write_text("[]")
    with pytest.raises(DataError, match="2 exports"):
        answer(run, place, tmp_path / "out")


def test_two_answers_about_one_image(run: Path, dataset: Dataset, tmp_path: Path) -> None:
    place = review(run, dataset, "labelstudio")
    tasks = submitted(place, 1)
    export = tmp_path / "export.json"
    tasks[0]["annotations"] *= 2
    export.write_text(json.dumps(tasks))
    assert len(answer(run, export, tmp_path / "out")["images"]) == 1
    tasks[0]["annotations"][1] = {"result": []}
    export.write_text(json.dumps(tasks))
    with pytest.raises(DataError, match="has two answers"):
        answer(run, export, tmp_path / "out")


def test_reviews_that_are_not_of_this_run(run: Path, dataset: Dataset, tmp_path: Path) -> None:
    place = review(run, dataset, "labelstudio")
    tasks = submitted(place, 1)
    tasks[0]["data"]["wsss_review"] = "another"
    export = tmp_path / "export.json"
    export.write_text(json.dumps(tasks))
    with pytest.raises(DataError, match="did not ask"):
        answer(run, export, tmp_path / "out")
    content = json.loads((place / "review.json").read_text())
    (place / "review.json").write_text(json.dumps({**content, "key": "x", "run": "runs/other"}))
    with pytest.raises(DataError, match="is a review of runs/other"):
        answer(run, place, tmp_path / "out")
    (place / "review.json").write_text("{}")
    with pytest.raises(DataError, match="cannot be read"):
        answer(run, place, tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda folder, name: paint(folder / f"{name}.png", 77), r"values \[77\]"),
        (
            lambda folder, name: write_index_png(
                folder / f"{name}.png", np.zeros((3, 5), np.uint8)
            ),
            "3 pixels high and 5 wide",
        ),
        (
            lambda folder, name: shutil.copy(folder / f"{name}.png", folder / "nobody.png"),
            "belong to no image",
        ),
        (lambda folder, name: (folder / f"{name}.png").write_bytes(b"x"), "cannot be read"),
    ],
)
def test_masks_that_do_not_fit(
    change: Any, words: str, run: Path, dataset: Dataset, tmp_path: Path
) -> None:
    place = review(run, dataset)
    change(place / "masks", dataset.subset("train")[0].id)
    with pytest.raises(DataError, match=words):
        answer(run, place, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_corrections_elsewhere(run: Path, dataset: Dataset, tmp_path: Path) -> None:
    place = review(run, dataset)
    paint(place / "masks" / f"{dataset.subset('train')[0].id}.png", 2)
    for folder in (dataset.root / "corrections", run, place.parent):
        with pytest.raises(TargetError):
            answer(run, place, folder)
    answer(run, place, tmp_path / "out")
    content = json.loads((tmp_path / "out" / "corrections.json").read_text())
    content["classes"] = content["classes"][::-1]
    (tmp_path / "out" / "corrections.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="corrections of the classes"):
        answer(run, place, tmp_path / "out")


def test_the_command_says_what_changed(
    run: Path, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    place = review(run, dataset)
    record = dataset.subset("train")[0]
    paint(place / "masks" / f"{record.id}.png", 2)
    result = CliRunner().invoke(app, ["answer", str(run), str(place)])
    assert result.exit_code == 0, result.output
    assert f"{dataset.root.name}-corrections: 1 images" in result.output
    assert f"{record.id}: +40 pixels of {dataset.classes[1]}" in result.output
    assert "2 images are as predicted and left out" in result.output


def test_answers_of_one_moment_are_all_kept(run: Path, dataset: Dataset, tmp_path: Path) -> None:
    place = review(run, dataset)
    path = place / "masks" / f"{dataset.subset('train')[0].id}.png"
    contents = []
    for value in (2, 3, 4, 255):
        paint(path, value)
        contents.append(path.read_bytes())
        answer(run, place, tmp_path / "out")
    earlier = [file.read_bytes() for file in sorted((tmp_path / "out/earlier").rglob("*.png"))]
    assert earlier == contents[:-1]


def test_masks_on_another_disk(run: Path, dataset: Dataset, tmp_path: Path) -> None:
    place = review(run, dataset)
    name = dataset.subset("train")[0].id
    paint(place / "masks" / f"{name}.png", 2)
    shutil.move(place / "masks", tmp_path / "disk")
    (place / "masks").symlink_to(tmp_path / "disk")
    (place / "again").symlink_to(place)
    assert list(answer(run, place, tmp_path / "out")["images"]) == [name]


def test_two_answers_at_once_wait_for_each_other(
    run: Path, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both read and write the book of the folder."""
    place = review(run, dataset)
    paint(place / "masks" / f"{dataset.subset('train')[0].id}.png", 2)
    handle, is_free = os.open(tmp_path, os.O_RDONLY), list[bool]()

    def watched(folder: Path) -> Ledger:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_free.append(True)
        except BlockingIOError:
            is_free.append(False)
        return read_ledger(folder)

    answer(run, place, tmp_path / "out")
    monkeypatch.setattr("trainer.review.answers.read_ledger", watched)
    answer(run, place, tmp_path / "out")
    os.close(handle)
    assert is_free == [False]


def command_of(run: Path, *words: str) -> None:
    path = run / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "command": ["trainer", *words]}))


def test_what_to_type_next(run: Path, dataset: Dataset, tmp_path: Path) -> None:
    place, out = review(run, dataset), tmp_path / "out"
    assert answer(run, place, out)["next"] is None
    paint(place / "masks" / f"{dataset.subset('train')[0].id}.png", 2)
    options = f"--run {run}-corrected --corrections {out}"
    typed = ["fit", "my photos", "--run", str(run), "--corrections=old", "--seed", "1"]
    command_of(run, *typed)
    expected = f"wsss-trainer fit 'my photos' --seed 1 {options}"
    assert answer(run, place, out)["next"] == expected
    command_of(run, "budget", "photos", "--run", "x")
    assert answer(run, place, out)["next"] == f"wsss-trainer fit {dataset.root} {options}"
    # Of several seeds, all are trained again.
    seeds = tmp_path / "seeds"
    seeds.mkdir()
    (seeds / "seeds.json").write_text("{}")
    one = run.rename(seeds / "seed-0")
    command_of(one, "fit", "photos", "--seeds", "0,1", f"--run={seeds}")
    expected = f"wsss-trainer fit photos --seeds 0,1 --run {seeds}-corrected --corrections {out}"
    assert answer(one, place, out)["next"] == expected
