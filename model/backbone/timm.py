"""Any feature extractor of the timm library.

Its name is "timm/<its timm name>".
"""

import difflib
import inspect
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import timm
import torch
from torch.nn import functional as F

from model.backbone.base import Backbone
from model.layer.basic import resize
from model.layer.pyramid import SimpleFeaturePyramid
from model.layer.shapes import shapes_only
from model.table import ModelError

# What makes timm's transformers accept other picture sizes than the one they were trained at.
ANY_SIZE = {"dynamic_img_size": True, "strict_img_size": False}
# What timm raises where a network has no features, or cannot have that stride.
UNSUPPORTED = (TypeError, AssertionError, NotImplementedError, RuntimeError)


class TimmBackbone(Backbone):
    """A timm network through `features_only`.

    Widths and strides are those that timm declares. A network of a single stride (ViT, DINOv2, EVA) gets a simple
    feature pyramid, `pyramid`, so that it has the strides from 4 to `output_stride` like any other. Where its patches
    have no power of two as side, the picture is resized so that a patch covers the nearest one (14 pixels: 16).

    Pictures are padded with zeros on the right and below to a multiple of the coarsest stride, since some of these
    networks take nothing else, and the features are cut to ceil(H/stride) x ceil(W/stride) again.

    Args:
        name: timm's name, with or without the tag of a weight set ("resnet50d",
            "convnext_tiny.in12k_ft_in1k").
        output_stride: stride of the coarsest features. 32 leaves the network as it is, which then has the strides that
            timm declares.
        in_channels: channels of the pictures.

    Raises:
        ModelError: for an unknown name (with the nearest one), a network without features, one that is tied to a size
            of pictures, or a stride that it cannot have.
    """

    own_parts = ("pyramid",)  # what timm's weights have no values for

    def __init__(self, name: str, output_stride: int = 32, in_channels: int = 3):
        super().__init__()
        facts = describe(name)
        if output_stride not in facts.output_strides:
            raise ModelError(
                f"backbone 'timm/{name}' has no output stride {output_stride!r}, only "
                f"{' or '.join(map(str, facts.output_strides))}"
            )
        dilated = not facts.single_stride and output_stride != 32
        options = {**facts.options, **({"output_stride": output_stride} if dilated else {})}
        body: Any = timm.create_model(name, features_only=True, in_chans=in_channels, **options)
        self.body = body
        self.channels, self.strides = list(body.feature_info.channels()), list(body.feature_info.reduction())
        self.channels_last = str(getattr(self.body, "output_fmt", "NCHW")).endswith("NHWC")
        self.whole_names = facts.whole_names
        self.patch = self.grid = self.strides[-1]
        self.pyramid = None
        if facts.single_stride:
            self.grid = 2 ** round(math.log2(self.patch))  # the stride that a patch is made to have
            self.strides = [stride for stride in (4, 8, 16, 32) if stride <= output_stride]
            self.pyramid = SimpleFeaturePyramid(self.channels[-1], self.grid, 256, self.strides)
            self.channels = [256] * len(self.strides)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Map (N,in_channels,H,W) to maps (N,channels[i],ceil(H/strides[i]),ceil(W/strides[i]))."""
        height, width = x.shape[-2:]
        coarsest = max(*self.strides, self.grid)
        x = F.pad(x, (0, -width % coarsest, 0, -height % coarsest))
        if self.patch != self.grid:
            x = resize(x, [side // self.grid * self.patch for side in x.shape[-2:]], align_corners=False)
        features = self.body(x)
        if self.channels_last:
            features = [feature.permute(0, 3, 1, 2) for feature in features]
        if self.pyramid is not None:
            features = self.pyramid(features[-1])
        return [
            feature[..., : -(-height // stride), : -(-width // stride)]
            for feature, stride in zip(features, self.strides, strict=True)
        ]

    def published_names(self) -> tuple[dict[str, str], list[str]]:
        """Map timm's keys to ours; list the keys without a use.

        Of timm's whole network; without a use are the parts behind the features.
        """
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


@dataclass(frozen=True)
class Facts:
    """What a timm network can do."""

    single_stride: bool
    output_strides: tuple[int, ...]
    options: dict[str, Any]  # what makes it take any size of pictures
    whole_names: tuple[str, ...]  # the keys of the network with its classifier


@lru_cache
def describe(name: str) -> Facts:
    """Find out what a timm network can do, on the meta device.

    Raises:
        ModelError: for an unknown name (with the nearest one), a network without features, or one that is tied to a
            size of pictures.
    """
    if not timm.is_model(name):
        nearest = difflib.get_close_matches(name, timm.list_models(), n=1, cutoff=0)[0]
        raise ModelError(f"unknown timm model {name!r}; did you mean {nearest!r}? timm.list_models() lists all of them")
    architecture, _, tag = name.partition(".")
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise ModelError(f"timm model {architecture!r} has no weights {tag!r}; known: {', '.join(tags) or 'none'}")
    with shapes_only():
        whole: Any = timm.create_model(name)
        accepted = inspect.signature(type(whole).__init__).parameters
        options: dict[str, Any] = {option: value for option, value in ANY_SIZE.items() if option in accepted}
        try:
            body: Any = timm.create_model(name, features_only=True, **options).eval()
        except UNSUPPORTED as error:
            reason = str(error).partition("\n")[0]
            raise ModelError(f"backbone 'timm/{name}' gives no feature maps: choose another ({reason})") from error
        _check_any_size(name, body, whole.pretrained_cfg["input_size"])
        own = body.feature_info.reduction()
        single = len(own) > 1 and len(set(own)) == 1
        strides = [stride for stride in (8, 16) if single or _reaches(name, stride, options)]
    return Facts(single, (*strides, 32), options, tuple(whole.state_dict()))


def _check_any_size(name: str, body: Any, usual: tuple[int, int, int]) -> None:
    """Raise where a network runs at the size of its training pictures and at no other.

    One that does not run on the meta device at all, since it reads values, may be of any size.
    """
    coarsest = max(body.feature_info.reduction())

    def runs(*size: int) -> bool:
        try:
            with torch.no_grad():
                body(torch.empty(1, 3, *size))
        except (*UNSUPPORTED, ValueError):
            return False
        return True

    if not runs(6 * coarsest, 9 * coarsest) and runs(*usual[1:]):
        raise ModelError(
            f"backbone 'timm/{name}' takes pictures of {usual[1]}x{usual[2]} alone, and segmentation needs any size: "
            "choose another"
        )


def _reaches(name: str, output_stride: int, options: dict[str, Any]) -> bool:
    """Whether a network can be dilated so that its coarsest features have that stride."""
    try:
        body: Any = timm.create_model(name, features_only=True, output_stride=output_stride, **options)
    except UNSUPPORTED:
        return False
    return max(body.feature_info.reduction()) == output_stride
