"""Vision transformer on torchvision's modules and state-dict names, without the head: one vector an
image.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
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


class Vit(nn.Module):
    """Vision transformer (Dosovitskiy et al., ICLR 2021, equations 1 to 4) up to its class token.

    ``forward`` takes ``[B, 3, image_size, image_size]`` normalised RGB and returns the class token
    after the last layer norm, ``[B, embedding]``. The state dict has torchvision's names.

    Args:
        shape: size of the net.
        dropout: on tokens and perceptrons, 0..1.
        attention_dropout: on attention weights, 0..1.
    """

    def __init__(
        self, shape: VitShape, dropout: float = 0.0, attention_dropout: float = 0.0
    ) -> None:
        super().__init__()
        from torchvision.models.vision_transformer import VisionTransformer

        self.shape = shape
        self.embedding = shape.width
        self.image_size = shape.image_size
        net = VisionTransformer(
            image_size=shape.image_size,
            patch_size=shape.patch,
            num_layers=shape.layers,
            num_heads=shape.heads,
            hidden_dim=shape.width,
            mlp_dim=shape.mlp,
            dropout=dropout,
            attention_dropout=attention_dropout,
            num_classes=1,
        )
        self.class_token = net.class_token
        self.conv_proj = net.conv_proj
        self.encoder = net.encoder

    def forward(self, images_B3HW: Tensor) -> Tensor:
        """Class tokens ``[B, embedding]``.

        Raises:
            ConfigError: images of another size than the net's own.
        """
        side = self.image_size
        if images_B3HW.ndim != 4 or images_B3HW.shape[1:] != (3, side, side):
            raise ConfigError(
                f"the vision transformer got a tensor of shape {tuple(images_B3HW.shape)}",
                f"(B, 3, {side}, {side}): its position embeddings are for this size only",
                f"resize or crop the images to {side} x {side}",
            )
        patches_BND = self.conv_proj(images_B3HW).flatten(2).transpose(1, 2)
        class_B1D = self.class_token.expand(len(images_B3HW), -1, -1)
        tokens: Tensor = self.encoder(torch.cat([class_B1D, patches_BND], dim=1))
        return tokens[:, 0]
