import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny_nets import TinyBackbone

from trainer import config as knobs
from trainer.data.transforms import MEAN, STD, normalise
from trainer.errors import ConfigError
from trainer.nets import build_backbone
from trainer.refine.affinity_labels import affinity_label, affinity_sample
from trainer.refine.affinitynet import (
    PRESETS,
    AffinityConfig,
    AffinityNet,
    affinities,
    affinity_loss,
    pad_to_stride,
    pair_labels,
    walk_scores,
)
from trainer.refine.pairs import half_plane, shifted
from trainer.refine.random_walk import affinity_walk

CLASSES = (0, 1, 2, 255)


def golden_label(size=16):
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return torch.tensor(CLASSES, dtype=torch.uint8)[((y // 3) * 2 + x // 4) % 4]


def gathered(features, radius=5):
    """The affinities as published: both ends of every pair gathered by index."""
    height, width = features.shape[2:]
    cells = torch.arange(height * width).view(height, width)
    source = cells[: height - radius + 1, radius - 1 : width - radius + 1].reshape(-1)
    other = torch.stack([source + dy * width + dx for dy, dx in half_plane(radius)])
    flat = features.flatten(2)
    return torch.exp(-(flat[:, :, None, source] - flat[:, :, other]).abs().mean(1))


def random_features(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def small_net(**options):
    torch.manual_seed(0)
    return AffinityNet(build_backbone("resnet18", **{"output_stride": 16, **options}))


# Pairs (G1, G2)


def test_golden_indices_of_pairs():
    cells = torch.arange(12 * 15).view(12, 15)
    source = shifted(cells, (0, 0), 5).flatten()
    other = torch.stack([shifted(cells, offset, 5) for offset in half_plane(5)]).flatten()
    assert (len(source), source[:4].tolist(), source[-2:].tolist()) == (
        56,
        [4, 5, 6, 7],
        [114, 115],
    )
    assert source.sum() == 3332
    assert (len(other), other[:3].tolist(), other[-3:].tolist()) == (
        1904,
        [5, 6, 7],
        [175, 176, 177],
    )
    assert other.sum() == 170968


def test_golden_pair_labels():
    bg, fg, neg = pair_labels(golden_label())
    assert bg.shape == fg.shape == neg.shape == (34, 96)
    assert [int(mask.sum()) for mask in (bg, fg, neg)] == [160, 320, 1312]
    assert [int(row.sum()) for row in (bg[0], fg[10], neg[33])] == [18, 16, 40]


def test_pair_labels_of_a_batch_are_those_of_its_images():
    labels = torch.stack([golden_label(), golden_label().T, golden_label().roll(3, 0)])
    for together, *alone in zip(pair_labels(labels), *(pair_labels(label) for label in labels)):
        assert torch.equal(together, torch.stack(alone))


@pytest.mark.parametrize("radius", [2, 3, 5])
def test_pair_labels_follow_their_definition(radius):
    label = golden_label(12)[:, :10].long()
    expected = []
    for dy, dx in half_plane(radius):
        for y in range(12 - radius + 1):
            for x in range(radius - 1, 10 - radius + 1):
                one, two = int(label[y, x]), int(label[y + dy, x + dx])
                known = 255 not in (one, two)
                expected.append(
                    (one == two == 0, one == two and known and one != 0, one != two and known)
                )
    found = torch.stack([mask.flatten() for mask in pair_labels(label, radius)], 1)
    assert torch.equal(found, torch.tensor(expected))


def test_pairs_do_not_depend_on_which_numbers_the_classes_have():
    label = golden_label()
    renamed = torch.where(label == 1, 7, torch.where(label == 2, 20, label))
    for one, two in zip(pair_labels(label), pair_labels(renamed)):
        assert torch.equal(one, two)


@pytest.mark.parametrize("size", [(4, 20), (20, 8)])
def test_a_map_without_pairs_is_refused(size):
    with pytest.raises(ConfigError, match="at least 5x9 cells"):
        pair_labels(torch.zeros(size, dtype=torch.uint8))
    with pytest.raises(ConfigError, match="smaller radius"):
        affinities(torch.zeros(1, 3, *size))


# Affinities


@pytest.mark.parametrize("size", [(20, 24), (12, 16), (8, 24)])
def test_affinities_are_those_of_the_gather_form_to_the_last_bit(size):
    features = random_features(2, 32, *size, dtype=torch.float32)
    assert torch.equal(affinities(features), gathered(features))


@pytest.mark.parametrize("radius", [2, 4, 5])
def test_gradients_are_those_of_the_gather_form(radius):
    features = random_features(2, 7, 11, 13).requires_grad_()
    weights = random_features(*affinities(features, radius).shape, seed=1)
    values, expected_values = affinities(features, radius), gathered(features, radius)
    torch.testing.assert_close(values, expected_values, rtol=1e-12, atol=0)
    (grad,) = torch.autograd.grad((values * weights).sum(), features)
    (expected,) = torch.autograd.grad((expected_values * weights).sum(), features)
    torch.testing.assert_close(grad, expected, rtol=0, atol=1e-8)


def test_equal_cells_have_affinity_one_and_no_gradient():
    features = torch.ones(1, 4, 6, 10, requires_grad=True)
    values = affinities(features)
    values.sum().backward()
    assert (values == 1).all()
    assert not features.grad.any()


def test_affinities_of_channels_last_and_of_half_precision():
    features = random_features(2, 16, 9, 12, dtype=torch.float32)
    last = features.to(memory_format=torch.channels_last)
    torch.testing.assert_close(affinities(last), affinities(features))
    half = affinities(features.bfloat16())
    assert half.dtype == torch.float32
    assert torch.equal(half, affinities(features.bfloat16().float()))


# Loss (G10)


def test_golden_loss():
    values = 0.5 + 0.45 * torch.sin(0.01 * torch.arange(34 * 96, dtype=torch.float64)).view(
        1, 34, 96
    )
    terms = affinity_loss(values, pair_labels(golden_label()[None]))
    printed = {"bg": 0.861305, "fg": 0.870571, "neg": 0.999806, "total": 0.932872}
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(printed, abs=1e-6)


def test_loss_counts_pairs_over_the_batch_and_survives_none():
    values = torch.rand(2, 34, 96, generator=torch.Generator().manual_seed(0)).requires_grad_()
    nothing = torch.full((16, 16), 255, dtype=torch.uint8)
    half = affinity_loss(values, pair_labels(torch.stack([golden_label(), nothing])))
    alone = affinity_loss(values[:1], pair_labels(golden_label()[None]))
    for name in alone:
        torch.testing.assert_close(half[name], alone[name])
    empty = affinity_loss(values, pair_labels(torch.stack([nothing, nothing])))
    assert all(term == 0 for term in empty.values())
    sure = affinity_loss(
        torch.stack([torch.zeros(34, 96), torch.ones(34, 96)]),
        pair_labels(golden_label().expand(2, -1, -1)),
    )
    assert all(torch.isfinite(term) for term in sure.values())


# Labels and samples


def one_hot(rows, count):
    planes = np.eye(count, dtype=np.float32)[np.array(rows)]
    return np.moveaxis(planes, 2, 0).repeat(8, 1).repeat(8, 2)


def test_conflicts_are_solved_in_order():
    # low: object, object, background, background; high: object, background, background, object
    label = affinity_label(one_hot([[1, 2, 0, 0]], 3), one_hot([[1, 0, 0, 2]], 3))
    assert label.dtype == np.uint8
    assert label.tolist() == [[1, 0, 0, 255]]


def test_cells_without_a_score_are_ignored_whatever_the_background_says():
    low, high = one_hot([[1, 0, 1]], 2), one_hot([[1, 0, 0]], 2)
    assert affinity_label(low * np.float32(9e-6), high * np.float32(9e-6)).tolist() == [
        [255, 255, 255]
    ]
    high[:, :, 8:16] = 0
    low[:, :, 8:16] = 0
    assert affinity_label(low, high).tolist() == [[1, 255, 0]]


def test_labels_follow_the_mean_of_each_cell():
    low = np.zeros((2, 8, 8), np.float32)
    low[0, :4], low[1, 4:] = 0.3, 0.4
    assert affinity_label(low, low).tolist() == [[1]]
    low[0, :4] = 0.5
    assert affinity_label(low, low).tolist() == [[0]]


def coded_image(height, width):
    """Pixels that say where they are, and scores whose class says the same in cells of 8 pixels."""
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([y, x, 255 - x], 2).astype(np.uint8)
    return pixels, one_hot((y // 8 + x // 8)[::8, ::8] % 3, 3)


def undone(image):
    """The uint8 pixels of a normalised image."""
    values = image.permute(1, 2, 0) * torch.tensor(STD) + torch.tensor(MEAN)
    return (255 * values).round().to(torch.uint8).numpy()


def test_a_small_image_lies_on_black_and_its_border_is_ignored():
    pixels, scores = coded_image(24, 40)
    image, label = affinity_sample(pixels, scores, scores, np.random.default_rng(3), 64, False)
    assert (image.shape, image.dtype) == ((3, 64, 64), torch.float32)
    assert (label.shape, label.dtype) == ((8, 8), torch.uint8)
    black = torch.from_numpy(normalise(np.zeros((1, 1, 3), np.uint8))).flatten()
    padded = (undone(image) == 0).all(2)
    assert padded.sum() == 64 * 64 - 24 * 40
    assert torch.equal(
        image[:, torch.from_numpy(padded)], black[:, None].expand(-1, int(padded.sum()))
    )
    outside = padded.reshape(8, 8, 8, 8).all((1, 3))
    assert (label.numpy()[outside] == 255).all()
    assert (label.numpy()[~outside] != 255).any()


def test_image_and_label_are_cut_and_mirrored_together():
    flips = set()
    for seed in range(40):
        pixels, scores = coded_image(64, 72)
        image, label = affinity_sample(
            pixels, scores, scores, np.random.default_rng(seed), 40, False
        )
        view = undone(image)
        columns = view[0, :, 1].astype(int)
        flips.add(bool(columns[0] > columns[-1]))
        rng = np.random.default_rng(seed)
        top, left = int(rng.integers(0, 25)), int(rng.integers(0, 33))
        cut = [
            a[..., top : top + 40, left : left + 40] for a in (np.moveaxis(pixels, 2, 0), scores)
        ]
        if rng.random() < 0.5:
            cut = [np.ascontiguousarray(a[..., ::-1]) for a in cut]
        assert np.array_equal(np.moveaxis(view, 2, 0), cut[0])
        assert np.array_equal(label.numpy(), affinity_label(cut[1], cut[1]))
    assert flips == {True, False}


def test_jitter_changes_colours_only_and_a_sample_repeats():
    pixels, scores = coded_image(64, 72)
    one, two = (
        affinity_sample(pixels, scores, scores, np.random.default_rng(5), 64, True)
        for _ in range(2)
    )
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])
    plain = affinity_sample(pixels, scores, scores, np.random.default_rng(5), 64, False)
    assert not torch.equal(one[0], plain[0])
    # Padding stays black: colours are changed before it is there.
    small = np.asarray(Image.fromarray(pixels).resize((16, 16)))
    image, _ = affinity_sample(
        small, scores[:, :16, :16], scores[:, :16, :16], np.random.default_rng(5), 64, True
    )
    assert (undone(image) == 0).all(2).sum() >= 64 * 64 - 16 * 16


# Network


def test_names_and_size_on_resnet38():
    with torch.device("meta"):
        net = AffinityNet(build_backbone("resnet38"))
    state = net.state_dict()
    released = {name.removeprefix("backbone.") for name in state}
    assert {
        "conv1a.weight",
        "b2.conv_branch2a.weight",
        "b7.conv_branch1.weight",
        "bn7.running_mean",
    } <= released
    shapes = {
        name: tuple(tensor.shape)
        for name, tensor in state.items()
        if not name.startswith("backbone.")
    }
    assert shapes == {
        "f8_3.weight": (64, 512, 1, 1),
        "f8_4.weight": (128, 1024, 1, 1),
        "f8_5.weight": (256, 4096, 1, 1),
        "f9.weight": (448, 448, 1, 1),
    }
    assert sum(p.numel() for p in net.parameters()) == 106_484_032


def test_heads_start_as_published():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = AffinityNet(build_backbone("resnet50", output_stride=8))
    assert net.f8_5.weight.std().item() == pytest.approx((2 / 2048) ** 0.5, rel=0.02)
    bound = 4 * (6 / (2 * 448)) ** 0.5
    assert bound * 0.99 < net.f9.weight.abs().max().item() <= bound


@pytest.mark.parametrize("stride", [8, 16, 32])
def test_features_have_eight_pixels_a_cell_on_any_backbone(stride):
    net = small_net(output_stride=stride).eval()
    with torch.inference_mode():
        assert net(torch.randn(2, 3, 66, 81)).shape == (2, 448, 9, 11)


def test_heads_before_up_sampling_are_heads_after_it():
    net = small_net(output_stride=32).eval().double()
    images = random_features(1, 3, 64, 96)
    with torch.no_grad():
        features = net.backbone(images)
        taps = [
            F.interpolate(features[f"stage{n}"], (8, 12), mode="bilinear", align_corners=False)
            for n in (2, 3, 4)
        ]
        heads = [F.elu(head(tap)) for head, tap in zip((net.f8_3, net.f8_4, net.f8_5), taps)]
        torch.testing.assert_close(net(images), F.elu(net.f9(torch.cat(heads, 1))))


def test_frozen_parts_get_no_gradient_and_the_rest_does():
    net = small_net(detach_after="stage1").train()
    labels = pair_labels(golden_label().expand(2, -1, -1))
    affinity_loss(affinities(net(torch.randn(2, 3, 128, 128))), labels)["total"].backward()
    frozen = {name for name, p in net.named_parameters() if p.grad is None}
    assert {name for name, p in net.named_parameters() if not p.requires_grad} == frozen
    assert "backbone.conv1.weight" in frozen
    assert any("bn" in name for name in frozen)
    assert not net.backbone.bn1.training
    assert net.f8_3.weight.grad.any()
    assert net.backbone.layer4[1].conv2.weight.grad.any()


def test_parameter_groups():
    net = small_net(detach_after="stage1")
    backbone, new = net.param_groups(0.01, 5e-4, 10.0)
    assert (backbone["lr"], new["lr"]) == (0.01, pytest.approx(0.1))
    assert backbone["weight_decay"] == new["weight_decay"] == 5e-4
    assert sorted(p.shape[0] for p in new["params"]) == [64, 128, 256, 448]
    grouped = {id(p) for group in (backbone, new) for p in group["params"]}
    assert grouped == {id(p) for p in net.parameters() if p.requires_grad}
    assert len(grouped) == len(backbone["params"]) + len(new["params"])


def test_a_backbone_without_three_features_is_refused():
    with pytest.raises(ConfigError, match="three features"):
        AffinityNet(TinyBackbone())


# Walk


def blobs(height, width):
    y, x = torch.meshgrid(
        torch.arange(height).double(), torch.arange(width).double(), indexing="ij"
    )
    one = torch.exp(-((y - 0.3 * height) ** 2 + (x - 0.3 * width) ** 2) / (0.02 * height * width))
    two = 0.8 * torch.exp(
        -((y - 0.7 * height) ** 2 + (x - 0.7 * width) ** 2) / (0.02 * height * width)
    )
    return torch.stack([one, two])


def test_walk_scores_are_the_steps_of_the_specification():
    config = dataclasses.replace(AffinityConfig(), steps=64, walk_alpha=6.0, beta=4.0)
    features, cams = random_features(8, 11, 13), blobs(83, 99)
    ground = (1 - cams.max(0, keepdim=True).values) ** 6
    padded = torch.zeros(3, 88, 104, dtype=torch.float64)
    padded[:, :83, :99] = torch.cat([ground, cams])
    pooled = padded.view(3, 11, 8, 13, 8).mean((2, 4))
    walked = affinity_walk(pooled, features, 4.0, 64, 5, borders="psa", solver="chebyshev")
    full = F.interpolate(walked[None], (88, 104), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(walk_scores(features, cams, config), full[:, :83, :99])


def test_an_even_picture_mixes_its_maps_and_a_divided_one_keeps_them_apart():
    config = AffinityConfig(steps=64, borders="full")
    cams = torch.zeros(2, 96, 128)
    cams[0, 30:60, 10:40] = 1
    even = walk_scores(torch.zeros(4, 12, 16), cams, config)
    assert even.shape == (3, 96, 128)
    assert even[1, 30:60, 70:].mean() > 0.01
    assert not even[2].any()
    sides = 20 * (torch.arange(16) >= 8).float().expand(4, 12, -1)
    divided = walk_scores(sides, cams, config)
    assert divided[1, :, 72:].max() < 1e-6
    assert divided[1, :, :56].min() > 1e-4


def test_solvers_agree():
    features, cams = random_features(6, 10, 12), blobs(80, 96)
    fast, plain = (
        walk_scores(features, cams, AffinityConfig(solver=solver))
        for solver in ("chebyshev", "power")
    )
    torch.testing.assert_close(fast, plain, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(20, 20), (40, 200), (70, 60), (9, 7)])
def test_maps_of_tiny_images_walk_as_far_as_they_can(size):
    cams = blobs(*size).float()
    h, w = -(-size[0] // 8), -(-size[1] // 8)
    scores = walk_scores(random_features(6, h, w, dtype=torch.float32), cams, AffinityConfig())
    assert scores.shape == (3, *size)
    assert torch.isfinite(scores).all()
    assert scores.min() > -1e-6


def test_an_image_without_classes_is_background():
    scores = walk_scores(
        random_features(6, 10, 12, dtype=torch.float32), torch.zeros(0, 80, 96), AffinityConfig()
    )
    torch.testing.assert_close(scores, torch.ones(1, 80, 96))


def test_walk_refuses_features_of_another_size():
    with pytest.raises(ConfigError, match="8 pixels a cell"):
        walk_scores(torch.zeros(4, 10, 12), torch.zeros(1, 81, 96), AffinityConfig())


def test_padding_goes_right_and_below():
    padded = pad_to_stride(torch.ones(2, 3, 17, 24))
    assert padded.shape == (2, 3, 24, 24)
    assert padded[:, :, :17].all()
    assert not padded[:, :, 17:].any()


# Knobs


def test_presets():
    assert set(PRESETS) == {"psa", "seam"}
    assert knobs.replace(AffinityConfig(), PRESETS["psa"], "affinitynet") == AffinityConfig()
    seam = knobs.replace(AffinityConfig(), PRESETS["seam"], "affinitynet")
    assert (seam.low_alpha, seam.high_alpha, seam.walk_alpha, seam.steps) == (4, 24, 6, 64)


@pytest.mark.parametrize(
    "change",
    [
        {"crop": 100},
        {"crop": 64},
        {"radius": 1},
        {"beta": 0.0},
        {"steps": 0},
        {"low_alpha": -1.0},
        {"crf": "P99"},
        {"epochs": 0},
    ],
)
def test_impossible_knobs_are_refused(change):
    with pytest.raises(ConfigError):
        AffinityConfig(**change)
