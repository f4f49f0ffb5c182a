"""PSPNet: pyramid pooling on a dilated backbone."""

from collections.abc import Sequence

import torch

from model.backbone import build_backbone
from model.base import SegModel
from model.layer.basic import FCNHead
from model.layer.context import PPM


class PSPNet(SegModel):
    """Pyramid scene parsing network.

    Source: Zhao et al., "Pyramid Scene Parsing Network" (CVPR 2017). Widths follow from the backbone as in
    the published network: every bin gets an equal share of the features' channels, the head a quarter of
    them. The published code wants sides of 8k+1 pixels; here any size works, and at those sizes the logits
    are the same.

    Args:
        num_classes: channels of the logits.
        backbone: any name that `build_backbone` knows.
        output_stride: stride of the last features; None takes 8, or the smallest above it that the backbone can have.
        bins: cells per side of the pooled maps.
        auxiliary: whether there is an auxiliary head, whose output "aux" is given while training.
        dropout: probability of dropping a channel before the last convolution.
        in_channels: channels of the pictures.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: str = "resnet50",
        output_stride: int | None = None,
        bins: Sequence[int] = (1, 2, 3, 6),
        auxiliary: bool = True,
        dropout: float = 0.1,
        in_channels: int = 3,
    ):
        super().__init__(build_backbone(backbone, output_stride, finest=8, in_channels=in_channels))
        *_, middle, last = self.backbone.channels
        width = last // len(bins)
        self.ppm = PPM(last, width, bins)
        self.classifier = FCNHead(last + width * len(bins), last // 4, num_classes, dropout)
        self.aux = FCNHead(middle, middle // 4, num_classes, dropout) if auxiliary else None

    def decode(self, features: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Map features, from fine to coarse, to logits at the stride of the features."""
        logits = {"out": self.classifier(self.ppm(features[-1]))}
        if self.training and self.aux is not None:
            logits["aux"] = self.aux(features[-2])
        return logits
