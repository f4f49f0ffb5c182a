"""SegFormer: a hierarchical transformer, and a head of 1x1 convolutions alone."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from model.backbone import build_backbone
from model.base import SegModel
from model.layer.basic import ConvBNReLU, classifier, resize

# Published widths of the head; 768 on the larger ones.
WIDTHS = {"mit_b0": 256, "mit_b1": 256}


class SegFormer(SegModel):
    """All levels projected to one width, resized to the finest, and fused.

    Source: Xie et al., "SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers" (NeurIPS
    2021), section 3.2.

    Args:
        num_classes: channels of the logits.
        backbone: `mit_b0` to `mit_b5`, or any name that `build_backbone` knows; its levels of stride 4 or more are
            used.
        width: channels of the head. None takes the published one: 256 on `mit_b0` and `mit_b1`, else 768.
        project_norm: whether norm and ReLU follow the projection of each level, as in MMSegmentation; the published
            code has neither.
        norm_eps: those of the backbone, see `model.backbone.mit.MixTransformer`; of no meaning to any other.
        dropout: probability of dropping a channel before the last convolution.
        in_channels: channels of the pictures.
    """

    align_corners = False

    def __init__(
        self,
        num_classes: int,
        backbone: str = "mit_b0",
        width: int | None = None,
        project_norm: bool = False,
        norm_eps: Sequence[float] = (1e-5, 1e-6),
        dropout: float = 0.1,
        in_channels: int = 3,
    ):
        options: dict[str, Any] = {"norm_eps": norm_eps} if backbone.startswith("mit_") else {}
        super().__init__(build_backbone(backbone, in_channels=in_channels, **options))
        self.levels = [level for level, stride in enumerate(self.backbone.strides) if stride >= 4]
        width = WIDTHS.get(backbone, 768) if width is None else width
        project = ConvBNReLU if project_norm else nn.Conv2d
        self.project = nn.ModuleList(project(self.backbone.channels[level], width, 1) for level in self.levels)
        self.fuse = ConvBNReLU(width * len(self.levels), width, 1)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = classifier(width, num_classes)

    def decode(self, features: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Map features to logits at the finest level's stride."""
        maps = [project(features[level]) for project, level in zip(self.project, self.levels, strict=True)]
        size = maps[0].shape[-2:]
        fused = self.fuse(torch.cat([resize(level, size, align_corners=False) for level in maps], 1))
        return {"out": self.classifier(self.dropout(fused))}
