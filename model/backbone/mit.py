"""Mix Transformers, the backbones of SegFormer."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth

from model.backbone.base import Backbone
from model.table import ModelError

HEADS = (1, 2, 5, 8)
REDUCTIONS = (8, 4, 2, 1)


class PatchEmbed(nn.Module):
    """Overlapping patches as tokens: (N,in,H,W) -> (N,ceil(H/stride),ceil(W/stride),out), normalised."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, eps: float):
        super().__init__()
        self.proj = nn.Conv2d(in_channels, out_channels, 2 * stride - 1, stride, stride - 1)
        self.norm = nn.LayerNorm(out_channels, eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N,in,H,W) to (N,h,w,out)."""
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class ReducedAttention(nn.Module):
    """Self-attention with keys and values of a smaller map.

    Maps (N,H,W,C) to (N,H,W,C).

    Source: Xie et al., SegFormer (NeurIPS 2021), equation 2, with the strided convolution of the published code: the
    queries attend to one token for each `reduction` x `reduction` tokens. Rows and columns left over are not attended
    to; a map smaller than that is one token, padded with zeros.
    """

    def __init__(self, channels: int, heads: int, reduction: int, eps: float):
        super().__init__()
        self.heads, self.reduction = heads, reduction
        self.q = nn.Linear(channels, channels)
        self.kv = nn.Linear(channels, 2 * channels)
        self.proj = nn.Linear(channels, channels)
        self.sr = self.norm = None
        if reduction > 1:
            self.sr = nn.Conv2d(channels, channels, reduction, reduction)
            self.norm = nn.LayerNorm(channels, eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map tokens (N,H,W,C) to tokens (N,H,W,C)."""
        n, height, width, channels = x.shape
        keys = x
        if self.sr is not None and self.norm is not None:
            missing = [max(self.reduction - side, 0) for side in (width, height)]
            keys = F.pad(x.permute(0, 3, 1, 2), (0, missing[0], 0, missing[1]))
            keys = self.norm(self.sr(keys).permute(0, 2, 3, 1))
        query = self.q(x).view(n, height * width, self.heads, -1).transpose(1, 2)
        key, value = self.kv(keys).view(n, -1, 2, self.heads, channels // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(query, key, value)
        return self.proj(y.transpose(1, 2).reshape(n, height, width, channels))


class MixFFN(nn.Module):
    """Feed-forward network that sees its neighbours: (N,H,W,C) -> (N,H,W,C).

    Source: Xie et al., SegFormer (NeurIPS 2021), equation 3: a depthwise 3x3 between the two linear layers tells the
    tokens where they are, in place of a position embedding.
    """

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.dwconv = nn.Conv2d(hidden, hidden, 3, 1, 1, groups=hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map tokens (N,H,W,C) to tokens (N,H,W,C)."""
        x = self.dwconv(self.fc1(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.fc2(F.gelu(x))


class Block(nn.Module):
    """Attention and feed-forward network, each beside a shortcut.

    Each behind a norm. Maps (N,H,W,C) to (N,H,W,C).
    """

    def __init__(self, channels: int, heads: int, reduction: int, drop_path: float, norm_eps: Sequence[float]):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, norm_eps[1])
        self.attn = ReducedAttention(channels, heads, reduction, norm_eps[0])
        self.norm2 = nn.LayerNorm(channels, norm_eps[1])
        self.mlp = MixFFN(channels, 4 * channels)
        self.drop_path = StochasticDepth(drop_path, "row")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map tokens (N,H,W,C) to tokens (N,H,W,C)."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Stage(nn.Module):
    """Patches, blocks, norm: (N,in,H,W) -> (N,out,ceil(H/stride),ceil(W/stride))."""

    def __init__(self, in_channels: int, channels: int, stride: int, blocks: list[Block], norm_eps: Sequence[float]):
        super().__init__()
        self.embed = PatchEmbed(in_channels, channels, stride, norm_eps[0])
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(channels, norm_eps[1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N,in,H,W) to (N,out,h,w)."""
        return self.norm(self.blocks(self.embed(x))).permute(0, 3, 1, 2).contiguous()


class MixTransformer(Backbone):
    """Hierarchical transformer without position embedding.

    Source: Xie et al., "SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers" (NeurIPS
    2021), section 3.1 and table 6. Features: four stages at strides 4, 8, 16, 32.

    Args:
        width: channels of the first stage, 32 (B0) or 64; the others have 2, 5 and 8 times as many.
        depths: blocks of the four stages.
        output_stride: 32; these networks are not dilated.
        in_channels: channels of the pictures.
        norm_eps: epsilon of the norms that follow a convolution, and of those in front of and behind the blocks. The
            published code has 1e-5 and 1e-6, transformers 1e-5 for both, MMSegmentation 1e-6.
        drop_path: probability of leaving out the last block while training; that of the others grows linearly to it.

    Raises:
        ModelError: for another output stride, or not two epsilons.
    """

    output_strides = (32,)

    def __init__(
        self,
        width: int,
        depths: Sequence[int],
        output_stride: int = 32,
        in_channels: int = 3,
        norm_eps: Sequence[float] = (1e-5, 1e-6),
        drop_path: float = 0.1,
    ):
        super().__init__()
        if output_stride != 32:
            raise ModelError(f"a Mix Transformer has output stride 32, not {output_stride!r}")
        if len(norm_eps) != 2:
            raise ModelError(f"norm_eps is two numbers (behind convolutions, around blocks), not {norm_eps!r}")
        self.channels = [width, 2 * width, 5 * width, 8 * width]
        self.strides = [4, 8, 16, 32]
        chances = iter(torch.linspace(0, drop_path, sum(depths), device="cpu").tolist())
        self.stages = nn.ModuleList()
        before = in_channels
        for channels, stride, depth, heads, reduction in zip(
            self.channels, (4, 2, 2, 2), depths, HEADS, REDUCTIONS, strict=True
        ):
            blocks = [Block(channels, heads, reduction, next(chances), norm_eps) for _ in range(depth)]
            self.stages.append(Stage(before, channels, stride, blocks, norm_eps))
            before = channels
        self.apply(init_weights)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Map (N,in_channels,H,W) to four maps (N,channels[i],ceil(H/strides[i]),ceil(W/strides[i]))."""
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


def init_weights(module: nn.Module) -> None:
    """Initialise one layer as the published code does.

    Linear ones with deviation 0.02, convolutions by fan-out.
    """
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


mit_b0 = partial(MixTransformer, 32, (2, 2, 2, 2))
mit_b1 = partial(MixTransformer, 64, (2, 2, 2, 2))
mit_b2 = partial(MixTransformer, 64, (3, 4, 6, 3))
mit_b3 = partial(MixTransformer, 64, (3, 4, 18, 3))
mit_b4 = partial(MixTransformer, 64, (3, 8, 27, 3))
mit_b5 = partial(MixTransformer, 64, (3, 6, 40, 3))
