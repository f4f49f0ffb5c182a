"""What every network promises: images in, full-size logits out."""

from typing import Any

import torch
from torch import nn

from model.backbone.base import Backbone
from model.layer.basic import resize
from model.table import ModelError


class SegModel(nn.Module):
    """Backbone plus decoder.

    A network sets its layers in `__init__` and implements `decode`. `spec` is set by `model.build_model`: name,
    num_classes, backbone and options, from which the same network can be built again.
    """

    spec: dict[str, Any]
    backbone: Backbone
    raw_outputs: tuple[str, ...] = ()  # names of outputs that are no maps of logits; only their loss reads them
    align_corners: bool = True  # how `forward` enlarges the logits

    def __init__(self, backbone: Backbone | None = None):
        """Take the backbone.

        It maps (N,3,H,W) to a list of features and has `channels` and `strides`. A network without a separable backbone
        passes None and implements `forward_features`.
        """
        super().__init__()
        self.backbone = backbone  # type: ignore[assignment]  # None only where a network never reads it

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Map normalised RGB pictures (N,3,H,W), any H and W, to logits (N,num_classes,H,W).

        "out" is always there; auxiliary outputs ("aux", ...) only in training mode. Logits are resized bilinearly, with
        aligned corners unless the network's `align_corners` is False. What `raw_outputs` names is given as `decode`
        gives it. Logits of half precision (autocast) come back as float32, which softmax and loss need.
        """
        outputs = self.decode(self.forward_features(x))
        own = f"{type(self).__module__}.{type(self).__qualname__}.decode"
        if not isinstance(outputs, dict) or "out" not in outputs:
            given = sorted(outputs) if isinstance(outputs, dict) else f"a {type(outputs).__name__}"
            raise ModelError(f"{own} gave {given}; it gives a dict of logits, the main ones as 'out'")
        for name, logits in outputs.items():
            if name in self.raw_outputs:
                continue
            if logits.ndim != 4:
                raise ModelError(
                    f"{own} gave {name!r} of shape {tuple(logits.shape)}; logits are (pictures, classes, height, width)"
                )
            if logits.dtype in (torch.float16, torch.bfloat16):
                logits = logits.float()
            if logits.requires_grad:  # the loss wants planes of classes, and the small map is the cheaper to rearrange
                logits = logits.contiguous()
            outputs[name] = resize(logits, x.shape[-2:], self.align_corners)
        return outputs

    @property
    def gives_coarse(self) -> bool:
        """Tell whether `coarse` works: `forward` enlarges as `SegModel` does."""
        return type(self).forward is SegModel.forward and self.align_corners

    def coarse(self, x: torch.Tensor) -> torch.Tensor:
        """Map images to the logits "out" on the network's own grid.

        These are the logits of (N,3,H,W) before `forward` enlarges them.

        Returns:
            (N,num_classes,h,w), its corners those of the picture; of half precision under autocast.

        Raises:
            ModelError: this network enlarges its logits in a way of its own.
        """
        if not self.gives_coarse:
            raise ModelError(
                f"{type(self).__name__} enlarges its logits in a way of its own: it has no coarse logits to average "
                "(test.windows: exact works)"
            )
        return self.decode(self.forward_features(x))["out"]

    def forward_features(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Map images (N,3,H,W) to features, from fine to coarse."""
        return self.backbone(x)

    def decode(self, features: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Map features to logits (N,num_classes,h,w) of any size.

        "out" is always there, auxiliary ones in training only.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement decode(features)")

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Split the parameters into those of the backbone and the "head"."""
        backbone = [] if self.backbone is None else list(self.backbone.parameters())
        known = {id(parameter) for parameter in backbone}
        return {"backbone": backbone, "head": [p for p in self.parameters() if id(p) not in known]}

    @property
    def smallest_train_batch(self) -> int:
        """Count the images that a training batch needs.

        2 where a batch norm sees maps pooled to 1x1, else 1.
        """
        parts = (module for module in self.modules() if module is not self)
        return max((getattr(part, "smallest_train_batch", 1) for part in parts), default=1)
