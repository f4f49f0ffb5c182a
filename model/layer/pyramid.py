"""Feature pyramids."""

from collections.abc import Sequence

import torch
from torch import nn

from model.layer.norm import LayerNorm2d


class SimpleFeaturePyramid(nn.Module):
    """Makes maps of several strides out of one.

    (N,in,H,W) to a list of (N,width,h,w), from fine to coarse.

    Source: Li et al., "Exploring Plain Vision Transformer Backbones for Object Detection" (ViTDet, ECCV 2022), section
    3: the map is enlarged by transposed convolutions of kernel and stride 2, or reduced by max-pooling, each level by
    itself; a 1x1 and a 3x3 convolution with layer norms follow.

    Args:
        in_channels: channels of the map.
        stride: stride of the map, a power of two.
        width: channels of each level.
        strides: strides of the levels, powers of two.
    """

    def __init__(self, in_channels: int, stride: int, width: int, strides: Sequence[int]):
        super().__init__()
        self.levels = nn.ModuleList()
        for wanted in strides:
            layers, channels = [], in_channels
            for step in range(max((stride // wanted).bit_length() - 1, 0)):
                if step > 0:
                    layers += [LayerNorm2d(channels), nn.GELU()]
                layers.append(nn.ConvTranspose2d(channels, channels // 2, 2, 2))
                channels //= 2
            if wanted > stride:
                layers.append(nn.MaxPool2d(wanted // stride))
            layers += [nn.Conv2d(channels, width, 1, bias=False), LayerNorm2d(width)]
            layers += [nn.Conv2d(width, width, 3, padding=1, bias=False), LayerNorm2d(width)]
            self.levels.append(nn.Sequential(*layers))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Map (N,in,H,W) to maps (N,width,H*stride/strides[i],W*stride/strides[i])."""
        return [level(x) for level in self.levels]
