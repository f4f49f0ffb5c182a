"""STDC networks, the fast backbones of SFNet-Lite."""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import nn

from model.backbone.base import Backbone
from model.layer.basic import ConvBNReLU, init_weights
from model.table import ModelError


class STDCBlock(nn.Module):
    """Short-term dense concatenation: (N,in,H,W) -> (N,out,H/stride,W/stride).

    Four convolutions in a row, a 1x1 and three 3x3 with 1/2, 1/4, 1/8 and 1/8 of the output's channels, and
    all four results side by side. With stride 2 the 1x1 runs at full size; a depthwise 3x3 with norm carries
    its result on, and an average over 3x3, the zero border counted, takes its place among the results.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        widths = [out_channels // 2, out_channels // 4, out_channels // 8, out_channels // 8]
        rest = [ConvBNReLU(a, b) for a, b in pairwise(widths)]
        self.convs = nn.ModuleList([ConvBNReLU(in_channels, widths[0], 1), *rest])
        self.downsample = self.pool = None
        if stride == 2:
            self.downsample = ConvBNReLU(widths[0], widths[0], 3, 2, groups=widths[0], activation=None)
            self.pool = nn.AvgPool2d(3, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N,in,H,W) to (N,out,H/stride,W/stride)."""
        first, *rest = self.convs
        x = first(x)
        results = [x if self.pool is None else self.pool(x)]
        if self.downsample is not None:
            x = self.downsample(x)
        for conv in rest:
            x = conv(x)
            results.append(x)
        return torch.cat(results, 1)


class STDC(Backbone):
    """STDC network without its classifier.

    Source: Fan et al., "Rethinking BiSeNet For Real-time Semantic Segmentation" (CVPR 2021), table 2.
    Features: 64, 256, 512, 1024 channels at strides 4, 8, 16, 32.

    Args:
        depths: blocks at strides 8, 16 and 32.
        output_stride: 32; these networks are not dilated.
        in_channels: channels of the pictures.

    Raises:
        ModelError: for another output stride.
    """

    output_strides = (32,)

    def __init__(self, depths: Sequence[int], output_stride: int = 32, in_channels: int = 3):
        super().__init__()
        if output_stride != 32:
            raise ModelError(f"an STDC network has output stride 32, not {output_stride!r}")
        blocks: list[nn.Module] = [ConvBNReLU(in_channels, 32, stride=2), ConvBNReLU(32, 64, stride=2)]
        self.channels, self.strides, taps = [64, 256, 512, 1024], [4, 8, 16, 32], [1]
        for (before, width), depth in zip(pairwise(self.channels), depths, strict=True):
            blocks += [STDCBlock(before, width, 2), *(STDCBlock(width, width, 1) for _ in range(1, depth))]
            taps.append(len(blocks) - 1)
        self.features = nn.Sequential(*blocks)
        self.taps = tuple(taps)
        self.apply(init_weights)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Map (N,3,H,W) to four maps (N,channels[i],H/strides[i],W/strides[i])."""
        features = []
        for place, block in enumerate(self.features):
            x = block(x)
            if place in self.taps:
                features.append(x)
        return features


stdc1 = partial(STDC, (2, 2, 2))
stdc2 = partial(STDC, (4, 5, 3))
