"""LayerCAM against its equation, the product of maps, erased places, and the stage."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_nets import pictures

from trainer.maps import sharpening
from trainer.maps.camfile import cam_path, read_cam
from trainer.maps.protocols import PROTOCOLS, CamsConfig
from trainer.maps.sharpening import (
    compact_classes,
    erased,
    maps_and_layer_cams,
    shallow_depth,
    sharpened,
)
from trainer.methods.base import Method
from trainer.methods.registry import build_method, declaration
from trainer.run import Output
from trainer.stages.cams import make_cams

IMAGES = torch.rand(2, 3, 72, 104, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def method() -> Method:
    torch.manual_seed(0)
    options = {"detail": "fine", "bn": "frozen"}
    config = declaration("cam").config(pooling="lse")
    network = build_method("cam", config, "resnet18", options, 3).eval()
    # Maps of fresh weights lie around the offset, which is below 0.
    network.classifier.bias.data.zero_()
    return network


def test_the_shallow_features_have_eight_pixels_a_cell(method):
    assert shallow_depth(method) == "stage2"
    config = declaration("cam").config()
    assert shallow_depth(build_method("cam", config, "timm/test_vit", {}, 3)) is None


def test_layer_cam_follows_its_equation(method):
    both = maps_and_layer_cams(method, "stage2", [2, 1], IMAGES)
    torch.testing.assert_close(both[:, :3], method.cams(IMAGES))
    maps = both[:, 4:]
    features = method.backbone.pretrained(IMAGES)["stage2"].detach().requires_grad_()
    stages = method.backbone.pretrained.stage_modules()
    x, rest = features, {"stage2": features}
    for name in ("stage3", "stage4"):
        for module in stages[name]:
            x = module(x)
        rest[name] = x
    levels = [n(rest[name]) for n, name in zip(method.backbone.norms, method.backbone.levels)]
    size = levels[0].shape[2:]
    same = [F.interpolate(level, size, mode="bilinear") for level in levels]
    joined = F.relu(method.backbone.join(torch.cat(same, 1)))
    method.logits(joined)[:, 1].sum().backward()
    expected = F.relu((F.relu(features.grad) * features).sum(1, keepdim=True))
    torch.testing.assert_close(maps, expected.detach(), rtol=1e-4, atol=1e-7)
    assert not maps.requires_grad


def test_the_product_lies_inside_the_deep_map(method):
    deep = method.cams(IMAGES).detach()
    product = sharpened(method, [1], [[1], [1]], IMAGES, CamsConfig())
    assert product.shape == deep.shape
    assert (product[:, 1] <= deep[:, 1] + 1e-6).all()
    assert (product[:, 1] < deep[:, 1]).any()
    assert (product >= 0).all()


def test_only_the_named_classes_of_their_images_change(method):
    pair = torch.cat([IMAGES, IMAGES.flip(3)])
    with torch.no_grad():
        before = method.cams(pair)
        maps = sharpened(method, [1, 2], [[0, 1], [0]] * 2, pair, CamsConfig())
    changed = [
        (i, k) for i in range(4) for k in range(3) if not torch.allclose(maps[i, k], before[i, k])
    ]
    assert changed == [(0, 1), (2, 1)]


def test_erased_places_look_like_their_surroundings():
    image = np.full((60, 80, 3), (40, 90, 160), np.uint8)
    image[20:30, 30:40] = 250
    place = np.zeros((60, 80), bool)
    place[16:34, 26:44] = True
    after = erased(image, place)
    assert np.abs(after.astype(int) - (40, 90, 160)).max() <= 6
    assert np.array_equal(erased(image, np.zeros((60, 80), bool)), image)


@pytest.mark.parametrize(
    ("fall", "part", "classes"), [(0.9, 0.2, [0, 1, 2]), (0.3, 0.2, []), (0.9, 0.8, [])]
)
def test_classes_are_compact_where_the_product_explains_the_score(
    tmp_path, method, monkeypatch, fall, part, classes
):
    shares = [(fall, part), (fall, part), (0.5, 0.5)]
    monkeypatch.setattr(sharpening, "_shares", lambda *args: iter(shares))
    records = pictures(tmp_path).subset("all")
    assert compact_classes(method, records, CamsConfig(workers=0), "cpu") == classes


def test_shares_are_of_what_the_deep_map_explains(tmp_path, method):
    records = pictures(tmp_path).subset("all")
    with torch.no_grad():
        # A class that every image shows: all are looked at.
        method.classifier.bias[1] += 50
        shares = [
            *sharpening._shares(method, 1, records, CamsConfig(workers=0), torch.device("cpu"))
        ]
        method.classifier.bias[1] -= 50
    assert np.isfinite(shares).all()
    assert all(0 < part <= 4 for _, part in shares)


def test_a_class_that_no_image_shows_alone_is_not_compact(tmp_path, method):
    assert compact_classes(method, [], CamsConfig(workers=0), "cpu") == []


def test_the_stage_writes_sharper_maps_of_compact_classes(tmp_path, method):
    data = pictures(tmp_path / "data")
    records = data.subset("all")
    config = CamsConfig(workers=0, min_cells=0, sharpen=True)
    maps = {}
    for name, compact in (("plain", ()), ("sharp", (1,))):
        output = Output(tmp_path / name)
        make_cams(method, records, output, PROTOCOLS["psa"], config, "cpu", compact)
        maps[name] = {r.id: read_cam(cam_path(output.folder, r.id)) for r in records}
    for record in records:
        plain, sharp = maps["plain"][record.id], maps["sharp"][record.id]
        for k, a, b in zip(plain.classes, plain.maps, sharp.maps):
            if k != 1:
                assert np.array_equal(a, b)
            elif a.max() > 0:
                assert (b > 0.5).mean() <= (a > 0.5).mean()
