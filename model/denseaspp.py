"""DenseASPP: dilated convolutions that see the results of those before."""

from collections.abc import Sequence

import torch
from torch import nn

from model.backbone import build_backbone
from model.base import SegModel
from model.layer.basic import Classifier, ConvBNReLU, FCNHead


class DenseASPP(SegModel):
    """Densely connected atrous spatial pyramid pooling.

    Source: Yang et al., "DenseASPP for Semantic Segmentation in Street Scenes" (CVPR 2018), as published in PyTorch:
    every convolution has a bias and comes before its norm and its ReLU, and each result is put in front of the
    features.

    Args:
        num_classes: channels of the logits.
        backbone: any name that `build_backbone` knows.
        output_stride: stride of the last features; None takes 8, or the smallest above it that the backbone can have.
        rates: dilations of the branches.
        reduce_width: channels before each dilated convolution.
        width: channels after it.
        auxiliary: whether there is an auxiliary head on the last features, whose output "aux" is given while training.
        dropout: probability of dropping a value after each branch, and a channel before the last convolution.
        in_channels: channels of the pictures.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: str = "densenet121",
        output_stride: int | None = None,
        rates: Sequence[int] = (3, 6, 12, 18, 24),
        reduce_width: int = 256,
        width: int = 64,
        auxiliary: bool = True,
        dropout: float = 0.1,
        in_channels: int = 3,
    ):
        super().__init__(build_backbone(backbone, output_stride, finest=8, in_channels=in_channels))
        last = self.backbone.channels[-1]
        self.branches = nn.ModuleList(
            nn.Sequential(
                ConvBNReLU(last + width * place, reduce_width, 1, bias=True),
                ConvBNReLU(reduce_width, width, 3, dilation=rate, bias=True),
                nn.Dropout(dropout),
            )
            for place, rate in enumerate(rates)
        )
        self.classifier = Classifier(last + width * len(rates), num_classes, dropout)
        self.aux = FCNHead(last, last // 4, num_classes, dropout) if auxiliary else None

    def decode(self, features: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Map features to logits at the stride of the last."""
        gathered = features[-1]
        for branch in self.branches:
            gathered = torch.cat([branch(gathered), gathered], 1)
        logits = {"out": self.classifier(gathered)}
        if self.training and self.aux is not None:
            logits["aux"] = self.aux(features[-1])
        return logits
