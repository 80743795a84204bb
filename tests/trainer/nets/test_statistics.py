import torch

from trainer.nets import build_backbone
from trainer.nets.backbone import batch_norms
from trainer.nets.folding import FoldedBatchNorm2d
from trainer.nets.statistics import statistics_distance


def trained_on(images: torch.Tensor):
    """A network whose batch norms remember these images."""
    torch.manual_seed(0)
    network = build_backbone("mobilenet_v2", bn="train").train()
    for norm in batch_norms([network]):
        norm.momentum = None
    # Statistics settle layer by layer.
    for _ in range(8):
        for norm in batch_norms([network]):
            norm.reset_running_stats()
        with torch.no_grad():
            network(images)
    return network


def test_images_like_those_of_the_training_are_near_and_others_far():
    images = torch.randn(12, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    network = trained_on(images)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    near = statistics_distance(network, images)
    far = statistics_distance(network, 0.2 * images[:, :1].expand(-1, 3, -1, -1) - 1.5)
    assert near is not None
    assert far is not None
    assert near < 0.02
    assert far > 10 * near
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])
    assert any(isinstance(m, FoldedBatchNorm2d) for m in network.modules())


def test_a_network_without_batch_norms_has_no_distance():
    assert (
        statistics_distance(build_backbone("timm/vit_tiny_patch16_224"), torch.rand(2, 3, 32, 32))
        is None
    )
