"""A backbone of four convolutions, so that a network's own layers can be tested without the cost of a real one."""

import torch
from torch import nn

from model.layer.basic import ConvBNReLU


class Tiny(nn.Module):
    """Features of 16, 32, 64, 128 channels at strides 4, 8, 16, 32, or the last of them without their stride."""

    output_strides = (8, 16, 32)

    def __init__(self, output_stride: int = 32, in_channels: int = 3):
        super().__init__()
        self.channels = [16, 32, 64, 128]
        self.strides = [4, 8, min(16, output_stride), output_stride]
        before = [in_channels, *self.channels]
        steps = [4, *(after // stride for stride, after in zip(self.strides, self.strides[1:], strict=False))]
        self.layers = nn.ModuleList(
            ConvBNReLU(*pair, stride=step) for *pair, step in zip(before, self.channels, steps, strict=False)
        )

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        features = []
        for layer in self.layers:
            x = layer(x)
            features.append(x)
        return features
