"""Fast-SCNN: a shared shallow stem, a deep branch, one fusion.

The deep branch works at low resolution.
"""

import torch
from torch import nn
from torch.nn import functional as F

from model.base import SegModel
from model.layer.basic import ConvBNReLU, FCNHead, classifier, relu, resize
from model.layer.context import PPM
from model.layer.light import SeparableConv


class Bottleneck(nn.Sequential):
    """Inverted residual with expansion 6: (N,in,H,W) -> (N,out,H/stride,W/stride).

    Source: Sandler et al., "MobileNetV2" (CVPR 2018), with ReLU in place of ReLU6.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        width = 6 * in_channels
        super().__init__(
            ConvBNReLU(in_channels, width, 1),
            ConvBNReLU(width, width, 3, stride, groups=width),
            ConvBNReLU(width, out_channels, 1, activation=None),
        )
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N,in,H,W) to (N,out,H/stride,W/stride)."""
        return x + super().forward(x) if self.residual else super().forward(x)


class FastSCNN(SegModel):
    """Fast-SCNN.

    Source: Poudel et al., "Fast-SCNN: Fast Semantic Segmentation Network" (BMVC 2019, arXiv 1902.04502), table 1.
    The defaults are those of Tramac/Fast-SCNN-pytorch.

    Args:
        num_classes: channels of the logits.
        in_channels: channels of the image.
        auxiliary: whether the features at stride 8 have a head, whose output "aux" is given while training.
        auxiliary_context: whether those at stride 32 have one, whose output is "aux_context".
        stem_padding: zeros around the image for its first convolution; without any the map is a pixel smaller.
        depthwise_relu: whether a ReLU follows the depthwise half of separable convolutions.
        context_kernel: size of the convolution behind the pyramid pooling.
        fusion_dilation: dilation of the depthwise convolution on the coarse features; 4 in the paper.
        align_corners: how maps are resized.
        dropout: probability of dropping a value before the classifier.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        auxiliary: bool = False,
        auxiliary_context: bool = False,
        stem_padding: int = 0,
        depthwise_relu: bool = True,
        context_kernel: int = 1,
        fusion_dilation: int = 1,
        align_corners: bool = True,
        dropout: float = 0.1,
    ):
        super().__init__()
        self.align_corners = align_corners
        depthwise = relu if depthwise_relu else None
        self.stem = nn.Sequential(
            ConvBNReLU(in_channels, 32, 3, 2, padding=stem_padding),
            SeparableConv(32, 48, 2, depthwise),
            SeparableConv(48, 64, 2, depthwise),
        )
        widths = ((64, 64, 2), (64, 96, 2), (96, 128, 1))
        self.bottlenecks = nn.Sequential(
            *(nn.Sequential(Bottleneck(a, b, s), Bottleneck(b, b, 1), Bottleneck(b, b, 1)) for a, b, s in widths)
        )
        self.ppm = PPM(128, 32, align_corners=align_corners)
        self.context = ConvBNReLU(256, 128, context_kernel)
        self.coarse_branch = nn.Sequential(
            ConvBNReLU(128, 128, 3, dilation=fusion_dilation, groups=128),
            ConvBNReLU(128, 128, 1, activation=None, bias=True),
        )
        self.fine_branch = ConvBNReLU(64, 128, 1, activation=None, bias=True)
        self.head = nn.Sequential(SeparableConv(128, 128, 1, depthwise), SeparableConv(128, 128, 1, depthwise))
        self.dropout = nn.Dropout(dropout)
        self.classifier = classifier(128, num_classes)
        self.aux = FCNHead(64, 32, num_classes, dropout) if auxiliary else None
        self.aux_context = FCNHead(128, 32, num_classes, dropout) if auxiliary_context else None

    def forward_features(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Map (N,in_channels,H,W) to the features of both branches, (N,64,H/8,W/8) and (N,128,H/32,W/32)."""
        fine = self.stem(x)
        return [fine, self.context(self.ppm(self.bottlenecks(fine)))]

    def decode(self, features: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Map the features of both branches to logits.

        "out" is (N,num_classes,H/8,W/8), auxiliary ones have their own stride.
        """
        fine, coarse = features
        enlarged = self.coarse_branch(resize(coarse, fine.shape[-2:], self.align_corners))
        fused = F.relu(self.fine_branch(fine) + enlarged, inplace=True)
        logits = {"out": self.classifier(self.dropout(self.head(fused)))}
        if self.training and self.aux is not None:
            logits["aux"] = self.aux(fine)
        if self.training and self.aux_context is not None:
            logits["aux_context"] = self.aux_context(coarse)
        return logits
