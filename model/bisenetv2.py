"""BiSeNet V2: a branch for details and one for meaning, joined."""

import torch
from torch import nn
from torch.nn import functional as F

from model.base import SegModel
from model.layer.basic import ConvBNReLU, FCNHead, classifier, init_weights, resize


class Stem(nn.Module):
    """Convolutions beside a max-pool: (N,in,H,W) -> (N,width,H/4,W/4).

    Source: figure 4 (a) of the paper.
    """

    def __init__(self, in_channels: int, width: int):
        super().__init__()
        self.conv = ConvBNReLU(in_channels, width, 3, 2)
        self.branch = nn.Sequential(ConvBNReLU(width, width // 2, 1), ConvBNReLU(width // 2, width, 3, 2))
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.fuse = ConvBNReLU(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N,in,H,W) to (N,width,H/4,W/4)."""
        x = self.conv(x)
        return self.fuse(torch.cat([self.branch(x), self.pool(x)], 1))


class GatherExpand(nn.Module):
    """Gather-and-expansion layer: (N,in,H,W) -> (N,out,H/stride,W/stride).

    Source: figure 5 (b) and (c) of the paper, expansion 6; with a ReLU behind the last depthwise convolution, which
    both published codes add to it.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1):
        super().__init__()
        width = 6 * in_channels
        self.conv = ConvBNReLU(in_channels, in_channels)
        self.shortcut = None
        if stride == 1:
            depthwise = [ConvBNReLU(in_channels, width, 3, groups=in_channels)]
        else:
            depthwise = [
                ConvBNReLU(in_channels, width, 3, stride, groups=in_channels, activation=None),
                ConvBNReLU(width, width, 3, groups=width),
            ]
            self.shortcut = nn.Sequential(
                ConvBNReLU(in_channels, in_channels, 3, stride, groups=in_channels, activation=None),
                ConvBNReLU(in_channels, out_channels, 1, activation=None),
            )
        self.depthwise = nn.Sequential(*depthwise)
        self.project = ConvBNReLU(width, out_channels, 1, activation=None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N,in,H,W) to (N,out,H/stride,W/stride)."""
        y = self.project(self.depthwise(self.conv(x)))
        return F.relu(y + (x if self.shortcut is None else self.shortcut(x)), inplace=True)


class ContextEmbedding(nn.Module):
    """Mean over the map, added to each pixel.

    (N,C,H,W) -> (N,C,H,W). Source: figure 4 (b) of the paper; with norm and ReLU behind the last convolution, as in
    both published codes.
    """

    smallest_train_batch = 2

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.mean = ConvBNReLU(channels, channels, 1)
        self.last = ConvBNReLU(channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N,C,H,W) to (N,C,H,W)."""
        return self.last(x + self.mean(self.norm(x.mean((2, 3), keepdim=True))))


class GuidedAggregation(nn.Module):
    """Bilateral guided aggregation: details (N,C,H,W) and meaning (N,C,H/4,W/4) -> (N,C,H,W).

    Source: figure 6 of the paper. `nearest`: whether maps are enlarged by nearest neighbours, or bilinearly.
    """

    def __init__(self, channels: int, nearest: bool):
        super().__init__()
        self.detail_keep, self.semantic_keep = (
            nn.Sequential(
                ConvBNReLU(channels, channels, 3, groups=channels, activation=None),
                nn.Conv2d(channels, channels, 1).apply(init_weights),
            )
            for _ in range(2)
        )
        self.detail_down = nn.Sequential(ConvBNReLU(channels, channels, 3, 2, activation=None), nn.AvgPool2d(3, 2, 1))
        self.semantic_up = ConvBNReLU(channels, channels, activation=None)
        self.join = ConvBNReLU(channels, channels)
        self.nearest = nearest

    def enlarge(self, x: torch.Tensor, size: torch.Size) -> torch.Tensor:
        return F.interpolate(x, size, mode="nearest") if self.nearest else resize(x, size, False)

    def forward(self, detail: torch.Tensor, semantic: torch.Tensor) -> torch.Tensor:
        """Map details (N,C,H,W) and meaning (N,C,H/4,W/4) to (N,C,H,W)."""
        size = detail.shape[-2:]
        fine = self.detail_keep(detail) * torch.sigmoid(self.enlarge(self.semantic_up(semantic), size))
        coarse = self.detail_down(detail) * torch.sigmoid(self.semantic_keep(semantic))
        return self.join(fine + self.enlarge(coarse, size))


class BiSeNetV2(SegModel):
    """BiSeNet V2.

    Source: Yu et al., "BiSeNet V2: Bilateral Network with Guided Aggregation for Real-time Semantic Segmentation" (IJCV
    2021, arXiv 2004.02147), table 1. The defaults are those of CoinCheung/BiSeNet.

    Args:
        num_classes: channels of the logits.
        nearest: whether the aggregation enlarges by nearest neighbours; bilinearly in MMSegmentation.
        auxiliary: whether the stages of the semantic branch have heads, whose outputs "aux0" (stride 4) to "aux3"
            (stride 32) are given while training.
        enlarging_heads: whether these double the size between their two convolutions; else the first has as many
            channels as the second, as in MMSegmentation.
        align_corners: how the logits are enlarged.
        dropout: probability of dropping a channel before the last convolution.
        in_channels: channels of the image.
    """

    def __init__(
        self,
        num_classes: int,
        nearest: bool = True,
        auxiliary: bool = True,
        enlarging_heads: bool = True,
        align_corners: bool = False,
        dropout: float = 0.1,
        in_channels: int = 3,
    ):
        super().__init__()
        self.align_corners = align_corners
        self.detail = nn.Sequential(
            nn.Sequential(ConvBNReLU(in_channels, 64, 3, 2), ConvBNReLU(64, 64)),
            nn.Sequential(ConvBNReLU(64, 64, 3, 2), ConvBNReLU(64, 64), ConvBNReLU(64, 64)),
            nn.Sequential(ConvBNReLU(64, 128, 3, 2), ConvBNReLU(128, 128), ConvBNReLU(128, 128)),
        )
        self.semantic = nn.ModuleList([Stem(in_channels, 16)])
        for before, width, depth in ((16, 32, 2), (32, 64, 2), (64, 128, 4)):
            layers = [GatherExpand(before, width, 2), *(GatherExpand(width, width) for _ in range(1, depth))]
            self.semantic.append(nn.Sequential(*layers))
        self.embed = ContextEmbedding(128)
        self.aggregate = GuidedAggregation(128, nearest)
        self.classifier = FCNHead(128, 1024, num_classes, dropout)
        heads = []
        for channels, stride in ((16, 4), (32, 8), (64, 16), (128, 32)):
            width = 128 if enlarging_heads else stride**2
            between = [nn.Dropout(dropout), nn.Upsample(scale_factor=2)] if enlarging_heads else []
            after = [] if enlarging_heads else [nn.Dropout2d(dropout)]
            heads.append(
                nn.Sequential(
                    ConvBNReLU(channels, width),
                    *between,
                    ConvBNReLU(width, stride**2),
                    *after,
                    classifier(stride**2, num_classes),
                )
            )
        self.aux = nn.ModuleList(heads) if auxiliary else None

    def forward_features(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Map (N,in_channels,H,W) to joined features and semantic ones.

        (N,128,H/8,W/8), and the maps of the four stages of the semantic branch.
        """
        detail, stages = self.detail(x), []
        for stage in self.semantic:
            x = stage(x)
            stages.append(x)
        return [self.aggregate(detail, self.embed(x)), *stages]

    def decode(self, features: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Map the features to logits (N,num_classes,H/8,W/8).

        The auxiliary ones have strides of their own.
        """
        joined, *stages = features
        logits = {"out": self.classifier(joined)}
        if self.training and self.aux is not None:
            logits |= {f"aux{i}": head(x) for i, (head, x) in enumerate(zip(self.aux, stages, strict=True))}
        return logits
