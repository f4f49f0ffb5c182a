"""PSPNet: pyramid pooling on a dilated backbone."""

from collections.abc import Sequence

import torch

from model.backbone import build_backbone
from model.backbone.base import Backbone
from model.base import SegModel
from model.layer.basic import FCNHead
from model.layer.context import JPU, PPM
from model.table import ModelError


class PSPNet(SegModel):
    """Pyramid scene parsing network.

    Source: Zhao et al., "Pyramid Scene Parsing Network" (CVPR 2017). Widths follow from the backbone as in
    the published network: every bin gets an equal share of the features' channels, the head a quarter of
    them. The published code wants sides of 8k+1 pixels; here any size works, and at those sizes the logits
    are the same.

    Args:
        num_classes: channels of the logits.
        backbone: any name that `build_backbone` knows.
        output_stride: stride of the last features; None takes 8, or the smallest above it that the backbone can have.
        jpu: whether joint pyramid upsampling stands for the dilated last features, as in FastFCN; the backbone then
            keeps all its strides, and must have features at the strides 8, 16 and 32.
        bins: cells per side of the pooled maps.
        auxiliary: whether there is an auxiliary head, whose output "aux" is given while training.
        align_corners: how maps are enlarged; False in MMSegmentation, except where it trains on crops of 769.
        dropout: probability of dropping a channel before the last convolution.
        in_channels: channels of the pictures.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: str = "resnet50",
        output_stride: int | None = None,
        jpu: bool = False,
        bins: Sequence[int] = (1, 2, 3, 6),
        auxiliary: bool = True,
        align_corners: bool = True,
        dropout: float = 0.1,
        in_channels: int = 3,
    ):
        if jpu and output_stride not in (None, 8):
            raise ModelError(f"jpu=True gives features at stride 8: leave output_stride out, not {output_stride}")
        super().__init__(build_backbone(backbone, 32 if jpu else output_stride, finest=8, in_channels=in_channels))
        *_, middle, last = self.backbone.channels
        width = last // len(bins)
        self.jpu = _build_jpu(backbone, self.backbone, last // 4) if jpu else None
        wide = last if self.jpu is None else 4 * (last // 4)
        self.ppm = PPM(wide, width, bins, align_corners)
        self.classifier = FCNHead(wide + width * len(bins), last // 4, num_classes, dropout)
        self.aux = FCNHead(middle, middle // 4, num_classes, dropout) if auxiliary else None
        self.align_corners = align_corners

    def decode(self, features: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Map features to logits at the stride of the features."""
        last = features[-1] if self.jpu is None else self.jpu(features[-3:])
        logits = {"out": self.classifier(self.ppm(last))}
        if self.training and self.aux is not None:
            logits["aux"] = self.aux(features[-2])
        return logits


def _build_jpu(name: str, backbone: Backbone, width: int) -> JPU:
    if backbone.strides[-3:] != [8, 16, 32]:
        raise ModelError(
            f"jpu=True needs features at the strides 8, 16 and 32; backbone {name!r} has {backbone.strides}"
        )
    return JPU(backbone.channels[-3:], width)
