"""LEDNet: split and shuffled non-bottleneck blocks, and an attention pyramid."""

import torch
from torch import nn
from torch.nn import functional as F

from model.base import SegModel
from model.layer.basic import ConvBNReLU, init_weights, relu, resize

# Source: table 1. Dilations of the blocks behind each halving.
STAGES = ((32, (1, 1, 1)), (64, (1, 1)), (128, (1, 2, 5, 9, 2, 5, 9, 17)))


class Down(nn.Module):
    """Halving of the size: (N,in,H,W) -> (N,out,H/2,W/2).

    The published code has two convolutions, each followed by a max-pooling of stride 1, side by side; in the paper one
    of them is a max-pooling of the input alone.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        half = out_channels // 2
        self.convs = nn.ModuleList(nn.Conv2d(in_channels, half, 3, 2, 2, bias=False) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N,in,H,W) to (N,out,H/2,W/2)."""
        return torch.cat([F.max_pool2d(conv(x), 2, 1) for conv in self.convs], 1)


class SplitShuffle(nn.Module):
    """Split-shuffle-non-bottleneck: (N,C,H,W) -> (N,C,H,W).

    Source: figure 2. Either half of the channels goes through two 3x3 convolutions, each taken apart into 3x1 and 1x3,
    in the other order in the other half; the sum with the input is shuffled so that the halves mix.
    """

    def __init__(self, channels: int, dilation: int):
        super().__init__()
        self.halves = nn.ModuleList(self._branch(channels // 2, dilation, rows) for rows in (True, False))

    @staticmethod
    def _branch(width: int, dilation: int, rows_first: bool) -> nn.Sequential:
        layers = []
        for step in (1, dilation):
            for rows in (rows_first, not rows_first):
                kernel, pad, dilate = ((3, 1), (step, 0), (step, 1)) if rows else ((1, 3), (0, step), (1, step))
                layers += [nn.Conv2d(width, width, kernel, padding=pad, dilation=dilate, bias=False), relu()]
            layers.insert(-1, nn.BatchNorm2d(width))
        return nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N,C,H,W) to the same size."""
        halves = (branch(half) for branch, half in zip(self.halves, x.chunk(2, 1), strict=True))
        # Channels of the halves in turns: what `channel_shuffle` does, which cannot be exported to ONNX.
        return F.relu(torch.cat([*halves], 1) + x).unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)


class AttentionPyramid(nn.Module):
    """Attention pyramid: features (N,in,H,W) -> logits (N,num_classes,H,W).

    Source: section 2.3. Class scores of three ever smaller maps are summed from the smallest up and weight those of the
    input, to which the scores of the mean of the whole map are added. Every 1x1 convolution to scores has norm and ReLU
    in the published code, so the logits are not negative.
    """

    smallest_train_batch = 2

    def __init__(self, in_channels: int, num_classes: int):
        super().__init__()
        self.down = nn.ModuleList(ConvBNReLU(in_channels, in_channels, kernel, 2) for kernel in (3, 5, 7))
        self.scores = nn.ModuleList(ConvBNReLU(in_channels, num_classes, 1) for _ in range(3))
        self.main = ConvBNReLU(in_channels, num_classes, 1)
        self.mean = ConvBNReLU(in_channels, num_classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map features (N,in,H,W) to logits (N,num_classes,H,W)."""
        levels = [x]
        for down in self.down:
            levels.append(down(levels[-1]))
        weight = None
        for level, below, score in zip(levels[:0:-1], levels[-2::-1], self.scores[::-1], strict=True):
            weight = score(level) if weight is None else score(level) + weight
            weight = resize(weight, below.shape[-2:])
        return self.main(x) * weight + self.mean(x.mean((2, 3), keepdim=True))


class LEDNet(SegModel):
    """LEDNet.

    Source: Wang et al., "LEDNet: A Lightweight Encoder-Decoder Network for Real-Time Semantic Segmentation" (ICIP
    2019), as in Tramac/awesome-semantic-segmentation-pytorch; see `Down` and `AttentionPyramid` for where it differs.

    Args:
        num_classes: channels of the logits.
        in_channels: channels of the image.
    """

    def __init__(self, num_classes: int, in_channels: int = 3):
        super().__init__()
        layers = []
        for width, dilations in STAGES:
            layers += [Down(in_channels, width), *(SplitShuffle(width, dilation) for dilation in dilations)]
            in_channels = width
        self.encoder = nn.Sequential(*layers)
        self.decoder = AttentionPyramid(in_channels, num_classes)
        self.apply(init_weights)

    def forward_features(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Map (N,in_channels,H,W) to one map (N,128,H/8,W/8)."""
        return [self.encoder(x)]

    def decode(self, features: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Map features (N,128,H/8,W/8) to logits of their size."""
        return {"out": self.decoder(features[-1])}
