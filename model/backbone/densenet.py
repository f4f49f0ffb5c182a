"""torchvision's DenseNets as backbones, under torchvision's own key names."""

from functools import partial

import torch
from torch import nn
from torchvision.models.densenet import DenseNet

from model.backbone.base import Backbone
from model.layer.basic import init_weights
from model.table import ModelError

# Dilation of the third and the fourth dense block in place of the pooling before them.
DILATIONS = {32: (1, 1), 16: (1, 2), 8: (2, 4)}


class TorchvisionDenseNet(DenseNet, Backbone):
    """Densely connected network without its classifier.

    Source: Huang et al., "Densely Connected Convolutional Networks" (CVPR 2017). Features: the output of each dense
    block at strides 4, 8, 16, 32, the last one after its norm and without ReLU. At output stride 16 or 8 the last
    poolings are left out and the 3x3 convolutions behind them dilated, as DenseASPP does; the others round odd sizes
    down.

    Args:
        growth: channels that each layer adds.
        depths: layers of the four dense blocks.
        stem: channels of the first convolution.
        output_stride: 32, 16 or 8.
        in_channels: channels of the pictures.

    Raises:
        ModelError: for another output stride.
    """

    output_strides = (8, 16, 32)
    features: nn.Sequential

    def __init__(self, growth: int, depths: tuple[int, ...], stem: int, output_stride: int = 32, in_channels: int = 3):
        if output_stride not in DILATIONS:
            raise ModelError(f"a DenseNet has output stride 8, 16 or 32, not {output_stride!r}")
        super().__init__(growth, depths, stem)
        del self.classifier
        if in_channels != 3:
            conv = nn.Conv2d(in_channels, stem, 7, 2, 3, bias=False)
            init_weights(conv)
            self.features.conv0 = conv
        for block, dilation in zip((3, 4), DILATIONS[output_stride], strict=True):
            if dilation > 1:
                self.features.get_submodule(f"transition{block - 1}").add_module("pool", nn.Identity())
                for module in self.features.get_submodule(f"denseblock{block}").modules():
                    if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
                        module.dilation = module.padding = (dilation, dilation)
        self.channels, channels = [], stem
        for depth in depths:
            self.channels.append(channels + growth * depth)
            channels = self.channels[-1] // 2
        self.strides = [4, 8, min(16, output_stride), output_stride]

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Map (N,in_channels,H,W) to four maps (N,channels[i],H/strides[i],W/strides[i])."""
        features = []
        for name, layer in self.features.named_children():
            x = layer(x)
            if name in ("denseblock1", "denseblock2", "denseblock3", "norm5"):
                features.append(x)
        return features


densenet121 = partial(TorchvisionDenseNet, 32, (6, 12, 24, 16), 64)
densenet161 = partial(TorchvisionDenseNet, 48, (6, 12, 36, 24), 96)
densenet169 = partial(TorchvisionDenseNet, 32, (6, 12, 32, 32), 64)
densenet201 = partial(TorchvisionDenseNet, 32, (6, 12, 48, 32), 64)
