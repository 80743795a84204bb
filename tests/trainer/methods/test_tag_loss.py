"""The loss between image logits and tags, some of which are unknown."""

import pytest
import torch
import torch.nn.functional as F

from trainer.methods.tag_loss import present, tag_loss

NAN = torch.nan


def sample(*shape, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(*shape, generator=draw), torch.rand(*shape, generator=draw)


@pytest.mark.parametrize("shape", [(1, 1), (16, 20), (3, 200)])
@pytest.mark.parametrize("binary", [True, False])
def test_without_unknown_tags_it_is_torchs_to_the_bit(shape, binary):
    logits, tags = sample(*shape)
    tags = (tags > 0.8).float() if binary else tags
    ours, theirs = (logits.clone().requires_grad_() for _ in range(2))
    loss, expected = tag_loss(ours, tags), F.multilabel_soft_margin_loss(theirs, tags)
    loss.backward()
    expected.backward()
    assert loss.item() == expected.item()
    assert torch.equal(ours.grad, theirs.grad)


def test_it_is_the_mean_over_known_entries():
    logits, tags = sample(5, 7)
    known = torch.rand(5, 7, generator=torch.Generator().manual_seed(3)) > 0.4
    each = F.binary_cross_entropy_with_logits(logits, tags, reduction="none")
    loss = tag_loss(logits, tags.masked_fill(~known, NAN))
    assert loss.item() == pytest.approx(each[known].mean().item(), rel=1e-6)


def test_unknown_entries_have_no_gradient():
    logits, tags = sample(4, 3)
    logits.requires_grad_()
    tags[1, 2], tags[3] = NAN, NAN
    tag_loss(logits, tags).backward()
    assert torch.equal(logits.grad == 0, tags.isnan())


def test_nothing_known_is_zero_with_a_graph():
    logits, tags = sample(4, 3)
    logits.requires_grad_()
    loss = tag_loss(logits, torch.full_like(tags, NAN))
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


def test_unknown_counts_as_absent():
    assert present(torch.tensor([[1.0, NAN, 0.25, 0.0]])).tolist() == [[1.0, 0.0, 0.25, 0.0]]
