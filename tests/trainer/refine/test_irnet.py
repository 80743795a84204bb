from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden import U
from PIL import Image
from torch import nn

from trainer.config import replace
from trainer.data.transforms import sample_rng, segment_sample
from trainer.errors import ConfigError
from trainer.nets import build_backbone
from trainer.refine.irn_inference import (
    Instances,
    centroids,
    clusters,
    connected,
    edge_and_displacement,
    instances,
    mean_displacement,
    on_canvas,
    walked_maps,
    with_threshold,
)
from trainer.refine.irn_labels import ir_label, irn_sample, sure_labels, winners
from trainer.refine.irnet import EPS, PRESETS, IrnConfig, IrNet, boundary_losses
from trainer.refine.pair_means import line_maxima
from trainer.refine.pairs import half_plane, pair_labels, paths, shifted
from trainer.refine.random_walk import boundary_walk


def grid(
    height: int, width: int, dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.meshgrid(
        torch.arange(height, dtype=dtype), torch.arange(width, dtype=dtype), indexing="ij"
    )


def golden_label() -> torch.Tensor:
    y, x = (t.long() for t in grid(16, 16))
    return torch.tensor([0, 1, 2, 255], dtype=torch.uint8)[((y // 3) * 2 + x // 4) % 4]


def golden_edge() -> torch.Tensor:
    y, x = grid(9, 11)
    return (3 * torch.sin(0.9 * y) + 2 * torch.cos(0.8 * x) - 1).sigmoid()


def gathered_maxima(edge_Bhw: torch.Tensor, radius: int) -> torch.Tensor:
    """As in the released code: every cell of every line gathered by its index, ``[B,P,n]``."""
    height, width = edge_Bhw.shape[1:]
    y, x = torch.meshgrid(
        torch.arange(height - radius + 1),
        torch.arange(radius - 1, width - radius + 1),
        indexing="ij",
    )
    found = []
    for _, line in paths(radius):
        cells = torch.stack([((y + dy) * width + x + dx).flatten() for dy, dx in line])
        found.append(
            edge_Bhw.flatten(1)[:, cells.flatten()].view(len(edge_Bhw), *cells.shape).max(1).values
        )
    return torch.stack(found, 1)


@pytest.fixture(scope="module")
def small_net() -> IrNet:
    torch.manual_seed(0)
    return IrNet(build_backbone("resnet18", output_stride=16, dilate=False)).eval()


def count(module: nn.Module | None) -> int:
    assert module is not None
    return sum(p.numel() for p in module.parameters())


# Labels of pairs and lines between them


def test_golden_paths():
    lines = dict(paths(5))
    assert lines[2, 3] == ((2, 3), (1, 3), (2, 2), (1, 2), (1, 1), (0, 1), (1, 0), (0, 0))
    assert lines[3, -1] == ((3, -1), (2, -1), (3, 0), (1, -1), (2, 0), (0, -1), (1, 0), (0, 0))
    assert len(lines[1, 4]) == 10
    assert [offset for offset, _ in paths(5)][:8] == [
        (0, 1),
        (1, 0),
        (0, 2),
        (2, 0),
        (0, 3),
        (1, -1),
        (1, 1),
        (3, 0),
    ]


def maxima(edge_Bhw: torch.Tensor, radius: int) -> torch.Tensor:
    """``[B,P,n]``."""
    return torch.stack([largest for largest, _ in line_maxima(edge_Bhw, radius)], 1).flatten(2)


def test_golden_affinities():
    affinity = 1 - maxima(F.pad(golden_edge()[None].float(), (5, 5, 0, 5), value=1.0), 5).double()
    assert affinity.shape == (1, 34, 130)
    assert affinity.sum().item() == pytest.approx(653.905837319329, rel=1e-7)
    assert affinity[0, 0].sum().item() == pytest.approx(44.030557583204356, rel=1e-7)
    assert affinity[0, -1].sum().item() == pytest.approx(7.416964912417631, rel=1e-7)


def test_golden_number_of_pairs():
    assert maxima(torch.zeros(1, 128, 128), 10).shape == (1, 152, 13090)


@pytest.mark.parametrize(
    ("radius", "height", "width"), [(2, 2, 3), (5, 12, 15), (5, 5, 9), (10, 21, 30)]
)
def test_line_maxima_equal_the_gathered_ones_and_lie_on_their_line(
    radius: int, height: int, width: int
):
    edge = torch.rand(2, height, width, generator=torch.Generator().manual_seed(radius))
    assert torch.equal(maxima(edge, radius), gathered_maxima(edge, radius))
    places = torch.arange(edge.numel()).view_as(edge)
    for (largest, place), (_, line) in zip(line_maxima(edge, radius), paths(radius), strict=True):
        assert torch.equal(edge.flatten()[place], largest)
        on_line = torch.stack([shifted(places, cell, radius) for cell in line])
        assert (on_line == place).any(0).all()


def test_line_maxima_of_edges_from_0_to_1():
    edge = torch.zeros(1, 5, 9)
    edge[0, 4, 8] = 1
    edge[0, 0, 4] = 1e-30
    assert torch.equal(maxima(edge, 5), gathered_maxima(edge, 5))


def test_a_map_smaller_than_its_pairs_is_refused():
    with pytest.raises(ConfigError, match="a map of 8x30 cells") as caught:
        boundary_losses(torch.zeros(1, 1, 8, 30), None, torch.zeros(1, 8, 30), 10)
    assert caught.value.expected == "at least 10x19 cells"


def line_labels(label_hw: torch.Tensor, radius: int) -> tuple[torch.Tensor, ...]:
    """In the order of ``paths``."""
    return pair_labels(label_hw, [offset for offset, _ in paths(radius)], radius)


def test_golden_pair_labels():
    bg, fg, neg = line_labels(golden_label(), 5)
    assert bg.shape == (34, 96)
    assert (int(bg.sum()), int(fg.sum()), int(neg.sum())) == (160, 320, 1312)
    assert [int(neg[row].sum()) for row in (0, 1, 5, 33)] == [12, 16, 24, 40]
    assert int(bg[0].sum()) == 18


def test_pair_labels_agree_with_their_definition():
    label = torch.from_numpy(
        np.random.default_rng(3).choice([0, 1, 2, 255], (2, 9, 14)).astype(np.uint8)
    )
    bg, fg, neg = line_labels(label, 4)
    assert [offset for offset, _ in paths(4)] != list(half_plane(4))
    sources = [(y, x) for y in range(6) for x in range(3, 11)]
    for image in range(2):
        for row, ((dy, dx), _) in enumerate(paths(4)):
            for column, (y, x) in enumerate(sources):
                a, b = int(label[image, y, x]), int(label[image, y + dy, x + dx])
                open_pair = 255 in (a, b)
                expected = (
                    a == b == 0,
                    a == b and a > 0 and not open_pair,
                    a != b and not open_pair,
                )
                assert tuple(bool(mask[image, row, column]) for mask in (bg, fg, neg)) == expected


# Losses


def golden_outputs() -> tuple[torch.Tensor, torch.Tensor]:
    y, x = grid(16, 16, torch.float32)
    logits = torch.sin(0.7 * y) + torch.cos(0.5 * x)
    displacement = torch.stack([torch.sin(0.3 * y + 0.1 * x), torch.cos(0.2 * x - 0.1 * y)])
    return logits[None, None], displacement[None]


GOLDEN_LOSSES = {
    "pos": 1.059578,
    "neg": 0.454651,
    "dp_fg": 1.245721,
    "dp_bg": 0.272285,
    "total": 1.516117,
}


def test_golden_losses():
    losses = boundary_losses(*golden_outputs(), golden_label()[None])
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(
        GOLDEN_LOSSES, abs=1e-6
    )


def losses_as_released(
    logits: torch.Tensor, displacement: torch.Tensor, label: torch.Tensor, radius: int
) -> dict[str, torch.Tensor]:
    """From gathered maxima, masks of all pairs and their autograd, at the dtype given (spec
    4.4).
    """
    bg, fg, neg = line_labels(label, radius)
    a = 1 - gathered_maxima(logits[:, 0].sigmoid(), radius)
    alike, unlike = -(a + EPS).log(), -(1 + EPS - a).log()
    offsets = [offset for offset, _ in paths(radius)]
    end = torch.stack([shifted(displacement, offset, radius) for offset in offsets], 2)
    d = (shifted(displacement, (0, 0), radius)[:, :, None] - end).flatten(3)
    gap = (d - d.new_tensor(offsets).T[..., None]).abs().sum(1)

    def mean(values: torch.Tensor, mask: torch.Tensor, channels: int = 1) -> torch.Tensor:
        return (values * mask).sum() / (channels * mask.sum() + EPS)

    return {
        "pos": (mean(alike, bg) + mean(alike, fg)) / 2,
        "neg": mean(unlike, neg),
        "dp_fg": mean(gap, fg, 2),
        "dp_bg": mean(d.abs().sum(1), bg, 2),
    }


@pytest.mark.parametrize(("radius", "height", "width"), [(2, 6, 7), (5, 12, 17), (10, 13, 24)])
def test_losses_and_gradients_are_those_of_the_gather_form(radius: int, height: int, width: int):
    generator = torch.Generator().manual_seed(radius)
    logits, displacement = (
        3 * torch.randn(2, c, height, width, generator=generator) for c in (1, 2)
    )
    label = torch.tensor([0, 1, 2, 255])[
        torch.randint(0, 4, (2, height, width), generator=generator)
    ]
    weights = {"pos": 0.7, "neg": 1.3, "dp_fg": 0.4, "dp_bg": 2.1}
    grads = []
    for losses, dtype in ((boundary_losses, torch.float32), (losses_as_released, torch.float64)):
        given = [x.detach().to(dtype).requires_grad_() for x in (logits, displacement)]
        terms = losses(*given, label, radius)
        sum(weight * terms[name] for name, weight in weights.items()).backward()
        grads.append(
            [terms[name].detach().double() for name in weights] + [x.grad.double() for x in given]
        )
    for ours, released in zip(*grads, strict=True):
        torch.testing.assert_close(ours, released, rtol=1e-4, atol=1e-5)


def test_terms_alone_have_their_own_gradients():
    logits, displacement = (x.requires_grad_() for x in golden_outputs())
    losses = boundary_losses(logits, displacement, golden_label()[None])
    each = [
        torch.autograd.grad(losses[n], (logits, displacement), allow_unused=True, retain_graph=True)
        for n in losses
    ]
    pos, neg, dp_bg, dp_fg, total = (
        dict(zip(losses, each))[n] for n in ("pos", "neg", "dp_bg", "dp_fg", "total")
    )
    assert [g is None for g in (pos[1], neg[1], dp_bg[0], dp_fg[0])] == [True] * 4
    torch.testing.assert_close(total[0], (pos[0] + neg[0]) / 2)
    torch.testing.assert_close(total[1], (dp_bg[1] + dp_fg[1]) / 2)


def test_losses_of_a_batch_of_equal_images_are_those_of_one():
    logits, displacement = (x.expand(3, -1, -1, -1) for x in golden_outputs())
    losses = boundary_losses(logits, displacement, golden_label()[None].expand(3, -1, -1))
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(
        GOLDEN_LOSSES, abs=1e-5
    )


def test_without_displacement_its_terms_are_left_out():
    losses = boundary_losses(golden_outputs()[0], None, golden_label()[None])
    assert set(losses) == {"pos", "neg", "total"}
    assert losses["total"].item() == pytest.approx((1.059578 + 0.454651) / 2, abs=1e-6)


def test_losses_of_open_labels_are_zero_and_of_half_precision_finite():
    logits, displacement = golden_outputs()
    open_label = torch.full((1, 16, 16), 255, dtype=torch.uint8)
    assert all(
        loss.item() == 0 for loss in boundary_losses(logits, displacement, open_label).values()
    )
    low = boundary_losses((80 * logits).bfloat16(), displacement.bfloat16(), golden_label()[None])
    assert all(loss.dtype == torch.float32 and math.isfinite(loss.item()) for loss in low.values())


def test_a_displacement_to_common_centres_has_no_loss():
    label = torch.ones(1, 16, 16, dtype=torch.uint8)
    y, x = grid(16, 16)
    losses = boundary_losses(
        torch.full((1, 1, 16, 16), -20.0), torch.stack([7 - y, 8 - x])[None], label
    )
    assert losses["dp_fg"].item() == 0
    assert losses["pos"].item() == pytest.approx(0, abs=1e-4)


# Network


def test_golden_parameters_of_the_published_network():
    net = IrNet(build_backbone("resnet50", output_stride=16, dilate=False))
    assert count(net.edge) == 125_409
    assert count(net.displacement) == 1_269_120
    assert round(count(net) / 1e6, 2) == 24.90
    convolutions = [m for m in net.backbone.modules() if isinstance(m, nn.Conv2d)]
    assert {conv.dilation for conv in convolutions} == {(1, 1)}


@pytest.mark.parametrize(
    ("backbone", "stem"), [("resnet18", 64), ("mobilenet_v2", 24)], ids=["resnet18", "mobilenet_v2"]
)
@pytest.mark.parametrize("stride", [8, 16, 32])
def test_every_staged_backbone_and_size(backbone: str, stem: int, stride: int):
    net = IrNet(build_backbone(backbone, output_stride=stride))
    features = net.features(torch.rand(1, 3, 70, 101))
    assert features[0].shape == (1, stem, 18, 26)
    edge, displacement = net(torch.rand(2, 3, 70, 101))
    assert edge.shape == (2, 1, 18, 26)
    assert displacement.shape == (2, 2, 18, 26)


def test_features_are_those_of_the_backbone(small_net: IrNet):
    images = torch.rand(1, 3, 64, 80)
    expected = small_net.backbone(images).values()
    assert all(
        torch.equal(x, y) for x, y in zip(small_net.features(images)[1:], expected, strict=True)
    )


def test_only_the_branches_learn():
    net = IrNet(build_backbone("resnet18", bn="train", dilate=False)).train()
    before = {name: value.clone() for name, value in net.backbone.state_dict().items()}
    edge, displacement = net(torch.rand(1, 3, 64, 64))
    (edge.sum() + displacement.sum()).backward()
    assert not any(m.training for m in net.backbone.modules())
    assert all(p.grad is None for p in net.backbone.parameters())
    assert all(p.grad is not None for p in [*net.edge.parameters(), *net.displacement.parameters()])
    assert all(
        torch.equal(value, before[name]) for name, value in net.backbone.state_dict().items()
    )


def test_parameter_groups():
    net = IrNet(build_backbone("resnet18"))
    groups = net.param_groups(0.1, 1e-4, 10.0)
    assert [(g["name"], g["lr"], g["weight_decay"]) for g in groups] == [
        ("edge", 0.1, 1e-4),
        ("displacement", 1.0, 1e-4),
    ]
    learning = sum(p.numel() for p in net.parameters() if p.requires_grad)
    assert sum(p.numel() for g in groups for p in g["params"]) == learning


def test_without_the_displacement_branch():
    net = IrNet(build_backbone("resnet18"), displacement=False)
    assert net(torch.rand(1, 3, 32, 32))[1] is None
    assert [g["name"] for g in net.param_groups(0.1, 1e-4)] == ["edge"]
    assert edge_and_displacement(net.eval(), torch.rand(3, 20, 28), 32)[1] is None


def test_the_mean_shift_counts_in_evaluation_only():
    torch.manual_seed(1)
    net, images = IrNet(build_backbone("resnet18")), torch.rand(1, 3, 32, 32)
    net.mean_shift.copy_(torch.tensor([1.0, -2.0]))
    shift = net.train()(images)[1] - net.eval()(images)[1]
    assert torch.allclose(
        shift, torch.tensor([1.0, -2.0])[:, None, None].expand_as(shift), atol=1e-5
    )
    assert "mean_shift" in net.state_dict()


def test_mean_displacement_counts_batches_alike():
    batches = [torch.ones(3, 2, 4, 4), 5 * torch.ones(1, 2, 4, 4)]
    assert mean_displacement(iter(batches)).tolist() == [3, 3]


def test_a_backbone_without_stages_is_refused():
    with pytest.raises(ConfigError, match="ResNet38"):
        IrNet(build_backbone("resnet38"))


def test_a_first_stage_of_one_module_is_refused():
    with pytest.raises(ConfigError, match=r"strides \[1, 4\]|strides \[2, 4\]"):
        IrNet(build_backbone("timm/mobilenetv3_small_050"))


# Knobs, labels, samples


def test_presets_and_defaults():
    voc, coco = (replace(IrnConfig(), PRESETS[name], "irn") for name in ("irn", "irn-coco"))
    assert (voc.foreground, voc.background, coco.foreground, coco.background) == (
        0.30,
        0.05,
        0.35,
        0.10,
    )
    assert (voc.epochs, voc.batch, voc.lr, voc.new_factor, voc.weight_decay, voc.momentum) == (
        3,
        32,
        0.1,
        10,
        1e-4,
        "code",
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"crop": 510},
        {"crop": 64},
        {"canvas": 500},
        {"foreground": 0.01},
        {"crf": "P0"},
        {"rescale": (1.5, 0.5)},
    ],
)
def test_impossible_knobs_are_refused(changes: dict[str, object]):
    with pytest.raises(ConfigError):
        replace(IrnConfig(), changes, "irn")


def golden_cams() -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[:24, :30]
    image = np.stack(
        [(7 * y + 2 * x) % 256, 6 * x % 256, 120 * (y > 11) + 60 * (x > 14)], 2
    ).astype(np.uint8)
    cams = [
        np.exp(-((y - 6) ** 2 + (x - 8) ** 2) / 30),
        np.exp(-((y - 17) ** 2 + (x - 22) ** 2) / 20),
    ]
    return image, np.stack(cams).astype(np.float32)


def test_golden_winners():
    _, cams = golden_cams()
    assert np.bincount(winners(cams, 0.30).ravel()).tolist() == [538, 113, 69]
    assert np.bincount(winners(cams, 0.05).ravel()).tolist() == [291, 251, 178]


def test_winners_are_background_at_ties():
    assert winners(np.zeros((2, 2, 3), np.float32), 0.0).max() == 0


def test_sure_labels():
    assert sure_labels(np.array([0, 0, 1, 2, 1]), np.array([0, 1, 1, 0, 2])).tolist() == [
        0,
        255,
        1,
        2,
        1,
    ]


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_golden_label(backend: str):
    image, cams = golden_cams()
    label = ir_label(cams, image, replace(IrnConfig(), {"crf_backend": backend}, "irn"))
    assert label.dtype == np.uint8
    values, counts = np.unique(label, return_counts=True)
    assert dict(zip(values.tolist(), counts.tolist())) == {0: 285, 1: 115, 2: 69, 255: 251}


def test_an_image_without_classes_is_background():
    assert (
        ir_label(np.zeros((0, 5, 7), np.float32), np.zeros((5, 7, 3), np.uint8), IrnConfig()).sum()
        == 0
    )


def test_sample_reduces_its_label_as_pillow_does():
    config = replace(IrnConfig(), {"crop": 80, "radius": 3}, "irn")
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (50, 70, 3), dtype=np.uint8)
    label = rng.choice([0, 1, 2, 255], (50, 70)).astype(np.uint8)
    for index in range(4):
        image, small = irn_sample(pixels, label, sample_rng(0, 0, index), config)
        view, whole = segment_sample(pixels, label, sample_rng(0, 0, index), (0.5, 1.5), 80, False)
        reduced = np.asarray(
            Image.fromarray(whole.numpy()).resize((20, 20), Image.Resampling.NEAREST)
        )
        assert torch.equal(image, view)
        assert small.dtype == torch.uint8
        assert np.array_equal(small.numpy(), reduced)


def test_sample_is_mean_colour_and_open_outside_of_the_image():
    config = replace(IrnConfig(), {"crop": 80, "radius": 3, "rescale": (0.5, 0.5)}, "irn")
    pixels, label = np.full((40, 40, 3), 255, np.uint8), np.zeros((40, 40), np.uint8)
    image, small = irn_sample(pixels, label, sample_rng(0, 0, 0), config)
    outside = small == 255
    assert int((~outside).sum()) == 25
    assert image[:, 2::4, 2::4][:, outside].abs().max() == 0


# Inference


def test_canvas_pads_and_cuts():
    image = torch.rand(3, 5, 20)
    square = on_canvas(image, (16, 16))
    assert square.shape == (3, 16, 16)
    assert torch.equal(square[:, :5], image[:, :, :16])
    assert square[:, 5:].abs().max() == 0


def test_golden_shape_of_edge_and_displacement(small_net: IrNet):
    edge, displacement = edge_and_displacement(small_net, torch.rand(3, 200, 300))
    assert edge.shape == (50, 75)
    assert displacement.shape == (2, 50, 75)
    assert edge.min() >= 0
    assert edge.max() <= 1


def test_edge_and_displacement_by_hand(small_net: IrNet):
    image = torch.rand(3, 33, 46)
    edge, displacement = edge_and_displacement(small_net, image, 64)
    with torch.no_grad():
        straight, way = small_net(on_canvas(image, (64, 64))[None])
        mirrored, _ = small_net(on_canvas(image.flip(2), (64, 64))[None])
    expected = ((straight[0, 0, :9, :12] + mirrored[0, 0, :9, :12].flip(1)) / 2).sigmoid()
    assert torch.allclose(edge, expected, atol=1e-5)
    assert torch.allclose(displacement, way[0, :, :9, :12], atol=1e-4)


def test_the_edge_of_the_mirrored_image_is_the_mirrored_edge(small_net: IrNet):
    image = torch.rand(3, 33, 44)
    edge, mirrored = (edge_and_displacement(small_net, x, 64)[0] for x in (image, image.flip(2)))
    assert torch.allclose(edge, mirrored.flip(1), atol=1e-6)


def test_an_image_larger_than_the_canvas_is_seen_whole(small_net: IrNet):
    image = torch.rand(3, 33, 67)
    seen = []
    watch = small_net.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    edge, _ = edge_and_displacement(small_net, image, 32)
    assert edge.shape == (9, 17)
    apart, _ = edge_and_displacement(small_net, image, 32, pixels=4000)
    watch.remove()
    # Each side for itself: a square around a strip of 4000x40 would take 8 GB.
    assert [tuple(shape) for shape in seen] == [(2, 3, 48, 80), (1, 3, 48, 80), (1, 3, 48, 80)]
    assert torch.allclose(edge, apart, atol=1e-6)


def scored(
    cams: torch.Tensor, edge: torch.Tensor, size: tuple[int, int], config: IrnConfig
) -> torch.Tensor:
    """Scores whose arg-max is the mask of the released code, from maps of any height (spec 4.5)."""
    maps = cams / (cams.amax((1, 2), keepdim=True) + EPS)
    return with_threshold(walked_maps(maps, edge, size, config), config.threshold)


def test_scores_of_the_golden_walk():
    y, x = grid(9, 11)
    cams = torch.stack(
        [
            torch.exp(-((y - 2) ** 2 + (x - 3) ** 2) / 5),
            torch.exp(-((y - 6) ** 2 + (x - 8) ** 2) / 5),
        ]
    )
    config = IrnConfig()
    scores = scored(cams, golden_edge(), (34, 43), config)
    assert scores.shape == (3, 34, 43)
    assert (scores[0] == 0.25).all()
    assert scores[1:].max().item() == 1
    walked = boundary_walk(
        cams, golden_edge(), config.beta, config.steps, config.walk_radius, config.solver
    )
    spots = {
        (0, 0): (0.02039776, 1.96e-05),
        (2, 3): (0.3125255, 0.03403161),
        (6, 8): (0.1083453, 0.13736399),
    }
    for (row, column), expected in spots.items():
        assert walked[:, row, column].tolist() == pytest.approx(expected, abs=1e-7)
    full = F.interpolate(walked[None], scale_factor=4, mode="bilinear")[0, :, :34, :43]
    assert torch.allclose(scores[1:], full / full.max(), atol=1e-9)


def test_scores_do_not_depend_on_the_scale_of_a_map_and_on_the_solver():
    cams, edge = U((2, 10, 12), 1), U((10, 12), 2)
    scores = scored(cams, edge, (40, 47), IrnConfig())
    scaled = scored(cams * cams.new_tensor([0.5, 0.9])[:, None, None], edge, (40, 47), IrnConfig())
    power = scored(cams, edge, (40, 47), replace(IrnConfig(), {"solver": "power"}, "irn"))
    assert torch.allclose(scores, scaled, atol=1e-4)
    assert torch.allclose(scores, power, atol=1e-5)


def test_scores_without_classes_are_background():
    scores = with_threshold(
        walked_maps(torch.zeros(0, 5, 6), torch.zeros(5, 6), (20, 23), IrnConfig()), 0.25
    )
    assert scores.shape == (1, 20, 23)
    assert scores.min() == scores.max() == 0.25


def two_blobs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A map of one class, its edge, and a displacement to the centres of two rectangles that touch
    at column 15.
    """
    y, x = grid(20, 30)
    inside = (y >= 4) & (y < 16) & (x >= 3) & (x < 27)
    to_x = torch.where(x < 15, 8.5, 20.5) - x
    displacement = torch.stack([9.5 - y, to_x]) * inside
    edge = ((y == 4) | (y == 15) | (x == 3) | (x == 26) | (x == 14) | (x == 15)).double() * 0.999
    return (
        inside.double()[None],
        edge * inside,
        torch.where(inside, displacement, torch.full_like(displacement, 9.0)),
    )


def test_blobs_that_point_to_two_centres_are_two_instances():
    cams, edge, displacement = two_blobs()
    ids = clusters(centroids(displacement), displacement)
    assert len(ids[4:16, 3:15].unique()) == len(ids[4:16, 15:27].unique()) == 1
    assert ids[10, 8] != ids[10, 20]
    found = instances(cams, edge, displacement, (80, 117), IrnConfig())
    assert found.labels.shape == (80, 117)
    assert found.classes.tolist() == [0, 0]
    left, right = found.labels[40, 36], found.labels[40, 80]
    assert 0 < left != right > 0
    assert found.scores.max() == 1
    assert found.scores.min() > 0.5
    assert found.labels[2, 2] == 0


def test_one_blob_that_points_to_one_centre_is_one_instance():
    cams, edge, _ = two_blobs()
    edge[5:15, 14:16] = 0
    y, x = grid(20, 30)
    found = instances(cams, edge, torch.stack([9.5 - y, 14.5 - x]), (80, 117), IrnConfig())
    assert found.classes.tolist() == [0]


def test_no_classes_no_instances():
    _, edge, displacement = two_blobs()
    found = instances(torch.zeros(0, 20, 30), edge, displacement, (80, 117), IrnConfig())
    assert isinstance(found, Instances)
    assert found.labels.max() == 0
    assert len(found.classes) == len(found.scores) == 0


def test_centroids_follow_the_field_to_its_sink_and_stay_on_the_map():
    y, x = grid(12, 15)
    inward = 0.2 * torch.stack([5 - y, 9 - x])
    assert (centroids(inward) == torch.tensor([5, 9])[:, None, None]).all()
    outward = torch.full((2, 12, 15), 3.0)
    assert (centroids(outward) == torch.tensor([11, 14])[:, None, None]).all()
    still = centroids(torch.zeros(2, 12, 15))
    assert torch.equal(still.double(), torch.stack([y, x]))


def test_parts_of_a_winner_are_instances_and_small_ones_score_zero():
    winner = np.zeros((20, 20), np.int64)
    winner[2:8, 2:8], winner[12:18, 2:8], winner[0, 19], winner[10:15, 12:17] = 2, 2, 2, 1
    maps = np.stack([np.full((20, 20), 0.4), np.linspace(0, 1, 400).reshape(20, 20)]).astype(
        np.float32
    )
    found = connected(winner, maps, np.array([5, 3]))
    assert found.classes.tolist() == [5, 3, 3, 3]
    assert [int((found.labels == i).sum()) for i in range(1, 5)] == [25, 1, 36, 36]
    assert found.scores.tolist() == pytest.approx([0.4, 0, maps[1, 7, 7], maps[1, 17, 7]])
