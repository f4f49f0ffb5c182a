"""A trained network behind the interface of the data.

Channels in their order, outputs for their classes.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


class Adapted(nn.Module):
    """Feeds and picks channels as the network, not the data, has them.

    R, G, B to a network that sees B, G, R, and the outputs that are classes of the data.

    Args:
        model: a `SegModel`, or what `optimize_for_inference` makes of one.
        bgr: whether the network sees the channels in the order B, G, R.
        outputs: for each class of the data its channel of the logits; None for all as they are.
    """

    outputs: torch.Tensor | None
    model: Any  # nn.Module declares neither `coarse` nor `gives_coarse`

    def __init__(self, model: nn.Module, bgr: bool, outputs: Sequence[int] | None):
        super().__init__()
        self.model = model
        self.bgr = bgr
        self.register_buffer("outputs", None if outputs is None else torch.tensor(outputs), persistent=False)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Map normalised R, G, B pictures (N,3,H,W) to logits "out" (N,classes,H,W)."""
        return {"out": self._picked(self.model(self.ordered(x))["out"])}

    @property
    def gives_coarse(self) -> bool:
        """Tell whether `coarse` works, see `SegModel`."""
        return getattr(self.model, "gives_coarse", False)

    def coarse(self, x: torch.Tensor) -> torch.Tensor:
        """Map pictures (N,3,H,W) to logits (N,classes,h,w) on the network's own grid."""
        return self._picked(self.model.coarse(self.ordered(x)))

    def ordered(self, x: torch.Tensor) -> torch.Tensor:
        """Put the channels of pictures (N,3,H,W) in the order of the network."""
        return x.flip(1) if self.bgr else x

    def _picked(self, logits: torch.Tensor) -> torch.Tensor:
        return logits if self.outputs is None else logits.index_select(1, self.outputs)


def adapt(model: nn.Module, channel_order: str = "rgb", outputs: Sequence[int] | None = None) -> nn.Module:
    """Put a network behind the interface of the data; return it.

    The network itself where there is nothing to change.
    """
    if channel_order == "rgb" and outputs is None:
        return model
    return Adapted(model, channel_order == "bgr", outputs)
