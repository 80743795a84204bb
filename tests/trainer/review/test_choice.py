"""Which images are doubtful, which of them are chosen, and which tags look wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from trainer.data.dataset import Dataset, Record
from trainer.review.choice import choose
from trainer.review.doubt import Sight, judge
from trainer.review.wrong_tags import out_of_fold, wrong_tags


def record(tags: tuple[int, ...], unknown: tuple[int, ...] = ()) -> Record:
    return Record("a", Path("a.png"), tags, None, unknown)


def views(*masks: list[list[int]], labels: int = 3, sure: float = 0.9) -> Sight:
    """Views that give each pixel's label the probability ``sure``."""
    planes = np.stack([np.eye(labels)[np.array(mask)].transpose(2, 0, 1) for mask in masks])
    rest = (1 - sure) / (labels - 1)
    return Sight.of((planes * (sure - rest) + rest).astype(np.float32))


MASK = [[0, 0, 1, 1], [0, 0, 1, 1]]


def test_certain_views_leave_little_doubt() -> None:
    doubt, values = judge(views(MASK, MASK, sure=0.99), np.array(MASK, np.uint8), record((0,)))
    assert doubt.value < 0.03
    assert values.max() < 0.02
    assert (doubt.views, doubt.labels, doubt.missing, doubt.surplus) == (0, 0, (), ())


def test_views_that_disagree_and_masks_that_say_otherwise() -> None:
    other = [[0, 1, 1, 1], [0, 0, 1, 1]]
    refined = np.array([[0, 0, 0, 255], [0, 0, 1, 1]], np.uint8)
    doubt, values = judge(views(MASK, other), refined, record((0,)))
    assert doubt.views == 1 / 8
    assert doubt.labels == 1 / 8
    # The pixel of the views, the one of the refined mask, and one that nobody contradicts.
    assert values[0, 1] > values[0, 2] > values[1, 0]
    # Certainties have 256 levels.
    assert np.isclose(values[0, 2], 1 - 0.9 / 2, atol=1 / 255)
    # An ignored pixel of the refined mask says nothing.
    assert np.isclose(values[0, 3], values[1, 3])


def test_tags_deny_and_miss_classes() -> None:
    wrong, values = judge(views(MASK, MASK), None, record((1,)))
    assert (wrong.surplus, wrong.missing, wrong.labels) == ((0,), (1,), None)
    assert (values[:, 2:] == 1).all()
    right, _ = judge(views(MASK, MASK), None, record((0,)))
    open_tag, _ = judge(views(MASK, MASK), None, record((), (0, 1)))
    assert wrong.value > 0.5 > right.value
    assert wrong.shortfall > 0.6 > right.shortfall
    assert open_tag.surplus == ()
    assert open_tag.value == right.value


def test_the_doubt_of_an_image_orders_images_as_their_errors() -> None:
    """Drawn masks whose pixels are right with the probability that the views state."""
    rng, doubts, errors = np.random.default_rng(0), [], []
    for _ in range(60):
        truth = (rng.random((16, 16)) < 0.5).astype(int)
        sure = rng.uniform(0.55, 1)
        guess = np.where(rng.random(truth.shape) < sure, truth, 1 - truth)
        view = views(guess.tolist(), guess.tolist(), labels=2, sure=sure)
        doubts.append(judge(view, None, record((0,)))[0].shortfall)
        ious = [
            ((guess == k) & (truth == k)).sum() / ((guess == k) | (truth == k)).sum()
            for k in (0, 1)
        ]
        errors.append(1 - float(np.mean(ious)))
    assert np.corrcoef(np.argsort(np.argsort(doubts)), np.argsort(np.argsort(errors)))[0, 1] > 0.9
    assert abs(np.mean(doubts) - np.mean(errors)) < 0.05


def test_a_calibration_says_what_certainties_are_worth() -> None:
    wrong = np.linspace(0.9, 0.1, 256)
    doubt, values = judge(views(MASK, MASK, sure=0.8), None, record((0,)), wrong)
    assert np.allclose(values, wrong[204])
    assert np.isclose(doubt.value, wrong[204])
    plain, _ = judge(views(MASK, MASK, sure=0.8), None, record((0,)))
    assert doubt.shortfall > plain.shortfall
    # Tags are certain, whatever the calibration says.
    _, denied = judge(views(MASK, MASK, sure=0.8), None, record((1,)), np.zeros(256))
    assert (denied[:, 2:] == 1).all()
    assert not denied[:, :2].any()


