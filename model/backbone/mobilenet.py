"""MobileNet-V2 as the published Sketch-and-Fill network uses it."""

import torch
from torch import nn
from torch.nn import functional as F

from model.backbone.base import Backbone
from model.layer.basic import ConvBNReLU, init_weights
from model.table import ModelError

# Expansion, channels, blocks, stride of each group (Sandler et al., table 2).
GROUPS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
# The last block at each resolution.
TAPS = (3, 6, 13, 17)


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise, linear 1x1: (N,in,H,W) -> (N,out,H/stride,W/stride).

    The zero border of the depthwise convolution is added before the expansion, as published; what the
    depthwise convolution sees there is therefore ReLU6 of the expansion's norm bias, not zero.
    """

    def __init__(self, in_channels: int, out_channels: int, expansion: int, stride: int, dilation: int):
        super().__init__()
        width = in_channels * expansion
        expand = nn.Sequential() if expansion == 1 else ConvBNReLU(in_channels, width, 1, activation=nn.ReLU6)
        depthwise = ConvBNReLU(width, width, 3, stride, dilation, groups=width, padding=0, activation=nn.ReLU6)
        project = (nn.Conv2d(width, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels))
        self.conv = nn.Sequential(*expand, *depthwise, *project)
        self.width, self.stride, self.border = width, stride, dilation
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N,in,H,W) to (N,out,H/stride,W/stride)."""
        y = self.conv(F.pad(x, [self.border] * 4))
        return x + y if self.residual else y


class MobileNetV2(Backbone):
    """MobileNet-V2 without its last 1280-wide convolution.

    Source: Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks" (CVPR 2018), with the
    padding and the dilation of the published Sketch-and-Fill code. Features: 24, 32, 96, 320 channels at
    strides 4, 8, 16, 32, or the last of them dilated instead of strided.

    Once the output stride is reached, a strided group takes the dilation reached *before* it and only the
    groups after it the enlarged one: at output stride 16 the 160-wide group has dilation 1 and the 320-wide
    block 2; at output stride 8 the groups from 64 on have 1, 2, 2, 4.

    Args:
        output_stride: 32, 16 or 8.
        in_channels: channels of the pictures.

    Raises:
        ModelError: for another output stride.
    """

    output_strides = (8, 16, 32)

    def __init__(self, output_stride: int = 32, in_channels: int = 3):
        super().__init__()
        if output_stride not in (8, 16, 32):
            raise ModelError(f"MobileNet-V2 has output stride 8, 16 or 32, not {output_stride!r}")
        blocks: list[nn.Module] = [ConvBNReLU(in_channels, 32, stride=2, activation=nn.ReLU6)]
        channels, reached, dilation = 32, 2, 1
        for expansion, width, count, stride in GROUPS:
            if reached == output_stride:
                first, rate = 1, dilation
                dilation *= stride
            else:
                first, rate = stride, 1
                reached *= stride
            for block in range(count):
                blocks.append(InvertedResidual(channels, width, expansion, first if block == 0 else 1, rate))
                channels = width
        self.features = nn.Sequential(*blocks)
        self.channels = [24, 32, 96, 320]
        self.strides = [4, 8, min(16, output_stride), output_stride]
        self.apply(init_weights)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Map (N,3,H,W) to four maps (N,channels[i],H/strides[i],W/strides[i])."""
        features = []
        for place, block in enumerate(self.features):
            x = block(x)
            if place in TAPS:
                features.append(x)
        return features
