"""ResNets with a deep stem, in three forms."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import nn

from model.backbone.base import Backbone
from model.layer.basic import ConvBNReLU, init_weights
from model.table import ModelError

# Stride and dilation of the four stages for every output stride.
STAGES = {32: ((1, 2, 2, 2), (1, 1, 1, 1)), 16: ((1, 2, 2, 1), (1, 1, 1, 2)), 8: ((1, 2, 1, 1), (1, 1, 2, 4))}


def conv3x3(in_channels: int, out_channels: int, stride: int, dilation: int) -> nn.Conv2d:
    """Make a 3x3 convolution without bias that pads by its dilation."""
    return nn.Conv2d(in_channels, out_channels, 3, stride, dilation, dilation, bias=False)


def shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    """Projection of the residual connection, or None where the shapes agree."""
    if stride == 1 and in_channels == out_channels:
        return None
    conv = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: (N,in,H,W) -> (N,width,h,w).

    Source: He et al., CVPR 2016, figure 5 left.
    """

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int, dilations: tuple[int, int]):
        super().__init__()
        self.conv1 = conv3x3(in_channels, width, stride, dilations[0])
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, 1, dilations[1])
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut(in_channels, width, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N,in,H,W) to (N,width,H/stride,W/stride)."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 and a shortcut: (N,in,H,W) -> (N,4*width,h,w).

    Source: He et al., CVPR 2016, figure 5 right.

    Stride and dilation belong to the 3x3 convolution.
    """

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int, dilations: tuple[int, int]):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, stride, dilations[1])
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut(in_channels, 4 * width, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N,in,H,W) to (N,4*width,H/stride,W/stride)."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(Backbone):
    """Residual network with a stem of three 3x3 convolutions.

    The stem has 64, 64 and 128 channels and a max-pool.

    Source: He et al., "Deep Residual Learning for Image Recognition" (CVPR 2016), with the stem of Zhao et
    al., PSPNet (CVPR 2017). Features: layer1 to layer4, at strides 4, 8, 16, 32, or the last of them dilated
    instead of strided.

    Args:
        block: BasicBlock or Bottleneck.
        depths: blocks of the four stages.
        output_stride: 32, 16 or 8. A stage that loses its stride has the full dilation in every 3x3
            convolution, its first block included.
        dilations: dilation of `conv2` in each of the four stages, in place of what the output stride asks
            for. (1, 1, 2, 4) at output stride 32 is "variant D" of Li et al., Semantic Flow (ECCV 2020).
        in_channels: channels of the pictures.

    Raises:
        ModelError: for another output stride, or not four dilations.
    """

    stem_widths = (64, 64, 128)

    output_strides = (8, 16, 32)

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: Sequence[int],
        output_stride: int = 32,
        dilations: Sequence[int] | None = None,
        in_channels: int = 3,
    ):
        super().__init__()
        if output_stride not in STAGES:
            raise ModelError(f"a ResNet has output stride 8, 16 or 32, not {output_stride!r}")
        if dilations is not None and len(dilations) != 4:
            raise ModelError(f"a ResNet has four stages, so dilations needs four numbers, not {dilations!r}")
        strides, dilated = STAGES[output_stride]
        widths = (64, 128, 256, 512)
        one, two, three = self.stem_widths
        self.stem = nn.Sequential(
            *ConvBNReLU(in_channels, one, stride=2), *ConvBNReLU(one, two), *ConvBNReLU(two, three)
        )
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        stages, channels = [], three
        for stage in range(4):
            pairs = self.block_dilations(block, dilated[max(stage - 1, 0)], dilated[stage], depths[stage])
            if dilations is not None:
                pairs = [(first, dilations[stage]) for first, _ in pairs]
            blocks = [block(channels, widths[stage], strides[stage], pairs[0])]
            channels = widths[stage] * block.expansion
            blocks += [block(channels, widths[stage], 1, pair) for pair in pairs[1:]]
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.channels = [width * block.expansion for width in widths]
        self.strides = [4, 8, min(16, output_stride), output_stride]
        self.apply(init_weights)

    def block_dilations(
        self, block: type[BasicBlock] | type[Bottleneck], before: int, dilation: int, depth: int
    ) -> list[tuple[int, int]]:
        """List each block's dilations of `conv1` and `conv2`; `before`: last stage's."""
        return [(dilation, dilation)] * depth

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Map (N,in_channels,H,W) to four maps (N,channels[i],H/strides[i],W/strides[i])."""
        x = self.maxpool(self.stem(x))
        features = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            features.append(x)
        return features


class ResNetV1s(ResNet):
    """ResNet whose dilated stages begin with the dilation before.

    The stem is deep. The form of PyTorch-Encoding (Zhang et al., "Context Encoding for Semantic Segmentation", CVPR
    2018): the first 3x3 convolution of a stage that loses its stride does not have the stage's dilation yet.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: Sequence[int],
        output_stride: int = 32,
        in_channels: int = 3,
    ):
        super().__init__(block, depths, output_stride, in_channels=in_channels)

    def block_dilations(
        self, block: type[BasicBlock] | type[Bottleneck], before: int, dilation: int, depth: int
    ) -> list[tuple[int, int]]:
        """List each block's dilations of `conv1` and `conv2`; see `ResNet`."""
        first = (before, dilation if block is BasicBlock else before)
        return [first, *super().block_dilations(block, before, dilation, depth - 1)]


class ResNetV1c(ResNetV1s):
    """ResNet-V1c of MMSegmentation: a stem of 32, 32, 64 channels.

    Dilated like `ResNetV1s`. Of a BasicBlock only `conv1` is dilated.
    """

    stem_widths = (32, 32, 64)

    def block_dilations(
        self, block: type[BasicBlock] | type[Bottleneck], before: int, dilation: int, depth: int
    ) -> list[tuple[int, int]]:
        """List each block's dilations of `conv1` and `conv2`; see `ResNet`."""
        pairs = super().block_dilations(block, before, dilation, depth)
        return [(first, 1) for first, _ in pairs] if block is BasicBlock else pairs


resnet18 = partial(ResNet, BasicBlock, (2, 2, 2, 2))
resnet34 = partial(ResNet, BasicBlock, (3, 4, 6, 3))
resnet50 = partial(ResNet, Bottleneck, (3, 4, 6, 3))
resnet101 = partial(ResNet, Bottleneck, (3, 4, 23, 3))
resnet152 = partial(ResNet, Bottleneck, (3, 8, 36, 3))

resnet18_v1s = partial(ResNetV1s, BasicBlock, (2, 2, 2, 2))
resnet34_v1s = partial(ResNetV1s, BasicBlock, (3, 4, 6, 3))
resnet50_v1s = partial(ResNetV1s, Bottleneck, (3, 4, 6, 3))
resnet101_v1s = partial(ResNetV1s, Bottleneck, (3, 4, 23, 3))
resnet152_v1s = partial(ResNetV1s, Bottleneck, (3, 8, 36, 3))

resnet18_v1c = partial(ResNetV1c, BasicBlock, (2, 2, 2, 2))
resnet34_v1c = partial(ResNetV1c, BasicBlock, (3, 4, 6, 3))
resnet50_v1c = partial(ResNetV1c, Bottleneck, (3, 4, 6, 3))
resnet101_v1c = partial(ResNetV1c, Bottleneck, (3, 4, 23, 3))
resnet152_v1c = partial(ResNetV1c, Bottleneck, (3, 8, 36, 3))
