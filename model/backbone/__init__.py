"""Feature extractors by name, and the function that builds one.

Each maps (N,in_channels,H,W) to a list of maps from fine to coarse.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from model.backbone.base import Backbone
from model.table import ModelError, complete, load, plain, resolve

BACKBONES: dict[str, str | Callable[..., Backbone]] = {
    "resnet18": "model.backbone.resnet.resnet18",
    "resnet34": "model.backbone.resnet.resnet34",
    "resnet50": "model.backbone.resnet.resnet50",
    "resnet101": "model.backbone.resnet.resnet101",
    "resnet152": "model.backbone.resnet.resnet152",
    "resnet18_v1s": "model.backbone.resnet.resnet18_v1s",
    "resnet34_v1s": "model.backbone.resnet.resnet34_v1s",
    "resnet50_v1s": "model.backbone.resnet.resnet50_v1s",
    "resnet101_v1s": "model.backbone.resnet.resnet101_v1s",
    "resnet152_v1s": "model.backbone.resnet.resnet152_v1s",
    "resnet18_v1c": "model.backbone.resnet.resnet18_v1c",
    "resnet34_v1c": "model.backbone.resnet.resnet34_v1c",
    "resnet50_v1c": "model.backbone.resnet.resnet50_v1c",
    "resnet101_v1c": "model.backbone.resnet.resnet101_v1c",
    "resnet152_v1c": "model.backbone.resnet.resnet152_v1c",
    "mobilenet_v2": "model.backbone.mobilenet.MobileNetV2",
    "mobilenet_v3_large": "model.backbone.mobilenet_v3.MobileNetV3Large",
    "vgg16": "model.backbone.vgg.VGG16",
    "densenet121": "model.backbone.densenet.densenet121",
    "densenet161": "model.backbone.densenet.densenet161",
    "densenet169": "model.backbone.densenet.densenet169",
    "densenet201": "model.backbone.densenet.densenet201",
    "xception65": "model.backbone.xception.Xception65",
    "dfnet_v1": "model.backbone.dfnet.dfnet_v1",
    "dfnet_v2": "model.backbone.dfnet.dfnet_v2",
    "stdc1": "model.backbone.stdc.stdc1",
    "stdc2": "model.backbone.stdc.stdc2",
    "hrnet_w18_small_v2": "model.backbone.hrnet.hrnet_w18_small_v2",
    "hrnet_w18": "model.backbone.hrnet.hrnet_w18",
    "hrnet_w32": "model.backbone.hrnet.hrnet_w32",
    "hrnet_w40": "model.backbone.hrnet.hrnet_w40",
    "hrnet_w48": "model.backbone.hrnet.hrnet_w48",
    **{f"convnext_{size}": f"model.backbone.convnext.convnext_{size}" for size in ("tiny", "small", "base", "large")},
    **{f"swin_{size}": f"model.backbone.swin.swin_{size}" for size in ("tiny", "small", "base", "large")},
    **{f"mit_b{size}": f"model.backbone.mit.mit_b{size}" for size in range(6)},
    "torchvision/resnet18": "model.backbone.torchvision.resnet18",
    "torchvision/resnet34": "model.backbone.torchvision.resnet34",
    "torchvision/resnet50": "model.backbone.torchvision.resnet50",
    "torchvision/resnet101": "model.backbone.torchvision.resnet101",
    "torchvision/resnet152": "model.backbone.torchvision.resnet152",
}

# "timm/<name>" is not listed one by one: the names are timm's.
TIMM_PREFIX = "timm/"
TIMM_BACKBONE, TIMM_FACTS = "model.backbone.timm.TimmBackbone", "model.backbone.timm.describe"


def build_backbone(name: str, output_stride: int | None = 32, finest: int = 8, **options: Any) -> Backbone:
    """Build a feature extractor with freshly initialised weights.

    It maps (N,in_channels,H,W) to a list of feature maps from fine to coarse, and says their widths in `channels` and
    their strides in `strides`.

    Args:
        name: a key of `BACKBONES`, "timm/NAME", or a dotted path.
        output_stride: stride of the coarsest map, where the network can be dilated; None takes the smallest that the
            backbone can have, but none below `finest`.
        finest: smallest output stride that None may take.
        options: of the backbone; `in_channels` (3) is the number of channels of the pictures.

    Raises:
        ModelError: for an unknown name or option (with the nearest known one) or an output stride it cannot
            have.
    """
    builder = _builder(name)
    if output_stride is None:
        output_stride = min(stride for stride in output_strides(name) if stride >= finest)
    complete_options = complete("backbone", name, builder, {"output_stride": output_stride, **options})
    backbone = builder(**complete_options)
    if not all(isinstance(getattr(backbone, each, None), list | tuple) for each in ("channels", "strides")):
        raise ModelError(f"backbone {name!r} has no lists `channels` and `strides`, one number for each map it gives")
    backbone.spec = {"name": name, "options": plain(complete_options)}
    return backbone


def output_strides(name: str) -> tuple[int, ...]:
    """List the strides that a backbone's coarsest map can have.

    From fine to coarse.

    Raises:
        ModelError: for an unknown name, with the nearest known one.
    """
    builder = _builder(name)
    if name.startswith(TIMM_PREFIX):
        return load(TIMM_FACTS)(name.removeprefix(TIMM_PREFIX)).output_strides
    return getattr(builder, "func", builder).output_strides  # type: ignore[union-attr]  # a class, or a partial of it


def _builder(name: str) -> Callable[..., Backbone]:
    if name.startswith(TIMM_PREFIX):
        return partial(load(TIMM_BACKBONE), name.removeprefix(TIMM_PREFIX))
    return resolve("backbone", name, BACKBONES, (f"{TIMM_PREFIX}<name>",))
