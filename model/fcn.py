"""Fully convolutional network on any backbone.

The smallest complete network, and the file to copy.
"""

import torch

from model.backbone import build_backbone
from model.base import SegModel
from model.layer.basic import FCNConcatHead, FCNHead


class FCN(SegModel):
    """A 3x3 head on the last features, resized to the picture.

    Source: Long et al., "Fully Convolutional Networks for Semantic Segmentation" (CVPR 2015), in the form
    in use today: dilated backbone, no learned upsampling, and an auxiliary head on the features before the
    last.

    Args:
        num_classes: channels of the logits.
        backbone: any name that `build_backbone` knows.
        output_stride: stride of the last features; None takes 8, or the smallest above it that the backbone can have.
        concat_input: whether the head is that of MMSegmentation, of two 3x3 convolutions beside the features.
        auxiliary: whether there is an auxiliary head, whose output "aux" is given while training.
        align_corners: how the logits are enlarged; False in torchvision and MMSegmentation.
        dropout: probability of dropping a channel before the last convolution.
        in_channels: channels of the pictures.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: str = "resnet50",
        output_stride: int | None = None,
        concat_input: bool = False,
        auxiliary: bool = True,
        align_corners: bool = True,
        dropout: float = 0.1,
        in_channels: int = 3,
    ):
        super().__init__(build_backbone(backbone, output_stride, finest=8, in_channels=in_channels))
        *_, middle, last = self.backbone.channels
        head = FCNConcatHead if concat_input else FCNHead
        self.classifier = head(last, last // 4, num_classes, dropout)
        self.aux = FCNHead(middle, middle // 4, num_classes, dropout) if auxiliary else None
        self.align_corners = align_corners

    def decode(self, features: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Map features to logits at the stride of the features."""
        logits = {"out": self.classifier(features[-1])}
        if self.training and self.aux is not None:
            logits["aux"] = self.aux(features[-2])
        return logits
