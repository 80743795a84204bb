import numpy as np
import pytest

from trainer.errors import DataError
from trainer.evaluation.image_counts import ImageCounts, counts_path, sparse
from trainer.evaluation.metrics import CONVENTIONS, confusion, margins, mean_iou

CLASSES = ("cat", "dog", "cow")


@pytest.fixture
def matrices():
    rng = np.random.RandomState(0)
    dense = [rng.poisson(0.4, (4, 5)) * rng.randint(1, 1000, (4, 5)) for _ in range(30)]
    return [np.where(rng.uniform(size=(4, 5)) < 0.4, d, 0).astype(np.int64) for d in dense]


def gathered(matrices, **kwargs):
    return ImageCounts.of(
        [f"i{n}" for n in range(len(matrices))], CLASSES, [sparse(m) for m in matrices], **kwargs
    )


def test_sums_and_margins_are_those_of_the_matrices(matrices):
    counts = gathered(matrices)
    np.testing.assert_array_equal(counts.total(), np.sum(matrices, 0))
    assert counts.total().dtype == np.int64
    for convention in ("default", "seam"):
        m = counts.margins(convention)
        for n, matrix in enumerate(matrices):
            alone = margins(matrix, convention)
            np.testing.assert_array_equal(m.hit[n], alone.hit)
            np.testing.assert_array_equal(m.truth[n], alone.truth)
            np.testing.assert_array_equal(m.guess[n], alone.guess)
        np.testing.assert_allclose(
            counts.miou(convention)[3], mean_iou(matrices[3], convention), rtol=1e-6
        )


def test_written_and_read_again(matrices, tmp_path):
    outlines = [np.array([1, np.nan, 0.5, np.nan], np.float32)] * len(matrices)
    counts = gathered(matrices, boundary=outlines)
    path = counts_path(tmp_path, "segment", "val")
    assert path == tmp_path / "evaluation" / "segment-val.npz"
    counts.write(path)
    again = ImageCounts.read(path)
    assert again.ids == counts.ids
    assert again.class_names == CLASSES
    for name in ("starts", "cells", "pixels", "boundary"):
        np.testing.assert_array_equal(getattr(again, name), getattr(counts, name))
    assert path.stat().st_size / len(matrices) < 200


def test_missing_and_damaged_files_say_what_to_do(tmp_path):
    for content in (None, b"nothing"):
        path = tmp_path / "x.npz"
        if content:
            path.write_bytes(content)
        with pytest.raises(DataError, match="cannot be read") as caught:
            ImageCounts.read(path)
        assert "wsss-trainer eval" in caught.value.hint


def test_selection_keeps_order_and_what_belongs_to_each_image(matrices):
    outlines = [np.full(4, n, np.float32) for n in range(len(matrices))]
    groups = [n // 2 for n in range(len(matrices))]
    objects = [np.full((2, 4), n) for n in range(len(matrices))]
    every = gathered(matrices, boundary=outlines, groups=groups, objects=objects)
    some = every.select(["i7", "i2"])
    assert some.ids == ("i7", "i2")
    np.testing.assert_array_equal(some.total(), matrices[7] + matrices[2])
    assert some.boundary[:, 0].tolist() == [7, 2]
    assert some.groups.tolist() == [3, 1]
    assert some.objects[:, 1, 3].tolist() == [7, 2]


def test_boundary_is_a_mean_of_images_over_the_classes_they_outline(matrices):
    nan = np.nan
    outlines = np.array([[1, 0.5, nan, nan], [0.2, nan, nan, nan], [nan] * 4], np.float32)
    counts = gathered(matrices[:3], boundary=list(outlines))
    assert counts.boundary_f() == pytest.approx((0.75 + 0.2) / 2)
    np.testing.assert_allclose(counts.class_boundary_f(), [0.6, 0.5, nan, nan], rtol=1e-6)
    assert np.isnan(gathered(matrices).boundary_f())


def test_an_image_without_known_pixels_is_not_the_worst():
    empty = confusion(np.zeros((2, 2)), np.full((2, 2), 255), 4, predicted_ignore="own")
    for convention in CONVENTIONS:
        assert gathered([empty]).miou(convention)[0] == 1


def test_counts_of_an_earlier_version_have_no_groups_and_objects(matrices, tmp_path):
    counts, path = (
        gathered(matrices, objects=[np.ones((2, 4), int)] * len(matrices)),
        tmp_path / "c",
    )
    counts.write(path)
    with np.load(path) as archive:
        old = {key: archive[key] for key in archive if key not in ("groups", "objects")}
    with path.open("wb") as file:
        np.savez(file, **old)
    read = ImageCounts.read(path)
    assert read.groups.tolist() == list(range(len(matrices)))
    assert read.objects.shape == (len(matrices), 2, 0)
