"""Tiles give what the whole image gives, as far as a network sees no further than the margin."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trainer.data.sizes import MARGIN, check_tile
from trainer.errors import ConfigError
from trainer.maps.protocols import CamsConfig
from trainer.nets import build_backbone
from trainer.segmenters.config import SegmentConfig
from trainer.training.tiles import in_tiles


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 4, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(4, 4, 5, 2, 2),
        nn.Conv2d(4, 2, 3, 2, 1),
    ]
    return nn.Sequential(*layers).eval()


@pytest.mark.parametrize("size", [(700, 530), (512, 513), (1300, 90), (257, 1025)])
@torch.no_grad()
def test_maps_of_tiles_are_those_of_the_whole_image(network, size):
    images = torch.rand(2, 3, *size)
    tiles = in_tiles(network, images, 512)
    torch.testing.assert_close(tiles, network(images), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_no_tile_is_larger_than_asked(network):
    sizes = []

    def watched(tile):
        sizes.append(max(tile.shape[2:]))
        return network(tile)

    in_tiles(watched, torch.rand(1, 3, 1500, 900), 512)
    assert max(sizes) == 512
    assert min(sizes) > MARGIN
    sizes.clear()
    in_tiles(watched, torch.rand(1, 3, 1500, 900), 0)
    assert sizes == [1500]


@torch.no_grad()
def test_a_deep_network_differs_little():
    torch.manual_seed(0)
    network = build_backbone("resnet18", detail="fine").eval()
    images = torch.rand(1, 3, 600, 560)
    whole = network(images)["detail"]
    tiles = in_tiles(lambda x: network(x)["detail"], images, 512)
    assert tiles.shape == whole.shape
    assert (tiles - whole).abs().mean() < 0.02 * whole.abs().mean()


@pytest.mark.parametrize("side", [100, 480, 256])
def test_sides_that_no_tile_has_are_refused(side):
    for config in (CamsConfig, SegmentConfig):
        with pytest.raises(ConfigError, match=f"tile={side}"):
            config(tile=side)
    check_tile("cams.tile", 0)
    check_tile("cams.tile", 512)


def test_an_image_in_tiles_may_be_larger():
    assert CamsConfig().budget.pixels == 4_000_000
    assert CamsConfig(tile=1024).budget.pixels == 16_000_000
