import pytest
import torch

from trainer.maps.stability import stability


def view(size: int, *cells: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    maps = torch.zeros(1, size, size)
    for row, column in cells:
        maps[0, row, column] = 1
    return maps, maps.flip(-1)


def test_views_that_see_the_same_place_agree():
    square = [(r, c) for r in range(4, 8) for c in range(8, 12)]
    same = [view(16, *square), view(16, *square)]
    assert stability(same) == pytest.approx(1)


def test_views_that_see_other_places_do_not():
    assert stability([view(16, (2, 3)), view(32, (30, 30))]) == 0


def test_other_sizes_of_one_place_agree():
    small = [(r, c) for r in range(2, 4) for c in range(4, 6)]
    large = [(r, c) for r in range(4, 8) for c in range(8, 12)]
    assert stability([view(8, *small), view(16, *large)]) > 0.5


def test_mirror_images_are_turned_back():
    straight = torch.zeros(1, 8, 8)
    mirror = torch.zeros(1, 8, 8)
    mirror[0, 1, 6] = 1
    straight[0, 1, 1] = 1
    assert stability([(straight, mirror), (straight, mirror)]) == pytest.approx(1)


def test_one_view_or_an_empty_map():
    assert stability([view(8, (1, 1))]) is None
    assert stability([view(8), view(16)]) == 0
