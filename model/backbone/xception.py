"""Modified aligned Xception, the backbone of DeepLabv3+."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from model.backbone.base import Backbone
from model.layer.basic import ConvBNReLU, init_weights, relu
from model.table import ModelError

# Stride of the third block and of the last one, dilation of the middle flow, of the last block and of what follows it.
STAGES = {32: (2, 2, 1, 1, 1), 16: (2, 1, 1, 1, 2), 8: (1, 1, 2, 2, 4)}


class SeparableConv(nn.Sequential):
    """Depthwise 3x3 convolution, norm and pointwise convolution: (N,in,H,W) -> (N,out,H/stride,W/stride)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, dilation: int = 1):
        depthwise = ConvBNReLU(in_channels, in_channels, 3, stride, dilation, groups=in_channels, activation=None)
        super().__init__(*depthwise, nn.Conv2d(in_channels, out_channels, 1, bias=False))


class Block(nn.Module):
    """Three separable convolutions and a shortcut: (N,in,H,W) -> (N,widths[2],H/stride,W/stride).

    Source: Chen et al., DeepLabv3+ (ECCV 2018), figure 4, as published in PyTorch: where the block begins with a ReLU,
    the shortcut takes what comes out of it. The stride belongs to the last convolution, which is not dilated then.

    Args:
        in_channels: channels of the input.
        widths: channels after each of the three convolutions.
        stride: 1 or 2.
        dilation: of the convolutions without a stride.
        relu_first: whether the block begins with a ReLU.
        norms: whether a norm follows, for each of the three convolutions.
    """

    def __init__(
        self,
        in_channels: int,
        widths: Sequence[int],
        stride: int = 1,
        dilation: int = 1,
        relu_first: bool = True,
        norms: Sequence[bool] = (True, True, True),
    ):
        super().__init__()
        self.relu_first = relu_first
        layers: list[nn.Module] = []
        channels = in_channels
        for place, (width, norm) in enumerate(zip(widths, norms, strict=True)):
            strided = place == len(widths) - 1 and stride > 1
            layers += [] if place == 0 else [relu()]
            layers += [SeparableConv(channels, width, *((stride, 1) if strided else (1, dilation)))]
            layers += [nn.BatchNorm2d(width)] if norm else []
            channels = width
        self.body = nn.Sequential(*layers)
        projects = stride > 1 or in_channels != channels
        self.shortcut = ConvBNReLU(in_channels, channels, 1, stride, activation=None) if projects else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N,in,H,W) to (N,widths[2],H/stride,W/stride)."""
        if self.relu_first:
            x = F.relu(x)
        return self.body(x) + (x if self.shortcut is None else self.shortcut(x))


class Xception65(Backbone):
    """Xception of 65 layers without its classifier.

    Source: Chollet, "Xception: Deep Learning with Depthwise Separable Convolutions" (CVPR 2017), modified by Chen et
    al., "Encoder-Decoder with Atrous Separable Convolution for Semantic Image Segmentation" (ECCV 2018), figure 4.
    Features: 128, 256, 728, 2048 channels at strides 4, 8, 16, 32, or the last of them dilated instead of strided; all
    are rectified.

    Args:
        output_stride: 32, 16 or 8.
        in_channels: channels of the pictures.

    Raises:
        ModelError: for another output stride.
    """

    output_strides = (8, 16, 32)

    def __init__(self, output_stride: int = 32, in_channels: int = 3):
        super().__init__()
        if output_stride not in STAGES:
            raise ModelError(f"Xception has output stride 8, 16 or 32, not {output_stride!r}")
        third, last, middle, before_exit, exit_dilation = STAGES[output_stride]
        self.stem = nn.Sequential(*ConvBNReLU(in_channels, 32, stride=2), *ConvBNReLU(32, 64))
        self.block1 = Block(64, (128, 128, 128), stride=2, relu_first=False)
        self.block2 = Block(128, (256, 256, 256), stride=2, relu_first=False)
        self.block3 = Block(256, (728, 728, 728), stride=third)
        self.middle = nn.Sequential(*(Block(728, (728, 728, 728), dilation=middle) for _ in range(16)))
        self.block20 = Block(728, (728, 1024, 1024), last, before_exit, norms=(True, False, True))
        layers = []
        for before, width in ((1024, 1536), (1536, 1536), (1536, 2048)):
            layers += [SeparableConv(before, width, dilation=exit_dilation), nn.BatchNorm2d(width), relu()]
        self.exit = nn.Sequential(*layers)
        self.channels = [128, 256, 728, 2048]
        self.strides = [4, 8, min(16, output_stride), output_stride]
        self.apply(init_weights)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Map (N,in_channels,H,W) to four maps (N,channels[i],H/strides[i],W/strides[i])."""
        low = F.relu(self.block1(self.stem(x)))
        second = F.relu(self.block2(low))
        third = F.relu(self.middle(self.block3(second)))
        return [low, second, third, self.exit(F.relu(self.block20(third)))]
