import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from trainer.nets import build_backbone
from trainer.nets.depthwise import QuickConv2d, applies, depthwise_conv2d, quicken


def depthwise(
    kernel: int, stride: int, dilation: int, padding: int | None = None, channels: int = 3
) -> nn.Conv2d:
    padding = dilation * (kernel // 2) if padding is None else padding
    return nn.Conv2d(channels, channels, kernel, stride, padding, dilation, groups=channels)


def data(size: tuple[int, int], conv: nn.Conv2d) -> list[torch.Tensor]:
    """Input, weight and bias in float64."""
    draw = torch.Generator().manual_seed(sum(size))
    shapes = [(2, conv.in_channels, *size), conv.weight.shape, conv.weight.shape[:1]]
    return [
        torch.randn(*s, generator=draw, dtype=torch.float64, requires_grad=True) for s in shapes
    ]


@pytest.mark.parametrize("size", [(9, 13), (8, 12), (7, 7)])
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("dilation", [1, 2, 3])
@pytest.mark.parametrize("same", [True, False])
def test_values_and_gradients_are_those_of_autograd(size, kernel, dilation, same):
    conv = depthwise(kernel, 1, dilation, None if same else dilation)
    x, weight, bias = data((size[0] + 8, size[1] + 8), conv)
    ours = depthwise_conv2d(x, weight, bias, conv)
    theirs = F.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)
    torch.testing.assert_close(ours, theirs)
    g = torch.randn(ours.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    for a, b in zip(
        torch.autograd.grad(ours, (x, weight, bias), g),
        torch.autograd.grad(theirs, (x, weight, bias), g),
    ):
        torch.testing.assert_close(a, b)


def test_without_bias_and_for_wanted_inputs_only():
    conv = depthwise(3, 1, 2)
    x, weight, _ = data((9, 11), conv)
    fixed = weight.detach()
    depthwise_conv2d(x, fixed, None, conv).square().sum().backward()
    expected = torch.autograd.grad(F.conv2d(x, fixed, None, 1, 2, 2, 3).square().sum(), x)[0]
    assert x.grad is not None
    torch.testing.assert_close(x.grad, expected)
    assert fixed.grad is None


def test_autocast_computes_in_bf16_and_keeps_float_gradients():
    conv = depthwise(3, 1, 1)
    x, weight, bias = (t.detach().float().requires_grad_() for t in data((9, 11), conv))
    with torch.autocast("cpu", torch.bfloat16):
        out = depthwise_conv2d(x, weight, bias, conv)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(
        out.float(), F.conv2d(x, weight, bias, 1, 1, 1, 3), rtol=2e-2, atol=5e-2
    )
    out.float().sum().backward()
    for tensor in (x, weight, bias):
        assert tensor.grad is not None
        assert tensor.grad.dtype == torch.float32


def test_it_is_taken_only_where_a_cpu_gradient_is_wanted():
    conv, x = depthwise(3, 1, 1), torch.rand(1, 3, 5, 5)
    assert applies(x, conv)
    with torch.no_grad():
        assert not applies(x, conv)
    with torch.inference_mode():
        assert not applies(x, conv)
    assert not applies(x, nn.Conv2d(3, 3, 3))
    assert not applies(x, nn.Conv2d(3, 6, 3, groups=3))
    assert not applies(torch.rand(1, 3, 5, 5, device="meta"), conv)


def test_mobilenet_takes_it_in_training_and_not_for_inference():
    net = build_backbone("mobilenet_v2").train()
    image = torch.rand(1, 3, 32, 32)
    top = net(image)["stage4"]
    assert "_Depthwise" in names_of_graph(top)
    with torch.no_grad():
        torch.testing.assert_close(net(image)["stage4"], top.detach(), rtol=1e-4, atol=1e-5)


def names_of_graph(tensor: torch.Tensor) -> str:
    seen, todo = set(), [tensor.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo.extend(parent for parent, _ in node.next_functions)
    return " ".join(node.name() for node in seen)


def test_a_quick_network_has_the_gradients_of_the_plain_one():
    torch.manual_seed(0)
    plain = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1),
        torch.nn.Conv2d(8, 8, 3, padding=1, groups=8),
        torch.nn.Conv2d(8, 8, (1, 3), padding=(0, 1), groups=8),
        torch.nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8),
    )
    quick = copy.deepcopy(plain)
    quicken(quick)
    assert [type(m) is QuickConv2d for m in quick] == [False, True, True, True]
    assert [applies(torch.rand(1, 8, 9, 9), m) for m in quick] == [False, True, False, False]
    assert list(quick.state_dict()) == list(plain.state_dict())
    x = torch.rand(2, 3, 17, 15).contiguous(memory_format=torch.channels_last)
    for network in (plain, quick):
        network(x).square().sum().backward()
    for a, b in zip(plain.parameters(), quick.parameters()):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4)
