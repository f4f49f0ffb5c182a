"""Inverted residual blocks of inference, computed in strips of rows.

Inside a block the map has six times the channels. In strips it stays in a core's cache, where the whole one would cross
the main memory between its three convolutions, and take fresh pages of it in every call.
"""

import torch
from torch import nn
from torch.nn import functional as F

from model.backbone.mobilenet import InvertedResidual

STRIP_BYTES = 8 << 20  # of the widest map of a strip


class InStrips(nn.Module):
    """What `block` gave, (N,in,H,W) -> (N,out,H/stride,W/stride), strip by strip; takes the block over."""

    def __init__(self, block: InvertedResidual, join_zeros: bool):
        super().__init__()
        self.block, self.beside = block, 0 if join_zeros else block.border
        if join_zeros:
            block.conv[0].padding = (0, block.border)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N,in,H,W) to (N,out,H/stride,W/stride)."""
        block, (pictures, _, height, width) = self.block, x.shape
        rows = -(-height // block.stride)
        size = 4 * pictures * block.width * height * width
        step = -(-rows // -(-size // STRIP_BYTES))
        strips = []
        for first in range(0, rows, step):
            last = min(first + step, rows)
            top, bottom = first * block.stride - block.border, (last - 1) * block.stride + block.border + 1
            lines = x[:, :, max(top, 0) : bottom]
            zeros = self.beside, self.beside, max(-top, 0), max(bottom - height, 0)
            strips.append(block.conv(F.pad(lines, zeros) if any(zeros) else lines))
        y = torch.cat(strips, 2)
        return x + y if block.residual else y


def use_strips(network: nn.Module, join_zeros: bool) -> int:
    """Replaces the inverted residual blocks of MobileNet-V2, in place; how many.

    join_zeros: the first convolution of a block adds the zeros at both sides of a strip, instead of an operation before
    it. That costs nothing in float32, and in bfloat16 more than it saves.
    """
    found = [name for name, module in network.named_modules() if type(module) is InvertedResidual]
    for name in found:
        network.set_submodule(name, InStrips(network.get_submodule(name), join_zeros))
    return len(found)
