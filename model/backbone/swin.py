"""Swin Transformer: attention inside windows that move from block to block."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth

from model.backbone.base import Backbone
from model.table import ModelError

WINDOW = 7


class WindowAttention(nn.Module):
    """Self-attention of the tokens of a window: (windows,49,C) -> (windows,49,C).

    Source: Liu et al., Swin Transformer (ICCV 2021), equation 4. The bias of a pair of tokens is looked up by the
    difference of their rows and columns.
    """

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * WINDOW - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.pairs: torch.Tensor
        self.register_buffer("pairs", relative_positions(WINDOW), persistent=False)

    def forward(self, x: torch.Tensor, apart: torch.Tensor | None) -> torch.Tensor:
        """Map tokens (N*windows,49,C) to tokens.

        `apart` (windows,49,49) is negative for pairs that do not attend.
        """
        query, key, value = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        bias = self.relative_position_bias_table[self.pairs].permute(2, 0, 1)  # (heads,49,49)
        if apart is not None:
            bias = (bias + apart[:, None]).repeat(len(x) // len(apart), 1, 1, 1)
        x = F.scaled_dot_product_attention(query, key, value, bias.to(query.dtype))
        return self.proj(x.transpose(1, 2).flatten(2))


def relative_positions(window: int) -> torch.Tensor:
    """Give each pair of tokens its row of the bias table.

    The result is (window^2,window^2).
    """
    rows, columns = torch.arange(window * window) // window, torch.arange(window * window) % window
    row, column = rows[:, None] - rows + window - 1, columns[:, None] - columns + window - 1
    return row * (2 * window - 1) + column


class Block(nn.Module):
    """Attention in windows and a feed-forward network, beside shortcuts.

    Each behind a norm. Maps (N,H,W,C) to (N,H,W,C). The windows of a shifted block begin `WINDOW // 2` rows and columns
    later, cyclically. Tokens that come together over the border do not attend to each other. Maps are padded with zeros
    to whole windows.
    """

    def __init__(self, channels: int, heads: int, shifted: bool, drop_path: float):
        super().__init__()
        self.shift = WINDOW // 2 if shifted else 0
        self.norm1 = nn.LayerNorm(channels)
        self.attn = WindowAttention(channels, heads)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels))
        self.drop_path = StochasticDepth(drop_path, "row")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map tokens (N,H,W,C) to tokens (N,H,W,C)."""
        x = x + self.drop_path(self.attend(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        """Map tokens (N,H,W,C) to what they attend to in their windows (N,H,W,C)."""
        n, height, width, channels = x.shape
        x = F.pad(x, (0, 0, 0, -width % WINDOW, 0, -height % WINDOW))
        rows, columns = x.shape[1] // WINDOW, x.shape[2] // WINDOW
        x = x.roll((-self.shift, -self.shift), (1, 2))
        x = x.view(n, rows, WINDOW, columns, WINDOW, channels).transpose(2, 3).reshape(-1, WINDOW**2, channels)
        x = self.attn(x, across_border(rows, columns, self.shift, x.device) if self.shift else None)
        x = x.view(n, rows, columns, WINDOW, WINDOW, channels).transpose(2, 3)
        x = x.reshape(n, rows * WINDOW, columns * WINDOW, channels).roll((self.shift, self.shift), (1, 2))
        return x[:, :height, :width]


def across_border(rows: int, columns: int, shift: int, device: torch.device) -> torch.Tensor:
    """Make what is added to the attention of a shifted map.

    (rows*columns,49,49): -100 for pairs across the border, else 0. After the shift the last `shift` rows and columns of
    the last windows come from the other side of the map.
    """
    sides = []
    for count in (rows, columns):
        place = torch.arange(count * WINDOW, device=device)
        sides.append((place >= (count - 1) * WINDOW).long() + (place >= count * WINDOW - shift).long())
    region = 3 * sides[0][:, None] + sides[1]
    region = region.view(rows, WINDOW, columns, WINDOW).transpose(1, 2).reshape(-1, WINDOW**2)
    return -100.0 * (region[:, None] != region[:, :, None]).float()


class PatchMerging(nn.Module):
    """Joins two by two tokens to one of twice the channels.

    Maps (N,H,W,C) to (N,ceil(H/2),ceil(W/2),2*C).
    """

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map tokens (N,H,W,C) to tokens (N,ceil(H/2),ceil(W/2),2*C)."""
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        x = torch.cat([x[:, row::2, column::2] for column in range(2) for row in range(2)], 3)
        return self.reduction(self.norm(x))


class SwinTransformer(Backbone):
    """Swin Transformer without its classifier.

    Each level stands behind a norm of its own.

    Source: Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows" (ICCV 2021), section
    3, at any size of pictures as in its semantic segmentation with UPerNet. Features: four levels at strides 4, 8, 16,
    32.

    Args:
        width: channels of the first level; the others have 2, 4 and 8 times as many.
        depths: blocks of the four levels.
        output_stride: 32; these networks are not dilated.
        in_channels: channels of the pictures.
        drop_path: probability of leaving out the last block while training; that of the others grows linearly to it.

    Raises:
        ModelError: for another output stride.
    """

    output_strides = (32,)
    own_parts = ("norms",)  # which ImageNet weights have no values for

    def __init__(
        self, width: int, depths: Sequence[int], output_stride: int = 32, in_channels: int = 3, drop_path: float = 0.3
    ):
        super().__init__()
        if output_stride != 32:
            raise ModelError(f"a Swin Transformer has output stride 32, not {output_stride!r}")
        self.channels = [width, 2 * width, 4 * width, 8 * width]
        self.strides = [4, 8, 16, 32]
        chances = iter(torch.linspace(0, drop_path, sum(depths), device="cpu").tolist())
        self.embed = nn.Conv2d(in_channels, width, 4, 4)
        self.norm = nn.LayerNorm(width)
        self.stages = nn.ModuleList(
            nn.Sequential(*(Block(channels, channels // 32, place % 2 == 1, next(chances)) for place in range(depth)))
            for channels, depth in zip(self.channels, depths, strict=True)
        )
        self.merge = nn.ModuleList(PatchMerging(channels) for channels in self.channels[:-1])
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for channels in self.channels)
        self.apply(init_weights)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Map (N,in_channels,H,W) to four maps (N,channels[i],ceil(H/strides[i]),ceil(W/strides[i]))."""
        x = F.pad(x, (0, -x.shape[-1] % 4, 0, -x.shape[-2] % 4))
        x = self.norm(self.embed(x).permute(0, 2, 3, 1))
        features = []
        for level, (stage, norm) in enumerate(zip(self.stages, self.norms, strict=True)):
            x = stage(x if level == 0 else self.merge[level - 1](x))
            features.append(norm(x).permute(0, 3, 1, 2).contiguous())
        return features


def init_weights(module: nn.Module) -> None:
    """Initialise one layer as the published code does.

    Linear ones with deviation 0.02, biases with zero.
    """
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


swin_tiny = partial(SwinTransformer, 96, (2, 2, 6, 2))
swin_small = partial(SwinTransformer, 96, (2, 2, 18, 2))
swin_base = partial(SwinTransformer, 128, (2, 2, 18, 2))
swin_large = partial(SwinTransformer, 192, (2, 2, 18, 2))
