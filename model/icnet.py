"""ICNet: the deeper a branch, the smaller the image it sees."""

from typing import cast

import torch
from torch import nn
from torch.nn import functional as F

from model.backbone import build_backbone
from model.backbone.resnet import ResNet
from model.base import SegModel
from model.layer.basic import ConvBNReLU, FCNHead, classifier, relu, resize
from model.layer.context import PPM
from model.table import ModelError

BINS = (1, 2, 3, 6)  # cells a side of the pyramid poolings


class CascadeFusion(nn.Module):
    """Cascade feature fusion of a coarse and a fine map.

    (N,low,h,w) and (N,high,H,W) -> two maps (N,width,H,W), the sum and its coarse part. Source: Zhao et al., ICNet
    (ECCV 2018), figure 3. `rectified`: whether a ReLU stands before the sum too, as in MMSegmentation.
    """

    def __init__(self, low: int, high: int, width: int, align_corners: bool, rectified: bool = False):
        super().__init__()
        activation = relu if rectified else None
        self.low = ConvBNReLU(low, width, 3, dilation=2, activation=activation)
        self.high = ConvBNReLU(high, width, 1, activation=activation)
        self.align_corners = align_corners

    def forward(self, coarse: torch.Tensor, fine: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map (N,low,h,w) and (N,high,H,W) to two maps (N,width,H,W)."""
        low = self.low(resize(coarse, fine.shape[-2:], self.align_corners))
        return F.relu(low + self.high(fine)), low


def _light_branch(in_channels: int) -> nn.Sequential:
    """Three convolutions for the whole image: (N,in,H,W) -> (N,64,H/8,W/8)."""
    return nn.Sequential(ConvBNReLU(in_channels, 32, 3, 2), ConvBNReLU(32, 32, 3, 2), ConvBNReLU(32, 64, 3, 2))


def _shrink(x: torch.Tensor, factor: float, align_corners: bool) -> torch.Tensor:
    return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=align_corners)


class ICNet(SegModel):
    """Image cascade network.

    Source: Zhao et al., "ICNet for Real-Time Semantic Segmentation on High-Resolution Images" (ECCV 2018, arXiv
    1704.08545), section 3, in the form of Tramac/awesome-semantic-segmentation-pytorch: the backbone sees the image at
    half size, of which the features at stride 8 are used, and again at a quarter, of which the last are.

    Args:
        num_classes: channels of the logits.
        backbone: any name that `build_backbone` knows.
        output_stride: stride of the last features; None takes 8, or the smallest above it that the backbone can have.
        auxiliary: whether the outputs of the cascade loss are given while training: "quarter", "eighth" and "sixteenth"
            (N,num_classes,h,w), at these parts of the image's size.
        in_channels: channels of the image.
    """

    raw_outputs = ("quarter", "eighth", "sixteenth")

    def __init__(
        self,
        num_classes: int,
        backbone: str = "resnet50_v1s",
        output_stride: int | None = None,
        auxiliary: bool = True,
        in_channels: int = 3,
    ):
        super().__init__(build_backbone(backbone, output_stride, finest=8, in_channels=in_channels))
        self.middle = next(place for place, stride in enumerate(self.backbone.strides) if stride >= 8)
        self.light = _light_branch(in_channels)
        self.pools = nn.ModuleList(nn.AdaptiveAvgPool2d(size) for size in BINS)
        self.fuse24 = CascadeFusion(self.backbone.channels[-1], self.backbone.channels[self.middle], 128, True)
        self.fuse12 = CascadeFusion(128, 64, 128, True)
        self.classifier = classifier(128, num_classes, bias=False)
        self.aux24 = classifier(128, num_classes, bias=False) if auxiliary else None
        self.aux12 = classifier(128, num_classes, bias=False) if auxiliary else None

    def forward_features(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Map (N,in_channels,H,W) to features at strides 8, 16 and 32."""
        half, quarter = (self.backbone(_shrink(x, factor, True)) for factor in (0.5, 0.25))
        coarse = quarter[-1]
        pooled = [resize(pool(coarse), coarse.shape[-2:]) for pool in self.pools]
        return [self.light(x), half[self.middle], sum(pooled, coarse)]

    def decode(self, features: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Map the features to logits (N,num_classes,H/4,W/4).

        Those of the cascade have strides 4, 8 and 16.
        """
        fine, middle, coarse = features
        x, low24 = self.fuse24(coarse, middle)
        x, low12 = self.fuse12(x, fine)
        logits = self.classifier(resize(x, [2 * side for side in x.shape[-2:]]))
        outputs = {"out": logits}
        if self.training and self.aux12 is not None and self.aux24 is not None:
            outputs |= {"quarter": logits, "eighth": self.aux12(low12), "sixteenth": self.aux24(low24)}
        return outputs


class ICNetPPM(SegModel):
    """ICNet whose backbone sees the image once.

    At half size up to stride 8, at a quarter from there on. Source: Zhao et al., ICNet (ECCV 2018), section 3.1, in the
    form of MMSegmentation, whose pyramid pooling is that of PSPNet.

    Args:
        num_classes: channels of the logits.
        backbone: a ResNet with a deep stem, such as `resnet50_v1c`.
        auxiliary: whether both fusions have heads, whose outputs "aux0" (finer) and "aux1" are given while training.
        align_corners: how maps are resized.
        dropout: probability of dropping a channel before the last convolution.
        in_channels: channels of the image.

    Raises:
        ModelError: for a backbone that cannot be run in two parts.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: str = "resnet50_v1c",
        auxiliary: bool = True,
        align_corners: bool = False,
        dropout: float = 0.0,
        in_channels: int = 3,
    ):
        super().__init__(build_backbone(backbone, None, finest=8, in_channels=in_channels))
        if not isinstance(self.backbone, ResNet):
            raise ModelError(
                f"icnet_ppm runs its backbone in two parts, which {backbone!r} lacks; take a ResNet with a deep stem, "
                "such as resnet50_v1c"
            )
        self.backbone.maxpool.ceil_mode = True  # as published: maps are one pixel larger where the size is even
        self.align_corners = align_corners
        _, middle, _, last = self.backbone.channels
        self.light = _light_branch(in_channels)
        self.ppm = PPM(last, 512, BINS, align_corners)
        self.context = ConvBNReLU(last + 4 * 512, 512)
        self.reduce_middle = ConvBNReLU(middle, 256, 1)
        self.reduce_coarse = ConvBNReLU(512, 256, 1)
        self.fuse24 = CascadeFusion(256, 256, 128, align_corners, rectified=True)
        self.fuse12 = CascadeFusion(128, 64, 128, align_corners, rectified=True)
        self.classifier = FCNHead(128, 128, num_classes, dropout)
        self.aux0 = FCNHead(128, 128, num_classes, dropout) if auxiliary else None
        self.aux1 = FCNHead(128, 128, num_classes, dropout) if auxiliary else None

    def forward_features(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Map (N,in_channels,H,W) to features at strides 8, 16 and 32."""
        body = cast(ResNet, self.backbone)
        middle = body.layer2(body.layer1(body.maxpool(body.stem(_shrink(x, 0.5, self.align_corners)))))
        coarse = body.layer4(body.layer3(_shrink(middle, 0.5, self.align_corners)))
        return [self.light(x), self.reduce_middle(middle), self.reduce_coarse(self.context(self.ppm(coarse)))]

    def decode(self, features: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Map the features to logits (N,num_classes,H/8,W/8), "aux1" at stride 16."""
        fine, middle, coarse = features
        x, low24 = self.fuse24(coarse, middle)
        x, low12 = self.fuse12(x, fine)
        logits = {"out": self.classifier(x)}
        if self.training and self.aux0 is not None and self.aux1 is not None:
            logits |= {"aux0": self.aux0(low12), "aux1": self.aux1(low24)}
        return logits
