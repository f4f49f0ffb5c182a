"""ANN: attention to a pyramid of pooled pixels."""

import torch
from torch import nn

from model.backbone import build_backbone
from model.base import SegModel
from model.layer.attention import attend
from model.layer.basic import Classifier, ConvBNReLU, FCNHead

BINS = (1, 3, 6, 8)  # cells a side of the pooled maps: 110 in all


class CellRow(nn.Module):
    """All cells of the pooled maps in one row: (N,C,H,W) -> (N,C,1,110)."""

    def __init__(self):
        super().__init__()
        self.pools = nn.ModuleList(nn.AdaptiveAvgPool2d(size) for size in BINS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N,C,H,W) to (N,C,1,110)."""
        return torch.cat([pool(x).flatten(2) for pool in self.pools], 2)[:, :, None]


class PooledAttention(nn.Module):
    """Attention of every pixel to the pooled pixels of another map.

    Maps (N,query,H,W) and (N,key,h,w) to (N,query,H,W).

    Source: Zhu et al., ANN, section 3.2. Without `query_channels` the two maps are one, and its queries its keys.
    """

    def __init__(self, key_channels: int, width: int, query_channels: int | None = None):
        super().__init__()
        self.key = ConvBNReLU(key_channels, width, 1)
        self.query = None if query_channels is None else ConvBNReLU(query_channels, width, 1)
        self.value = nn.Conv2d(key_channels, width, 1)
        self.project = nn.Conv2d(width, key_channels if query_channels is None else query_channels, 1)
        for parameter in self.project.parameters():
            nn.init.zeros_(parameter)
        self.cells = CellRow()
        self.scale = width**-0.5

    def forward(self, queried: torch.Tensor, keyed: torch.Tensor) -> torch.Tensor:
        """Map (N,query,H,W) and (N,key,h,w) to (N,query,H,W)."""
        keys = self.key(keyed)
        queries = keys if self.query is None else self.query(queried)
        mean = attend(queries, self.cells(keys), self.cells(self.value(keyed)), self.scale)
        return self.project(mean)


class ANN(SegModel):
    """Asymmetric non-local network.

    Source: Zhu et al., "Asymmetric Non-local Neural Networks for Semantic Segmentation" (ICCV 2019), figure 5: the
    last features attend to those before them (fusion), and the result to itself (context).

    Args:
        num_classes: channels of the logits.
        backbone: any name that `build_backbone` knows.
        output_stride: stride of the last features; None takes 8, or the smallest above it that the backbone can have.
        key_width: channels of queries, keys and values.
        auxiliary: whether there is an auxiliary head on the features before the last, whose output "aux" is given
            while training.
        align_corners: how the logits are enlarged; False in MMSegmentation, except where it trains on crops of 769.
        dropout: probability of dropping a channel after the fusion and before the last convolution.
        in_channels: channels of the pictures.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: str = "resnet50_v1c",
        output_stride: int | None = None,
        key_width: int = 256,
        auxiliary: bool = True,
        align_corners: bool = False,
        dropout: float = 0.1,
        in_channels: int = 3,
    ):
        super().__init__(build_backbone(backbone, output_stride, finest=8, in_channels=in_channels))
        *_, middle, last = self.backbone.channels
        width = last // 4
        self.fusion = PooledAttention(middle, key_width, last)
        self.fuse = ConvBNReLU(2 * last, last, 1, activation=None)
        self.dropout = nn.Dropout2d(dropout)
        self.reduce = ConvBNReLU(last, width)
        self.context = PooledAttention(width, key_width)
        self.join = ConvBNReLU(2 * width, width, 1)
        self.classifier = Classifier(width, num_classes, dropout)
        self.aux = FCNHead(middle, middle // 4, num_classes, dropout) if auxiliary else None
        self.align_corners = align_corners

    def decode(self, features: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Map features to logits at the stride of the last."""
        middle, last = features[-2:]
        fused = self.fuse(torch.cat([self.fusion(last, middle), last], 1))
        x = self.reduce(self.dropout(fused))
        logits = {"out": self.classifier(self.join(torch.cat([self.context(x, x), x], 1)))}
        if self.training and self.aux is not None:
            logits["aux"] = self.aux(middle)
        return logits
