"""Parts of networks with branches of several resolutions.

DDRNet and PIDNet. Axes: N images, C channels.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from model.layer.basic import ConvBNReLU, classifier, init_weights, relu, resize


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: (N,in,H,W) -> (N,out,H/stride,W/stride).

    Source: He et al., "Deep Residual Learning for Image Recognition" (CVPR 2016). `closing` puts a ReLU behind the sum.
    """

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int = 1, closing: bool = False):
        super().__init__()
        self.conv1 = ConvBNReLU(in_channels, channels, 3, stride)
        self.conv2 = ConvBNReLU(channels, channels, 3, activation=None)
        self.downsample = _shortcut(in_channels, channels, stride)
        self.closing = closing

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N,in,H,W) to (N,out,H/stride,W/stride)."""
        y = self.conv2(self.conv1(x)) + (x if self.downsample is None else self.downsample(x))
        return F.relu(y, inplace=True) if self.closing else y


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution, no ReLU behind the sum.

    Maps (N,in,H,W) to (N,2*channels,H/stride,W/stride).
    """

    expansion = 2

    def __init__(self, in_channels: int, channels: int, stride: int = 1):
        super().__init__()
        self.conv1 = ConvBNReLU(in_channels, channels, 1)
        self.conv2 = ConvBNReLU(channels, channels, 3, stride)
        self.conv3 = ConvBNReLU(channels, 2 * channels, 1, activation=None)
        self.downsample = _shortcut(in_channels, 2 * channels, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N,in,H,W) to (N,2*channels,H/stride,W/stride)."""
        return self.conv3(self.conv2(self.conv1(x))) + (x if self.downsample is None else self.downsample(x))


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module | None:
    if stride == 1 and in_channels == out_channels:
        return None
    return ConvBNReLU(in_channels, out_channels, 1, stride, activation=None)


def basic_stage(in_channels: int, channels: int, depth: int, stride: int = 1) -> nn.Sequential:
    """Build basic blocks, the last without its ReLU: (N,in,H,W) -> (N,channels,H/stride,W/stride)."""
    blocks = [BasicBlock(in_channels, channels, stride, closing=depth > 1)]
    blocks += [BasicBlock(channels, channels, closing=place < depth - 1) for place in range(1, depth)]
    return nn.Sequential(*blocks)


def stem(in_channels: int, width: int, depth: int) -> nn.Sequential:
    """Build the layers before the branches: (N,in,H,W) -> (N,2*width,H/8,W/8)."""
    return nn.Sequential(
        ConvBNReLU(in_channels, width, 3, 2),
        ConvBNReLU(width, width, 3, 2),
        basic_stage(width, width, depth),
        relu(),
        basic_stage(width, 2 * width, depth, 2),
        relu(),
    )


class BNReLUConv(nn.Sequential):
    """Batch norm, ReLU, convolution: (N,in,H,W) -> (N,out,H,W)."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 1, groups: int = 1):
        conv = nn.Conv2d(in_channels, out_channels, kernel_size, 1, kernel_size // 2, groups=groups, bias=False)
        super().__init__(nn.BatchNorm2d(in_channels), relu(), conv)
        self.apply(init_weights)


class PreactivationHead(nn.Sequential):
    """Head whose norms and ReLUs precede its two convolutions.

    Norm, ReLU, 3x3 convolution, norm, ReLU, 1x1 convolution: (N,in,H,W) -> (N,num_classes,H,W).
    """

    def __init__(self, in_channels: int, width: int, num_classes: int):
        super().__init__(
            *BNReLUConv(in_channels, width, 3), nn.BatchNorm2d(width), relu(), classifier(width, num_classes)
        )


class DAPPM(nn.Module):
    """Deep aggregation pyramid pooling: (N,in,H,W) -> (N,out,H,W).

    Source: Hong et al., "Deep Dual-resolution Networks for Real-time and Accurate Semantic Segmentation of Road Scenes"
    (2021, arXiv 2101.06085), section 3.3. Averages over 5x5, 9x9, 17x17 (zeros of the border counted) and all pixels,
    each added to the result before it and convolved. Norm and ReLU come before every convolution.
    """

    smallest_train_batch = 2

    def __init__(self, in_channels: int, width: int, out_channels: int):
        super().__init__()
        self.pools = nn.ModuleList([nn.AvgPool2d(2 * stride + 1, stride, stride) for stride in (2, 4, 8)])
        self.scales = nn.ModuleList(BNReLUConv(in_channels, width) for _ in range(5))
        self.process = self._process(width)
        self.compress = BNReLUConv(5 * width, out_channels)
        self.shortcut = BNReLUConv(in_channels, out_channels)

    def _process(self, width: int) -> nn.Module:
        return nn.ModuleList(BNReLUConv(width, width, 3) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N,in,H,W) to (N,out,H,W)."""
        pooled = [*(pool(x) for pool in self.pools), x.mean((2, 3), keepdim=True)]
        first, *others = self.scales
        enlarged = [resize(scale(y), x.shape[-2:], False) for scale, y in zip(others, pooled, strict=True)]
        return self.compress(self.join(first(x), enlarged)) + self.shortcut(x)

    def join(self, first: torch.Tensor, others: Sequence[torch.Tensor]) -> torch.Tensor:
        """Map the unpooled (N,width,H,W) and the pooled, enlarged maps to (N,5*width,H,W)."""
        results = [first]
        for process, y in zip(self.process.children(), others, strict=True):
            results.append(process(y + results[-1]))
        return torch.cat(results, 1)


class PAPPM(DAPPM):
    """Parallel aggregation pyramid pooling: (N,in,H,W) -> (N,out,H,W).

    Source: Xu et al., "PIDNet" (CVPR 2023), section 3.2: as `DAPPM`, but each average is added to the unpooled map
    alone, and one grouped convolution serves all four.
    """

    def _process(self, width: int) -> nn.Module:
        return BNReLUConv(4 * width, 4 * width, 3, groups=4)

    def join(self, first: torch.Tensor, others: Sequence[torch.Tensor]) -> torch.Tensor:
        """Map the unpooled (N,width,H,W) and the pooled, enlarged maps to (N,5*width,H,W)."""
        return torch.cat([first, self.process(torch.cat([y + first for y in others], 1))], 1)
