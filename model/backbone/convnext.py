"""ConvNeXt: a convolutional network in the shape of a hierarchical transformer."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth

from model.backbone.base import Backbone
from model.layer.norm import LayerNorm2d
from model.table import ModelError


class Block(nn.Module):
    """Depthwise 7x7 and two linear layers beside a shortcut.

    The result is scaled. Maps (N,C,H,W) to (N,C,H,W).
    """

    def __init__(self, channels: int, drop_path: float):
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, 1e-6)
        self.pwconv1 = nn.Linear(channels, 4 * channels)
        self.pwconv2 = nn.Linear(4 * channels, channels)
        self.gamma = nn.Parameter(torch.full((channels,), 1e-6))
        self.drop_path = StochasticDepth(drop_path, "row")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N,C,H,W) to (N,C,H,W)."""
        y = self.dwconv(x).permute(0, 2, 3, 1)  # channels last
        y = self.gamma * self.pwconv2(F.gelu(self.pwconv1(self.norm(y))))
        return x + self.drop_path(y.permute(0, 3, 1, 2))


class ConvNeXt(Backbone):
    """ConvNeXt without its classifier, each level behind a norm of its own.

    Source: Liu et al., "A ConvNet for the 2020s" (CVPR 2022), section 2; the norms of the levels are those of its
    semantic segmentation with UPerNet. Features: four levels at strides 4, 8, 16, 32, of H//stride rows, since the
    patches do not overlap: rows and columns left over are not seen.

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
            raise ModelError(f"a ConvNeXt has output stride 32, not {output_stride!r}")
        self.channels = [width, 2 * width, 4 * width, 8 * width]
        self.strides = [4, 8, 16, 32]
        chances = iter(torch.linspace(0, drop_path, sum(depths), device="cpu").tolist())
        self.downsample, self.stages, self.norms = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        before = in_channels
        for channels, depth in zip(self.channels, depths, strict=True):
            if before == in_channels:
                self.downsample.append(nn.Sequential(nn.Conv2d(before, channels, 4, 4), LayerNorm2d(channels)))
            else:
                self.downsample.append(nn.Sequential(LayerNorm2d(before), nn.Conv2d(before, channels, 2, 2)))
            self.stages.append(nn.Sequential(*(Block(channels, next(chances)) for _ in range(depth))))
            self.norms.append(LayerNorm2d(channels))
            before = channels
        self.apply(init_weights)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Map (N,in_channels,H,W) to four maps (N,channels[i],H//strides[i],W//strides[i]).

        A picture of less than 32 pixels is padded to 32 with zeros.
        """
        x = F.pad(x, (0, max(32 - x.shape[-1], 0), 0, max(32 - x.shape[-2], 0)))
        features = []
        for downsample, stage, norm in zip(self.downsample, self.stages, self.norms, strict=True):
            x = stage(downsample(x))
            features.append(norm(x))
        return features


def init_weights(module: nn.Module) -> None:
    """Initialise one layer as the published code does.

    Weights with deviation 0.02, biases with zero.
    """
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


convnext_tiny = partial(ConvNeXt, 96, (3, 3, 9, 3))
convnext_small = partial(ConvNeXt, 96, (3, 3, 27, 3))
convnext_base = partial(ConvNeXt, 128, (3, 3, 27, 3))
convnext_large = partial(ConvNeXt, 192, (3, 3, 27, 3))
