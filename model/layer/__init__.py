"""Layers that two or more networks use."""

from model.layer.basic import ConvBNReLU, FCNHead, GroupedConv2d, init_weights, resize
from model.layer.context import ASPP, PPM
from model.layer.flow import DualFlowAlign, FlowAlign, warp

__all__ = [
    "ASPP",
    "PPM",
    "ConvBNReLU",
    "DualFlowAlign",
    "FCNHead",
    "FlowAlign",
    "GroupedConv2d",
    "init_weights",
    "resize",
    "warp",
]
