"""DUNet: logits enlarged by a learned linear map of each pixel."""

import torch
from torch import nn

from model.backbone import build_backbone
from model.base import SegModel
from model.layer.basic import ConvBNReLU, FCNHead, resize
from model.table import ModelError


class DUpsampling(nn.Sequential):
    """Turns each pixel into a block of scale x scale logits.

    Maps (N,in,H,W) to (N,num_classes,scale*H,scale*W).

    Source: Tian et al., DUNet, section 3.1.
    """

    def __init__(self, in_channels: int, num_classes: int, scale: int):
        spread = nn.Conv2d(in_channels, num_classes * scale**2, 1, bias=False)
        super().__init__(spread, nn.PixelShuffle(scale))
        nn.init.normal_(spread.weight, std=0.01)


class DUNet(SegModel):
    """Features of three levels, fused at the coarsest, and data-dependent upsampling.

    Source: Tian et al., "Decoders Matter for Semantic Segmentation: Data-Dependent Decoding Enables Flexible Feature
    Aggregation" (CVPR 2019), as published in PyTorch: the map of a pixel to its block is learned with all the rest, and
    the softmax has no temperature. What exceeds a picture whose sides are no multiples of the output stride is cut off.

    Args:
        num_classes: channels of the logits.
        backbone: any name that `build_backbone` knows with at least three features.
        output_stride: stride of the last features; None takes 8, or the smallest above it that the backbone can have.
        auxiliary: whether there is an auxiliary head on the features before the last, whose output "aux" is given
            while training.
        dropout: probability of dropping a channel before the last convolution of the auxiliary head.
        in_channels: channels of the pictures.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: str = "resnet50_v1s",
        output_stride: int | None = None,
        auxiliary: bool = True,
        dropout: float = 0.1,
        in_channels: int = 3,
    ):
        super().__init__(build_backbone(backbone, output_stride, finest=8, in_channels=in_channels))
        if len(self.backbone.channels) < 3:
            raise ModelError(f"dunet needs three features; backbone {backbone!r} has fewer")
        fine, middle, last = self.backbone.channels[-3:]
        *_, before, coarse = self.backbone.strides
        self.skips = nn.ModuleList([ConvBNReLU(middle, 48, 1), ConvBNReLU(fine, 48, 1)])
        self.fuse = nn.Sequential(ConvBNReLU(last + 96, 256), ConvBNReLU(256, 256))
        self.upsample = DUpsampling(256, num_classes, coarse)
        self.aux = None
        if auxiliary:
            self.aux = nn.Sequential(FCNHead(middle, 256, 256, dropout), DUpsampling(256, num_classes, before))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Map images (N,3,H,W) to logits (N,num_classes,H,W).

        Normalised RGB, any H and W; see `SegModel`.
        """
        height, width = x.shape[-2:]
        outputs = self.decode(self.forward_features(x))
        return {name: _full(logits)[..., :height, :width] for name, logits in outputs.items()}

    def decode(self, features: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Map features to logits that cover the image or more."""
        fine, middle, last = features[-3:]
        skips = [resize(skip(x), last.shape[-2:]) for skip, x in zip(self.skips, (middle, fine), strict=True)]
        logits = {"out": self.upsample(self.fuse(torch.cat([last, *skips], 1)))}
        if self.training and self.aux is not None:
            logits["aux"] = self.aux(middle)
        return logits


def _full(logits: torch.Tensor) -> torch.Tensor:
    """Logits of half precision as float32, which softmax and loss need."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
