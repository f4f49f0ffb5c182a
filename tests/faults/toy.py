"""A network so small that a run takes a second, with all that has a state: batch norm, dropout, two parts."""

import torch
from torch import nn

from model.base import SegModel


class Toy(SegModel):
    """Two convolutions at a quarter of the size."""

    def __init__(self, num_classes: int, backbone: str | None = None, dropout: float = 0.2):
        super().__init__(nn.Sequential(nn.Conv2d(3, 8, 5, 4, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout2d(dropout)))
        self.head = nn.Sequential(
            nn.Conv2d(8, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(dropout), nn.Conv2d(8, num_classes, 1)
        )

    def forward_features(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [self.backbone(x)]

    def decode(self, features: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"out": self.head(features[-1])}
