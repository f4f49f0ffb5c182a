"""torchvision's ResNets as backbones, under torchvision's own key names."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from model.table import ModelError

# Dilation of layer3 and layer4 in place of their stride.
DILATIONS = {32: (1, 1), 16: (1, 2), 8: (2, 4)}


class TorchvisionResNet(ResNet):
    """ResNet with the 7x7 stem, without its classifier.

    Source: He et al., CVPR 2016.

    A stage that loses its stride is dilated as torchvision dilates: its first block keeps the dilation of the
    stage before. torchvision does so for bottlenecks only; here it works for ResNet-18 and 34 too.

    Args:
        block: torchvision's BasicBlock or Bottleneck.
        depths: blocks of the four stages.
        output_stride: 32, 16 or 8.
        in_channels: channels of the pictures.

    Raises:
        ModelError: for another output stride.
    """

    output_strides = (8, 16, 32)

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: Sequence[int],
        output_stride: int = 32,
        in_channels: int = 3,
    ):
        if output_stride not in DILATIONS:
            raise ModelError(f"a ResNet has output stride 8, 16 or 32, not {output_stride!r}")
        super().__init__(block, list(depths))
        del self.avgpool, self.fc
        if in_channels != 3:
            self.conv1 = nn.Conv2d(in_channels, 64, 7, 2, 3, bias=False)
            nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        before = 1
        for stage, dilation in zip((self.layer3, self.layer4), DILATIONS[output_stride], strict=True):
            if dilation > 1:
                _dilate(stage, before, dilation)
            before = dilation
        self.channels = [width * block.expansion for width in (64, 128, 256, 512)]
        self.strides = [4, 8, min(16, output_stride), output_stride]

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Map (N,3,H,W) to four maps (N,channels[i],H/strides[i],W/strides[i])."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        features = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            features.append(x)
        return features


def _dilate(stage: nn.Sequential, first: int, rest: int) -> None:
    """Replace the stride of a stage by dilation: `first` in its first block, `rest` in the others."""
    for place, block in enumerate(stage):
        dilation = rest if place else first
        for conv in (module for module in block.modules() if isinstance(module, nn.Conv2d)):
            conv.stride = (1, 1)
            if conv.kernel_size == (3, 3):
                conv.dilation = conv.padding = (dilation, dilation)


resnet18 = partial(TorchvisionResNet, BasicBlock, (2, 2, 2, 2))
resnet34 = partial(TorchvisionResNet, BasicBlock, (3, 4, 6, 3))
resnet50 = partial(TorchvisionResNet, Bottleneck, (3, 4, 6, 3))
resnet101 = partial(TorchvisionResNet, Bottleneck, (3, 4, 23, 3))
resnet152 = partial(TorchvisionResNet, Bottleneck, (3, 8, 36, 3))
