"""Context modules: what a pixel is told of the picture around it."""

from collections.abc import Sequence

import torch
from torch import nn

from model.layer.basic import ConvBNReLU, resize


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: (N,in,H,W) -> (N,width,H,W).

    Source: Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation" (2017), section 3.3.
    A 1x1 convolution, three 3x3 ones with the given dilation `rates`, and the mean of the whole map,
    projected by 1x1.
    """

    smallest_train_batch = 2

    def __init__(self, in_channels: int, width: int, rates: Sequence[int], dropout: float = 0.5):
        super().__init__()
        dilated = [ConvBNReLU(in_channels, width, 3, dilation=rate) for rate in rates]
        self.branches = nn.ModuleList([ConvBNReLU(in_channels, width, 1), *dilated])
        self.pool = ConvBNReLU(in_channels, width, 1)
        self.project = ConvBNReLU(width * (len(rates) + 2), width, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N,in,H,W) to (N,width,H,W)."""
        mean = self.pool(x.mean((2, 3), keepdim=True)).expand(-1, -1, *x.shape[-2:])
        return self.dropout(self.project(torch.cat([*(branch(x) for branch in self.branches), mean], 1)))


class PPM(nn.Module):
    """Pyramid pooling: (N,in,H,W) -> (N,in + width*len(bins),H,W), the input first, then the bins in order.

    Source: Zhao et al., "Pyramid Scene Parsing Network" (CVPR 2017), section 3.2. Every bin is the map
    averaged to bin x bin cells, a 1x1 convolution with norm and ReLU, resized back.
    """

    def __init__(self, in_channels: int, width: int, bins: Sequence[int] = (1, 2, 3, 6), align_corners: bool = True):
        super().__init__()
        self.align_corners = align_corners
        self.stages = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(size), *ConvBNReLU(in_channels, width, 1)) for size in bins
        )
        self.smallest_train_batch = 2 if 1 in bins else 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N,in,H,W) to (N,in + width*len(bins),H,W)."""
        return torch.cat([x, *(resize(stage(x), x.shape[-2:], self.align_corners) for stage in self.stages)], 1)
