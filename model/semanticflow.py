"""Semantic-Flow SFNet and SFNet-Lite: feature pyramids aligned by flow."""

import re
from functools import partial
from typing import Any

import torch
from torch import nn

from model.backbone import build_backbone
from model.backbone.base import Backbone
from model.base import SegModel
from model.layer.basic import ConvBNReLU, FCNHead, resize
from model.layer.flow import DualFlowAlign, FlowAlign
from model.table import ModelError

# Cells per side of the pooled maps.
BINS = {"ppm": (1, 2, 3, 6), "sppm": (1, 2, 4)}
# Published decoder widths that do not follow from the channels of the last features.
WIDTHS = {"dfnet_v1": 64, "dfnet_v2": 64, "stdc1": 64, "stdc2": 64}
# "Variant D": every stride is kept, and the last stages are dilated nevertheless.
VARIANT_D = (1, 1, 2, 4)


class PyramidContext(nn.Module):
    """Pyramid pooling without activations, projected to the decoder's width: (N,in,H,W) -> (N,width,H,W).

    Source: Zhao et al., PSPNet (CVPR 2017), section 3.2, in the form of the published Semantic Flow code:
    each bin is pooled, reduced by 1x1 with norm, and resized. "ppm" concatenates the bins 1, 2, 3, 6 and the
    input; "sppm" adds the bins 1, 2, 4 and the reduced input.

    Raises:
        ModelError: for another context.
    """

    smallest_train_batch = 2

    def __init__(self, in_channels: int, width: int, context: str = "ppm", dropout: float = 0.1):
        super().__init__()
        if context not in BINS:
            raise ModelError(f"context is one of {', '.join(BINS)}, not {context!r}")
        bins = BINS[context]
        reduce = partial(ConvBNReLU, in_channels, width, 1, activation=None)
        self.stages = nn.ModuleList(nn.Sequential(nn.AdaptiveAvgPool2d(size), *reduce()) for size in bins)
        self.down = reduce() if context == "sppm" else None
        gathered = width if context == "sppm" else in_channels + width * len(bins)
        self.bottleneck = ConvBNReLU(gathered, width, 1)
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N,in,H,W) to (N,width,H,W)."""
        pooled = [resize(stage(x), x.shape[-2:]) for stage in self.stages]
        gathered = torch.cat([*pooled, x], 1) if self.down is None else sum(pooled, self.down(x))
        return self.dropout(self.bottleneck(gathered))


class SemanticFlow(SegModel):
    """Semantic Flow network: each level warped onto the next.

    From coarse to fine, by a learned flow.

    Source: Li et al., "Semantic Flow for Fast and Accurate Scene Parsing" (ECCV 2020, arXiv 2002.10120), with
    the pyramid of lxtGH/SFSegNets: the sums of aligned levels are handed down as they are, and smoothed where
    they are gathered for the classifier. Batch norm sees one pooled value per picture, so training needs at
    least two pictures in a batch.

    Args:
        num_classes: channels of the logits.
        backbone: any name that `build_backbone` knows with at least three levels of stride 4 or more, all of
            which are used. The deep-stem ResNets get "variant D": output stride 32 and yet dilations 2 and 4
            in the last two stages.
        width: channels of the decoder. None takes the published one: 64 with DFNet and STDC, else 256 where
            the last features have at least 1024 channels (ResNet-50 and 101), 128 where fewer (ResNet-18).
        context: "ppm" or "sppm", see `PyramidContext`.
        deep_supervision: whether there is a head on each aligned sum, whose outputs "dsn0", "dsn1", ...
            (coarse to fine) are given while training.
        flow_align_corners: see `model.layer.flow.warp`. True is what the authors' code says. The code of the
            MMSegmentation port says nothing, which is False in the PyTorch versions that it runs on.
        dropout: probability of dropping a channel after the pyramid pooling and in the heads of deep
            supervision.
        in_channels: channels of the pictures.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: str = "resnet18",
        width: int | None = None,
        context: str = "ppm",
        deep_supervision: bool = False,
        flow_align_corners: bool = True,
        dropout: float = 0.1,
        in_channels: int = 3,
    ):
        super().__init__(_build_backbone(backbone, in_channels))
        self.levels = _pick_levels("semanticflow", backbone, self.backbone.strides)
        *skips, last = (self.backbone.channels[level] for level in self.levels)
        width = _width(width, WIDTHS.get(backbone, 256 if last >= 1024 else 128))
        self.context = PyramidContext(last, width, context, dropout)
        self.lateral = nn.ModuleList(ConvBNReLU(channels, width, 1, bias=True) for channels in skips)
        self.align = nn.ModuleList(FlowAlign(width, flow_align_corners) for _ in skips)
        self.smooth = nn.ModuleList(ConvBNReLU(width, width) for _ in skips)
        self.classifier = FCNHead(width * len(self.levels), width, num_classes, dropout=0.0)
        heads = (FCNHead(width, width, num_classes, dropout, bias=True) for _ in skips)
        self.dsn = nn.ModuleList(heads) if deep_supervision else None

    def decode(self, features: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Map features to logits at the levels' strides: "out", "dsn0", ..."""
        maps, logits, _ = self._aligned(features)
        finest = maps[-1]
        others = (resize(coarse, finest.shape[-2:]) for coarse in maps[-2::-1])
        return {"out": self.classifier(torch.cat([finest, *others], 1)), **logits}

    def flow_fields(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Map images (N,3,H,W) to their flow fields (N,2,h,w).

        From coarse to fine, x before y. Each says, at the size of a level, where the next coarser level is read; for
        the unit see `model.layer.flow.warp`.
        """
        return self._aligned(self.forward_features(x))[2]

    def _aligned(
        self, features: list[torch.Tensor]
    ) -> tuple[list[torch.Tensor], dict[str, torch.Tensor], list[torch.Tensor]]:
        """Maps of the pyramid, logits of deep supervision while training, and flows, all coarse to fine."""
        hidden = self.context(features[self.levels[-1]])
        maps, flows = [hidden], []
        logits: dict[str, torch.Tensor] = {}
        for place in reversed(range(len(self.align))):
            skip = self.lateral[place](features[self.levels[place]])
            warped, flow = self.align[place](skip, hidden)
            hidden = skip + warped
            maps.append(self.smooth[place](hidden))
            flows.append(flow)
            if self.training and self.dsn is not None:
                logits[f"dsn{len(logits)}"] = self.dsn[place](hidden)
        return maps, logits, flows


class SemanticFlowLite(SegModel):
    """SFNet-Lite: one gated alignment in both directions.

    Of the coarsest with the finest level.

    Source: Li et al., "SFNet: Faster and Accurate Semantic Segmentation via Semantic Flow" (IJCV 2023, arXiv
    2207.04415), with the head of lxtGH/SFSegNets: the aligned pair and the level before the last go to the
    classifier, stride 8 is left out. Batch norm sees one pooled value per picture, so training needs at least
    two pictures in a batch.

    Args:
        num_classes: channels of the logits.
        backbone: as for `SemanticFlow`.
        width: channels of the decoder.
        context: "ppm" or "sppm", see `PyramidContext`.
        gate: whether a gate chooses between the warped maps; see `DualFlowAlign`.
        gate_input: what the gate sees, "pooled" or "features"; see `DualFlowAlign`.
        deep_supervision: whether there is a head on the aligned pair, whose output "dsn0" is given while
            training. The published networks own such a head but never use it, so theirs are trained without.
        flow_align_corners: see `model.layer.flow.warp`.
        dropout: probability of dropping a channel after the pyramid pooling and in the head of deep
            supervision.
        in_channels: channels of the pictures.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: str = "resnet18",
        width: int = 128,
        context: str = "ppm",
        gate: bool = True,
        gate_input: str = "pooled",
        deep_supervision: bool = False,
        flow_align_corners: bool = True,
        dropout: float = 0.1,
        in_channels: int = 3,
    ):
        super().__init__(_build_backbone(backbone, in_channels))
        first, *_, middle, last = _pick_levels("semanticflow_lite", backbone, self.backbone.strides)
        self.levels = (first, middle, last)
        *skips, deepest = (self.backbone.channels[level] for level in self.levels)
        width = _width(width)
        self.context = PyramidContext(deepest, width, context, dropout)
        self.lateral = nn.ModuleList(ConvBNReLU(channels, width, 1, bias=True) for channels in skips)
        self.align = DualFlowAlign(width, gate, gate_input, flow_align_corners)
        self.classifier = FCNHead(2 * width, width, num_classes, dropout=0.0)
        self.dsn = FCNHead(width, width, num_classes, dropout, bias=True) if deep_supervision else None

    def decode(self, features: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Map features to logits at the finest stride: "out", "dsn0"."""
        aligned, _ = self._aligned(features)
        middle = self.lateral[1](features[self.levels[1]])
        gathered = torch.cat([aligned, resize(middle, aligned.shape[-2:])], 1)
        logits = {"out": self.classifier(gathered)}
        if self.training and self.dsn is not None:
            logits["dsn0"] = self.dsn(aligned)
        return logits

    def flow_fields(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Map images (N,3,H,W) to two flow fields (N,2,h,w).

        Of the coarsest and of the finest level, x before y. Both have the size of the finest level; for the unit see
        `model.layer.flow.warp`.
        """
        return self._aligned(self.forward_features(x))[1]

    def _aligned(self, features: list[torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The aligned pair (N,width,h,w) and its two flows (N,2,h,w)."""
        fine = self.lateral[0](features[self.levels[0]])
        return self.align(fine, self.context(features[self.levels[-1]]))


def _build_backbone(name: str, in_channels: int) -> Backbone:
    variant: dict[str, Any] = {"dilations": VARIANT_D} if re.fullmatch(r"resnet\d+", name) else {}
    return build_backbone(name, output_stride=32, in_channels=in_channels, **variant)


def _width(width: int | None, published: int = 0) -> int:
    width = published if width is None else width
    if width < 2 or width % 2:
        raise ModelError(f"width is halved for the flow, so it must be even and at least 2, not {width}")
    return width


def _pick_levels(model: str, backbone: str, strides: list[int]) -> tuple[int, ...]:
    """Places of the features of stride 4 or more."""
    levels = tuple(place for place, stride in enumerate(strides) if stride >= 4)
    if len(levels) < 3:
        raise ModelError(
            f"{model} needs three features of stride 4 or more; backbone {backbone!r} has strides {strides}"
        )
    return levels
