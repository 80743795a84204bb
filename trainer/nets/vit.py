"""The vision transformer of timm without its head: one vector an image."""

from __future__ import annotations

from dataclasses import dataclass

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from trainer.errors import ConfigError


@dataclass(frozen=True)
class VitShape:
    """Size of a vision transformer.

    Attributes:
        layers: encoder blocks.
        heads: of the attention; divides ``width``.
        width: numbers a token.
        mlp: hidden numbers of each block's perceptron.
        patch: pixels along a patch.
        image_size: pixels along the square image; a multiple of ``patch``.
    """

    layers: int
    heads: int
    width: int
    mlp: int
    patch: int = 16
    image_size: int = 224


SIZES = {
    "vit_b_16": VitShape(12, 12, 768, 3072),
    "vit_small": VitShape(12, 6, 384, 1536),
    "vit_tiny": VitShape(12, 3, 192, 768),
}


class Vit(VisionTransformer):
    """Vision transformer (Dosovitskiy et al., ICLR 2021, equations 1 to 4) up to its class token.

    ``forward`` takes ``[B, 3, image_size, image_size]`` normalised RGB and returns the class token
    after the last layer norm, ``[B, embedding]``. The state dict has timm's names.

    Args:
        shape: size of the net.
        dropout: on tokens and perceptrons, 0..1.
        attention_dropout: on attention weights, 0..1.
    """

    def __init__(
        self, shape: VitShape, dropout: float = 0.0, attention_dropout: float = 0.0
    ) -> None:
        super().__init__(
            img_size=shape.image_size,
            patch_size=shape.patch,
            embed_dim=shape.width,
            depth=shape.layers,
            num_heads=shape.heads,
            # timm rounds width * ratio down; the half keeps a ratio like 1/3 from losing a number.
            mlp_ratio=(shape.mlp + 0.5) / shape.width,
            num_classes=0,
            pos_drop_rate=dropout,
            proj_drop_rate=dropout,
            attn_drop_rate=attention_dropout,
        )
        self.shape = shape
        self.embedding = shape.width
        self.image_size = shape.image_size
        self.register_forward_pre_hook(check_size)


def check_size(net: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Refuse images of another size than the net's own, before timm fails on them.

    Raises:
        ConfigError: as said.
    """
    (images_B3HW,), side = inputs, net.image_size
    if images_B3HW.ndim != 4 or images_B3HW.shape[1:] != (3, side, side):
        raise ConfigError(
            f"the vision transformer got a tensor of shape {tuple(images_B3HW.shape)}",
            f"(B, 3, {side}, {side}): its position embeddings are for this size only",
            f"resize or crop the images to {side} x {side}",
        )
