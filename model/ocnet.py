"""OCNet: each pixel described by its object's pixels, through attention."""

import torch
from torch import nn
from torch.nn import functional as F

from model.backbone import build_backbone
from model.base import SegModel
from model.layer.attention import attend
from model.layer.basic import ConvBNReLU, FCNHead, classifier, resize
from model.table import ModelError

RATES = (12, 24, 36)  # dilations beside the attention in "asp"
PYRAMID = (1, 2, 3, 6)  # tiles a side in "pyramid"


class ObjectAttention(nn.Module):
    """Attention whose queries are its keys: (N,in,H,W) -> (N,in,H,W).

    Source: Yuan et al., OCNet, section 3.2.

    Args:
        in_channels: channels of the map.
        key_width: channels of the queries and keys.
        value_width: channels of the values.
        tiles: the map is cut into tiles x tiles, and each pixel attends to those of its tile; the last tiles of a row
            and of a column take what is left over.
        pool: side of the windows that are max-pooled before, the result being resized afterwards.
    """

    def __init__(self, in_channels: int, key_width: int, value_width: int, tiles: int = 1, pool: int = 1):
        super().__init__()
        self.key = ConvBNReLU(in_channels, key_width, 1, bias=True)
        self.value = nn.Conv2d(in_channels, value_width, 1)
        self.project = nn.Conv2d(value_width, in_channels, 1)
        for parameter in self.project.parameters():
            nn.init.zeros_(parameter)
        self.scale, self.tiles, self.pool = key_width**-0.5, tiles, pool

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N,in,H,W) to the same shape."""
        pooled = F.max_pool2d(x, self.pool) if self.pool > 1 else x
        key, value = self.key(pooled), self.value(pooled)
        height, width = pooled.shape[-2:]
        rows, columns = _shares(height, self.tiles), _shares(width, self.tiles)
        joined = []
        for keys, values in zip(key.split(rows, 2), value.split(rows, 2), strict=True):
            tiles = zip(keys.split(columns, 3), values.split(columns, 3), strict=True)
            joined.append(torch.cat([attend(k, k, v, self.scale) for k, v in tiles], 3))
        context = self.project(torch.cat(joined, 2))
        return resize(context, x.shape[-2:]) if self.pool > 1 else context


def _shares(size: int, tiles: int) -> list[int]:
    """Sides of the tiles of a row of pixels: equal but for the last, without empty ones."""
    sides = [size // tiles] * (tiles - 1)
    return [side for side in (*sides, size - sum(sides)) if side > 0]


class BaseContext(nn.Module):
    """The features beside their attention: (N,in,H,W) -> (N,width,H,W)."""

    def __init__(self, in_channels: int, width: int):
        super().__init__()
        self.reduce = ConvBNReLU(in_channels, width)
        self.attention = ObjectAttention(width, width // 2, width // 2)
        self.project = nn.Sequential(*ConvBNReLU(2 * width, width, 1, bias=True), nn.Dropout2d(0.05))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N,in,H,W) to (N,width,H,W)."""
        x = self.reduce(x)
        return self.project(torch.cat([self.attention(x), x], 1))


class PyramidContext(nn.Module):
    """Features beside attention in tiles of four sizes: (N,in,H,W) -> (N,width,H,W)."""

    def __init__(self, in_channels: int, width: int):
        super().__init__()
        self.reduce = ConvBNReLU(in_channels, width)
        self.attentions = nn.ModuleList(ObjectAttention(width, width // 2, width, tiles) for tiles in PYRAMID)
        self.expand = ConvBNReLU(width, len(PYRAMID) * width, 1, bias=True)
        wide = 2 * len(PYRAMID) * width
        self.project = nn.Sequential(*ConvBNReLU(wide, width, 1, bias=True), nn.Dropout2d(0.05))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N,in,H,W) to (N,width,H,W)."""
        x = self.reduce(x)
        return self.project(torch.cat([self.expand(x), *(attention(x) for attention in self.attentions)], 1))


class ASPContext(nn.Module):
    """Atrous spatial pyramid with attention in place of image pooling.

    The attention works at half the size. Maps (N,in,H,W) to (N,width,H,W).
    """

    def __init__(self, in_channels: int, width: int):
        super().__init__()
        self.reduce = ConvBNReLU(in_channels, width, bias=True)
        self.attention = ObjectAttention(width, width // 2, width, pool=2)
        self.refine = nn.Sequential(*ConvBNReLU(width, width, 1, bias=True), nn.Dropout2d(0.05))
        dilated = [ConvBNReLU(in_channels, width, 3, dilation=rate) for rate in RATES]
        self.branches = nn.ModuleList([*dilated, ConvBNReLU(in_channels, width, 1)])
        self.project = nn.Sequential(*ConvBNReLU((len(RATES) + 2) * width, width, 1), nn.Dropout2d(0.1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N,in,H,W) to (N,width,H,W)."""
        context = self.refine(self.attention(self.reduce(x)))
        return self.project(torch.cat([context, *(branch(x) for branch in self.branches)], 1))


CONTEXTS = {"base": BaseContext, "pyramid": PyramidContext, "asp": ASPContext}


class OCNet(SegModel):
    """Object context network.

    Source: Yuan et al., "OCNet: Object Context Network for Scene Parsing" (2018), in the form that is published in
    PyTorch.

    Args:
        num_classes: channels of the logits.
        backbone: any name that `build_backbone` knows.
        output_stride: stride of the last features; None takes 8, or the smallest above it that the backbone can have.
        context: "base", "pyramid" or "asp": attention over the whole map, also in tiles, or beside dilated
            convolutions.
        auxiliary: whether there is an auxiliary head on the features before the last, whose output "aux" is given
            while training.
        dropout: probability of dropping a channel before the last convolution of the auxiliary head.
        in_channels: channels of the pictures.

    Raises:
        ModelError: for an unknown context.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: str = "resnet50_v1s",
        output_stride: int | None = None,
        context: str = "base",
        auxiliary: bool = True,
        dropout: float = 0.1,
        in_channels: int = 3,
    ):
        super().__init__(build_backbone(backbone, output_stride, finest=8, in_channels=in_channels))
        if context not in CONTEXTS:
            raise ModelError(f"context is one of {', '.join(CONTEXTS)}, not {context!r}")
        *_, middle, last = self.backbone.channels
        self.context = CONTEXTS[context](last, last // 4)
        self.classifier = classifier(last // 4, num_classes)
        self.aux = FCNHead(middle, middle // 4, num_classes, dropout) if auxiliary else None

    def decode(self, features: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Map features to logits at the stride of the features."""
        logits = {"out": self.classifier(self.context(features[-1]))}
        if self.training and self.aux is not None:
            logits["aux"] = self.aux(features[-2])
        return logits
