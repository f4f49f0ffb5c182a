"""What every backbone promises: images in, maps fine to coarse out."""

from typing import Any, ClassVar

from torch import nn


class Backbone(nn.Module):
    """Maps images to a list of maps, from fine to coarse.

    Images (N,in_channels,H,W) of any size to maps (N,channels[i],ceil(H/strides[i]),ceil(W/strides[i])). `spec` is set
    by `model.backbone.build_backbone`: name and options, from which the same backbone can be built again.
    """

    output_strides: ClassVar[tuple[int, ...]]  # strides that the coarsest map can have, from fine to coarse
    own_parts: ClassVar[tuple[str, ...]] = ()  # parts for which its published weights have no values

    channels: list[int]
    strides: list[int]
    spec: dict[str, Any]
