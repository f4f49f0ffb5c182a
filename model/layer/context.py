"""Context modules: what a pixel is told of the picture around it."""

from collections.abc import Sequence

import torch
from torch import nn

from model.layer.basic import ConvBNReLU, resize
from model.layer.light import SeparableConv


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: (N,in,H,W) -> (N,width,H,W).

    Source: Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation" (2017), section 3.3.
    A 1x1 convolution, three 3x3 ones with the given dilation `rates`, and the mean of the whole map, joined by a
    convolution of `project_kernel` x `project_kernel`. `separable` makes the 3x3 ones depthwise separable, as Chen et
    al., "Encoder-Decoder with Atrous Separable Convolution for Semantic Image Segmentation" (ECCV 2018), have them.
    """

    smallest_train_batch = 2

    def __init__(
        self,
        in_channels: int,
        width: int,
        rates: Sequence[int],
        dropout: float = 0.5,
        project_kernel: int = 1,
        separable: bool = False,
    ):
        super().__init__()
        kind = SeparableConv if separable else ConvBNReLU
        dilated = [kind(in_channels, width, dilation=rate) for rate in rates]
        self.branches = nn.ModuleList([ConvBNReLU(in_channels, width, 1), *dilated])
        self.pool = ConvBNReLU(in_channels, width, 1)
        self.project = ConvBNReLU(width * (len(rates) + 2), width, project_kernel)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N,in,H,W) to (N,width,H,W)."""
        mean = self.pool(x.mean((2, 3), keepdim=True)).expand(-1, -1, *x.shape[-2:])
        return self.dropout(self.project(torch.cat([*(branch(x) for branch in self.branches), mean], 1)))


class PPM(nn.Module):
    """Pyramid pooling: (N,in,H,W) -> (N,in + width*len(bins),H,W).

    The input comes first, then the bins in order.

    Source: Zhao et al., "Pyramid Scene Parsing Network" (CVPR 2017), section 3.2. Every bin is the map
    averaged to bin x bin cells, a 1x1 convolution with norm and ReLU, resized back.
    """

    def __init__(self, in_channels: int, width: int, bins: Sequence[int] = (1, 2, 3, 6), align_corners: bool = True):
        super().__init__()
        self.align_corners = align_corners
        self.stages = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(size), *ConvBNReLU(in_channels, width, 1)) for size in bins
        )
        self.align_corners = align_corners
        self.smallest_train_batch = 2 if 1 in bins else 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N,in,H,W) to (N,in + width*len(bins),H,W)."""
        return torch.cat([x, *(resize(stage(x), x.shape[-2:], self.align_corners) for stage in self.stages)], 1)


class JPU(nn.Module):
    """Joint pyramid upsampling: three maps at strides 8, 16, 32 -> (N,4*width,H/8,W/8).

    Source: Wu et al., "FastFCN: Rethinking Dilated Convolution in the Backbone for Semantic Segmentation" (2019),
    section 3.3. It stands for the last features of a dilated backbone. Each map by 3x3 to `width` channels, resized to
    the finest, concatenated from coarse to fine, and four separable convolutions of dilation 1, 2, 4, 8 beside one
    another.
    """

    def __init__(self, in_channels: Sequence[int], width: int):
        super().__init__()
        self.reduce = nn.ModuleList(ConvBNReLU(channels, width) for channels in in_channels)
        wide = width * len(in_channels)
        self.branches = nn.ModuleList(
            nn.Sequential(
                ConvBNReLU(wide, wide, 3, dilation=dilation, groups=wide, activation=None), ConvBNReLU(wide, width, 1)
            )
            for dilation in (1, 2, 4, 8)
        )

    def forward(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """Map features to (N,4*width,h,w) of the finest one's size."""
        reduced = [reduce(feature) for reduce, feature in zip(self.reduce, features, strict=True)]
        size = reduced[0].shape[-2:]
        joined = torch.cat([*(resize(x, size) for x in reversed(reduced[1:])), reduced[0]], 1)
        return torch.cat([branch(joined) for branch in self.branches], 1)
