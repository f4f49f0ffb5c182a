"""HRNet: all resolutions side by side, also with object context."""

import torch
from torch import nn

from model.backbone import build_backbone
from model.backbone.base import Backbone
from model.base import SegModel
from model.layer.basic import ConvBNReLU, classifier, resize


class HRNet(SegModel):
    """All levels enlarged to the finest, side by side, and classified.

    Source: Wang et al., "Deep High-Resolution Representation Learning for Visual Recognition" (TPAMI 2020, arXiv
    1908.07919), section 5, HRNetV2.

    Args:
        num_classes: channels of the logits.
        backbone: `hrnet_w18`, `hrnet_w48` and the like, or any name that `build_backbone` knows; its levels of stride 4
            or more are used.
        align_corners: how maps are enlarged, in the backbone too. It leaves no trace in the weights. The authors'
            branch pytorch-v1.1 has False; the code of their branch HRNet-OCR has True by default, but its
            configurations of plain HRNet say False.
        in_channels: channels of the pictures.
    """

    def __init__(
        self, num_classes: int, backbone: str = "hrnet_w48", align_corners: bool = False, in_channels: int = 3
    ):
        super().__init__(_build_backbone(backbone, align_corners, in_channels))
        self.align_corners = align_corners
        self.levels = [level for level, stride in enumerate(self.backbone.strides) if stride >= 4]
        self.classifier = _pixel_classifier(sum(self.backbone.channels[level] for level in self.levels), num_classes)

    def decode(self, features: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Map features to logits at the finest level's stride."""
        return {"out": self.classifier(_side_by_side([features[level] for level in self.levels], self.align_corners))}


class ObjectContext(nn.Module):
    """Attention of each pixel to the regions of the classes.

    Maps (N,width,H,W) and (N,classes,H,W) to (N,width,H,W).

    Source: Yuan et al., "Object-Contextual Representations for Semantic Segmentation" (ECCV 2020), section 3.2. A
    region is the mean of the pixels weighted by the softmax, over pixels, of its class's logits; the pixels' queries
    and the regions' keys and values are 1x1 convolutions.
    """

    def __init__(self, width: int, key_width: int, dropout: float):
        super().__init__()
        self.query = nn.Sequential(*ConvBNReLU(width, key_width, 1), *ConvBNReLU(key_width, key_width, 1))
        self.key = nn.Sequential(*ConvBNReLU(width, key_width, 1), *ConvBNReLU(key_width, key_width, 1))
        self.value = ConvBNReLU(width, key_width, 1)
        self.expand = ConvBNReLU(key_width, width, 1)
        self.project = nn.Sequential(*ConvBNReLU(2 * width, width, 1), nn.Dropout2d(dropout))

    def forward(self, x: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Map pixels (N,width,H,W) and coarse logits (N,classes,H,W) to (N,width,H,W)."""
        weights = torch.softmax(logits.flatten(2).float(), 2).to(x.dtype)  # (N,classes,H*W)
        regions = (weights @ x.flatten(2).transpose(1, 2)).transpose(1, 2).unsqueeze(3)  # (N,width,classes,1)
        query = self.query(x).flatten(2).transpose(1, 2)
        key, value = (layer(regions).flatten(2).transpose(1, 2) for layer in (self.key, self.value))
        context = nn.functional.scaled_dot_product_attention(query, key, value)  # (N,H*W,key_width)
        context = self.expand(context.transpose(1, 2).unflatten(2, x.shape[-2:]))
        return self.project(torch.cat([context, x], 1))


class HRNetOCR(SegModel):
    """HRNet whose pixels are described by object regions.

    A first classification finds the regions.

    Source: Yuan et al., "Object-Contextual Representations for Semantic Segmentation" (ECCV 2020), on HRNet-W48. The
    first classification's logits are the output "aux" while training, with weight 0.4.

    Args:
        num_classes: channels of the logits.
        backbone: as for `HRNet`.
        width: channels of a pixel's representation.
        key_width: channels in which pixels and regions are compared.
        align_corners: how maps are enlarged, in the backbone too; True as in the authors' branch HRNet-OCR.
        dropout: probability of dropping a channel before the classifier.
        in_channels: channels of the pictures.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: str = "hrnet_w48",
        width: int = 512,
        key_width: int = 256,
        align_corners: bool = True,
        dropout: float = 0.05,
        in_channels: int = 3,
    ):
        super().__init__(_build_backbone(backbone, align_corners, in_channels))
        self.align_corners = align_corners
        self.levels = [level for level, stride in enumerate(self.backbone.strides) if stride >= 4]
        channels = sum(self.backbone.channels[level] for level in self.levels)
        self.aux = _pixel_classifier(channels, num_classes)
        self.pixels = ConvBNReLU(channels, width, bias=True)
        self.context = ObjectContext(width, key_width, dropout)
        self.classifier = _last(width, num_classes)

    def decode(self, features: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Map features to logits at the finest level's stride: "out", "aux"."""
        x = _side_by_side([features[level] for level in self.levels], self.align_corners)
        coarse = self.aux(x)
        logits = {"out": self.classifier(self.context(self.pixels(x), coarse))}
        if self.training:
            logits["aux"] = coarse
        return logits


def _build_backbone(name: str, align_corners: bool, in_channels: int) -> Backbone:
    options = {"align_corners": align_corners} if name.startswith("hrnet_") else {}
    return build_backbone(name, in_channels=in_channels, **options)


def _side_by_side(features: list[torch.Tensor], align_corners: bool) -> torch.Tensor:
    finest, *others = features
    return torch.cat([finest, *(resize(x, finest.shape[-2:], align_corners) for x in others)], 1)


def _pixel_classifier(channels: int, num_classes: int) -> nn.Sequential:
    """Two 1x1 convolutions, the first with norm and ReLU, and with the bias that the published code has."""
    return nn.Sequential(*ConvBNReLU(channels, channels, 1, bias=True), _last(channels, num_classes))


def _last(channels: int, num_classes: int) -> nn.Conv2d:
    return classifier(channels, num_classes, std=0.001)
