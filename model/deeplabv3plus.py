"""DeepLabv3+: DeepLabv3 and a decoder that refines its result by stride-4 features."""

from collections.abc import Sequence

import torch
from torch import nn

from model.backbone import build_backbone
from model.base import SegModel
from model.layer.basic import Classifier, ConvBNReLU, FCNHead, resize
from model.layer.context import ASPP
from model.layer.light import SeparableConv
from model.table import ModelError


class DeepLabV3Plus(SegModel):
    """Atrous spatial pyramid pooling, joined with stride-4 features by two 3x3 convolutions.

    Source: Chen et al., "Encoder-Decoder with Atrous Separable Convolution for Semantic Image Segmentation" (ECCV
    2018).

    Args:
        num_classes: channels of the logits.
        backbone: any name that `build_backbone` knows with features at stride 4.
        output_stride: stride of the last features; None takes 8, or the smallest above it that the backbone can have.
        width: channels of the pyramid's branches and of the decoder; 512 in MMSegmentation.
        rates: dilations of the pyramid. The paper halves them at output stride 16.
        separable: whether the 3x3 convolutions of pyramid and decoder are depthwise separable, as in MMSegmentation
            and in the paper's networks on Xception.
        low_width: channels to which the stride-4 features are reduced.
        low_kernel: side of the convolution that reduces the stride-4 features: 1 in the paper and in MMSegmentation, 3
            in the published network on Xception in PyTorch.
        project_kernel: side of the convolution that joins the branches of the pyramid; 3 in MMSegmentation.
        auxiliary: whether there is an auxiliary head on the features before the last, whose output "aux" is given
            while training.
        align_corners: how maps are enlarged; False in MMSegmentation, except where it trains on crops of 769.
        dropout: probability of dropping a channel before the last convolution.
        in_channels: channels of the pictures.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: str = "xception65",
        output_stride: int | None = None,
        width: int = 256,
        rates: Sequence[int] = (12, 24, 36),
        separable: bool = False,
        low_width: int = 48,
        low_kernel: int = 3,
        project_kernel: int = 1,
        auxiliary: bool = True,
        align_corners: bool = True,
        dropout: float = 0.1,
        in_channels: int = 3,
    ):
        super().__init__(build_backbone(backbone, output_stride, finest=8, in_channels=in_channels))
        if 4 not in self.backbone.strides:
            raise ModelError(
                f"deeplabv3plus needs features at stride 4; backbone {backbone!r} has {self.backbone.strides}"
            )
        self.low_level = self.backbone.strides.index(4)
        *_, middle, last = self.backbone.channels
        conv = SeparableConv if separable else ConvBNReLU
        self.aspp = ASPP(last, width, rates, 0.5 if project_kernel == 1 else 0.0, project_kernel, separable)
        self.low = ConvBNReLU(self.backbone.channels[self.low_level], low_width, low_kernel)
        self.decoder = nn.Sequential(
            conv(width + low_width, width), nn.Dropout(0.0 if separable else 0.5), conv(width, width)
        )
        self.classifier = Classifier(width, num_classes, dropout)
        self.aux = FCNHead(middle, middle // 4, num_classes, dropout) if auxiliary else None
        self.align_corners = align_corners

    def decode(self, features: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Map features to logits: "out" at stride 4, "aux" at its features'."""
        low = self.low(features[self.low_level])
        context = resize(self.aspp(features[-1]), low.shape[-2:], self.align_corners)
        logits = {"out": self.classifier(self.decoder(torch.cat([context, low], 1)))}
        if self.training and self.aux is not None:
            logits["aux"] = self.aux(features[-2])
        return logits
