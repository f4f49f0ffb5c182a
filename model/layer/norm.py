"""Norms beside batch norm.

Axes: N images, C channels, H rows, W columns.
"""

import torch
from torch import nn
from torch.nn import functional as F


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of a map: (N,C,H,W) -> (N,C,H,W).

    Source: Ba et al., "Layer Normalization" (2016), at each pixel, as in ConvNeXt (Liu et al., CVPR 2022).
    """

    def __init__(self, channels: int, eps: float = 1e-6):
        super().__init__(channels, eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N,C,H,W) to (N,C,H,W)."""
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)
