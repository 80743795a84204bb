"""What is normal, what departs from it, and whose maps the departures are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from trainer.data.dataset import Record
from trainer.maps import departures
from trainer.maps.departures import DepartureMaps, departing_classes, learn
from trainer.nets import build_backbone
from trainer.training.inference import Budget

SIDE = 160
PLACE = slice(40, 72)
KINDS = ((), (0,), (1,))
"""Tags of the images: none, a speck that no other image has, and nothing that can be seen."""


@pytest.fixture(scope="module")
def records(tmp_path_factory) -> list[Record]:
    """Grey noise; every fifth image has a bright speck."""
    folder: Path = tmp_path_factory.mktemp("parts")
    rng, records = np.random.default_rng(0), []
    for n in range(100):
        tags: tuple[int, ...] = () if n % 5 > 1 else (n % 5,)
        pixels = rng.normal(120, 10, (SIDE, SIDE)).clip(0, 255).astype(np.uint8)
        if tags == (0,):
            pixels[PLACE, PLACE] = 250
        path = folder / f"{n}.png"
        Image.fromarray(np.stack([pixels] * 3, 2)).save(path)
        records.append(Record(str(n), path, tags, group=f"part {n // 2}"))
    return records


@pytest.fixture(scope="module")
def normal(records) -> departures.NormalCells:
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        # Deeper cells see the whole of such small images.
        patch.setattr(departures, "DEEPEST", 8)
        return learn(build_backbone("resnet18"), records, Budget(8), "cpu")


def test_the_speck_departs_and_what_cannot_be_seen_does_not(normal, records):
    shares = departing_classes(normal, records, 3)
    assert list(shares) == [0]
    assert shares[0] > 0.95


def test_the_map_is_on_the_speck(normal, records):
    tagged = [record for record in records if record.tags == (0,)]
    maps = [cells for _, cells in normal.maps(tagged)]
    assert len(maps) == len(tagged)
    for cells in maps:
        assert cells.shape == (SIDE // 8, SIDE // 8)
        assert 0 <= cells.min() <= cells.max() <= 1
        inside = cells[5:9, 5:9]
        assert inside.mean() > 0.5
        assert inside.mean() > cells.mean() + 0.3


def test_normal_images_reach_the_ends_of_the_map_as_rarely_as_it_says(normal, records):
    free = [record for record in records if not record.tags]
    values = np.concatenate([cells.ravel() for _, cells in normal.maps(free)])
    assert (values > 0).mean() < 0.03


def test_the_distance_is_mahalanobis(normal, records):
    image = torch.from_numpy(np.array(Image.open(records[0].image))).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        cells = normal._features(image)[0].flatten(1).T.double()
    covariance = torch.linalg.inv((normal.whitening @ normal.whitening.T).double())
    centred = cells - normal.mean.double()
    expected = torch.einsum("nc,cd,nd->n", centred, torch.linalg.inv(covariance), centred).sqrt()
    ours = (centred.float() @ normal.whitening).norm(dim=1).double()
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-3)


def test_parts_that_teach_do_not_say_how_odd_a_normal_cell_gets(records, monkeypatch):
    seen = {}

    class Spy:
        def __init__(self, network, normal, others, budget, device):
            seen.update(normal=normal, others=others)

    monkeypatch.setattr(departures, "NormalCells", Spy)
    learn(torch.nn.Identity(), records, Budget(), "cpu")
    groups = [{record.group for record in part} for part in seen.values()]
    assert all(groups)
    assert not groups[0] & groups[1]
    assert all(record.is_negative for part in seen.values() for record in part)


def test_few_images_without_a_class_teach_nothing(records):
    some = [record for record in records if record.tags] + [records[2]]
    assert learn(torch.nn.Identity(), some, Budget(), "cpu") is None


def test_departures_take_the_place_of_the_maps_of_their_classes():
    cells = np.zeros((4, 4), np.float32)
    cells[1:3, 1:3] = 1
    maps = np.random.default_rng(0).random((3, 8, 8)).astype(np.float32)
    before = maps.copy()
    maps_of = DepartureMaps((2, 5), {"a": cells, "faint": cells / 4})
    for name in ("faint", "unknown"):
        maps_of.replace(name, [0, 2, 5], maps)
        np.testing.assert_array_equal(maps, before)
    maps_of.replace("a", [0, 2, 5], maps)
    np.testing.assert_array_equal(maps[0], before[0])
    # Two classes depart: each pixel belongs to one of them.
    assert ((maps[1] > 0) ^ (maps[2] > 0))[3:5, 3:5].all()
    larger = before[1] > before[2]
    assert not maps[1][~larger].any()
    assert not maps[2][larger].any()
    assert maps[1:].sum(0)[4, 4] == pytest.approx(1)
