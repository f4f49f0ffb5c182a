"""VGG-16 without its classifier, under torchvision's own key names."""

import torch
from torch import nn

from model.backbone.base import Backbone
from model.layer.basic import init_weights
from model.table import ModelError

# Width and number of the 3x3 convolutions before each pooling (Simonyan and Zisserman, table 1, column D).
GROUPS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))


class VGG16(Backbone):
    """Thirteen 3x3 convolutions with bias and without norm, and five poolings.

    Source: Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition" (ICLR 2015).
    Features: the five pooled maps of 64, 128, 256, 512, 512 channels at strides 2, 4, 8, 16, 32; the pooling rounds
    odd sizes down.

    Args:
        output_stride: 32; the network is not dilated.
        in_channels: channels of the pictures.

    Raises:
        ModelError: for another output stride.
    """

    output_strides = (32,)

    def __init__(self, output_stride: int = 32, in_channels: int = 3):
        super().__init__()
        if output_stride != 32:
            raise ModelError(f"VGG-16 has output stride 32, not {output_stride!r}")
        layers, channels = [], in_channels
        for width, count in GROUPS:
            for _ in range(count):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.channels = [width for width, _ in GROUPS]
        self.strides = [2, 4, 8, 16, 32]
        self.apply(init_weights)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Map (N,in_channels,H,W) to five maps (N,channels[i],H//strides[i],W//strides[i])."""
        features = []
        for layer in self.features:
            x = layer(x)
            if isinstance(layer, nn.MaxPool2d):
                features.append(x)
        return features
