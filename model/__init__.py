"""The networks: what there is, by name, and the functions that build one.

>>> model = build_model("sketchfill", num_classes=19, backbone="resnet101")
>>> logits = model(images)["out"]                       # (N, 19, H, W) for images (N, 3, H, W)
>>> faster = optimize_for_inference(model)              # the same logits, norms folded; see model/optimize.py

To add a network, copy `model/fcn.py`, change it, and add one line to `MODELS`; likewise for `BACKBONES`.
"""

import difflib
import importlib
import inspect
import typing
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import NoneType, UnionType

from torch import nn

from model.base import SegModel
from model.optimize import optimize_for_inference as optimize_for_inference

MODELS = {
    "fcn": "model.fcn.FCN",
    "pspnet": "model.pspnet.PSPNet",
    "semanticflow": "model.semanticflow.SemanticFlow",
    "semanticflow_lite": "model.semanticflow.SemanticFlowLite",
    "sketchfill": "model.sketchfill.SketchFill",
}

BACKBONES = {
    "resnet18": "model.backbone.resnet.resnet18",
    "resnet34": "model.backbone.resnet.resnet34",
    "resnet50": "model.backbone.resnet.resnet50",
    "resnet101": "model.backbone.resnet.resnet101",
    "resnet152": "model.backbone.resnet.resnet152",
    "mobilenet_v2": "model.backbone.mobilenet.MobileNetV2",
    "dfnet_v1": "model.backbone.dfnet.dfnet_v1",
    "dfnet_v2": "model.backbone.dfnet.dfnet_v2",
    "stdc1": "model.backbone.stdc.stdc1",
    "stdc2": "model.backbone.stdc.stdc2",
    "torchvision/resnet18": "model.backbone.torchvision.resnet18",
    "torchvision/resnet34": "model.backbone.torchvision.resnet34",
    "torchvision/resnet50": "model.backbone.torchvision.resnet50",
    "torchvision/resnet101": "model.backbone.torchvision.resnet101",
    "torchvision/resnet152": "model.backbone.torchvision.resnet152",
}

# "timm/<name>" is not listed one by one: the names are timm's.
TIMM_PREFIX, TIMM_BACKBONE = "timm/", "model.backbone.timm.TimmBackbone"

# Types of options whose values are checked here; what any other means, its network checks.
PLAIN = {bool, int, float, str, NoneType}


def build_model(name: str, num_classes: int, backbone: str | None = None, **options: object) -> SegModel:
    """Build a network with freshly initialised weights.

    Args:
        name: a key of `MODELS`.
        num_classes: channels of the logits, at least 2.
        backbone: a key of `BACKBONES` or "timm/<name>"; None takes the network's own default.
        options: keyword arguments of the network's constructor.

    Returns:
        The model. `model.spec` holds the name, the number of classes, the backbone and every option (defaults
        too) as plain types, so that the same network can be built again from a checkpoint.

    Raises:
        ValueError: for an unknown name or option (with the nearest known one) or an unsuitable value.
    """
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 2:
        raise ValueError(f"num_classes must be a whole number of at least 2, not {num_classes!r}")
    builder = _resolve("model", name, MODELS)
    chosen = inspect.signature(builder).parameters.get("backbone")
    if chosen is None and backbone is not None:
        raise ValueError(f"model {name!r} brings its own backbone; leave out backbone={backbone!r}")
    if chosen is not None:
        backbone = chosen.default if backbone is None else backbone
    options = _complete("model", name, builder, options, reserved=("num_classes", "backbone"))
    model = builder(num_classes, **({} if chosen is None else {"backbone": backbone}), **options)
    model.spec = {"name": name, "num_classes": num_classes, "backbone": backbone, "options": _plain(options)}
    return model


def build_backbone(name: str, output_stride: int = 32, **options: object) -> nn.Module:
    """Build a feature extractor with freshly initialised weights.

    It maps (N,3,H,W) to a list of feature maps from fine to coarse, and says their widths in `channels` and
    their strides in `strides`. `output_stride` is the stride of the coarsest map where the network can be
    dilated.

    Raises:
        ValueError: for an unknown name or option (with the nearest known one) or an output stride it cannot
            have.
    """
    if name.startswith(TIMM_PREFIX):
        builder = partial(_load(TIMM_BACKBONE), name.removeprefix(TIMM_PREFIX))
    else:
        builder = _resolve("backbone", name, BACKBONES)
    options = _complete("backbone", name, builder, {"output_stride": output_stride, **options})
    backbone = builder(**options)
    backbone.spec = {"name": name, "options": _plain(options)}
    return backbone


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """Message about a name that does not exist: the nearest one, and all of them."""
    known = sorted(known)
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else "."
    return f"unknown {kind} {name!r}{hint} Known: {', '.join(known) or 'none'}"


def _resolve(kind: str, name: str, table: Mapping[str, str]) -> Callable:
    if name not in table:
        known = [*table, f"{TIMM_PREFIX}<name>"] if kind == "backbone" else table
        raise ValueError(unknown(kind, name, known))
    return _load(table[name])


def _load(path: str) -> Callable:
    module, _, member = path.rpartition(".")
    return getattr(importlib.import_module(module), member)


def _complete(
    kind: str, name: str, builder: Callable, options: Mapping[str, object], reserved: tuple[str, ...] = ()
) -> dict[str, object]:
    """`options` checked against the signature of `builder`, with its defaults filled in."""
    parameters = {k: p for k, p in inspect.signature(builder).parameters.items() if k not in reserved}
    for option, value in options.items():
        if option not in parameters:
            raise ValueError(unknown(f"option of {kind} {name!r}:", option, parameters))
        annotation = parameters[option].annotation
        wanted = typing.get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)
        if set(wanted) <= PLAIN and not any(_fits(value, one) for one in wanted):
            types = " or ".join("None" if one is NoneType else one.__name__ for one in wanted)
            raise ValueError(f"{kind} {name!r}: {option} must be {types}, not {value!r}")
    return {option: options.get(option, parameter.default) for option, parameter in parameters.items()}


def _fits(value: object, wanted: type) -> bool:
    """Whether `value` is of that plain type; a whole number is a float, but a bool is no number."""
    if isinstance(value, bool):
        return wanted is bool
    return isinstance(value, (int, float) if wanted is float else wanted)


def _plain(value: object) -> object:
    """The same value out of dicts, lists and scalars only, as YAML and JSON would give it back."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
