"""PIDNet: a branch for details, for context, for boundaries.

The boundaries say which of the two others counts.
"""

import torch
from torch import nn
from torch.nn import functional as F

from model.base import SegModel
from model.layer.basic import ConvBNReLU, resize
from model.layer.branch import DAPPM, PAPPM, BasicBlock, BNReLUConv, Bottleneck, PreactivationHead, basic_stage, stem
from model.table import ModelError, unknown

# Size -> blocks of a stage in stem and detailed branch, in the branch of context; width of the first layers, of the
# pyramid, of the heads (table 1 of the paper's supplement).
SIZES = {"s": (2, 3, 32, 96, 128), "m": (2, 3, 64, 96, 128), "l": (3, 4, 64, 112, 256)}


class PixelAttention(nn.Module):
    """Mixes details with context by their likeness.

    The more alike they are, the more context: (N,C,H,W), (N,C,h,w) -> (N,C,H,W).

    Source: section 3.1 of the paper, equation 2 and figure 5 ("Pag").
    """

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.detail = ConvBNReLU(channels, width, 1, activation=None)
        self.context = ConvBNReLU(channels, width, 1, activation=None)

    def forward(self, detail: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Map details (N,C,H,W) and context (N,C,h,w) to (N,C,H,W)."""
        size = detail.shape[-2:]
        products = self.detail(detail) * resize(self.context(context), size, False)
        share = torch.sigmoid(products.sum(1, keepdim=True))
        return (1 - share) * detail + share * resize(context, size, False)


class LightBoundaryFusion(nn.Module):
    """Fuse details and context by the boundary: three maps (N,C,H,W) -> (N,C,H,W).

    Source: section 3.3 of the paper, equation 4 ("Light-Bag"): details count on boundaries, context elsewhere.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.detail = ConvBNReLU(channels, channels, 1, activation=None)
        self.context = ConvBNReLU(channels, channels, 1, activation=None)

    def forward(self, detail: torch.Tensor, context: torch.Tensor, boundary: torch.Tensor) -> torch.Tensor:
        """Map details, context and boundary, all (N,C,H,W), to (N,C,H,W)."""
        share = torch.sigmoid(boundary)
        return self.detail((1 - share) * context + detail) + self.context(context + share * detail)


class BoundaryFusion(BNReLUConv):
    """Fuses details and context by the boundary.

    A 3x3 convolution follows: three maps (N,C,H,W) -> (N,C,H,W).

    Source: section 3.3 of the paper, equation 3 ("Bag").
    """

    def __init__(self, channels: int):
        super().__init__(channels, channels, 3)

    def forward(  # type: ignore[override]  # three maps, where Sequential takes one
        self, detail: torch.Tensor, context: torch.Tensor, boundary: torch.Tensor
    ) -> torch.Tensor:
        """Map details, context and boundary, all (N,C,H,W), to (N,C,H,W)."""
        share = torch.sigmoid(boundary)
        return super().forward(share * detail + (1 - share) * context)


class PIDNet(SegModel):
    """Network of three branches, named after the terms of a PID controller.

    Source: Xu et al., "PIDNet: A Real-time Semantic Segmentation Network Inspired by PID Controllers" (CVPR 2023, arXiv
    2206.02066). P: details at stride 8; I: context down to stride 64; D: boundaries at stride 8. Inner resizes have
    align_corners False.

    Args:
        num_classes: channels of the logits.
        size: "s", "m" or "l".
        auxiliary: whether P and D have heads, whose outputs "aux" and "boundary" (N,1,H/8,W/8) are given while
            training.
        rectified_heads: whether these heads see their features behind the ReLU that the branch goes on with. It works
            in place in the authors' code, so that they do; MMSegmentation copies the features before it.
        align_corners: how the logits are enlarged.
        in_channels: channels of the image.

    Raises:
        ModelError: for another size.
    """

    raw_outputs = ("boundary",)

    def __init__(
        self,
        num_classes: int,
        size: str = "s",
        auxiliary: bool = True,
        rectified_heads: bool = True,
        align_corners: bool = True,
        in_channels: int = 3,
    ):
        super().__init__()
        if size not in SIZES:
            raise ModelError(unknown("size of pidnet", size, SIZES))
        depth, context_depth, width, pyramid_width, head_width = SIZES[size]
        self.align_corners, self.rectified_heads = align_corners, rectified_heads
        large, fine = depth > 2, 2 * width
        self.stem = stem(in_channels, width, depth)
        self.i_branch = nn.ModuleList(
            [
                basic_stage(fine, 4 * width, context_depth, 2),
                basic_stage(4 * width, 8 * width, context_depth, 2),
                nn.Sequential(Bottleneck(8 * width, 8 * width, 2), Bottleneck(16 * width, 8 * width)),
            ]
        )
        self.p_branch = nn.ModuleList(
            [basic_stage(fine, fine, depth), basic_stage(fine, fine, depth), nn.Sequential(Bottleneck(fine, fine))]
        )
        narrow = fine if large else width
        second = BasicBlock(fine, fine) if large else nn.Sequential(Bottleneck(width, width))
        self.d_branch = nn.ModuleList([BasicBlock(fine, narrow), second, nn.Sequential(Bottleneck(fine, fine))])
        self.compress = nn.ModuleList(ConvBNReLU(k * width, fine, 1, activation=None) for k in (4, 8))
        self.attend = nn.ModuleList(PixelAttention(fine, width) for _ in range(2))
        self.difference = nn.ModuleList(
            [ConvBNReLU(4 * width, narrow, 3, activation=None), ConvBNReLU(8 * width, fine, 3, activation=None)]
        )
        self.pyramid = (DAPPM if large else PAPPM)(16 * width, pyramid_width, 4 * width)
        self.fuse = (BoundaryFusion if large else LightBoundaryFusion)(4 * width)
        self.classifier = PreactivationHead(4 * width, head_width, num_classes)
        self.aux = PreactivationHead(fine, head_width, num_classes) if auxiliary else None
        self.boundary = PreactivationHead(fine, width, 1) if auxiliary else None

    def forward_features(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Map images to the fused features and both heads' inputs.

        (N,in_channels,H,W) to (N,4*width,H/8,W/8), what P's head sees, and what D's sees.
        """
        p = i = d = self.stem(x)
        kept = []
        for stage in range(2):
            i = F.relu(self.i_branch[stage](i))
            p = self.attend[stage](self.p_branch[stage](F.relu(p)), self.compress[stage](i))
            d = self.d_branch[stage](F.relu(d)) + resize(self.difference[stage](i), p.shape[-2:], False)
            kept.append((p, d))
        p, d = self.p_branch[2](F.relu(p)), self.d_branch[2](F.relu(d))
        i = resize(self.pyramid(self.i_branch[2](i)), p.shape[-2:], False)
        return [self.fuse(p, i, d), kept[0][0], kept[1][1]]

    def decode(self, features: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Map the features to logits (N,num_classes,H/8,W/8); "boundary" is (N,1,H/8,W/8)."""
        fused, early, late = features
        logits = {"out": self.classifier(fused)}
        if self.training and self.aux is not None and self.boundary is not None:
            if self.rectified_heads:
                early, late = F.relu(early), F.relu(late)
            logits |= {"aux": self.aux(early), "boundary": self.boundary(late)}
        return logits
