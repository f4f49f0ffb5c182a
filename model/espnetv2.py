"""ESPNetv2: pyramids of depthwise dilated convolutions, and a decoder over four strides."""

import math

import torch
from torch import nn

from model.base import SegModel
from model.layer.basic import ConvBNReLU, GroupedConv2d, classifier, init_weights, resize
from model.layer.light import BNPReLU, ConvBNPReLU, shrink
from model.table import ModelError

GROUPS = 4
# Dilations of the four branches, by the largest receptive field that the paper allows at this stride.
DILATIONS = {13: (1, 2, 3, 4), 11: (1, 2, 3, 4), 9: (1, 2, 3, 4), 7: (1, 1, 2, 3)}


class EESP(nn.Module):
    """Extremely efficient spatial pyramid: (N,in,H,W) -> (N,out,H/stride,W/stride).

    Source: section 3.2 and figure 1c. Grouped 1x1 convolutions around four depthwise dilated ones, each of which is
    added to the one before. At stride 1, the input is added where it has as many channels, and a PReLU ends the block.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, dilations: tuple[int, ...]):
        super().__init__()
        width = out_channels // GROUPS
        self.reduce = ConvBNPReLU(in_channels, width, 1, groups=GROUPS)
        self.branches = nn.ModuleList(
            GroupedConv2d(width, width, 3, stride, dilation, dilation, groups=width, bias=False)
            for dilation in dilations
        )
        self.norm = BNPReLU(out_channels)
        self.expand = ConvBNReLU(out_channels, out_channels, 1, groups=GROUPS, activation=None)
        self.activation = nn.PReLU(out_channels) if stride == 1 else None
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N,in,H,W) to (N,out,H/stride,W/stride)."""
        reduced = self.reduce(x)
        joined: list[torch.Tensor] = []
        for branch in self.branches:
            result = branch(reduced)
            joined.append(joined[-1] + result if joined else result)
        y = self.expand(self.norm(torch.cat(joined, 1)))
        if self.residual:
            y = x + y
        return y if self.activation is None else self.activation(y)


class Down(nn.Module):
    """Strided EESP beside an average, the image added.

    Maps (N,in,H,W) to (N,out,H/2,W/2). Source: section 3.3.
    """

    def __init__(self, in_channels: int, out_channels: int, image_channels: int, dilations: tuple[int, ...]):
        super().__init__()
        self.eesp = EESP(in_channels, out_channels - in_channels, 2, dilations)
        self.image = nn.Sequential(
            ConvBNPReLU(image_channels, image_channels), ConvBNReLU(image_channels, out_channels, 1, activation=None)
        )
        self.activation = nn.PReLU(out_channels)

    def forward(self, x: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        """Map (N,in,H,W) and the image at half that size to (N,out,H/2,W/2)."""
        return self.activation(torch.cat([shrink(x), self.eesp(x)], 1) + self.image(image))


class Pyramid(nn.Module):
    """Context of ever smaller maps: (N,C,H,W) -> (N,C,H,W).

    Four times the map is halved; a depthwise 3x3 convolution of each is enlarged and joined to the input.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.stages = nn.ModuleList(
            GroupedConv2d(channels, channels, 3, padding=1, groups=channels, bias=False) for _ in range(4)
        )
        self.project = ConvBNPReLU(channels * 5, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N,C,H,W) to the same size."""
        joined, size = [x], x.shape[-2:]
        for stage in self.stages:
            x = shrink(x)
            joined.append(resize(stage(x), size))
        return self.project(torch.cat(joined, 1))


class ESPNetV2(SegModel):
    """ESPNetv2.

    Source: Mehta et al., "ESPNetv2: A Light-weight, Power Efficient, and General Purpose Convolutional Neural Network"
    (CVPR 2019), table 1 and section 4.2.

    Args:
        num_classes: channels of the logits.
        in_channels: channels of the image.
        scale: width of all layers relative to the paper's table: 0.5 to 2.
        auxiliary: whether the first class scores, at stride 8, are given as "aux" while training.
        dropout: probability of dropping a channel before a classifier.

    Raises:
        ModelError: for another scale.
    """

    def __init__(
        self, num_classes: int, in_channels: int = 3, scale: float = 1.0, auxiliary: bool = True, dropout: float = 0.1
    ):
        super().__init__()
        if not 0.5 <= scale <= 2:
            raise ModelError(f"scale is from 0.5 to 2, not {scale!r}")
        base = GROUPS * math.ceil(int(32 * scale) / GROUPS)
        widths = [min(32, base), 2 * base, 4 * base, 8 * base]
        self.stem = ConvBNPReLU(in_channels, widths[0], 3, 2)
        self.down = nn.ModuleList(
            Down(a, b, in_channels, DILATIONS[limit])
            for a, b, limit in zip(widths, widths[1:], (13, 11, 9), strict=False)
        )
        self.stage3 = nn.Sequential(*(EESP(widths[2], widths[2], 1, DILATIONS[9]) for _ in range(3)))
        self.stage4 = nn.Sequential(*(EESP(widths[3], widths[3], 1, DILATIONS[7]) for _ in range(7)))
        self.project4 = ConvBNPReLU(widths[3], widths[2], 1)
        self.context = nn.Sequential(EESP(2 * widths[2], widths[2], 1, DILATIONS[7]), Pyramid(widths[2]))
        self.norm3 = BNPReLU(num_classes)
        self.project2 = ConvBNPReLU(widths[1] + num_classes, num_classes, 1)
        self.apply(init_weights)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier3 = classifier(widths[2], num_classes, bias=False)
        self.classifier1 = classifier(widths[0] + num_classes, num_classes, bias=False)
        self.auxiliary = auxiliary

    def forward_features(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Map (N,in_channels,H,W) to maps at strides 2, 4, 8 and 16."""
        level1 = self.stem(x)
        level2 = self.down[0](level1, shrink(x, 2))
        level3 = self.stage3(self.down[1](level2, shrink(x, 3)))
        level4 = self.stage4(self.down[2](level3, shrink(x, 4)))
        return [level1, level2, level3, level4]

    def decode(self, features: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Map features to logits (N,num_classes,H/2,W/2), and those at stride 8 in training."""
        level1, level2, level3, level4 = features
        y = torch.cat([level3, resize(self.project4(level4), level3.shape[-2:])], 1)
        coarse = self.classifier3(self.dropout(self.context(y)))
        y = torch.cat([level2, resize(self.norm3(coarse), level2.shape[-2:])], 1)
        y = torch.cat([level1, resize(self.project2(y), level1.shape[-2:])], 1)
        logits = {"out": self.classifier1(self.dropout(y))}
        if self.training and self.auxiliary:
            logits["aux"] = coarse
        return logits
