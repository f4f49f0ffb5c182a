"""Layers that two or more networks use."""

from model.layer.attention import attend
from model.layer.basic import Classifier, ConvBNReLU, FCNConcatHead, FCNHead, GroupedConv2d, init_weights, resize
from model.layer.context import ASPP, JPU, PPM
from model.layer.flow import DualFlowAlign, FlowAlign, warp

__all__ = [
    "ASPP",
    "JPU",
    "PPM",
    "Classifier",
    "ConvBNReLU",
    "DualFlowAlign",
    "FCNConcatHead",
    "FCNHead",
    "FlowAlign",
    "GroupedConv2d",
    "attend",
    "init_weights",
    "resize",
    "warp",
]
