"""Parts of light networks: parametric ReLU, separable convolutions, shrunken images."""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from model.layer.basic import ConvBNReLU, relu


class BNPReLU(nn.Sequential):
    """Batch norm, and a PReLU with one slope a channel."""

    def __init__(self, channels: int):
        super().__init__(nn.BatchNorm2d(channels), nn.PReLU(channels))


class ConvBNPReLU(ConvBNReLU):
    """Convolution, batch norm, PReLU with one slope a channel: (N,in,H,W) -> (N,out,H/stride,W/stride)."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1, groups: int = 1):
        prelu = partial(nn.PReLU, out_channels)
        super().__init__(in_channels, out_channels, kernel_size, stride, groups=groups, activation=prelu)


class SeparableConv(nn.Sequential):
    """Depthwise 3x3 and pointwise 1x1 convolution: (N,in,H,W) -> (N,out,H/stride,W/stride).

    Source: Howard et al., "MobileNets" (2017), section 3.1. Batch norm follows both; `depthwise` and `pointwise`
    make the activations behind them, None for none.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        depthwise: Callable[[], nn.Module] | None = relu,
        pointwise: Callable[[], nn.Module] | None = relu,
        dilation: int = 1,
    ):
        super().__init__(
            ConvBNReLU(in_channels, in_channels, 3, stride, dilation, groups=in_channels, activation=depthwise),
            ConvBNReLU(in_channels, out_channels, 1, activation=pointwise),
        )


def shrink(x: torch.Tensor, times: int = 1) -> torch.Tensor:
    """Halve maps `times` times by averages over 3x3, zero border counted."""
    for _ in range(times):
        x = F.avg_pool2d(x, 3, 2, 1)
    return x


def pad_to_multiple(x: torch.Tensor, multiple: int) -> torch.Tensor:
    """Extend maps (N,C,H,W) by zeros, below and right, to multiples."""
    height, width = x.shape[-2:]
    return F.pad(x, (0, -width % multiple, 0, -height % multiple))


def set_norm_eps(module: nn.Module, eps: float) -> None:
    """Set the epsilon of every batch norm in a module."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eps = eps
