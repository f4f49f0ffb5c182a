"""High-resolution networks: four resolutions side by side throughout."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import nn

from model.backbone.base import Backbone
from model.backbone.resnet import BasicBlock, Bottleneck
from model.layer.basic import ConvBNReLU, init_weights, resize
from model.table import ModelError


class Fusion(nn.Module):
    """Gives every branch the sum of all branches.

    Branch i of (N,width[i],H/2^i,W/2^i) stays a map of this shape.

    Source: Wang et al., HRNet (TPAMI 2020), section 3.2. A coarser branch is projected by 1x1 and enlarged, a finer one
    reduced by 3x3 convolutions of stride 2.
    """

    def __init__(self, widths: Sequence[int], align_corners: bool):
        super().__init__()
        self.align_corners = align_corners
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(_path(widths, start, end) for start in range(len(widths))) for end in range(len(widths))
        )
        self.relu = nn.ReLU()

    def forward(self, branches: list[torch.Tensor]) -> list[torch.Tensor]:
        """Map the branches, fine to coarse, to branches of the same shapes."""
        fused = []
        for place, paths in enumerate(self.fuse_layers):
            size = branches[place].shape[-2:]
            maps = (path(branch) for path, branch in zip(paths.children(), branches, strict=True))
            y = sum(x if x.shape[-2:] == size else resize(x, size, self.align_corners) for x in maps)
            fused.append(self.relu(y))
        return fused


def _path(widths: Sequence[int], start: int, end: int) -> nn.Module:
    """Layers from one branch to another one's width, and to its stride where that is coarser."""
    if start == end:
        return nn.Identity()
    if start > end:
        return ConvBNReLU(widths[start], widths[end], 1, activation=None)
    steps = [ConvBNReLU(widths[start], widths[start], 3, 2) for _ in range(end - start - 1)]
    return nn.Sequential(*steps, ConvBNReLU(widths[start], widths[end], 3, 2, activation=None))


class Module(Fusion):
    """Residual blocks in each branch, then the fusion of all branches."""

    def __init__(self, widths: Sequence[int], depth: int, align_corners: bool):
        super().__init__(widths, align_corners)
        self.branches = nn.ModuleList(
            nn.Sequential(*(BasicBlock(width, width, 1, (1, 1)) for _ in range(depth))) for width in widths
        )

    def forward(self, branches: list[torch.Tensor]) -> list[torch.Tensor]:
        """Map the branches, fine to coarse, to branches of the same shapes."""
        return super().forward([blocks(x) for blocks, x in zip(self.branches, branches, strict=True)])


class HighResolutionNet(Backbone):
    """HRNet without a head.

    Source: Wang et al., "Deep High-Resolution Representation Learning for Visual Recognition" (TPAMI 2020, arXiv
    1908.07919), section 3. Features: `width`, 2, 4 and 8 times as many channels at strides 4, 8, 16, 32.

    Args:
        width: channels of the finest branch.
        stem_depth: bottlenecks in front of the branches.
        depth: residual blocks of each branch in a module.
        modules: modules with two, three and four branches.
        output_stride: 32; these networks are not dilated.
        align_corners: how coarse branches are enlarged; it leaves no trace in the weights, see `model.hrnet.HRNet`.
        in_channels: channels of the pictures.

    Raises:
        ModelError: for another output stride.
    """

    output_strides = (32,)

    def __init__(
        self,
        width: int,
        stem_depth: int,
        depth: int,
        modules: Sequence[int],
        output_stride: int = 32,
        align_corners: bool = False,
        in_channels: int = 3,
    ):
        super().__init__()
        if output_stride != 32:
            raise ModelError(f"an HRNet has output stride 32, not {output_stride!r}")
        self.channels = [width, 2 * width, 4 * width, 8 * width]
        self.strides = [4, 8, 16, 32]
        self.stem = nn.Sequential(*ConvBNReLU(in_channels, 64, stride=2), *ConvBNReLU(64, 64, stride=2))
        blocks = [Bottleneck(64 if place == 0 else 256, 64, 1, (1, 1)) for place in range(stem_depth)]
        self.layer1 = nn.Sequential(*blocks)
        first = nn.Sequential(ConvBNReLU(256, self.channels[1], 3, 2))
        self.transition1 = nn.ModuleList([ConvBNReLU(256, width), first])
        self.transition2, self.transition3 = (
            nn.Sequential(ConvBNReLU(self.channels[place - 1], self.channels[place], 3, 2)) for place in (2, 3)
        )
        self.stage2, self.stage3, self.stage4 = (
            nn.ModuleList(Module(self.channels[:branches], depth, align_corners) for _ in range(count))
            for branches, count in zip((2, 3, 4), modules, strict=True)
        )
        self.apply(init_weights)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Map (N,in_channels,H,W) to four maps (N,channels[i],H/strides[i],W/strides[i])."""
        x = self.layer1(self.stem(x))
        branches = [transition(x) for transition in self.transition1]
        for module in self.stage2:
            branches = module(branches)
        for transition, stage in ((self.transition2, self.stage3), (self.transition3, self.stage4)):
            branches = [*branches, transition(branches[-1])]
            for module in stage:
                branches = module(branches)
        return branches


hrnet_w18_small_v2 = partial(HighResolutionNet, 18, 2, 2, (1, 3, 2))
hrnet_w18 = partial(HighResolutionNet, 18, 4, 4, (1, 4, 3))
hrnet_w32 = partial(HighResolutionNet, 32, 4, 4, (1, 4, 3))
hrnet_w40 = partial(HighResolutionNet, 40, 4, 4, (1, 4, 3))
hrnet_w48 = partial(HighResolutionNet, 48, 4, 4, (1, 4, 3))
