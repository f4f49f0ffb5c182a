"""3x3 convolutions of inference on a CPU in a quarter of the multiplications, by Winograd's method.

Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (CVPR 2016), sections 4.1 and 4.3, with
tiles of 4 x 4 output pixels: F(4x4, 3x3). The rounding errors of float32 are some ten times those of the direct sum,
about 1e-5 of the largest output.
"""

import ctypes
from functools import cache
from pathlib import Path

import torch
from torch import nn

from model.inference.cpu.native import Limits, bounds, compiled, replace_convolutions

SOURCE = Path(__file__).with_suffix(".cpp")
TILE = 4  # pixels of the output on each side
# G of the paper: a filter of three taps, as its polynomial's values at 0, 1, -1, 2, -2 and infinity.
FILTER = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
LANES, FEWEST = 8, 24  # channels come in multiples of 8; with fewer than 24 the transforms cost what is saved
LARGEST_DILATION = 4  # beyond, the tiles reach far over the edges of usual maps
TILES_AT_ONCE = 128  # the transformed tiles of one round stay in the cache
GAP = 16  # floats between the matrices of a round, that they do not all fall on the same lines of the cache


class _Maps(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int64) for name in ("height", "width", "channels", "dilation", "tile_rows", "tile_columns")
    ]


class WinogradConv2d(nn.Module):
    """What `conv` gives, cut off at the limits: (N,in,H,W) -> (N,out,H,W), float32, no gradients.

    Its weights take four times the memory.
    """

    def __init__(self, conv: nn.Conv2d, limits: Limits = ()):
        super().__init__()
        factors = torch.tensor(FILTER, dtype=torch.float64)
        weight = torch.einsum("yr,xc,oirc->yxio", factors, factors, conv.weight.detach().double())
        bias = torch.zeros(conv.out_channels) if conv.bias is None else conv.bias.detach()
        self.register_buffer("weight", weight.flatten(0, 1).float().contiguous())  # (36,in,out)
        self.register_buffer("bias", bias.float().contiguous())
        self.dilation, self.limits = conv.dilation[0], [*limits]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N,in,H,W) to (N,out,H,W)."""
        return winograd_conv2d(x, self.weight, self.bias, self.dilation, self.limits)


@torch.library.custom_op("segmentation::winograd_conv2d", mutates_args=(), device_types="cpu")
def winograd_conv2d(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, dilation: int, limits: list[float]
) -> torch.Tensor:
    """One convolution: x (N,in,H,W), transformed weight (36,in,out), bias (out,) to (N,out,H,W), channels_last."""
    assert x.dtype == torch.float32, x.dtype
    x = x.contiguous(memory_format=torch.channels_last)
    pictures, channels, height, width = x.shape
    rows, columns = (-(-side // (TILE * dilation)) for side in (height, width))
    tiles = pictures * rows * columns * dilation**2
    out = _like_result(x, bias)
    before, after = (_Maps(height, width, c, dilation, rows, columns) for c in (channels, len(bias)))
    count, threads = min(tiles, TILES_AT_ONCE), torch.get_num_threads()
    transformed, products = (_matrices(count, c) for c in (channels, len(bias)))
    for first in range(0, tiles, TILES_AT_ONCE):
        count = min(tiles - first, TILES_AT_ONCE)
        source, product = transformed[:, :count], products[:, :count]
        kernel().winograd_to_tiles(x.data_ptr(), source.data_ptr(), before, first, count, source.stride(0), threads)
        torch.bmm(source, weight, out=product)
        kernel().winograd_from_tiles(
            product.data_ptr(),
            bias.data_ptr(),
            *bounds(limits),
            out.data_ptr(),
            after,
            first,
            count,
            product.stride(0),
            threads,
        )
    return out


@winograd_conv2d.register_fake
def _(x, weight, bias, dilation, limits):
    return _like_result(x, bias)


def _like_result(x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    shape = (x.shape[0], bias.shape[0], *x.shape[2:])
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _matrices(rows: int, columns: int) -> torch.Tensor:
    """(36,rows,columns), not filled."""
    apart = rows * columns + GAP
    return torch.empty(36 * apart).as_strided((36, rows, columns), (apart, columns, 1))


def use_winograd(network: nn.Module) -> int:
    """Replaces the convolutions that gain by it, in place; how many. A ReLU right after one is joined with it.

    Those are 3x3 with stride 1 in float32, of maps that keep their size, with channels in multiples of 8.

    Raises:
        ValueError: the transforms cannot be compiled here; says why.
    """
    kernel()
    return replace_convolutions(network, _gains, WinogradConv2d)


def _gains(conv: nn.Conv2d) -> bool:
    dilation = conv.dilation[0]
    same_size = conv.dilation == (dilation, dilation) and conv.padding == conv.dilation
    plain = conv.kernel_size == (3, 3) and conv.stride == (1, 1)
    fits = all(channels % LANES == 0 and channels >= FEWEST for channels in (conv.in_channels, conv.out_channels))
    return same_size and plain and fits and dilation <= LARGEST_DILATION


@cache
def kernel() -> ctypes.CDLL:
    """The compiled transforms; ValueError as `native.compiled`."""
    loaded = compiled(SOURCE)
    pointer, number, limit, maps = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.POINTER(_Maps)
    loaded.winograd_to_tiles.argtypes = [pointer, pointer, maps, number, number, number, ctypes.c_int]
    loaded.winograd_from_tiles.argtypes = [
        pointer,
        pointer,
        limit,
        limit,
        pointer,
        maps,
        number,
        number,
        number,
        ctypes.c_int,
    ]
    loaded.winograd_to_tiles.restype = loaded.winograd_from_tiles.restype = None
    return loaded
