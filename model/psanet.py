"""PSANet as published in PyTorch: attention over a fixed grid."""

import torch
from torch import nn

from model.backbone import build_backbone
from model.base import SegModel
from model.layer.basic import Classifier, ConvBNReLU, FCNHead
from model.table import ModelError


class PointwiseAttention(nn.Module):
    """Gives each pixel a mean of all, weighted as it says.

    Maps (N,in,H,W) to (N,width,H,W). H * W must be `cells`.
    """

    def __init__(self, in_channels: int, width: int, cells: int):
        super().__init__()
        self.reduce = ConvBNReLU(in_channels, width, 1)
        self.attention = nn.Sequential(ConvBNReLU(width, width, 1), nn.Conv2d(width, cells, 1, bias=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N,in,H,W) to (N,width,H,W)."""
        x = self.reduce(x)
        shares = self.attention(x).flatten(2).softmax(1)
        return (x.flatten(2) @ shares.to(x.dtype)).view_as(x)


class PSANet(SegModel):
    """Point-wise spatial attention network for maps of one size.

    After Zhao et al., "PSANet: Point-wise Spatial Attention Network for Scene Parsing" (ECCV 2018), in the form of
    Tramac/awesome-semantic-segmentation-pytorch, which is not the paper's: the branches "collect" and "distribute" are
    alike, and a pixel weighs the cells of the map, not the offsets from itself. So the map must have as many cells as
    the network was built for: pictures of 480x480 for the published ones.

    Args:
        num_classes: channels of the logits.
        backbone: any name that `build_backbone` knows.
        output_stride: stride of the last features; None takes 8, or the smallest above it that the backbone can have.
        cells: rows times columns of the last features; 3600 are those of 480x480 pixels at output stride 8.
        auxiliary: whether there is an auxiliary head on the features before the last, whose output "aux" is given
            while training.
        dropout: probability of dropping a channel before the last convolution of both heads.
        in_channels: channels of the pictures.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: str = "resnet50_v1s",
        output_stride: int | None = None,
        cells: int = 3600,
        auxiliary: bool = True,
        dropout: float = 0.1,
        in_channels: int = 3,
    ):
        super().__init__(build_backbone(backbone, output_stride, finest=8, in_channels=in_channels))
        *_, middle, last = self.backbone.channels
        width = last // 4
        self.collect = PointwiseAttention(last, width, cells)
        self.distribute = PointwiseAttention(last, width, cells)
        self.expand = ConvBNReLU(2 * width, last, 1)
        self.fuse = ConvBNReLU(2 * last, width)
        self.classifier = Classifier(width, num_classes, dropout)
        self.aux = FCNHead(middle, middle // 4, num_classes, dropout) if auxiliary else None
        self.cells = cells

    def decode(self, features: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Map features to logits at the stride of the features.

        Raises:
            ModelError: the last features have another number of cells than the network was built for.
        """
        last = features[-1]
        height, width = last.shape[-2:]
        if height * width != self.cells:
            raise ModelError(
                f"this PSANet takes features of {self.cells} cells, not {height}x{width}: give it pictures of the size "
                f"that it was built for (augment.crop, test.window), or build it with cells={height * width}"
            )
        context = self.expand(torch.cat([self.collect(last), self.distribute(last)], 1))
        logits = {"out": self.classifier(self.fuse(torch.cat([last, context], 1)))}
        if self.training and self.aux is not None:
            logits["aux"] = self.aux(features[-2])
        return logits
