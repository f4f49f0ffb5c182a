"""Convolutions of inference in float32, several times as fast on processors with AMX (Intel, from 2023 on).

Each number is the sum of two bfloat16 ones; three of the four products of these halves are summed, in float32, and that
of the lower halves is left out. So each product lacks 2^-15 of itself at most: the errors are some ten times those of
float32, about 5e-6 of the largest output. PyTorch calls this precision "high" (torch.set_float32_matmul_precision).

Source: Henry, Tang and Heinecke, "Leveraging the bfloat16 Artificial Intelligence Datatype For Higher-Precision
Computations" (ARITH 2019).
"""

import ctypes
import math
from functools import cache
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from model.inference.cpu.native import Limits, bounds, compiled, new_maps, replace_convolutions
from model.table import ModelError

SOURCE = Path(__file__).with_suffix(".cpp")
SIDE, DEPTH = 16, 32  # outputs and channels of a tile of weights
FEWEST = 16  # with fewer channels most of a tile is empty


class _Convolution(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int64)
        for name in (
            "pictures",
            "height",
            "width",
            "channels",
            "out_height",
            "out_width",
            "out_channels",
            "kernel_height",
            "kernel_width",
            "stride",
            "dilation",
            "top",
            "left",
        )
    ]


def pack(weight: torch.Tensor) -> torch.Tensor:
    """Weights (out,in,h,w), float32, in halves and tiles: bfloat16 (out/16, h, w, in/32, 2, 16, 16, 2), rounded up.

    Where the last tile has 16 channels at most, their upper halves stand in it twice: once for each half of a pixel.
    """
    out, channels, *_ = weight.shape
    padded = F.pad(weight.float(), (0, 0, 0, 0, 0, -channels % DEPTH, 0, -out % SIDE))
    upper = padded.bfloat16()
    halves = torch.stack([upper, (padded - upper.float()).bfloat16()])
    if (channels - 1) % DEPTH < SIDE:
        halves[0, :, -SIDE:] = halves[0, :, -DEPTH:-SIDE]
    tiles = halves.unflatten(2, (-1, SIDE, 2)).unflatten(1, (-1, SIDE))  # half, strip, output, block, pair, 2, h, w
    return tiles.permute(1, 6, 7, 3, 0, 4, 2, 5).contiguous()


class SplitConv2d(nn.Module):
    """What `conv` gives, cut off at the limits: (N,in,H,W) -> (N,out,h,w), float32, no gradients."""

    def __init__(self, conv: nn.Conv2d, limits: Limits = ()):
        super().__init__()
        bias = torch.zeros(conv.out_channels) if conv.bias is None else conv.bias.detach()
        self.register_buffer("weight", pack(conv.weight.detach()))
        self.register_buffer("bias", F.pad(bias.float(), (0, -len(bias) % (2 * SIDE))))
        self.out_channels = conv.out_channels
        self.stride, self.dilation, self.padding = conv.stride[0], conv.dilation[0], list(conv.padding)
        self.limits = [*limits]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N,in,H,W) to (N,out,h,w)."""
        return split_conv2d(
            x, self.weight, self.bias, self.out_channels, self.stride, self.dilation, self.padding, self.limits
        )


@torch.library.custom_op("segmentation::split_conv2d", mutates_args=(), device_types="cpu")
def split_conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    out_channels: int,
    stride: int,
    dilation: int,
    padding: list[int],
    limits: list[float],
) -> torch.Tensor:
    """x (N,in,H,W), weight from `pack`, bias (out,) with zeros up to a multiple of 32, to (N,out,h,w), channels_last.

    padding: (rows, columns).
    """
    assert x.dtype == torch.float32, x.dtype
    x = x.contiguous(memory_format=torch.channels_last)
    out = new_maps(*_shape(x, weight, out_channels, stride, dilation, padding))
    pictures, channels, *sides = x.shape
    kernel_sides, out_sides = weight.shape[1:3], out.shape[2:]
    if tuple(kernel_sides) == (1, 1) and stride == 1 and not any(padding):  # where the rows end does not matter
        sides = out_sides = (1, pictures * math.prod(sides))
        pictures = 1
    geometry = _Convolution(
        pictures, *sides, channels, *out_sides, out_channels, *kernel_sides, stride, dilation, *padding
    )
    kernel().split_convolution(
        x.data_ptr(),
        weight.data_ptr(),
        bias.data_ptr(),
        *bounds(limits),
        out.data_ptr(),
        geometry,
        torch.get_num_threads(),
    )
    return out


@split_conv2d.register_fake
def _(x, weight, bias, out_channels, stride, dilation, padding, limits):
    shape = _shape(x, weight, out_channels, stride, dilation, padding)
    return torch.empty(shape, device=x.device, memory_format=torch.channels_last)


def _shape(x, weight, out_channels: int, stride: int, dilation: int, padding: list[int]) -> list[int]:
    sides = [
        (side + 2 * border - dilation * (size - 1) - 1) // stride + 1
        for side, size, border in zip(x.shape[2:], weight.shape[1:3], padding, strict=True)
    ]
    return [x.shape[0], out_channels, *sides]


def amx_is_there() -> bool:
    """Whether processor, system and compiler have what `use_split` needs; ValueError as `native.compiled`."""
    return _library().split_is_possible()


def require_amx() -> None:
    """Raises ValueError where there is no AMX, or as `native.compiled`: a package may come from another machine."""
    if not amx_is_there():
        raise ModelError("this network was made ready for processors with AMX, which this one lacks; make it anew here")


def use_split(network: nn.Module) -> int:
    """Replaces the convolutions that gain by it, in place; how many. A ReLU or ReLU6 after one is joined with it."""
    assert amx_is_there()
    return replace_convolutions(network, _gains, SplitConv2d)


def _gains(conv: nn.Conv2d) -> bool:
    even = all(sides == (sides[0], sides[0]) for sides in (conv.stride, conv.dilation))
    return even and min(conv.in_channels, conv.out_channels) >= FEWEST


@cache
def _library() -> ctypes.CDLL:
    loaded = compiled(SOURCE)
    loaded.split_is_possible.restype = ctypes.c_bool
    return loaded


@cache
def kernel() -> ctypes.CDLL:
    """The compiled convolution; ValueError as `require_amx`."""
    require_amx()
    pointer, limit = ctypes.c_void_p, ctypes.c_float
    convolution = _library().split_convolution
    convolution.argtypes = [
        pointer,
        pointer,
        pointer,
        limit,
        limit,
        pointer,
        ctypes.POINTER(_Convolution),
        ctypes.c_int,
    ]
    convolution.restype = None
    return _library()
