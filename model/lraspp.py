"""LR-ASPP: the light head of MobileNet-V3."""

import torch
from torch import nn
from torch.nn import functional as F

from model.backbone import build_backbone
from model.base import SegModel
from model.layer.basic import ConvBNReLU, classifier, resize
from model.table import ModelError


class LRASPP(SegModel):
    """Lite reduced atrous spatial pyramid pooling.

    Source: Howard et al., "Searching for MobileNetV3" (ICCV 2019), section 6.4, as torchvision has it: the whole map
    is averaged where the paper averages windows of 49x49. The last features are weighted by a gate from their mean;
    their scores and those of the stride-8 features are added.

    Args:
        num_classes: channels of the logits.
        backbone: any name that `build_backbone` knows with features at stride 8.
        output_stride: stride of the last features; None takes 16, or the smallest above it that the backbone can have.
        width: channels of the head.
        in_channels: channels of the pictures.
    """

    align_corners = False

    def __init__(
        self,
        num_classes: int,
        backbone: str = "mobilenet_v3_large",
        output_stride: int | None = None,
        width: int = 128,
        in_channels: int = 3,
    ):
        super().__init__(build_backbone(backbone, output_stride, finest=16, in_channels=in_channels))
        if 8 not in self.backbone.strides:
            raise ModelError(f"lraspp needs features at stride 8; backbone {backbone!r} has {self.backbone.strides}")
        self.low_level = self.backbone.strides.index(8)
        low, high = self.backbone.channels[self.low_level], self.backbone.channels[-1]
        self.reduce = ConvBNReLU(high, width, 1)
        self.gate = nn.Conv2d(high, width, 1, bias=False)
        self.low_classifier = classifier(low, num_classes)
        self.high_classifier = classifier(width, num_classes)

    def decode(self, features: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Map features, from fine to coarse, to logits at stride 8."""
        low, high = features[self.low_level], features[-1]
        gate = torch.sigmoid(self.gate(F.adaptive_avg_pool2d(high, 1)))
        context = resize(self.reduce(high) * gate, low.shape[-2:], align_corners=False)
        return {"out": self.low_classifier(low) + self.high_classifier(context)}
