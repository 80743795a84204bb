import numpy as np
import pytest

from trainer.data.dataset import Dataset, Record
from trainer.data.palette import write_index_png
from trainer.errors import ConfigError, DataError
from trainer.evaluation.threshold import choose, label_free, otsu
from trainer.maps.camfile import cam_path, write_cam


@pytest.fixture
def discs(tmp_path):
    """Six images of a disc whose maps are 0.7 inside and 0.1 outside, with noise; images 4 and 5
    have no masks.
    """
    rng = np.random.RandomState(0)
    records = {}
    y, x = np.mgrid[:48, :48]
    for n in range(6):
        inside = (y - 20 - n) ** 2 + (x - 24) ** 2 < (8 + n) ** 2
        mask = tmp_path / f"m{n}.png" if n < 4 else None
        if mask:
            write_index_png(mask, inside.astype(np.uint8))
        grid = np.where(inside, 0.7, 0.1)[::4, ::4] + rng.normal(0, 0.05, (12, 12))
        write_cam(cam_path(tmp_path / "cams", f"d{n}"), [0], np.clip(grid, 0, 1)[None], (48, 48))
        records[f"d{n}"] = Record(f"d{n}", tmp_path / f"d{n}.jpg", (0,), mask)
    ids = tuple(records)
    lists = {"all": ids, "train": ids[:2], "val": ids[2:4], "bare": ids[4:]}
    return Dataset(tmp_path, "voc", ("disc",), (1,), records, lists, "test")


def miou_at(dataset, records, threshold):
    from trainer.evaluation.over_lists import evaluate_cams

    result = evaluate_cams(dataset, records, dataset.root / "cams", [threshold], workers=0)
    return result.miou[0]


def test_otsu_splits_two_heaps_in_the_middle_of_the_gap():
    histogram = np.zeros(100)
    histogram[10:20], histogram[60:70] = 5, 2
    assert otsu(histogram) == pytest.approx(0.4)
    assert otsu(histogram * 1e-6) == pytest.approx(0.4)


def test_otsu_is_the_best_of_all_splits():
    values = np.random.RandomState(1).beta([1, 5], [6, 2], (4000, 2)).ravel()
    histogram, edges = np.histogram(values, 50, (0, 1))
    centres = (edges[1:] + edges[:-1]) / 2
    within = [
        sum(
            (part * (centre - np.average(centre, weights=part)) ** 2).sum()
            for part, centre in ((histogram[:i], centres[:i]), (histogram[i:], centres[i:]))
        )
        for i in range(1, 50)
    ]
    assert otsu(histogram) == pytest.approx(edges[1 + int(np.argmin(within))])


def test_otsu_of_a_single_heap_stays_inside():
    histogram = np.zeros(20)
    histogram[7] = 3
    assert 0 < otsu(histogram) < 1


def test_label_free_separates_without_masks(discs):
    records = discs.subset("bare")
    value = label_free(records, discs.root / "cams", workers=0)
    assert 0.25 < value < 0.55
    chosen = choose(
        "label_free", 0.2, discs, records, discs.root / "cams", for_masks=True, workers=0
    )
    assert (chosen.value, chosen.source) == (value, "label_free")
    assert "without masks" in chosen.detail


def test_label_free_weighs_images_equally_and_skips_those_without_tags(discs, tmp_path):
    folder = discs.root / "cams"
    records = discs.subset("all")
    alone = label_free(records, folder, workers=0)
    empty = Record("none", tmp_path / "none.jpg", (), None)
    assert label_free([*records, empty], folder, workers=2) == alone
    large = np.full((1, 400, 400), 0.0)
    large[0, :200] = 0.2
    write_cam(cam_path(folder, "large"), [0], large, (1600, 1600))
    assert (
        label_free([*records, Record("large", tmp_path / "l.jpg", (0,), None)], folder, workers=0)
        > 0.2
    )


def test_choice_on_masks_is_the_best_of_the_sweep_on_that_list(discs):
    folder = discs.root / "cams"
    for source, records in (("train", discs.subset("train")), ("val", discs.subset("val"))):
        chosen = choose(source, 0.2, discs, discs.subset("bare"), folder, workers=0)
        scores = [miou_at(discs, records, t / 100) for t in range(100)]
        assert chosen.value == pytest.approx(int(np.argmax(scores)) / 100)
        assert chosen.source == source
        assert repr(source) in chosen.detail


def test_oracle_looks_at_the_reported_list_and_says_so(discs):
    records = discs.subset("val")
    folder = discs.root / "cams"
    oracle = choose("oracle", 0.2, discs, records, folder, workers=0)
    assert oracle.value == choose("val", 0.2, discs, records, folder, workers=0).value
    assert oracle.source == "oracle"
    assert "ORACLE" in oracle.detail
    with pytest.raises(ConfigError, match="oracle"):
        choose("oracle", 0.2, discs, records, folder, for_masks=True, workers=0)


def test_fixed_reads_nothing(discs, tmp_path):
    chosen = choose("fixed", 0.26, discs, discs.subset("all"), tmp_path / "absent")
    assert (chosen.value, chosen.source) == (0.26, "fixed")
    assert "0.260" in chosen.detail


def test_what_cannot_be_chosen_is_a_user_error(discs, tmp_path):
    folder = discs.root / "cams"
    records = discs.subset("all")
    with pytest.raises(ConfigError, match="label_fre") as caught:
        choose("label_fre", 0.2, discs, records, folder)
    assert "label_free" in caught.value.expected
    with pytest.raises(DataError, match="none of the 2 images has one"):
        choose("bare", 0.2, discs, records, folder, workers=0)
    with pytest.raises(DataError, match="no tagged image"):
        label_free([Record("n", tmp_path / "n.jpg", ())], folder, workers=0)
    with pytest.raises(DataError, match="6 of 6 images have no usable maps"):
        label_free(records, tmp_path / "absent", workers=0)
