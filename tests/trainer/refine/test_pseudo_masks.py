import os
import time

import numpy as np
import pytest
from PIL import Image

from trainer import pool
from trainer.data.dataset import Dataset, Record, read_index_png
from trainer.data.palette import voc_palette
from trainer.errors import ConfigError, DataError, RunError
from trainer.maps.camfile import Cam, cam_path, write_cam
from trainer.pool import Work, each_image, over_images
from trainer.refine import pseudo_masks
from trainer.refine.pseudo_masks import (
    RefineConfig,
    background_scores,
    make_pseudo_masks,
    pseudo_mask,
)

PLAIN = RefineConfig(refine="none")


@pytest.fixture
def squares(tmp_path):
    """Four images of a bright square on dark ground whose maps are shifted blobs; ``s3`` has no
    tags and no maps.
    """
    records = {}
    y, x = np.mgrid[:40, :52]
    for n in range(4):
        picture = np.full((40, 52, 3), 30, np.uint8)
        picture[10:30, 12 + n : 34 + n] = (200, 60 * n, 90)
        image = tmp_path / f"s{n}.png"
        Image.fromarray(picture).save(image)
        if n < 3:
            blob = np.exp(-((y - 17) ** 2 + (x - 20 - n) ** 2) / 120)[::4, ::4]
            maps = np.stack([blob, blob[::-1, ::-1] * 0.15])[: 1 + n % 2]
            write_cam(cam_path(tmp_path / "cams", f"s{n}"), [0, 4][: len(maps)], maps, (40, 52))
        records[f"s{n}"] = Record(f"s{n}", image, (0, 4)[: 1 + n % 2] if n < 3 else ())
    ids = tuple(records)
    return Dataset(tmp_path, "voc", tuple("abcde"), (1, 2, 3, 4, 5), records, {"all": ids}, "test")


def run(dataset, config=PLAIN, threshold=0.3, workers=0, out="masks", records=None):
    out_folder = dataset.root / out
    records = dataset.subset("all") if records is None else records
    summary = make_pseudo_masks(
        dataset, records, dataset.root / "cams", out_folder, config, threshold, workers
    )
    return summary, {p.stem: read_index_png(p) for p in sorted(out_folder.glob("*.png"))}


def test_plain_masks_are_the_argmax_over_threshold_and_maps(squares):
    cam = Cam(
        np.array([1, 3], np.int16),
        np.array([[[0.9, 0.3, 0.1]], [[0.2, 0.6, 0.3]]], np.float32),
        (1, 3),
    )
    mask = pseudo_mask(np.zeros((1, 3, 3), np.uint8), cam, PLAIN, 0.3)
    assert mask.dtype == np.uint8
    assert mask.tolist() == [[2, 4, 0]]
    summary, masks = run(squares)
    assert summary["made"] == summary["count"] == len(masks) == 4
    assert summary["backend"] is None
    assert set(np.unique(masks["s1"])) <= {0, 1, 5}
    assert masks["s0"][17, 20] == 1
    assert masks["s3"].shape == (40, 52)
    assert not masks["s3"].any()
    with Image.open(squares.root / "masks" / "s0.png") as image:
        assert image.mode == "P"
        assert image.getpalette()[:6] == voc_palette(2).ravel().tolist()


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("crf", ["P1", "P2", "P7"])
def test_crf_pulls_the_masks_to_the_edges_of_the_picture(squares, backend, crf):
    truth = np.zeros((40, 52), bool)
    truth[10:30, 12:34] = True

    def overlap(masks):
        found = masks["s0"] == 1
        return (found & truth).sum() / (found | truth).sum()

    before = overlap(run(squares, threshold=0.25)[1])
    summary, masks = run(squares, RefineConfig(crf=crf, crf_backend=backend), 0.25, out="crf")
    assert overlap(masks) > max(before + 0.1, 0.95)
    assert not masks["s3"].any()
    assert summary["backend"] in ("pydensecrf", "torch")
    assert summary["background"] == pytest.approx(np.mean([m == 0 for m in masks.values()]))


def test_pool_gives_the_same_masks_and_keeps_those_that_load(squares):
    config = RefineConfig()
    _, expected = run(squares, config, out="one")
    first, masks = run(squares, config, workers=2)
    assert first["made"] == 4
    for name, mask in expected.items():
        np.testing.assert_array_equal(masks[name], mask)
    folder = squares.root / "masks"
    (folder / "s1.png").write_bytes((folder / "s1.png").read_bytes()[:60])
    (folder / "s2.png").unlink()
    stamp = (folder / "s0.png").stat().st_mtime_ns
    again, masks = run(squares, config, workers=2)
    assert (again["made"], again["kept"]) == (2, 2)
    assert (folder / "s0.png").stat().st_mtime_ns == stamp
    np.testing.assert_array_equal(masks["s1"], expected["s1"])


