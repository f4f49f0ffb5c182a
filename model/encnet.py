"""EncNet: channels weighted by the codewords that an image holds.

The dictionary of codewords is learned.
"""

import torch
from torch import nn
from torch.nn import functional as F

from model.backbone import build_backbone
from model.base import SegModel
from model.layer.basic import Classifier, ConvBNReLU, FCNHead


class Encoding(nn.Module):
    """Residual encoding of a map's pixels by learned codewords: (N,width,H,W) -> (N,codewords,width).

    Source: Zhang et al., "Deep TEN: Texture Encoding Network" (CVPR 2017), equations 1 and 2: each pixel is assigned
    to the codewords by the softmax of scale times the squared distance, and each codeword gets the weighted sum of the
    pixels' residuals. The scales are negative, so that the nearest codeword has the largest share, unless
    `squared_scale` squares them: then the farthest has.
    """

    def __init__(self, width: int, codewords: int, squared_scale: bool = False):
        super().__init__()
        bound = (codewords * width) ** -0.5
        self.codewords = nn.Parameter(torch.empty(codewords, width).uniform_(-bound, bound))
        self.scale = nn.Parameter(torch.empty(codewords).uniform_(-1, 0))
        self.squared_scale = squared_scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N,width,H,W) to (N,codewords,width), in float32 whatever the precision of `x` is."""
        with torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False):  # meta has no autocast
            pixels = x.flatten(2).transpose(1, 2).to(self.codewords.dtype)
            squares = pixels.square().sum(2, keepdim=True) + self.codewords.square().sum(1)
            distances = squares - 2 * pixels @ self.codewords.T
            scale = self.scale.square() if self.squared_scale else self.scale
            shares = (scale * distances).softmax(2).transpose(1, 2)
            return shares @ pixels - shares.sum(2, keepdim=True) * self.codewords


class EncNet(SegModel):
    """Context encoding network.

    Source: Zhang et al., "Context Encoding for Semantic Segmentation" (CVPR 2018), sections 2 and 3.

    Args:
        num_classes: channels of the logits.
        backbone: any name that `build_backbone` knows.
        output_stride: stride of the last features; None takes 8, or the smallest above it that the backbone can have.
        codewords: entries of the dictionary.
        squared_scale: see `Encoding`; True in Tramac/awesome-semantic-segmentation-pytorch, against the paper.
        semantic_encoding: whether the classes that a picture holds are predicted, whose output "se" (N,num_classes) is
            given while training.
        auxiliary: whether there is an auxiliary head on the features before the last, whose output "aux" is given
            while training.
        align_corners: how the logits are enlarged; False in MMSegmentation.
        dropout: probability of dropping a channel before the last convolution.
        in_channels: channels of the pictures.
    """

    raw_outputs = ("se",)

    def __init__(
        self,
        num_classes: int,
        backbone: str = "resnet50_v1s",
        output_stride: int | None = None,
        codewords: int = 32,
        squared_scale: bool = False,
        semantic_encoding: bool = True,
        auxiliary: bool = True,
        align_corners: bool = True,
        dropout: float = 0.1,
        in_channels: int = 3,
    ):
        super().__init__(build_backbone(backbone, output_stride, finest=8, in_channels=in_channels))
        *_, middle, last = self.backbone.channels
        width = last // 4
        self.reduce = ConvBNReLU(last, width)
        self.project = ConvBNReLU(width, width, 1)
        self.encoding = Encoding(width, codewords, squared_scale)
        self.norm = nn.BatchNorm1d(codewords)
        self.gate = nn.Linear(width, width)
        self.se = nn.Linear(width, num_classes) if semantic_encoding else None
        self.classifier = Classifier(width, num_classes, dropout)
        self.aux = FCNHead(middle, middle // 4, num_classes, dropout) if auxiliary else None
        self.align_corners = align_corners

    def decode(self, features: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Map features to logits at their stride, and "se" (N,num_classes)."""
        x = self.reduce(features[-1])
        encoded = F.relu(self.norm(self.encoding(self.project(x)))).mean(1)
        gate = torch.sigmoid(self.gate(encoded))[..., None, None]
        logits = {"out": self.classifier(F.relu(x + x * gate))}
        if self.training and self.se is not None:
            logits["se"] = self.se(encoded)
        if self.training and self.aux is not None:
            logits["aux"] = self.aux(features[-2])
        return logits
