"""DeepLabv3: atrous spatial pyramid pooling on a dilated backbone."""

from collections.abc import Sequence

import torch

from model.backbone import build_backbone
from model.base import SegModel
from model.layer.basic import Classifier, FCNHead
from model.layer.context import ASPP
from model.table import ModelError


class DeepLabV3(SegModel):
    """Atrous spatial pyramid pooling and a 3x3 head.

    Source: Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation" (2017).

    Args:
        num_classes: channels of the logits.
        backbone: any name that `build_backbone` knows.
        output_stride: stride of the last features; None takes 8, or the smallest above it that the backbone can have.
        width: channels of the pyramid's branches and of the head; 512 in MMSegmentation.
        rates: dilations of the pyramid. The paper halves them at output stride 16.
        project_kernel: side of the convolution that joins the branches. 1, and a 3x3 head follows; or 3, which is all
            there is before the classifier, as in MMSegmentation.
        aux_level: place of the features that the auxiliary head reads.
        auxiliary: whether there is an auxiliary head, whose output "aux" is given while training.
        align_corners: how the logits are enlarged; False in torchvision, and in MMSegmentation except where it trains
            on crops of 769.
        dropout: probability of dropping a channel before the last convolution.
        in_channels: channels of the pictures.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: str = "resnet50",
        output_stride: int | None = None,
        width: int = 256,
        rates: Sequence[int] = (12, 24, 36),
        project_kernel: int = 1,
        aux_level: int = -2,
        auxiliary: bool = True,
        align_corners: bool = True,
        dropout: float = 0.1,
        in_channels: int = 3,
    ):
        super().__init__(build_backbone(backbone, output_stride, finest=8, in_channels=in_channels))
        if project_kernel not in (1, 3):
            raise ModelError(f"project_kernel is 1 or 3, not {project_kernel}")
        read = self.backbone.channels[aux_level]
        with_head = project_kernel == 1
        self.aspp = ASPP(
            self.backbone.channels[-1], width, rates, dropout=0.5 if with_head else 0.0, project_kernel=project_kernel
        )
        self.classifier = (
            FCNHead(width, width, num_classes, dropout) if with_head else Classifier(width, num_classes, dropout)
        )
        self.aux = FCNHead(read, read // 4, num_classes, dropout) if auxiliary else None
        self.aux_level, self.align_corners = aux_level, align_corners

    def decode(self, features: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Map features to logits at the stride of the last."""
        logits = {"out": self.classifier(self.aspp(features[-1]))}
        if self.training and self.aux is not None:
            logits["aux"] = self.aux(features[self.aux_level])
        return logits
