"""torchvision's MobileNet-V3 as a backbone, under torchvision's own key names."""

import torch
from torch import nn
from torchvision import models

from model.backbone.base import Backbone
from model.layer.basic import init_weights
from model.table import ModelError

# The blocks whose outputs are features: at stride 8 the first block, which torchvision's networks read.
TAPS = (3, 4, 12, 16)
# Blocks at strides 16 and 32, and their dilation for every output stride.
COARSE, COARSEST = range(7, 13), range(13, 16)
DILATIONS = {32: (1, 1), 16: (1, 2), 8: (2, 4)}


class MobileNetV3Large(Backbone):
    """MobileNet-V3-Large without its classifier.

    Source: Howard et al., "Searching for MobileNetV3" (ICCV 2019), table 1, with the batch norm of torchvision (eps
    0.001, momentum 0.01). Features: 24, 40, 112, 960 channels at strides 4, 8, 16, 32, or the last of them dilated
    instead of strided, every depthwise convolution of a stage that loses its stride by the full dilation.

    Args:
        output_stride: 32, 16 or 8.
        in_channels: channels of the pictures.

    Raises:
        ModelError: for another output stride.
    """

    output_strides = (8, 16, 32)

    def __init__(self, output_stride: int = 32, in_channels: int = 3):
        super().__init__()
        if output_stride not in DILATIONS:
            raise ModelError(f"MobileNet-V3 has output stride 8, 16 or 32, not {output_stride!r}")
        self.features = models.mobilenet_v3_large().features
        if in_channels != 3:
            self.features[0][0] = nn.Conv2d(in_channels, 16, 3, 2, 1, bias=False)
            init_weights(self.features[0][0])
        for blocks, dilation in zip((COARSE, COARSEST), DILATIONS[output_stride], strict=True):
            if dilation > 1:
                for block in blocks:
                    _dilate(self.features[block], dilation)
        self.channels = [24, 40, 112, 960]
        self.strides = [4, 8, min(16, output_stride), output_stride]

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Map (N,in_channels,H,W) to four maps (N,channels[i],H/strides[i],W/strides[i])."""
        features = []
        for place, block in enumerate(self.features):
            x = block(x)
            if place in TAPS:
                features.append(x)
        return features


def _dilate(block: nn.Module, dilation: int) -> None:
    for module in block.modules():
        if isinstance(module, nn.Conv2d) and module.groups > 1:
            size = module.kernel_size[0]
            module.stride, module.dilation = (1, 1), (dilation, dilation)
            module.padding = (dilation * (size - 1) // 2,) * 2