def test_soft_background():
    maps = np.array([[[0.0, 0.5, 1.0]]], np.float32)
    weak, strong = (
        background_scores(maps, RefineConfig(background="soft", alpha=a), 0.3)[0] for a in (32, 4)
    )
    np.testing.assert_allclose(strong, [[1, 0.0625, 0]])
    assert (weak <= strong).all()
    np.testing.assert_allclose(background_scores(maps, PLAIN, 0.3)[0], np.float32(0.3))
    np.testing.assert_array_equal(background_scores(maps[:0], PLAIN, 0.3), np.ones((1, 1, 3)))


def test_band_and_confidence_leave_doubtful_pixels_open():
    cam = Cam(np.array([0], np.int16), np.array([[[0.05, 0.28, 0.32, 0.9]]], np.float32), (1, 4))
    image = np.zeros((1, 4, 3), np.uint8)
    assert pseudo_mask(image, cam, RefineConfig(refine="none", band=0.05), 0.3).tolist() == [
        [0, 255, 255, 1]
    ]
    assert pseudo_mask(image, cam, RefineConfig(refine="none", confidence=0.7), 0.3).tolist() == [
        [0, 255, 255, 1]
    ]
    assert pseudo_mask(image, cam, RefineConfig(refine="none"), 0.3).tolist() == [[0, 0, 1, 1]]


def test_band_with_the_crf_is_where_two_runs_disagree(squares):
    _, low = run(squares, RefineConfig(), 0.1, out="low")
    _, high = run(squares, RefineConfig(), 0.9, out="high")
    _, middle = run(squares, RefineConfig(), 0.5, out="middle")
    summary, banded = run(squares, RefineConfig(band=0.4), 0.5, out="band")
    assert summary["ignore"] > 0
    for name, mask in banded.items():
        np.testing.assert_array_equal(mask, np.where(low[name] == high[name], middle[name], 255))


def test_bad_images_are_named_and_the_others_are_made(squares):
    (squares.root / "s0.png").write_bytes(b"no picture")
    write_cam(cam_path(squares.root / "cams", "s1"), [0], np.zeros((1, 3, 3)), (9, 9))
    with pytest.raises(DataError, match="2 of 4 masks") as caught:
        run(squares, workers=2)
    assert "image 's0'" in caught.value.found
    assert "image 's1': its maps are for (9, 9)" in caught.value.found
    assert sorted(p.name for p in (squares.root / "masks").iterdir()) == ["s2.png", "s3.png"]


def test_maps_of_unknown_classes_are_refused(squares):
    write_cam(cam_path(squares.root / "cams", "s0"), [7], np.zeros((1, 10, 13)), (40, 52))
    with pytest.raises(DataError, match=r"classes \[7\]"):
        run(squares)


def test_missing_maps_are_told_before_any_work(squares):
    cam_path(squares.root / "cams", "s1").unlink()
    with pytest.raises(DataError, match="1 of 4 images have no maps") as caught:
        run(squares)
    assert "s1" in caught.value.found
    assert not (squares.root / "masks").exists()


def test_no_space_left_stops_and_keeps_what_was_made(squares, monkeypatch):
    real = pseudo_masks.write_index_png

    def full(path, mask):
        if path.stem == "s2":
            raise RunError(f"no space left while writing {path}")
        real(path, mask)

    monkeypatch.setattr(pseudo_masks, "write_index_png", full)
    with pytest.raises(RunError, match="no space left"):
        run(squares)
    assert sorted(p.name for p in (squares.root / "masks").iterdir()) == ["s0.png", "s1.png"]


@pytest.mark.parametrize(
    "knobs",
    [
        {"threshold": 1.5},
        {"confidence": 1.0},
        {"band": 0.1, "background": "soft"},
        {"crf": "P9"},
        {"alpha": 0},
    ],
)
def test_impossible_knobs(knobs):
    with pytest.raises(ConfigError):
        RefineConfig(**knobs)


def fail_on(item, number):
    if number == item:
        raise ZeroDivisionError("by design")
    return number * number


def die_on(item, number):
    if number == item:
        os._exit(9)
    return number


