"""Inverted residual blocks on AMX, one operation each: the wide map exists for a few rows at a time."""

import ctypes
from functools import cache
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from model.backbone.mobilenet import InvertedResidual
from model.inference.cpu.native import compiled, new_maps
from model.inference.cpu.split import DEPTH, SIDE, pack, require_amx

SOURCE = Path(__file__).with_suffix(".cpp")


class _Block(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int64)
        for name in (
            "pictures",
            "height",
            "width",
            "channels",
            "expanded",
            "out_channels",
            "stride",
            "border",
            "expands",
            "residual",
        )
    ]


class _Weights(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_void_p)
        for name in ("expansion", "projection", "expansion_bias", "depthwise", "projection_bias")
    ]


class FusedInvertedResidual(nn.Module):
    """What `block`, its norms folded, gives: (N,in,H,W) -> (N,out,H/stride,W/stride), no gradients.

    dtype: of the maps, float32 or bfloat16.
    """

    def __init__(self, block: InvertedResidual, dtype: torch.dtype):
        super().__init__()
        *expansion, depthwise, projection = (layer for layer in block.conv if isinstance(layer, nn.Conv2d))
        self.dtype, self.expanded, self.out_channels = dtype, block.width, projection.out_channels
        self.stride, self.border, self.residual = block.stride, block.border, block.residual
        tiles, bias = _packed(expansion[0], dtype) if expansion else (torch.empty(0), torch.empty(0))
        self.register_buffer("expansion", tiles)
        self.register_buffer("expansion_bias", bias)
        self.register_buffer("depthwise", _packed_depthwise(depthwise))
        tiles, bias = _packed(projection, dtype)
        self.register_buffer("projection", tiles)
        self.register_buffer("projection_bias", bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N,in,H,W) to (N,out,H/stride,W/stride)."""
        return inverted_residual(
            x.to(self.dtype),
            self.expansion,
            self.expansion_bias,
            self.depthwise,
            self.projection,
            self.projection_bias,
            self.expanded,
            self.out_channels,
            self.stride,
            self.border,
            self.residual,
        )


def _packed(conv: nn.Conv2d, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """The tiles of a 1x1 convolution, both halves or the upper one alone, and its bias in whole panels."""
    tiles = pack(conv.weight.detach())
    return tiles if dtype == torch.float32 else tiles[:, :, :, :, 0].contiguous(), _in_panels(conv.bias.detach())


def _packed_depthwise(conv: nn.Conv2d) -> torch.Tensor:
    """Nine taps and the bias of each 16 channels, float32 (width/16, 10, 16), in whole panels."""
    rows = torch.cat([conv.weight.detach().flatten(1).float(), conv.bias.detach().float()[:, None]], 1)
    return _in_panels(rows.t()).unflatten(1, (-1, SIDE)).transpose(0, 1).contiguous()


def _in_panels(channels: torch.Tensor) -> torch.Tensor:
    return F.pad(channels.float(), (0, -channels.shape[-1] % DEPTH))


@torch.library.custom_op("segmentation::inverted_residual", mutates_args=(), device_types="cpu")
def inverted_residual(
    x: torch.Tensor,
    expansion: torch.Tensor,
    expansion_bias: torch.Tensor,
    depthwise: torch.Tensor,
    projection: torch.Tensor,
    projection_bias: torch.Tensor,
    expanded: int,
    out_channels: int,
    stride: int,
    border: int,
    residual: bool,
) -> torch.Tensor:
    """x (N,in,H,W), float32 or bfloat16, to (N,out,H/stride,W/stride) of its type, channels_last.

    The weights are those of FusedInvertedResidual; without an expansion, that is empty.
    """
    x = x.contiguous(memory_format=torch.channels_last)
    shape = _shape(x, out_channels, stride)
    out = new_maps(*shape) if x.dtype == torch.float32 else _empty(x, shape)
    block = _Block(
        x.shape[0], *x.shape[2:], x.shape[1], expanded, out_channels, stride, border, len(expansion) > 0, residual
    )
    weights = _Weights(*(t.data_ptr() for t in (expansion, projection, expansion_bias, depthwise, projection_bias)))
    run = {torch.float32: kernel().inverted_float32, torch.bfloat16: kernel().inverted_bfloat16}[x.dtype]
    run(x.data_ptr(), weights, out.data_ptr(), block, torch.get_num_threads())
    return out


@inverted_residual.register_fake
def _(x, expansion, expansion_bias, depthwise, projection, projection_bias, expanded, out_channels, stride, *_):
    return _empty(x, _shape(x, out_channels, stride))


def _shape(x: torch.Tensor, channels: int, stride: int) -> list[int]:
    return [x.shape[0], channels, *((side - 1) // stride + 1 for side in x.shape[2:])]


def _empty(x: torch.Tensor, shape: list[int]) -> torch.Tensor:
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def use_fused_blocks(network: nn.Module, dtype: torch.dtype) -> int:
    """Replaces the inverted residual blocks of MobileNet-V2 whose norms are folded, in place; how many.

    Raises:
        ValueError: as `kernel`.
    """
    found = [name for name, block in network.named_modules() if type(block) is InvertedResidual and _is_folded(block)]
    if found:
        kernel()  # here, not in the first forward pass, a compiler may fail
    for name in found:
        network.set_submodule(name, FusedInvertedResidual(network.get_submodule(name), dtype))
    return len(found)


def _is_folded(block: InvertedResidual) -> bool:
    return not any(isinstance(layer, nn.BatchNorm2d) for layer in block.conv)


@cache
def kernel() -> ctypes.CDLL:
    """The compiled block; ValueError as `split.require_amx`."""
    require_amx()
    library, pointer = compiled(SOURCE), ctypes.c_void_p
    for run in (library.inverted_float32, library.inverted_bfloat16):
        run.argtypes = [pointer, ctypes.POINTER(_Weights), pointer, ctypes.POINTER(_Block), ctypes.c_int]
        run.restype = None
    return library
