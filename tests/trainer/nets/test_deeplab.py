"""The DeepLab-v2 head on any backbone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trainer.nets import build_backbone
from trainer.nets.aspp import Aspp, AsppSegmenter


def test_branches_are_summed_each_with_its_own_reach():
    head = Aspp(3, 2, rates=(1, 3))
    with torch.no_grad():
        head.c0.bias.copy_(torch.tensor([1.0, 2.0]))
        head.c1.bias.copy_(torch.tensor([10.0, 20.0]))
    x = torch.randn(1, 3, 7, 7, generator=torch.Generator().manual_seed(0))
    by_hand = sum(
        nn.functional.conv2d(x, conv.weight, conv.bias, padding=rate, dilation=rate)
        for conv, rate in ((head.c0, 1), (head.c1, 3))
    )
    torch.testing.assert_close(head(x), by_hand)
    assert list(head.state_dict()) == ["c0.weight", "c0.bias", "c1.weight", "c1.bias"]


def test_initial_weights():
    torch.manual_seed(0)
    head = Aspp(256, 21, rates=(6, 12, 18, 24))
    for conv in head.children():
        assert conv.weight.std().item() == pytest.approx(0.01, rel=0.03)
        assert conv.weight.mean().item() == pytest.approx(0, abs=2e-4)
        assert not conv.bias.any()


@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet18"])
def test_logits_at_the_stride_of_the_backbone(name):
    net = AsppSegmenter(build_backbone(name, output_stride=8, dilate=True), 7).eval()
    with torch.no_grad():
        assert net(torch.zeros(2, 3, 41, 64)).shape == (2, 7, 6, 8)


def test_gradients_reach_the_head_and_the_backbone_but_no_frozen_part():
    net = AsppSegmenter(
        build_backbone("mobilenet_v2", bn="frozen", detach_after="stage3"), 3
    ).train()
    net(torch.rand(1, 3, 48, 48)).square().sum().backward()
    reached = {name for name, p in net.named_parameters() if p.grad is not None}
    assert {f"aspp.c{i}.weight" for i in range(4)} <= reached
    assert "backbone.features.18.0.weight" in reached
    assert not any(name.startswith("backbone.features.13.") for name in reached)
    assert reached == {name for name, p in net.named_parameters() if p.requires_grad}
