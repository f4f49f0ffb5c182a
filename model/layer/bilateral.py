"""Parts of networks with a context path, BiSeNet and STDC-Seg.

Axes: N images, C channels, H rows, W columns.
"""

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn import functional as F

from model.layer.basic import ConvBNReLU, resize


class AttentionRefinement(nn.Module):
    """3x3 convolution whose channels are weighted by their means.

    (N,in,H,W) -> (N,width,H,W). Source: Yu et al., "BiSeNet: Bilateral Segmentation Network for Real-time Semantic
    Segmentation" (ECCV 2018), figure 2 (b). `gate` makes an activation before the sigmoid, None for none as in the
    paper.
    """

    def __init__(self, in_channels: int, width: int, gate: Callable[[], nn.Module] | None = None):
        super().__init__()
        self.conv = ConvBNReLU(in_channels, width)
        self.gate = ConvBNReLU(width, width, 1, activation=gate)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N,in,H,W) to (N,width,H,W)."""
        x = self.conv(x)
        return x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))


class ContextPath(nn.Module):
    """Context path: coarse features, refined step by step.

    It begins with the mean over the coarsest. Source: Yu et al., BiSeNet (ECCV 2018), section 3.2.

    Args:
        in_channels: channels of the two features, from fine to coarse.
        width: channels of the results.
        nearest: whether maps are enlarged by nearest neighbours; else bilinearly with aligned corners.
        gate: see `AttentionRefinement`.
    """

    smallest_train_batch = 2

    def __init__(
        self,
        in_channels: Sequence[int],
        width: int = 128,
        nearest: bool = True,
        gate: Callable[[], nn.Module] | None = None,
    ):
        super().__init__()
        self.mean = ConvBNReLU(in_channels[-1], width, 1)
        self.attend = nn.ModuleList(AttentionRefinement(channels, width, gate) for channels in reversed(in_channels))
        self.refine = nn.ModuleList(ConvBNReLU(width, width) for _ in in_channels)
        self.nearest = nearest

    def forward(self, features: Sequence[torch.Tensor], finest: torch.Size) -> list[torch.Tensor]:
        """Map two features to two finer maps.

        All are from fine to coarse.

        Args:
            features: (N,in_channels[0],h,w) and (N,in_channels[1],h/2,w/2).
            finest: height and width of the finer result.

        Returns:
            (N,width,*finest) and (N,width,h,w).
        """
        fine, coarse = features
        x, results = self.mean(coarse.mean((2, 3), keepdim=True)), []
        steps = zip(self.attend, self.refine, (coarse, fine), (fine.shape[-2:], finest), strict=True)
        for attend, refine, feature, size in steps:
            x = attend(feature) + x
            x = refine(F.interpolate(x, size, mode="nearest") if self.nearest else resize(x, size))
            results.append(x)
        return results[::-1]


class FeatureFusion(nn.Module):
    """Feature fusion: two maps side by side, channels weighted by their means.

    (N,C,H,W) and (N,D,H,W) -> (N,width,H,W). Source: Yu et al., BiSeNet (ECCV 2018), figure 2 (c). `gate` maps means
    (N,width,1,1) to what the sigmoid takes.
    """

    smallest_train_batch = 2

    def __init__(self, in_channels: int, width: int, gate: nn.Module):
        super().__init__()
        self.project = ConvBNReLU(in_channels, width, 1)
        self.gate = gate

    def forward(self, detail: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Map (N,C,H,W) and (N,D,H,W), C + D = in_channels, to (N,width,H,W)."""
        x = self.project(torch.cat([detail, context], 1))
        return x + x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))