def test_chosen_images_stand_for_different_problems() -> None:
    rng = np.random.default_rng(0)
    centres = np.eye(4)
    kinds = np.array([0] * 30 + [1] * 20 + [2] * 10 + [3] * 40)
    features = centres[kinds] + rng.normal(0, 0.05, (100, 4))
    # Images of the last kind are certain.
    doubts = np.where(kinds == 3, 0.01, 0.5) + rng.uniform(0, 0.01, 100)
    choice = choose(doubts, features, list(range(100)), 3)
    assert [int(kinds[c.position]) for c in choice] == [0, 1, 2]
    assert [c.stands_for for c in choice][:2] == [30, 20]


def test_two_images_of_a_group_are_never_chosen() -> None:
    rng = np.random.default_rng(0)
    groups = [n // 3 for n in range(30)]
    choice = choose(rng.random(30), rng.normal(size=(30, 5)), groups, 20)
    chosen = [groups[c.position] for c in choice]
    assert sorted(chosen) == list(range(10))


def test_images_that_look_all_the_same_are_chosen_by_doubt() -> None:
    choice = choose(np.array([0.1, 0.9, 0.5]), np.ones((3, 4)), [0, 1, 2], 2)
    assert [c.position for c in choice] == [1, 2]


def tagged(tags: np.ndarray) -> tuple[Dataset, list[Record]]:
    records = {
        f"{n:03}": Record(f"{n:03}", Path("x.png"), tuple(np.flatnonzero(row == 1).tolist()))
        for n, row in enumerate(tags)
    }
    dataset = Dataset(
        Path(), "folder", ("cat", "dog"), (1, 2), records, {"all": tuple(records)}, "tags"
    )
    return dataset, list(records.values())


def test_flipped_tags_are_listed_first() -> None:
    rng = np.random.default_rng(0)
    truth = (rng.random((300, 2)) < 0.4).astype(float)
    features = truth @ rng.normal(size=(2, 20)) * 3 + rng.normal(size=(300, 20))
    flips = rng.permutation(300)[:30]
    tags = truth.copy()
    tags[flips, 0] = 1 - tags[flips, 0]
    dataset, records = tagged(tags)
    suspicions = wrong_tags(features, dataset, records)
    first = [(entry.id, entry.k) for entry in suspicions[:30]]
    hits = sum((f"{n:03}", 0) in first for n in flips)
    assert hits >= 24
    likely = [s.score if s.is_present else 1 - s.score for s in suspicions]
    assert likely == sorted(likely)


def test_unknown_tags_and_classes_of_one_image_are_not_listed() -> None:
    rng = np.random.default_rng(0)
    tags = (rng.random((200, 2)) < 0.5).astype(float)
    features = tags[:, :1] * 3 + rng.normal(size=(200, 6))
    tags[:, 1] = np.arange(200) == 7
    tags[:20, 0] = np.nan
    tags[20:30, 0] = 1 - tags[20:30, 0]
    dataset, records = tagged(tags)
    records = [replace(r, unknown=(0,)) if n < 20 else r for n, r in enumerate(records)]
    listed = {(entry.id, entry.k) for entry in wrong_tags(features, dataset, records)}
    assert listed
    assert not listed & {(f"{n:03}", 0) for n in range(20)}
    assert {k for _, k in listed} == {0}
    assert np.isnan(out_of_fold(features, tags, range(200))[:, 1]).all()


def test_classes_of_different_frequency_stand_in_one_order() -> None:
    """Scores of a class that the features tell badly lie near its frequency, and say little."""
    rng = np.random.default_rng(0)
    truth = np.stack([rng.random(800) < share for share in (0.05, 0.5)], 1).astype(float)
    features = np.hstack([truth * [4, 1], np.zeros((800, 6))]) + rng.normal(size=(800, 8))
    tags = truth.copy()
    flips = np.flatnonzero(truth[:, 0] == 0)[:30]
    tags[flips, 0] = 1
    dataset, records = tagged(tags)
    first = [(entry.id, entry.k) for entry in wrong_tags(features, dataset, records)[:30]]
    assert sum((f"{n:03}", 0) in first for n in flips) >= 20


def test_scores_do_not_see_the_images_of_their_group() -> None:
    """Features that are the group's alone tell nothing of images outside it."""
    rng = np.random.default_rng(0)
    groups = np.arange(200) // 4
    tags = (rng.random(50) < 0.5).astype(float)[groups][:, None]
    features = rng.normal(size=(50, 60))[groups]
    scores = out_of_fold(features, tags, groups.tolist())[:, 0]
    right = ((scores > 0.5) == (tags[:, 0] == 1)).mean()
    assert right < 0.75


def test_a_class_with_one_image_has_no_scores() -> None:
    tags = np.zeros((10, 1))
    tags[0] = 1
    scores = out_of_fold(np.random.default_rng(0).normal(size=(10, 3)), tags, list(range(10)))
    assert np.isnan(scores).all()
