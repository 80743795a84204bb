"""Joined features: sizes, weights, learning rates, mixing, and the graph that is exported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from trainer.errors import ConfigError
from trainer.export.publish import export_model
from trainer.methods.registry import build_method, declaration
from trainer.nets import build_backbone
from trainer.nets.backbone import batch_norms
from trainer.nets.detail import WIDTH
from trainer.nets.graphs import CamGraph
from trainer.nets.statistics import adapt_batch_norms
from trainer.segmenters import make_segmenter
from trainer.segmenters.config import SegmentConfig
from trainer.weights.loading import load_backbone
from trainer.weights.released import load_classifier, load_start

IMAGES = torch.rand(2, 3, 72, 104, generator=torch.Generator().manual_seed(1))


def fine_method(name: str = "cam", **knobs):
    torch.manual_seed(0)
    options = {"detail": "fine", **knobs}
    return build_method(name, declaration(name).config(), "mobilenet_v2", options, 3).eval()


def test_the_deepest_feature_has_eight_pixels_a_cell():
    network = build_backbone("mobilenet_v2", detail="fine").eval()
    features = network(IMAGES)
    assert network.top == "detail"
    assert features["detail"].shape == (2, WIDTH, 9, 13)
    assert (features["detail"] >= 0).all()
    assert network.strides["detail"] == 8
    # The features below are those of the network alone.
    torch.testing.assert_close(features["stage3"], network.pretrained(IMAGES)["stage3"])


@pytest.mark.parametrize("name", ["resnet18", "resnet38", "efficientnet_lite0"])
def test_other_networks_join_their_features_too(name):
    with torch.device("meta"):
        network = build_backbone(name, detail="fine")
        assert network(torch.zeros(1, 3, 80, 64))["detail"].shape == (1, WIDTH, 10, 8)


def test_a_network_without_that_stride_is_refused():
    with pytest.raises(ConfigError, match="stride 8") as refusal:
        build_backbone("timm/test_vit", detail="fine")
    assert refusal.value.hint == "--detail coarse"


def test_weight_files_fit_the_part_below(tmp_path: Path):
    file = tmp_path / "weights.pth"
    torch.save(build_backbone("mobilenet_v2").state_dict(), file)
    method = fine_method()
    assert not load_start(method, file).missing
    torch.testing.assert_close(
        method.backbone.pretrained.state_dict(), torch.load(file, weights_only=True)
    )


def test_a_trained_classifier_brings_its_joining_layers(tmp_path: Path):
    trained, other = fine_method(), fine_method()
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(0.01)
    file = tmp_path / "model.pt"
    identity = {"method": "cam", "classes": ["a", "b", "c"]}
    torch.save({"identity": identity, "state": trained.state_dict()}, file)
    load_classifier(other, file, ["a", "b", "c"])
    torch.testing.assert_close(other(IMAGES), trained(IMAGES))


def test_joining_layers_learn_at_the_rate_of_new_ones():
    method = fine_method()
    rates = {id(p): g["lr"] for g in method.param_groups(0.1, 0.0, 10.0) for p in g["params"]}
    assert rates[id(method.backbone.join.weight)] == pytest.approx(1.0)
    assert rates[id(method.classifier.weight)] == pytest.approx(1.0)
    segmenter = make_segmenter(SegmentConfig(detail="fine", bn="stats"), "mobilenet_v2", 3)
    network = segmenter.build()
    group = {id(p): g["lr"] for g in segmenter.groups(network) for p in g["params"]}
    assert group[id(network.backbone.join.weight)] == pytest.approx(segmenter.config.lr * 10)
    old = [p for p in network.backbone.pretrained.parameters() if p.requires_grad]
    assert {group[id(p)] for p in old} == {segmenter.config.lr}


@pytest.mark.parametrize("detail", ["coarse", "fine"])
def test_a_segmenter_starts_from_a_classifier_of_either_kind(detail):
    network = make_segmenter(SegmentConfig(detail="fine"), "mobilenet_v2", 3)
    segmenter = network.build()
    classifier = fine_method(detail=detail)
    network.take_backbone(segmenter, classifier.backbone)
    torch.testing.assert_close(
        segmenter.backbone.pretrained.state_dict(), classifier.backbone.pretrained.state_dict()
    )
    same = torch.equal(
        segmenter.backbone.join.weight,
        getattr(classifier.backbone, "join", segmenter.backbone.join).weight,
    )
    assert same


def test_mixing_reaches_every_depth():
    method = fine_method("manifold_mixup_cam")
    batch = {"image": IMAGES, "tags": torch.tensor([[1.0, 0, 0], [0, 1, 0]])}
    assert set(method.depths) == {"image", "stage1", "stage2", "stage3", "stage4"}
    for seed in range(5):
        losses = method.loss(batch, np.random.default_rng(seed))
        assert all(torch.isfinite(term) for term in losses.values())


@pytest.mark.parametrize("name", ["cam", "seam", "cpn", "vwe", "sc_cam", "recam", "amn"])
def test_maps_of_every_method_have_the_finer_stride(name):
    assert fine_method(name).cams(IMAGES).shape == (2, 3, 9, 13)


def test_the_exported_graph_agrees_with_the_network(tmp_path: Path):
    graph = CamGraph(fine_method(), scales=(1, 0.5), min_cells=4)
    card = {
        "classes": ["a", "b", "c"],
        "palette": [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]],
        "input": {"min_side": 32, "max_side": 4096, "max_pixels": 1 << 22},
        "thresholds": {"background": 0.3, "score": 0.5},
        "supervision": "ImageNet tags",
        "source": {"run": "r", "method": "cam", "backbone": "mobilenet_v2", "seed": 0},
        "metrics": {},
    }
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, size, np.uint8) for size in ((75, 90, 3), (64, 51, 3))]
    # Publishing compares the graph with PyTorch on each picture.
    assert (export_model(graph, card, tmp_path, "fine", pictures).path / "model.onnx").is_file()


def test_adapted_batch_norms_see_normalised_features():
    torch.manual_seed(0)
    network = build_backbone("resnet18", bn="adapt")
    images = [5 * torch.rand(4, 3, 64, 64) + 3 for _ in range(3)]
    weights = {n: p.clone() for n, p in network.named_parameters()}
    adapt_batch_norms(network, images)
    first, first_conv = network.bn1, network.conv1
    with torch.no_grad():
        inputs = torch.cat([F.conv2d(x, first_conv.weight, None, 2, 3) for x in images])
    torch.testing.assert_close(first.running_mean, inputs.mean((0, 2, 3)), rtol=1e-3, atol=1e-4)
    assert all(torch.equal(p, weights[n]) for n, p in network.named_parameters())
    network.train()
    assert not any(norm.training for norm in batch_norms([network]))
    assert first.weight.requires_grad
    assert first.momentum == 0.1


def test_adapted_statistics_do_not_move_while_training():
    network = build_backbone("resnet18", bn="adapt").train()
    before = network.bn1.running_mean.clone()
    network(IMAGES)
    assert torch.equal(network.bn1.running_mean, before)


def test_loading_reads_only_the_pretrained_part(tmp_path: Path):
    network = build_backbone("mobilenet_v2", detail="fine")
    file = tmp_path / "weights.pth"
    torch.save(network.pretrained.state_dict(), file)
    assert len(load_backbone(network.pretrained, file).missing) == 0
