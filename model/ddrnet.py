"""DDRNet: a detailed and a coarse branch that exchange their features twice."""

import torch
from torch import nn
from torch.nn import functional as F

from model.base import SegModel
from model.layer.basic import ConvBNReLU, resize
from model.layer.branch import DAPPM, Bottleneck, PreactivationHead, basic_stage, stem
from model.table import ModelError, unknown

# Size -> width of the first layers, of the heads.
SIZES = {"23_slim": (32, 64), "23": (64, 128)}


class DDRNet(SegModel):
    """Deep dual-resolution network.

    Source: Hong et al., "Deep Dual-resolution Networks for Real-time and Accurate Semantic Segmentation of Road Scenes"
    (2021, arXiv 2101.06085), table 1. Every resize has align_corners False, the last one too.

    Args:
        num_classes: channels of the logits.
        size: "23_slim" or "23".
        auxiliary: whether the detailed branch has a head behind its first exchange, whose output "aux" is given while
            training.
        in_channels: channels of the image.

    Raises:
        ModelError: for another size.
    """

    align_corners = False

    def __init__(self, num_classes: int, size: str = "23_slim", auxiliary: bool = True, in_channels: int = 3):
        super().__init__()
        if size not in SIZES:
            raise ModelError(unknown("size of ddrnet", size, SIZES))
        width, head_width = SIZES[size]
        fine = 2 * width
        self.stem = stem(in_channels, width, 2)
        self.context = nn.ModuleList(
            [
                basic_stage(2 * width, 4 * width, 2, 2),
                basic_stage(4 * width, 8 * width, 2, 2),
                nn.Sequential(Bottleneck(8 * width, 8 * width, 2)),
            ]
        )
        self.detail = nn.ModuleList(
            [basic_stage(fine, fine, 2), basic_stage(fine, fine, 2), nn.Sequential(Bottleneck(fine, fine))]
        )
        self.compress = nn.ModuleList(ConvBNReLU(k * width, fine, 1, activation=None) for k in (4, 8))
        self.down = nn.ModuleList(
            [
                nn.Sequential(ConvBNReLU(fine, 4 * width, 3, 2, activation=None)),
                nn.Sequential(
                    ConvBNReLU(fine, 4 * width, 3, 2), ConvBNReLU(4 * width, 8 * width, 3, 2, activation=None)
                ),
            ]
        )
        self.pyramid = DAPPM(16 * width, 128, 4 * width)
        self.classifier = PreactivationHead(4 * width, head_width, num_classes)
        self.aux = PreactivationHead(fine, head_width, num_classes) if auxiliary else None

    def forward_features(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Map (N,in_channels,H,W) to the joined features (N,4*width,H/8,W/8) and the early detailed (N,2*width,...)."""
        coarse = fine = self.stem(x)
        early = []
        for stage in range(2):
            coarse, fine = self.context[stage](F.relu(coarse)), self.detail[stage](F.relu(fine))
            # Both exchanges read what the branches had before either was added to.
            to_fine = resize(self.compress[stage](F.relu(coarse)), fine.shape[-2:], False)
            coarse, fine = coarse + self.down[stage](F.relu(fine)), fine + to_fine
            early.append(fine)
        fine = self.detail[2](F.relu(fine))
        coarse = self.pyramid(self.context[2](F.relu(coarse)))
        return [fine + resize(coarse, fine.shape[-2:], False), early[0]]

    def decode(self, features: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Map the joined and the early detailed features to logits (N,num_classes,H/8,W/8)."""
        joined, early = features
        logits = {"out": self.classifier(joined)}
        if self.training and self.aux is not None:
            logits["aux"] = self.aux(early)
        return logits
