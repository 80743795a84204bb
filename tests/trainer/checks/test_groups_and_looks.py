"""What check and fit say of groups, near-duplicates, negatives and unknown classes."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from typer.testing import CliRunner

from trainer.checks.check import Report, check
from trainer.checks.inspection import Problem
from trainer.checks.near_duplicates import near_pairs, perceptual_hash, with_groups_of_looks
from trainer.checks.preflight import preflight
from trainer.cli import app
from trainer.data.formats.opening import open_dataset
from trainer.data.knobs import DataConfig
from trainer.errors import DataError


def scene(seed: int, size: tuple[int, int] = (96, 64)) -> Image.Image:
    """A picture of smooth blobs."""
    noise = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def table(root: Path, text: str) -> Path:
    root.mkdir(exist_ok=True)
    (root / "labels.csv").write_text(text)
    names = (line.split(",")[0] for line in text.splitlines()[1:])
    for n, name in enumerate(names):
        if not (root / f"{name}.png").exists():
            scene(n).save(root / f"{name}.png")
    return root


def problems(report: Report) -> dict[str, Problem]:
    return {problem.kind: problem for problem in report.problems}


SHARED = "image,tag,split,group\na,cat,train,p\nb,dog,train,q\nc,cat,val,p\nd,dog,test,q\ne,,val,\n"


def test_a_group_in_two_lists(tmp_path: Path) -> None:
    root = table(tmp_path, SHARED)
    report = check(root)
    shared = [problem for problem in report.problems if problem.kind == "group-shared"]
    assert [(problem.severity, problem.names) for problem in shared] == [
        ("error", ("p",)),
        ("error", ("q",)),
    ]
    assert "in a training list and in a validation list: 1" in shared[0].message
    assert "wsss-trainer split" in shared[0].hint
    assert (report.exit_code, report.groups, report.negatives) == (2, 3, 1)
    assert "group-shared" not in problems(check(root, config=DataConfig(group="none")))
    facts = preflight(open_dataset(root), "train", ("val",), False, False)
    (problem,) = (p for p in facts.problems if p.kind == "group-shared")
    assert (problem.severity, problem.names) == ("warning", ("p",))
    facts.raise_errors()
    assert "in 2 groups" in "\n".join(facts.lines())


def test_positives_negatives_and_unknowns_of_a_list(tmp_path: Path) -> None:
    root = table(tmp_path, "image,tag\na,cat\nb,\nc,\nd,?cat\ne,dog\nf,dog\n")
    dataset = open_dataset(root)
    facts = preflight(dataset, "all", (), False, False)
    numbers = facts.trained
    assert (numbers.images, numbers.positives, numbers.negatives) == (6, 3, 2)
    assert (numbers.unknown, numbers.groups) == (1, 0)
    assert (
        "6 images, 3 with a tag and 2 that show no class, 1 with unknown classes"
        in facts.lines()[0]
    )
    report = check(root)
    assert vars(report.tags["cat"]) == {"present": 1, "absent": 4, "unknown": 1}
    assert report.to_json()["tags"]["dog"] == {"present": 2, "absent": 4, "unknown": 0}
    assert problems(report)["class-single"].severity == "warning"
    assert "cat" in problems(report)["class-single"].names
    text = CliRunner().invoke(app, ["check", str(root)]).stdout
    assert "2 images show none of the classes" in text
    assert "unknown" in text


def test_no_image_shows_a_class(tmp_path: Path) -> None:
    root = table(tmp_path, "image,cat,dog\na,0,0\nb,0,0\nc,0,?\n")
    problem = problems(check(root))["all-negative"]
    assert problem.severity == "error"
    assert (
        "all 3 images of the data set show none of the classes or have unknown" in problem.message
    )
    facts = preflight(open_dataset(root), "all", (), False, False)
    with pytest.raises(DataError, match="cannot be used as they are"):
        facts.raise_errors()
    # A segmenter of true masks needs no tags.
    preflight(open_dataset(root), "all", (), True, False).raise_errors()


def test_no_training_image_shows_a_class(tmp_path: Path) -> None:
    root = table(tmp_path, "image,tag,split\na,,train\nb,,train\nc,crack,test\nd,hole,test\n")
    errors = [problem for problem in check(root).problems if problem.severity == "error"]
    assert [problem.message for problem in errors] == [
        "all 2 images of list 'train' show none of the classes"
    ]


def test_unknown_everywhere_leaves_nothing_to_tell_apart(tmp_path: Path) -> None:
    root = table(tmp_path, "image,tag\na,cat\nb,dog\nc,background\n")
    assert "no-negatives" not in problems(check(root, config=DataConfig(missing="unknown")))
    root = table(tmp_path, "image,tag\na,cat\nb,dog\nc,cat\n")
    problem = problems(check(root, config=DataConfig(missing="unknown")))["no-negatives"]
    assert problem.names == ("cat", "dog")
    assert "has or may have" in problem.message


def test_masks_with_unknown_classes_are_no_fault(tmp_path: Path) -> None:
    root = table(tmp_path, "image,tag\na,cat;?dog\nb,dog\nc,cat\n")
    (root / "masks").mkdir()
    mask = np.ones((64, 96), np.uint8)
    mask[:9] = 2
    Image.fromarray(mask).save(root / "masks" / "a.png")
    assert "mask-untagged" not in problems(check(root))
    Image.fromarray(mask).save(root / "masks" / "c.png")
    assert problems(check(root))["mask-untagged"].names == ("masks/c.png",)


def test_near_duplicates_across_lists(tmp_path: Path) -> None:
    rows = "image,tag,split,group\na,cat,train,\nb,dog,val,\nc,dog,train,p\nd,cat,train,\n"
    root = table(tmp_path, rows + "e,dog,val,\nf,dog,test,p\n")
    picture = scene(9, (300, 200))
    picture.save(root / "a.png")
    smaller = ImageEnhance.Brightness(picture.resize((150, 100))).enhance(0.7)
    smaller.save(root / "b.png")
    smaller.save(root / "d.png", compress_level=1)
    near = [p for p in check(root).problems if p.kind == "near-duplicate"]
    ((names, severity),) = [(problem.names, problem.severity) for problem in near]
    assert severity == "warning"
    assert set(names) == {"a = b", "d = b"}
    assert "column group" in near[0].hint
    together = table(tmp_path, rows.replace("a,cat,train,", "a,cat,train,x") + "e,dog,val,\n")
    assert "near-duplicate" in problems(check(together))
    # Exact copies and images of one group are told by their own kinds.
    (root / "d.png").write_bytes((root / "b.png").read_bytes())
    picture.save(root / "c.png")
    picture.resize((200, 150)).save(root / "f.png")
    kinds = [
        p.names
        for p in check(table(root, rows + "f,dog,test,p\n")).problems
        if p.kind == "near-duplicate"
    ]
    pairs = {pair for names in kinds for pair in names}
    assert "d = b" not in pairs
    assert "c = f" not in pairs
    assert {"a = b", "a = f", "c = b"} <= pairs


def test_images_that_look_alike_are_divided_together(tmp_path: Path) -> None:
    root = table(tmp_path, "image,tag,group\na,cat,\nb,dog,\nc,dog,p\nd,cat,p\ne,dog,\nf,,\n")
    for name, seed in (("a", 50), ("b", 50), ("c", 50), ("e", 51)):
        scene(seed, (60 + seed + ord(name), 90)).save(root / f"{name}.png")
    Image.new("RGB", (40, 40)).save(root / "f.png")
    data = with_groups_of_looks(open_dataset(root))
    groups = [record.group for record in data.records.values()]
    # a, b and c look alike; d belongs to the part of c.
    assert groups[:4] == ["a"] * 4
    assert groups[4:] == ["", ""]
    arguments = [
        "split",
        str(root),
        "--alike",
        "--val",
        "0.4",
        "--out",
        str(tmp_path / "lists.csv"),
    ]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    split = open_dataset(root)
    owners = {name for name in ("train", "val") for i in "abcd" if i in split.lists[name]}
    assert len(owners) == 1
    assert [record.group for record in split.records.values()] == groups


def test_the_hash_of_looks() -> None:
    picture = scene(1, (320, 240))
    whole = perceptual_hash(np.asarray(picture))
    assert whole is not None
    for other in (
        picture.resize((100, 80)),
        picture.convert("L").convert("RGB"),
        ImageEnhance.Contrast(picture).enhance(1.2),
    ):
        likeness = perceptual_hash(np.asarray(other))
        assert likeness is not None
        assert (whole ^ likeness).bit_count() <= 6
    others = [perceptual_hash(np.asarray(scene(n))) for n in range(2, 40)]
    assert all((whole ^ (other or 0)).bit_count() > 12 for other in others)
    assert perceptual_hash(np.full((30, 40, 3), 200, np.uint8)) is None


def test_pairs_of_many_images_are_found_at_once() -> None:
    rng = np.random.default_rng(0)
    first = rng.integers(0, 2**63, 6000, np.uint64)
    second = rng.integers(0, 2**63, 3000, np.uint64)
    second[7], second[8] = first[11] ^ np.uint64(0b1011), first[12]
    begin = time.process_time()
    assert near_pairs(first, second) == [(12, 8), (11, 7)]
    assert time.process_time() - begin < 5
    assert near_pairs(first[:0], second) == near_pairs(first, second[:0]) == []
