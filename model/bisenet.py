"""BiSeNet: a shallow path for details beside a backbone for context."""

import torch
from torch import nn

from model.backbone import build_backbone
from model.base import SegModel
from model.layer.basic import ConvBNReLU, FCNHead, relu
from model.layer.bilateral import ContextPath, FeatureFusion


class BiSeNet(SegModel):
    """Bilateral segmentation network.

    Source: Yu et al., "BiSeNet: Bilateral Segmentation Network for Real-time Semantic Segmentation" (ECCV 2018, arXiv
    1808.00897), section 3. The defaults are those of Tramac/awesome-semantic-segmentation-pytorch, which differ from
    the paper in the activations before the sigmoids.

    Args:
        num_classes: channels of the logits.
        backbone: any name that `build_backbone` knows; its last three features are used, of strides 8, 16 and 32.
        width: channels of both paths; their fusion has twice as many.
        gate_relu: whether a ReLU stands before the sigmoid of the refinements, so that their weights are at least 1/2.
        fusion_width: channels inside the fusion's attention; None for one convolution instead of two.
        fusion_relu: whether a ReLU stands before the fusion's sigmoid.
        nearest: whether the context is enlarged by nearest neighbours; else bilinearly with aligned corners.
        head_width: channels inside the head.
        aux_width: channels inside the auxiliary heads.
        auxiliary: whether both maps of the context have heads, whose outputs "aux0" (finer) and "aux1" are given while
            training.
        align_corners: how the logits are enlarged.
        dropout: probability of dropping a channel before the last convolution.
        in_channels: channels of the image.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: str = "torchvision/resnet18",
        width: int = 128,
        gate_relu: bool = True,
        fusion_width: int | None = 64,
        fusion_relu: bool = True,
        nearest: bool = False,
        head_width: int = 64,
        aux_width: int = 256,
        auxiliary: bool = True,
        align_corners: bool = True,
        dropout: float = 0.1,
        in_channels: int = 3,
    ):
        super().__init__(build_backbone(backbone, in_channels=in_channels))
        self.align_corners = align_corners
        narrow, wide = width // 2, 2 * width
        self.spatial = nn.Sequential(
            ConvBNReLU(in_channels, narrow, 7, 2),
            ConvBNReLU(narrow, narrow, 3, 2),
            ConvBNReLU(narrow, narrow, 3, 2),
            ConvBNReLU(narrow, width, 1),
        )
        self.context = ContextPath(self.backbone.channels[-2:], width, nearest, relu if gate_relu else None)
        last = relu if fusion_relu else None
        if fusion_width is None:
            gate = [ConvBNReLU(wide, wide, 1, activation=last)]
        else:
            gate = [ConvBNReLU(wide, fusion_width, 1), ConvBNReLU(fusion_width, wide, 1, activation=last)]
        self.fuse = FeatureFusion(wide, wide, nn.Sequential(*gate))
        self.classifier = FCNHead(wide, head_width, num_classes, dropout)
        self.aux0 = FCNHead(width, aux_width, num_classes, dropout) if auxiliary else None
        self.aux1 = FCNHead(width, aux_width, num_classes, dropout) if auxiliary else None

    def forward_features(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Map (N,in_channels,H,W) to details (N,width,H/8,W/8) and the backbone's last two features."""
        return [self.spatial(x), *self.backbone(x)[-2:]]

    def decode(self, features: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Map details and features to logits (N,num_classes,H/8,W/8).

        The auxiliary output "aux1" has twice the stride.
        """
        detail, *coarse = features
        contexts = self.context(coarse, detail.shape[-2:])
        logits = {"out": self.classifier(self.fuse(detail, contexts[0]))}
        if self.training and self.aux0 is not None and self.aux1 is not None:
            logits |= {"aux0": self.aux0(contexts[0]), "aux1": self.aux1(contexts[1])}
        return logits