def test_pool_keeps_order_and_names_the_item_that_failed():
    from functools import partial

    numbers = list(range(30))
    assert [r for _, r in over_images(partial(fail_on, -1), numbers, 2)] == [n * n for n in numbers]
    for workers in (0, 2):
        assert [
            r for _, r in over_images(partial(fail_on, -1), iter(numbers), workers, total=30)
        ] == [n * n for n in numbers]
        with pytest.raises(RuntimeError, match="image '7': ZeroDivisionError: by design"):
            list(over_images(partial(fail_on, 7), numbers, workers))
    with pytest.raises(RunError, match="killed") as caught:
        list(over_images(partial(die_on, 3), numbers, 2))
    assert "fewer workers" in caught.value.hint
    assert list(over_images(partial(fail_on, 0), [], 2)) == []


def slow(number):
    time.sleep(0.1)
    return number


def test_a_loop_that_was_left_early_may_be_closed_in_the_pools_own_thread():
    from threading import Event

    results = pool._in_pool(slow, list(range(30)), 2, None)
    assert next(results) == (0, 0, None)
    # As a garbage collection may: futures call back from the thread that the pool waits for.
    ended, problems = Event(), []

    def close(_):
        try:
            results.close()
        except RuntimeError as error:
            problems.append(error)
        ended.set()

    results.gi_frame.f_locals["waiting"][-1][1].add_done_callback(close)
    assert ended.wait(60)
    assert not problems


def half(seen, number):
    seen.append(number)
    if number % 2:
        raise (
            RunError("no space left")
            if number == 9
            else DataError(f"item {number} is odd", "even", "leave it out")
        )
    return number // 2


def test_each_image_does_all_that_can_be_done_and_tells_all_errors_together():
    from functools import partial

    seen: list[int] = []
    assert each_image(partial(half, seen), [4, 2, 8], "halves failed", 0) == [2, 1, 4]
    assert each_image(partial(half, seen), [], "halves failed") == []
    seen.clear()
    with pytest.raises(DataError) as caught:
        each_image(partial(half, seen), [1, 2, 3, 4], "halves failed", 0)
    assert seen == [1, 2, 3, 4]
    assert caught.value.found == "2 of 4 halves failed:\n  item 1 is odd\n  item 3 is odd"
    assert (caught.value.expected, caught.value.hint) == ("even", "leave it out")
    with pytest.raises(DataError, match="20 of 20 halves failed") as caught:
        each_image(partial(half, seen), [1] * 20, "halves failed", 0)
    assert caught.value.found.endswith("and 10 more")
    assert caught.value.found.count("item 1") == 10


def test_each_image_stops_at_once_where_no_space_is_left():
    from functools import partial

    seen: list[int] = []
    with pytest.raises(RunError, match="no space left"):
        each_image(partial(half, seen), [1, 9, 2], "halves failed", 0)
    assert seen == [1, 9]


def test_each_image_works_in_processes():
    from functools import partial

    numbers = list(range(12))
    assert each_image(partial(fail_on, -1), numbers, "squares failed", 2) == [
        n * n for n in numbers
    ]
    with pytest.raises(RuntimeError, match="image 'n5': ZeroDivisionError: by design"):
        each_image(partial(fail_on, 5), numbers, "squares failed", 2, name=lambda n: f"n{n}")


def test_the_mask_of_a_large_image_has_its_size():
    image = np.zeros((160, 240, 3), np.uint8)
    maps = np.zeros((1, 40, 60), np.float32)
    maps[0, 8:32, 12:36] = 1
    cam = Cam(np.array([2], np.int16), maps, (160, 240))
    whole = pseudo_mask(image, cam, RefineConfig(refine="none"), 0.5)
    small = pseudo_mask(image, cam, RefineConfig(refine="none", pixels=10_000), 0.5)
    assert small.shape == whole.shape == (160, 240)
    assert set(np.unique(small)) == {0, 3}
    assert (small == whole).mean() > 0.9


def weight(item: int) -> int:
    return item


def wait(item: int) -> int:
    time.sleep(0.05)
    return item


def test_workers_share_a_budget_of_pixels(monkeypatch):
    monkeypatch.setattr(pool, "CORE_PIXELS", 1)
    taken: list[int] = []

    def items():
        for item in (6, 6, 9, 1, 1, 20):
            taken.append(item)
            yield item

    done = []
    for item, _ in over_images(wait, items(), 2, total=6, limit=Work(weight, 10)):
        done.append(item)
        # One more is read ahead; what is submitted and not done stays within the budget.
        assert len(taken) - len(done) <= 3
    assert done == [6, 6, 9, 1, 1, 20]
