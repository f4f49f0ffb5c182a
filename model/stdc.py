"""STDC-Seg: BiSeNet whose backbone is taught to keep details."""

import torch
from torch import nn

from model.backbone import build_backbone
from model.base import SegModel
from model.layer.basic import FCNHead, init_weights, relu
from model.layer.bilateral import ContextPath, FeatureFusion


class STDCSeg(SegModel):
    """STDC-Seg.

    Source: Fan et al., "Rethinking BiSeNet For Real-time Semantic Segmentation" (CVPR 2021, arXiv 2104.13188), section
    3.2 and figure 4.

    Args:
        num_classes: channels of the logits.
        backbone: `stdc1`, `stdc2`, or any name that `build_backbone` knows; its last three features are used, of
            strides 8, 16 and 32.
        auxiliary: whether both maps of the context have heads, whose outputs "aux0" (finer) and "aux1" are given while
            training.
        detail: whether the finest features used have a head, whose output "detail" (N,detail_channels,H/8,W/8) is given
            while training.
        detail_channels: 1, the logit of a detail; or 2, those of none and of one, as in MMSegmentation.
        align_corners: how the logits are enlarged.
        dropout: probability of dropping a channel before the last convolution; none in the authors' code.
        in_channels: channels of the image.
    """

    raw_outputs = ("detail",)

    def __init__(
        self,
        num_classes: int,
        backbone: str = "stdc1",
        auxiliary: bool = True,
        detail: bool = True,
        detail_channels: int = 1,
        align_corners: bool = True,
        dropout: float = 0.0,
        in_channels: int = 3,
    ):
        super().__init__(build_backbone(backbone, in_channels=in_channels))
        self.align_corners = align_corners
        fine, *coarse = self.backbone.channels[-3:]
        self.context = ContextPath(coarse)
        gate = nn.Sequential(nn.Conv2d(256, 64, 1, bias=False), relu(), nn.Conv2d(64, 256, 1, bias=False))
        self.fuse = FeatureFusion(fine + 128, 256, gate.apply(init_weights))
        self.classifier = FCNHead(256, 256, num_classes, dropout)
        self.aux0 = FCNHead(128, 64, num_classes, dropout) if auxiliary else None
        self.aux1 = FCNHead(128, 64, num_classes, dropout) if auxiliary else None
        self.detail = FCNHead(fine, 64, detail_channels, dropout) if detail else None

    def decode(self, features: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Map features to logits (N,num_classes,H/8,W/8).

        The auxiliary output "aux1" has twice the stride.
        """
        fine, *coarse = features[-3:]
        contexts = self.context(coarse, fine.shape[-2:])
        logits = {"out": self.classifier(self.fuse(fine, contexts[0]))}
        if self.training and self.aux0 is not None and self.aux1 is not None:
            logits |= {"aux0": self.aux0(contexts[0]), "aux1": self.aux1(contexts[1])}
        if self.training and self.detail is not None:
            logits["detail"] = self.detail(fine)
        return logits
