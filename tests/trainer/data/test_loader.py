from pathlib import Path

import pytest
import torch

from trainer.data.dataset import Record
from trainer.data.loader import Batches, Samples, collate, training_loader
from trainer.data.transforms import Rng
from trainer.errors import DataError, UserError

RECORDS = [Record(f"r{n}", Path(f"r{n}.png"), (n % 2,)) for n in range(10)]


def sample(record: Record, rng: Rng) -> dict[str, torch.Tensor]:
    image = torch.tensor(rng.random((4, 5, 3), "float32")).permute(2, 0, 1)
    return {"image": image, "tags": torch.tensor([float(record.tags[0])])}


def broken(record: Record, rng: Rng) -> dict[str, torch.Tensor]:
    if record.id == "r3":
        raise DataError("r3.png cannot be read", "a whole image", "wsss-trainer check DATA")
    return sample(record, rng)


def test_an_epoch_is_a_permutation_less_the_incomplete_batch():
    batches = Batches(10, 4, 3, seed=0)
    plan = list(batches)
    assert batches.per_epoch == 2
    assert len(plan) == len(batches) == 6
    for epoch in range(3):
        keys = [key for batch in plan[2 * epoch : 2 * epoch + 2] for key in batch]
        assert {e for e, _ in keys} == {epoch}
        assert len({i for _, i in keys}) == 8
        assert all(0 <= i < 10 for _, i in keys)
    assert plan[0] != [(0, i) for _, i in plan[2]]
    assert plan == list(Batches(10, 4, 3, seed=0))
    assert plan != list(Batches(10, 4, 3, seed=1))


@pytest.mark.parametrize("start", [0, 1, 2, 3, 5, 6])
def test_resuming_gives_the_rest_of_the_plan(start):
    rest = Batches(10, 4, 3, seed=0, start=start)
    assert list(rest) == list(Batches(10, 4, 3, seed=0))[start:]
    assert len(rest) == 6 - start


def test_processes_share_a_batch_without_overlap():
    whole = list(Batches(10, 4, 1, seed=0))
    parts = [list(Batches(10, 4, 1, seed=0, rank=rank, world=2)) for rank in (0, 1)]
    for step, batch in enumerate(whole):
        assert sorted(parts[0][step] + parts[1][step]) == sorted(batch)
        assert len(parts[0][step]) == len(parts[1][step]) == 2


def test_few_images_make_one_small_batch_and_none_make_none():
    assert [len(b) for b in Batches(3, 16, 2, seed=0)] == [3, 3]
    empty = Batches(0, 16, 2, seed=0)
    assert empty.per_epoch == 0
    assert list(empty) == []


def test_a_number_of_updates_goes_over_the_epochs():
    plan = list(Batches(10, 4, 1, seed=0, updates=5))
    assert plan == list(Batches(10, 4, 9, seed=0))[:5]
    assert len(Batches(10, 4, 1, seed=0, start=3, updates=5)) == 2
    assert list(Batches(0, 4, 1, seed=0, updates=5)) == []


def test_samples_depend_on_epoch_and_index_only():
    samples = Samples(RECORDS, sample, seed=0)
    again = Samples(RECORDS, sample, seed=0)
    assert samples[0, 2]["id"] == "r2"
    assert torch.equal(samples[1, 2]["image"], again[1, 2]["image"])
    assert not torch.equal(samples[0, 2]["image"], samples[1, 2]["image"])
    assert not torch.equal(samples[0, 2]["image"], Samples(RECORDS, sample, seed=1)[0, 2]["image"])


def test_collate_keeps_channels_last():
    batch = collate([Samples(RECORDS, sample, 0)[0, i] for i in range(3)])
    assert isinstance(batch, dict)
    images = batch["image"]
    assert batch["id"] == ["r0", "r1", "r2"]
    assert images.shape == (3, 3, 4, 5)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert batch["tags"].tolist() == [[0.0], [1.0], [0.0]]
    values = {"a": torch.zeros, "b": torch.ones}
    masks = collate([{"id": k, "label": v(4, 5, dtype=torch.uint8)} for k, v in values.items()])
    assert isinstance(masks, dict)
    labels = masks["label"]
    assert labels.shape == (2, 4, 5)
    assert labels.dtype == torch.uint8


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_do_not_change_what_comes(workers):
    def batches(count: int) -> list[dict]:
        return list(
            training_loader(
                Samples(RECORDS, sample, 0), Batches(10, 4, 2, 0, start=1), count, pin=False
            )
        )

    for one, other in zip(batches(0), batches(workers), strict=True):
        assert one["id"] == other["id"]
        assert all(torch.equal(one[name], other[name]) for name in ("image", "tags"))
        assert other["image"].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_image_is_the_users_error_as_it_was_raised(workers):
    loader = training_loader(Samples(RECORDS, broken, 0), Batches(10, 4, 2, 0), workers, pin=False)
    with pytest.raises(UserError) as caught:
        list(loader)
    assert type(caught.value) is DataError
    assert (
        str(caught.value)
        == "r3.png cannot be read\nexpected: a whole image\ntry: wsss-trainer check DATA"
    )
