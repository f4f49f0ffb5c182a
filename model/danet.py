"""DANet: attention between pixels beside attention between channels."""

import torch
from torch import nn

from model.backbone import build_backbone
from model.base import SegModel
from model.layer.attention import attend
from model.layer.basic import Classifier, ConvBNReLU, FCNHead


class PositionAttention(nn.Module):
    """Each pixel is joined by those like it: (N,width,H,W) -> (N,width,H,W).

    Source: Fu et al., DANet, section 3.2: weight * attention + input, the weight being 0 at first.
    """

    def __init__(self, width: int):
        super().__init__()
        self.query = nn.Conv2d(width, width // 8, 1)
        self.key = nn.Conv2d(width, width // 8, 1)
        self.value = nn.Conv2d(width, width, 1)
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N,width,H,W) to the same shape."""
        return self.weight * attend(self.query(x), self.key(x), self.value(x)) + x


class ChannelAttention(nn.Module):
    """Each channel is joined by those unlike it: (N,width,H,W) -> (N,width,H,W).

    Source: Fu et al., DANet, section 3.3, as published: the products of the channels are subtracted from the largest
    of their row before the softmax, which turns their order round.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N,width,H,W) to the same shape."""
        rows = x.flatten(2)
        products = rows @ rows.transpose(1, 2)
        shares = (products.amax(2, keepdim=True) - products).softmax(2).to(rows.dtype)
        return self.weight * (shares @ rows).view_as(x) + x


class DANet(SegModel):
    """Dual attention network.

    Source: Fu et al., "Dual Attention Network for Scene Segmentation" (CVPR 2019), sections 3 and 4.1.

    Args:
        num_classes: channels of the logits.
        backbone: any name that `build_backbone` knows.
        output_stride: stride of the last features; None takes 8, or the smallest above it that the backbone can have.
        auxiliary: whether each branch has a classifier of its own, whose outputs "position" and "channel" are given
            while training.
        deep_supervision: whether there is a head on the features before the last as well, as in MMSegmentation, whose
            output "aux" is given while training.
        align_corners: how the logits are enlarged; False in MMSegmentation, except where it trains on crops of 769.
        dropout: probability of dropping a channel before the last convolutions.
        in_channels: channels of the pictures.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: str = "resnet50_v1s",
        output_stride: int | None = None,
        auxiliary: bool = True,
        deep_supervision: bool = False,
        align_corners: bool = True,
        dropout: float = 0.1,
        in_channels: int = 3,
    ):
        super().__init__(build_backbone(backbone, output_stride, finest=8, in_channels=in_channels))
        *_, middle, last = self.backbone.channels
        width = last // 4
        self.position_in, self.position_out = ConvBNReLU(last, width), ConvBNReLU(width, width)
        self.position = PositionAttention(width)
        self.channel_in, self.channel_out = ConvBNReLU(last, width), ConvBNReLU(width, width)
        self.channel = ChannelAttention()
        self.classifier = Classifier(width, num_classes, dropout)
        self.position_classifier = Classifier(width, num_classes, dropout) if auxiliary else None
        self.channel_classifier = Classifier(width, num_classes, dropout) if auxiliary else None
        self.aux = FCNHead(middle, middle // 4, num_classes, dropout) if deep_supervision else None
        self.align_corners = align_corners

    def decode(self, features: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Map features to logits at the stride of the features."""
        position = self.position_out(self.position(self.position_in(features[-1])))
        channel = self.channel_out(self.channel(self.channel_in(features[-1])))
        logits = {"out": self.classifier(position + channel)}
        if self.training and self.position_classifier is not None and self.channel_classifier is not None:
            logits["position"] = self.position_classifier(position)
            logits["channel"] = self.channel_classifier(channel)
        if self.training and self.aux is not None:
            logits["aux"] = self.aux(features[-2])
        return logits
