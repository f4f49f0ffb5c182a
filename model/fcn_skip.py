"""FCN-32s, FCN-16s and FCN-8s: logits of several strides, added."""

import torch
from torch import nn

from model.backbone import build_backbone
from model.base import SegModel
from model.layer.basic import FCNHead, resize
from model.table import ModelError


class FCN32s(SegModel):
    """Fully convolutional network whose coarsest scores are enlarged at once.

    Source: Long et al., "Fully Convolutional Networks for Semantic Segmentation" (CVPR 2015), in the form that is
    published in PyTorch: a 3x3 head in place of the two 4096-wide layers, bilinear enlarging that is not learned, and
    an auxiliary head on the same features as the main one.

    Args:
        num_classes: channels of the logits.
        backbone: any name that `build_backbone` knows; its last features are scored, and one or two before them.
        auxiliary: whether there is an auxiliary head on the last features, whose output "aux" is given while training.
        dropout: probability of dropping a channel before the last convolution of both heads.
        in_channels: channels of the pictures.
    """

    skips = 0  # finer levels whose scores are added

    def __init__(
        self,
        num_classes: int,
        backbone: str = "vgg16",
        auxiliary: bool = True,
        dropout: float = 0.1,
        in_channels: int = 3,
    ):
        super().__init__(build_backbone(backbone, in_channels=in_channels))
        last = self.backbone.channels[-1]
        if len(self.backbone.channels) <= self.skips:
            raise ModelError(f"{type(self).__name__} needs {self.skips + 1} features; backbone {backbone!r} has fewer")
        self.classifier = FCNHead(last, last // 4, num_classes, dropout)
        finer = self.backbone.channels[-2 : -2 - self.skips : -1]
        self.scores = nn.ModuleList(nn.Conv2d(channels, num_classes, 1) for channels in finer)
        self.aux = FCNHead(last, last // 4, num_classes, dropout) if auxiliary else None

    def decode(self, features: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Map features to logits at the finest stride that is scored."""
        logits = self.classifier(features[-1])
        for score, feature in zip(self.scores, reversed(features[:-1]), strict=False):
            finer = score(feature)
            logits = resize(logits, finer.shape[-2:]) + finer
        outputs = {"out": logits}
        if self.training and self.aux is not None:
            outputs["aux"] = self.aux(features[-1])
        return outputs


class FCN16s(FCN32s):
    """FCN-32s with the scores of the features before the last."""

    skips = 1


class FCN8s(FCN32s):
    """FCN-32s with the scores of the two features before the last."""

    skips = 2
