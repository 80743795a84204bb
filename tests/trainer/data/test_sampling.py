from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from trainer.data.dataset import Record
from trainer.data.loader import Batches
from trainer.data.sampling import MOST_REPEATS, Order, make_order


def records(*tags: tuple[int, ...]) -> list[Record]:
    return [Record(f"r{i}", Path(f"r{i}.jpg"), t) for i, t in enumerate(tags)]


MOSTLY_FREE = records(*[(0,)] * 6, *[(1,)] * 2, *[()] * 40)


def test_where_no_share_is_exceeded_every_image_is_drawn_once():
    assert make_order(records((0,), (1,), ()), 0.5, False, 0) is None
    assert make_order(MOSTLY_FREE, 1.0, False, 0) is None


def test_an_epoch_draws_every_positive_and_as_many_negatives_as_may_be():
    order = Order(MOSTLY_FREE, 0.5, False, 0)
    assert len(order) == 16
    drawn = order(3)
    assert sorted(i for i in drawn if i < 8) == list(range(8))
    assert len({i for i in drawn if i >= 8}) == 8


@pytest.mark.parametrize("batch", [4, 6, 8])
@pytest.mark.parametrize("share", [0.25, 0.5])
def test_no_batch_holds_more_negatives_than_its_share(batch, share):
    order = Order(MOSTLY_FREE, share, False, 1)
    batches = Batches(len(order), batch, 6, seed=1, order=order)
    for step in batches:
        negatives = sum(i >= 8 for _, i in step)
        assert negatives <= np.ceil(batch * share)


def test_images_with_unknown_classes_alone_do_not_crowd_out_those_with_tags():
    many = [replace(record, unknown=(0,)) for record in MOSTLY_FREE[8:]]
    order = Order([*MOSTLY_FREE[:8], *many], 0.5, True, 0)
    assert not many[0].is_negative
    assert len(order) == len(Order(MOSTLY_FREE, 0.5, True, 0)) == 24
    counts = Counter(int(i) >= 8 for i in order(0))
    assert counts == {True: 12, False: 12}


def test_all_negatives_are_seen_over_the_epochs():
    order = Order(MOSTLY_FREE, 0.5, False, 2)
    counts = Counter(int(i) for epoch in range(10) for i in order(epoch) if i >= 8)
    assert sorted(counts) == list(range(8, 48))
    assert set(counts.values()) == {2}


def test_balance_draws_rare_classes_as_often_as_frequent_ones():
    order = Order(MOSTLY_FREE, 0.0, True, 0)
    assert len(order) == 12
    for epoch in range(3):
        counts = Counter(MOSTLY_FREE[i].tags[0] for i in order(epoch))
        assert counts == {0: 6, 1: 6}


def test_parts_of_a_repeat_are_drawn_in_proportion():
    data = records(*[(0,)] * 5, *[(1,)] * 3)
    order = Order(data, 0.5, True, 0)
    assert len(order) == 10
    counts = Counter(int(i) for epoch in range(300) for i in order(epoch))
    for i in range(5):
        assert counts[i] == 300
    for i in range(5, 8):
        assert counts[i] == pytest.approx(300 * 5 / 3, rel=0.15)


def test_no_image_is_drawn_too_often():
    order = Order(records(*[(0,)] * 100, (1,)), 0.5, True, 0)
    assert Counter(order(0).tolist())[100] == MOST_REPEATS


def test_an_order_is_a_function_of_seed_and_epoch():
    first, again = (Order(MOSTLY_FREE, 0.5, True, 7) for _ in range(2))
    assert (first(5) == again(5)).all()
    assert (first(5) != first(6)).any()
    assert (first(5) != Order(MOSTLY_FREE, 0.5, True, 8)(5)).any()


def test_batches_of_an_order_drop_nothing_and_resume_anywhere():
    order = Order(MOSTLY_FREE, 0.5, False, 0)
    batches = Batches(len(order), 6, 2, seed=0, order=order)
    assert batches.per_epoch == 3
    steps = list(batches)
    seen = {i for step in steps[:3] for _, i in step}
    assert {*range(8)} <= seen
    assert list(Batches(len(order), 6, 2, seed=0, start=4, order=order)) == steps[4:]
    halves = [Batches(len(order), 6, 2, 0, 0, rank, 2, order=order) for rank in range(2)]
    assert [sorted(a + b) for a, b in zip(*halves)] == [sorted(step) for step in steps]
