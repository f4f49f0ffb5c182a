"""Any feature extractor of the timm library, under the name "timm/<its timm name>"."""

import difflib
import inspect

import timm
import torch
from torch import nn
from torch.nn import functional as F

# What makes timm's transformers accept other picture sizes than the one they were trained at.
ANY_SIZE = {"dynamic_img_size": True, "strict_img_size": False}


class TimmBackbone(nn.Module):
    """A timm network through `features_only`; widths and strides are those that timm declares.

    Pictures are padded with zeros on the right and below to a multiple of the coarsest stride, since some of
    these networks take nothing else, and the features are cut to ceil(H/stride) x ceil(W/stride) again. A few
    networks (Levit, for example) are tied to one picture size and raise timm's own error at another.

    Args:
        name: timm's name, with or without the tag of a weight set ("resnet50d",
            "convnext_tiny.in12k_ft_in1k").
        output_stride: stride of the coarsest features. 32 leaves the network as it is.
        in_channels: channels of the pictures.

    Raises:
        ValueError: for an unknown name (with the nearest one), or where timm cannot give features or that
            stride.
    """

    def __init__(self, name: str, output_stride: int = 32, in_channels: int = 3):
        super().__init__()
        if not timm.is_model(name):
            nearest = difflib.get_close_matches(name, timm.list_models(), n=1, cutoff=0)[0]
            raise ValueError(
                f"unknown timm model {name!r}; did you mean {nearest!r}? timm.list_models() lists all of them"
            )
        with torch.device("meta"):
            whole = timm.create_model(name)
        accepted = inspect.signature(type(whole).__init__).parameters
        options = {option: value for option, value in ANY_SIZE.items() if option in accepted}
        if output_stride != 32:
            options["output_stride"] = output_stride
        try:
            self.body = timm.create_model(name, features_only=True, in_chans=in_channels, **options)
        except (TypeError, AssertionError, NotImplementedError, RuntimeError) as error:
            reason = str(error) or "unsupported; try 32"
            raise ValueError(
                f"timm model {name!r} gives no features at output stride {output_stride}: {reason}"
            ) from error
        self.channels = list(self.body.feature_info.channels())
        self.strides = list(self.body.feature_info.reduction())
        if output_stride not in (32, self.strides[-1]):
            raise ValueError(f"timm model {name!r} has strides {self.strides}, not the output stride {output_stride}")
        self.channels_last = str(getattr(self.body, "output_fmt", "NCHW")).endswith("NHWC")
        self.whole_names = list(whole.state_dict())

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Map (N,3,H,W) to maps (N,channels[i],ceil(H/strides[i]),ceil(W/strides[i]))."""
        height, width = x.shape[-2:]
        coarsest = max(self.strides)
        features = self.body(F.pad(x, (0, -width % coarsest, 0, -height % coarsest)))
        if self.channels_last:
            features = [feature.permute(0, 3, 1, 2) for feature in features]
        return [
            feature[..., : -(-height // stride), : -(-width // stride)]
            for feature, stride in zip(features, self.strides, strict=True)
        ]

    def published_names(self) -> tuple[dict[str, str], list[str]]:
        """Keys of timm's whole network as keys of this backbone, and those of the parts without features."""
        ours = set(self.state_dict())
        names, unused = {}, []
        for name in self.whole_names:
            # features_only joins the first two levels of some networks: stages.0.x becomes stages_0.x.
            candidates = (f"body.{name}", f"body.{name.replace('.', '_', 1)}", f"body.model.{name}")
            found = next((candidate for candidate in candidates if candidate in ours), None)
            if found is None:
                unused.append(name)
            else:
                names[name] = found
        return names, unused
