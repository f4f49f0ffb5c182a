"""Sketch-and-Fill SFNet: coarse context, detail filled in."""

from functools import partial
from typing import NamedTuple

import torch
from torch import nn

from model.backbone import build_backbone
from model.base import SegModel
from model.layer.basic import ConvBNReLU, FCNHead, resize
from model.layer.context import ASPP
from model.table import ModelError

# Inside the decoder the published networks resize with align_corners=False; the final logits with True.
resize_inside = partial(resize, align_corners=False)


class Widths(NamedTuple):
    """Channels of the decoder, at strides 16, 8, 4 and in heads."""

    coarse: int
    middle: int
    fine: int
    head: int


class CFABlock(nn.Module):
    """One step of the coarse-to-fine aggregation.

    Detail from a skip connection is filled into the hidden state. With s the skip features and h the hidden state, both
    (N,width,H,W): h + gate(s,h) * (s * transform(s,h)), where the transform ends in tanh and the gate in a sigmoid.
    """

    def __init__(self, width: int):
        super().__init__()
        self.transform = nn.Sequential(*ConvBNReLU(2 * width, width), *ConvBNReLU(width, width, activation=nn.Tanh))
        self.gate = nn.Sequential(*ConvBNReLU(2 * width, width), *ConvBNReLU(width, width, activation=nn.Sigmoid))

    def forward(
        self, skip: torch.Tensor, hidden: torch.Tensor, gates: list[torch.Tensor] | None = None
    ) -> torch.Tensor:
        """Map two maps (N,width,H,W) to one.

        The gate, of that shape too, is appended to `gates` if given.
        """
        both = torch.cat([skip, hidden], 1)
        gate = self.gate(both)
        if gates is not None:
            gates.append(gate)
        return hidden + gate * (skip * self.transform(both))


class SketchFill(SegModel):
    """Sketch-and-Fill network.

    Source: Jin et al., "Sketch-and-Fill Network for Semantic Segmentation", IEEE Access 2021,
    doi 10.1109/ACCESS.2021.3088854. ASPP sketches the scene on the last features; three blocks at the strides
    16, 8 and 4 fill in detail; the sketch itself joins again before the classifier. Batch norm sees one
    pooled value per picture, so training needs at least two pictures in a batch.

    Args:
        num_classes: channels of the logits.
        backbone: any name that `build_backbone` knows with features at strides 4 and 8 and at least one
            coarser level. `mobilenet_v2` gets the narrow decoder (48, 32, 24 channels), all others the wide
            one (256).
        output_stride: stride of the last features. The dilations of ASPP are 6, 12, 18, at output stride 8
            too; only with `mobilenet_v2` they are doubled there.
        fine_conv: whether a 1x1 convolution prepares the stride-4 features. The published ResNet code calls
            such a layer, `conv_f1`, without ever defining it; the published MobileNet code defines it. So a
            published ResNet checkpoint may have it or not: without it the stride-4 features enter as they
            are.
        auxiliary: whether there is an auxiliary head on the level below the last, whose output "aux" is given
            while training.
        dropout: probability of dropping a channel before the last convolution of both heads.
        in_channels: channels of the pictures.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: str = "resnet50",
        output_stride: int = 16,
        fine_conv: bool = True,
        auxiliary: bool = True,
        dropout: float = 0.2,
        in_channels: int = 3,
    ):
        super().__init__(build_backbone(backbone, output_stride, in_channels=in_channels))
        narrow = backbone == "mobilenet_v2"
        width = Widths(48, 32, 24, 96) if narrow else Widths(256, 256, 256, 256)
        rates = (12, 24, 36) if narrow and output_stride == 8 else (6, 12, 18)
        self.levels = _pick_levels(backbone, self.backbone.strides)
        fine, middle, deep, last = (self.backbone.channels[level] for level in self.levels)
        if not fine_conv and fine != width.fine:
            raise ModelError(
                f"fine_conv=False needs stride-4 features of {width.fine} channels, "
                f"but backbone {backbone!r} has {fine}; use fine_conv=True"
            )

        self.aspp = ASPP(last, width.coarse, rates)
        self.skip3 = ConvBNReLU(deep, width.coarse, 1)
        self.gate3 = CFABlock(width.coarse)
        self.reduce3 = ConvBNReLU(width.coarse, width.middle, 1)
        self.skip2 = ConvBNReLU(middle, width.middle, 1)
        self.gate2 = CFABlock(width.middle)
        self.reduce2 = ConvBNReLU(width.middle, width.fine, 1)
        self.skip1 = ConvBNReLU(fine, width.fine, 1) if fine_conv else nn.Identity()
        self.gate1 = CFABlock(width.fine)
        self.classifier = FCNHead(width.fine + width.coarse, width.head, num_classes, dropout)
        self.aux = FCNHead(deep, width.head, num_classes, dropout) if auxiliary else None

    def decode(self, features: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Map features to logits: "out" at stride 4, "aux" at level three's."""
        sketch, hidden = self._fill(features)
        sketch = resize_inside(sketch, hidden.shape[-2:])
        logits = {"out": self.classifier(torch.cat([hidden, sketch], 1))}
        if self.training and self.aux is not None:
            logits["aux"] = self.aux(features[self.levels[2]])
        return logits

    def gates_and_sketch(self, x: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Map images (N,3,H,W) to gates and sketches.

        The gates say what the network fills in, the sketch what it had before.

        Returns:
            For each level, from coarse to fine (strides 16, 8, 4 at output stride 16), the gate
            (N,width,h,w), 0 where the detail of the skip connection is kept out and 1 where it is let in, and
            the sketch, the output of ASPP resized to that level (N,width of the coarse level,h,w).
        """
        gates: list[torch.Tensor] = []
        sketch, _ = self._fill(self.forward_features(x), gates)
        return [(gate, resize_inside(sketch, gate.shape[-2:])) for gate in gates]

    def _fill(
        self, features: list[torch.Tensor], gates: list[torch.Tensor] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The sketch at the last stride and the hidden state at stride 4; gates are appended to `gates`."""
        fine, middle, deep, last = (features[level] for level in self.levels)
        sketch = self.aspp(last)
        hidden = self.gate3(self.skip3(deep), resize_inside(sketch, deep.shape[-2:]), gates)
        hidden = self.reduce3(resize_inside(hidden, middle.shape[-2:]))
        hidden = self.gate2(self.skip2(middle), hidden, gates)
        hidden = self.reduce2(resize_inside(hidden, fine.shape[-2:]))
        return sketch, self.gate1(self.skip1(fine), hidden, gates)


def _pick_levels(backbone: str, strides: list[int]) -> tuple[int, int, int, int]:
    """Places of the stride-4, the stride-8, the next and the last features."""
    first = strides.index(4) if 4 in strides else len(strides)
    if 8 not in strides[first + 1 : first + 2] or len(strides) < first + 3:
        raise ModelError(
            f"sketchfill needs features at strides 4, 8 and a coarser level; "
            f"backbone {backbone!r} has strides {strides}"
        )
    return first, first + 1, first + 2, len(strides) - 1
