"""DFNet, the fast backbones of Semantic Flow."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import nn

from model.backbone.base import Backbone
from model.backbone.resnet import BasicBlock
from model.layer.basic import ConvBNReLU, init_weights
from model.table import ModelError

# Channels, blocks and stride of the stages after the stem, which has stride 4.
STAGES_V1 = ((64, 3, 2), (128, 3, 2), (256, 3, 2), (512, 1, 1))
STAGES_V2 = ((64, 2, 2), (128, 1, 1), (128, 10, 2), (256, 1, 1), (256, 4, 2), (512, 2, 1))


class DFNet(Backbone):
    """Residual network found by search, without max-pool.

    Source: Li et al., "Partial Order Pruning: for Best Speed/Accuracy Trade-off in Neural Architecture
    Search" (CVPR 2019). Features, as Semantic Flow takes them: 128, 256, 512 channels, of V1 at strides 16,
    32, 32 and of V2 at 8, 16, 32.

    Args:
        stages: channels, blocks and stride of each stage.
        taps: the stages whose outputs are features.
        output_stride: 32; these networks are not dilated.
        in_channels: channels of the pictures.

    Raises:
        ModelError: for another output stride.
    """

    output_strides = (32,)

    def __init__(
        self, stages: Sequence[tuple[int, int, int]], taps: Sequence[int], output_stride: int = 32, in_channels: int = 3
    ):
        super().__init__()
        if output_stride != 32:
            raise ModelError(f"a DFNet has output stride 32, not {output_stride!r}")
        self.stem = nn.Sequential(*ConvBNReLU(in_channels, 32, stride=2), *ConvBNReLU(32, 64, stride=2))
        self.stages = nn.ModuleList()
        before, reached, strides = 64, 4, []
        for width, count, stride in stages:
            blocks = [BasicBlock(before, width, stride, (1, 1))]
            blocks += [BasicBlock(width, width, 1, (1, 1)) for _ in range(1, count)]
            self.stages.append(nn.Sequential(*blocks))
            before, reached = width, reached * stride
            strides.append(reached)
        self.taps = tuple(taps)
        self.channels = [stages[tap][0] for tap in taps]
        self.strides = [strides[tap] for tap in taps]
        self.apply(init_weights)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Map (N,3,H,W) to three maps (N,channels[i],H/strides[i],W/strides[i])."""
        x = self.stem(x)
        features = []
        for place, stage in enumerate(self.stages):
            x = stage(x)
            if place in self.taps:
                features.append(x)
        return features


dfnet_v1 = partial(DFNet, STAGES_V1, (1, 2, 3))
dfnet_v2 = partial(DFNet, STAGES_V2, (1, 3, 5))
