"""Semantic flow: coarse maps warped to where they belong.

The flow field is learned.

Source: Li et al., "Semantic Flow for Fast and Accurate Scene Parsing" (ECCV 2020, arXiv 2002.10120), and Li
et al., "SFNet: Faster and Accurate Semantic Segmentation via Semantic Flow" (IJCV 2023, arXiv 2207.04415).
"""

import torch
from torch import nn
from torch.nn import functional as F

from model.layer.basic import resize
from model.table import ModelError


def warp(x: torch.Tensor, flow: torch.Tensor, align_corners: bool = True) -> torch.Tensor:
    """Sample maps x (N,C,h,w) where a flow field (N,2,H,W) points: (N,C,H,W).

    The output at row i and column j is x at the normalised position

        gx = -1 + 2j/(W-1) + flow[0]/W,   gy = -1 + 2i/(H-1) + flow[1]/H,

    interpolated bilinearly between the pixels of x, with zeros outside. -1 and 1 are the centres of the
    outermost pixels of x with `align_corners`, column (gx + 1)(w - 1)/2, and their outer edges without,
    column ((gx + 1)w - 1)/2; rows alike. A flow of one therefore moves (w - 1)/2W or w/2W pixels of x. No
    flow is `resize(x, (H, W))` with `align_corners`; without, the outermost samples lie half a pixel outside.

    Positions are computed in float32 at least: in bfloat16 those on a map 256 pixels wide would be up to a
    quarter of a pixel off.
    """
    height, width = flow.shape[-2:]
    flow = flow.to(torch.promote_types(x.dtype, torch.float32))
    columns, rows = _axis(width, flow), _axis(height, flow)
    grid = torch.stack([columns + flow[:, 0] / width, rows[:, None] + flow[:, 1] / height], -1)
    if torch.compiler.is_compiling():  # what F.grid_sample takes on a GPU, cuDNN's, no graph of several sizes can hold
        return torch.grid_sampler_2d(x.to(grid.dtype), grid, 0, 0, align_corners).to(x.dtype)  # bilinear, zeros
    return F.grid_sample(x.to(grid.dtype), grid, "bilinear", "zeros", align_corners).to(x.dtype)


def _axis(size: int, like: torch.Tensor) -> torch.Tensor:
    """`size` positions from -1 to 1, of the type and on the device of `like`.

    torch.linspace would tie an exported network to one picture size.
    """
    steps = torch.arange(size, dtype=like.dtype, device=like.device)
    return 2 * steps / max(size - 1, 1) - 1


class FlowAlign(nn.Module):
    """Flow Alignment Module (ECCV 2020): moves a coarse map.

    It is brought to the place and size of a fine one. The flow comes from both maps, each reduced to half its width;
    what is warped is the coarse map as it came. The convolutions have neither bias nor norm and start as PyTorch starts
    them: the fan-out rule would give two flow channels a field of many pixels.
    """

    def __init__(self, width: int, align_corners: bool = True):
        super().__init__()
        self.reduce_fine = nn.Conv2d(width, width // 2, 1, bias=False)
        self.reduce_coarse = nn.Conv2d(width, width // 2, 1, bias=False)
        self.flow = nn.Conv2d(width // 2 * 2, 2, 3, padding=1, bias=False)
        self.align_corners = align_corners

    def forward(self, fine: torch.Tensor, coarse: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map a fine and a coarse map to the warped coarse one.

        fine (N,width,H,W), coarse (N,width,h,w); also returns the flow (N,2,H,W).
        """
        reduced = resize(self.reduce_coarse(coarse), fine.shape[-2:])
        flow = self.flow(torch.cat([reduced, self.reduce_fine(fine)], 1))
        return warp(coarse, flow, self.align_corners), flow


class DualFlowAlign(nn.Module):
    """Gated Dual Flow Alignment Module (IJCV 2023).

    Both maps are warped, and a gate chooses at each pixel. With the gate g between 0 and 1: g * warp(coarse) + (1 - g)
    * warp(fine).

    Args:
        width: channels of both maps.
        gate: whether there is a gate; without, the warped maps are added.
        gate_input: what the gate sees. "pooled": mean and maximum over the channels of the reduced coarse and
            of the fine map, as in the published networks; "features": both maps, reduced to half their width.
        align_corners: as in `warp`.

    Raises:
        ModelError: for another gate input.
    """

    def __init__(self, width: int, gate: bool = True, gate_input: str = "pooled", align_corners: bool = True):
        super().__init__()
        inputs = {"pooled": 4, "features": width // 2 * 2}
        if gate_input not in inputs:
            raise ModelError(f"gate_input is one of {', '.join(inputs)}, not {gate_input!r}")
        self.reduce_fine = nn.Conv2d(width, width // 2, 1, bias=False)
        self.reduce_coarse = nn.Conv2d(width, width // 2, 1, bias=False)
        self.flow = nn.Conv2d(width // 2 * 2, 4, 3, padding=1, bias=False)
        self.gate = nn.Conv2d(inputs[gate_input], 1, 3, padding=1, bias=False) if gate else None
        self.pooled = gate_input == "pooled"
        self.align_corners = align_corners

    def forward(self, fine: torch.Tensor, coarse: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Map a fine and a coarse map to one, and two flows.

        fine (N,width,H,W), coarse (N,width,h,w) to (N,width,H,W) and flows (N,2,H,W). The first flow is that of the
        coarse map, the second that of the fine one.
        """
        reduced = resize(self.reduce_coarse(coarse), fine.shape[-2:])
        both = torch.cat([reduced, self.reduce_fine(fine)], 1)
        flows = list(self.flow(both).split(2, 1))
        warped, kept = (warp(x, flow, self.align_corners) for x, flow in zip((coarse, fine), flows, strict=True))
        if self.gate is None:
            return warped + kept, flows
        if self.pooled:
            means = [x.mean(1, keepdim=True) for x in (reduced, fine)]
            both = torch.cat([*means, *(x.amax(1, keepdim=True) for x in (reduced, fine))], 1)
        gate = self.gate(both).sigmoid()
        return warped * gate + kept * (1 - gate), flows
