"""A folded batch norm changes neither the outputs, nor the gradients, nor the names."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from trainer.nets import build_backbone
from trainer.nets.folding import FoldedBatchNorm2d, FoldingConv2d, fold_batch_norms, folded_once
from trainer.nets.resnet38 import BasicBlock, Bottleneck


def plain() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=2, dilation=2, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 4, 3, groups=4, bias=False),
        nn.BatchNorm2d(4),
        nn.Conv2d(4, 2, 1),
        nn.BatchNorm2d(2),
    )
    for norm in net:
        if isinstance(norm, nn.BatchNorm2d):
            for tensor in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
                tensor.uniform_(0.5, 1.5)
    return net.double()


def folded() -> nn.Sequential:
    net = plain()
    fold_batch_norms(net)
    return net


def image() -> torch.Tensor:
    return torch.rand(2, 3, 15, 18, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_only_bias_free_pairs_are_joined():
    kinds = [type(m) for m in folded()]
    assert kinds[:2] == kinds[3:5] == [FoldingConv2d, FoldedBatchNorm2d]
    assert kinds[5:] == [nn.Conv2d, nn.BatchNorm2d]
    assert list(folded().state_dict()) == list(plain().state_dict())


@pytest.mark.parametrize("mode", [True, False])
def test_same_outputs_and_gradients(mode):
    ours, theirs = folded().train(mode), plain().train(mode)
    for net in (ours, theirs):
        net(image()).square().sum().backward()
    torch.testing.assert_close(ours(image()), theirs(image()))
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters()):
        assert p.grad is not None, name
        torch.testing.assert_close(p.grad, q.grad)
    for p, q in zip(ours.buffers(), theirs.buffers()):
        torch.testing.assert_close(p, q)


def test_the_batch_norm_itself_has_nothing_left_to_do():
    norm = folded().eval()[1]
    x = torch.rand(1, 4, 2, 2, dtype=torch.float64)
    assert norm(x) is x
    assert norm.train()(x) is not x


def test_a_copy_uses_its_own_batch_norm():
    net = folded().eval()
    twin = copy.deepcopy(net)
    twin[1].weight.data.zero_()
    torch.testing.assert_close(net(image()), plain().eval()(image()))
    assert not torch.equal(twin(image()), net(image()))


def test_folded_once_gives_the_same_and_forgets():
    net = folded().eval()
    with torch.inference_mode():
        with folded_once(net):
            torch.testing.assert_close(net(image()), plain().eval()(image()))
            assert net[0].ready is not None
        net[1].weight.data.zero_()
        assert net[0].ready is None
        assert not torch.equal(net(image()), plain().eval()(image()))


def test_exported_graphs_keep_batch_norm_for_the_engine():
    program = torch.export.export(folded().eval(), (image(),))
    assert sum("batch_norm" in str(node.target) for node in program.graph.nodes) == 3
    torch.testing.assert_close(program.module()(image()), plain().eval()(image()))


@pytest.mark.parametrize(
    ("name", "pairs"), [("resnet18", 20), ("resnet50", 53), ("mobilenet_v2", 52), ("resnet38", 19)]
)
def test_backbones_are_folded(name, pairs):
    with torch.device("meta"):
        net = build_backbone(name)
    assert sum(isinstance(m, FoldingConv2d) for m in net.modules()) == pairs


@pytest.mark.parametrize("block", [BasicBlock(4, 6, 8), Bottleneck(4, 16, dilation=4)])
def test_pre_activation_blocks(block):
    twin = copy.deepcopy(block)
    fold_batch_norms(block)
    for norm in twin.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_var.uniform_(0.5, 1.5)
    block.load_state_dict(twin.state_dict())
    x = torch.rand(1, 4, 7, 9)
    torch.testing.assert_close(block.eval()(x), twin.eval()(x))
