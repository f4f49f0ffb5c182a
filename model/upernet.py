"""UPerNet: a feature pyramid under pyramid pooling."""

from collections.abc import Sequence

import torch
from torch import nn

from model.backbone import build_backbone
from model.base import SegModel
from model.layer.basic import Classifier, ConvBNReLU, FCNHead, resize
from model.layer.context import PPM
from model.table import ModelError


class UPerNet(SegModel):
    """Pyramid pooling and a feature pyramid, all levels fused.

    The pooling works on the last features, the pyramid goes down to stride 4.

    Source: Xiao et al., "Unified Perceptual Parsing for Scene Understanding" (ECCV 2018), section 3, of which this is
    the part for one kind of labels.

    Args:
        num_classes: channels of the logits.
        backbone: any name that `build_backbone` knows; its levels of stride 4 or more are used.
        width: channels of the pyramid.
        bins: cells per side of the pooled maps.
        aux_width: channels of the auxiliary head.
        auxiliary: whether there is an auxiliary head on the features before the last, whose output "aux" is given
            while training.
        align_corners: how maps are enlarged.
        dropout: probability of dropping a channel before the last convolution.
        in_channels: channels of the pictures.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: str = "resnet50_v1c",
        width: int = 512,
        bins: Sequence[int] = (1, 2, 3, 6),
        aux_width: int = 256,
        auxiliary: bool = True,
        align_corners: bool = False,
        dropout: float = 0.1,
        in_channels: int = 3,
    ):
        super().__init__(build_backbone(backbone, in_channels=in_channels))
        self.levels = [level for level, stride in enumerate(self.backbone.strides) if stride >= 4]
        if len(self.levels) < 2:
            raise ModelError(
                f"upernet needs two features of stride 4 or more; backbone {backbone!r} has {self.backbone.strides}"
            )
        *finer, last = (self.backbone.channels[level] for level in self.levels)
        self.ppm = PPM(last, width, bins, align_corners)
        self.context = ConvBNReLU(last + width * len(bins), width)
        self.lateral = nn.ModuleList(ConvBNReLU(channels, width, 1) for channels in finer)
        self.smooth = nn.ModuleList(ConvBNReLU(width, width) for _ in finer)
        self.fuse = ConvBNReLU(width * len(self.levels), width)
        self.classifier = Classifier(width, num_classes, dropout)
        self.aux = FCNHead(finer[-1], aux_width, num_classes, dropout) if auxiliary else None
        self.align_corners = align_corners

    def decode(self, features: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Map features to logits: "out" at stride 4, "aux" while training."""
        features = [features[level] for level in self.levels]
        x = self.context(self.ppm(features[-1]))
        maps = [x]
        for level in reversed(range(len(self.lateral))):
            lateral = self.lateral[level](features[level])
            x = lateral + resize(x, lateral.shape[-2:], self.align_corners)
            maps.insert(0, self.smooth[level](x))
        size = maps[0].shape[-2:]
        joined = torch.cat([maps[0], *(resize(y, size, self.align_corners) for y in maps[1:])], 1)
        logits = {"out": self.classifier(self.fuse(joined))}
        if self.training and self.aux is not None:
            logits["aux"] = self.aux(features[-2])
        return logits
