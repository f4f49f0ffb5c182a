"""CGNet: local feature, surrounding context and global context in every block."""

import torch
from torch import nn

from model.base import SegModel
from model.layer.basic import GroupedConv2d, classifier, init_weights
from model.layer.light import BNPReLU, ConvBNPReLU, set_norm_eps, shrink


class ContextGuidedBlock(nn.Module):
    """Context guided block: (N,in,H,W) -> (N,out,H,W).

    `down` halves the size.

    Source: section 3.1. A depthwise 3x3 convolution (local feature) and a dilated one (surrounding context), side by
    side, weighted channel by channel by what their mean over the map says (global context). Where the size stays, the
    input is added ("global residual learning").
    """

    def __init__(self, in_channels: int, out_channels: int, dilation: int, reduction: int, down: bool = False):
        super().__init__()
        width = out_channels if down else out_channels // 2
        self.conv = ConvBNPReLU(in_channels, width, 3, 2) if down else ConvBNPReLU(in_channels, width, 1)
        self.local = GroupedConv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.surround = GroupedConv2d(width, width, 3, padding=dilation, dilation=dilation, groups=width, bias=False)
        self.join = BNPReLU(2 * width)
        self.reduce = nn.Conv2d(2 * width, out_channels, 1, bias=False) if down else None
        self.gate = nn.Sequential(
            nn.Linear(out_channels, out_channels // reduction),
            nn.ReLU(inplace=True),
            nn.Linear(out_channels // reduction, out_channels),
            nn.Sigmoid(),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N,in,H,W) to (N,out,H,W), or half the size."""
        y = self.conv(x)
        y = self.join(torch.cat([self.local(y), self.surround(y)], 1))
        if self.reduce is not None:
            y = self.reduce(y)
        y = y * self.gate(y.mean((2, 3)))[..., None, None]
        return y if self.reduce is not None else x + y


class CGNet(SegModel):
    """Context Guided Network.

    Source: Wu et al., "CGNet: A Light-weight Context Guided Network for Semantic Segmentation" (IEEE TIP 2021,
    arXiv 1811.08201), table 1. The defaults are those of Tramac/awesome-semantic-segmentation-pytorch; the authors'
    network has eps 1e-3, no classifier bias and corners that are not aligned.

    Args:
        num_classes: channels of the logits.
        in_channels: channels of the image.
        blocks2: blocks at stride 4, M in the paper.
        blocks3: blocks at stride 8, N in the paper.
        eps: added to the variance in batch norms.
        classifier_bias: whether the classifier has a bias.
        align_corners: how the logits are resized.
        dropout: probability of dropping a channel before the classifier.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        blocks2: int = 3,
        blocks3: int = 21,
        eps: float = 1e-5,
        classifier_bias: bool = True,
        align_corners: bool = True,
        dropout: float = 0.1,
    ):
        super().__init__()
        self.align_corners = align_corners
        self.stem = nn.Sequential(ConvBNPReLU(in_channels, 32, 3, 2), ConvBNPReLU(32, 32), ConvBNPReLU(32, 32))
        self.join1 = BNPReLU(32 + in_channels)
        self.down2 = ContextGuidedBlock(32 + in_channels, 64, 2, 8, down=True)
        self.stage2 = nn.Sequential(*(ContextGuidedBlock(64, 64, 2, 8) for _ in range(1, blocks2)))
        self.join2 = BNPReLU(128 + in_channels)
        self.down3 = ContextGuidedBlock(128 + in_channels, 128, 4, 16, down=True)
        self.stage3 = nn.Sequential(*(ContextGuidedBlock(128, 128, 4, 16) for _ in range(1, blocks3)))
        self.join3 = BNPReLU(256)
        self.apply(init_weights)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = classifier(256, num_classes, classifier_bias)
        set_norm_eps(self, eps)

    def forward_features(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Map (N,in_channels,H,W) to one map (N,256,H/8,W/8)."""
        y = self.join1(torch.cat([self.stem(x), shrink(x)], 1))
        first = self.down2(y)
        y = self.join2(torch.cat([self.stage2(first), first, shrink(x, 2)], 1))
        first = self.down3(y)
        return [self.join3(torch.cat([first, self.stage3(first)], 1))]

    def decode(self, features: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Map features (N,256,H/8,W/8) to logits of their size."""
        return {"out": self.classifier(self.dropout(features[-1]))}
