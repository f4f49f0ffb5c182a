"""Recognises published networks by keys and shapes alone."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

import torch
from torch import nn

from model import MODELS, build_model
from model.backbone import BACKBONES, build_backbone
from model.layer.shapes import shapes_only
from model.published.layout import COUNTER, Layout, Tensors, rename, same
from model.published.table import LAYOUTS
from model.published.timm import timm_backbone
from model.table import ModelError

WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
# The share of weights with a shape that a network has, from which on it is called the nearest.
LEAST_SHARE = 0.3
# Weights of a loss, which some trainers save beside the network.
LOSSES = ("loss.", "sem_loss.", "criterion.")


class Recognised(NamedTuple):
    """What a published checkpoint holds.

    `build_model(model, num_classes, backbone, **options)` builds the network for it; for ImageNet weights of a backbone
    alone, `model` and `num_classes` are None and `build_backbone(backbone)` does. `family` says whose names the keys
    are; `layout_of(family)` what the family expects of images.
    """

    family: str
    model: str | None
    num_classes: int | None
    backbone: str | None
    options: dict[str, object]


@dataclass
class Attempt:
    """How well a checkpoint fits a layout."""

    layout: Layout
    found: Recognised | None = None
    problems: list[str] = field(default_factory=list)
    misfits: int = 0  # keys, parameters and shapes that do not fit

    def add(self, what: str, names: Iterable[str]) -> None:
        names = list(names)
        if names:
            self.problems.append(f"{len(names)} {what}: {shorten(names)}")
            self.misfits += len(names)


def recognise_family(checkpoint: Mapping[str, object]) -> Recognised:
    """Return which published network a checkpoint holds.

    Keys and shapes alone decide. Options are those that the family fixes or the keys decide (heads, context, gate), and
    those that its code implies. What leaves no trace in the weights, such as the output stride of a dilated network,
    has the family's default.

    Args:
        checkpoint: names to tensors; wrappers such as "state_dict" and the prefix "module." are taken off.

    Raises:
        ModelError: the checkpoint is of no known family; says which is the nearest, and what does not fit.
    """
    tensors = unwrap(checkpoint)
    attempts = []
    for layout in LAYOUTS:
        if layout.marks(tensors):
            attempts.append(attempt(layout, tensors))
            found = attempts[-1].found
            if found is not None and not attempts[-1].problems:
                return found
    if name := timm_backbone(tensors):
        return Recognised(f"{name} (timm)", None, None, f"timm/{name}", {})
    raise ModelError(_refusal(tensors, attempts))


def layout_of(family: str) -> Layout:
    """Return the first layout of a family.

    What all of its layouts share is read there.
    """
    return next(layout for layout in LAYOUTS if layout.source == family)


def unwrap(checkpoint: Mapping[str, object]) -> dict[str, torch.Tensor]:
    """Return the tensors of a checkpoint without wrappers and prefixes.

    These are "module." of data parallelism, and "model." of a trainer that holds network and loss.

    Raises:
        ModelError: there is something else than tensors with names.
    """
    for wrapper in WRAPPERS:
        inner = checkpoint.get(wrapper) if isinstance(checkpoint, Mapping) else None
        checkpoint = inner if isinstance(inner, Mapping) else checkpoint
    if not isinstance(checkpoint, Mapping) or not checkpoint:
        raise ModelError(f"a checkpoint maps names to tensors; this is {type(checkpoint).__name__}, or empty")
    tensors = {k: value for k, value in checkpoint.items() if isinstance(k, str) and isinstance(value, torch.Tensor)}
    if strange := [str(key) for key in checkpoint if key not in tensors]:
        raise ModelError(f"the checkpoint has entries that are no tensors with a name: {shorten(strange)}")
    for prefix in ("module.", "model."):
        if all(key.startswith((prefix, *LOSSES)) for key in tensors):
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors


def attempt(layout: Layout, tensors: Tensors) -> Attempt:
    """Fit a checkpoint to a layout; return what does not fit.

    Every key needs a place, and every parameter a value of its shape.
    """
    out = Attempt(layout)
    tensors = layout.converted(tensors)
    unused = same(*layout.unused)
    names = {key: layout.place(key) for key in tensors}
    out.add(
        "keys without a place", (key for key, name in names.items() if name is None and rename(key, unused) is None)
    )
    shapes = {name: tensors[key].shape for key, name in names.items() if name is not None}
    backbone = which_backbone(layout, tensors, shapes)
    num_classes = None if layout.model is None else layout.count_classes(tensors)
    if layout.backbones is not None and backbone is None:
        out.add("backbone fits", ("none known has these shapes",))
    if layout.model is not None and num_classes is None:
        key = layout.num_classes if isinstance(layout.num_classes, str) else "that of the classifier"
        out.add("key that says the number of classes is missing", (key,))
    if out.problems:
        return out
    heads = {option: any(name.startswith(f"{head}.") for name in shapes) for head, option in layout.heads.items()}
    try:
        options = {**layout.implied, **heads, **layout.read_options(tensors)}
    except KeyError as error:
        out.add("key that says an option is missing", error.args)
        return out
    out.found = Recognised(layout.source, layout.model, num_classes, backbone, options)
    expected = {} if layout.model is None else build_on_meta(out.found).state_dict()
    out.add(
        "parameters without a value", (name for name in expected if name not in shapes and not _may_lack(layout, name))
    )
    strangers = (key for key, name in names.items() if name is not None and expected and name not in expected)
    out.add("keys without a place", (key for key in strangers if rename(key, unused) is None))
    out.add(
        "shapes that differ",
        (
            f"{key} {tuple(tensors[key].shape)} for {tuple(expected[name].shape)}"
            for key, name in names.items()
            if name in expected and tensors[key].shape != expected[name].shape
        ),
    )
    return out


def build_on_meta(found: Recognised) -> nn.Module:
    """Build the network without memory for its weights."""
    assert found.model is not None and found.num_classes is not None, "a backbone alone is no model"
    with shapes_only():
        return build_model(found.model, found.num_classes, found.backbone, **found.options)


def which_backbone(layout: Layout, tensors: Tensors, shapes: Mapping[str, torch.Size]) -> str | None:
    """Return the backbone with exactly these parameters, or None.

    They are given under our names.
    """
    if layout.backbones is None:
        return None
    if callable(layout.backbones):
        return layout.backbones(tensors)
    prefix = "" if layout.model is None else "backbone."
    given = {
        name.removeprefix(prefix): shape
        for name, shape in shapes.items()
        if name.startswith(prefix) and not name.endswith(COUNTER)
    }
    for backbone in BACKBONES:
        if re.fullmatch(layout.backbones, backbone) and given == shapes_of_backbone(backbone, layout.model is not None):
            return backbone
    return None


def nearest_model(tensors: Tensors) -> str | None:
    """Return the default network with the most such shapes.

    None where few fit any.
    """
    given = Counter(value.shape for value in tensors.values() if value.ndim > 1)
    known = {layout.model for layout in LAYOUTS} - {None}
    shares = {}
    for name in (name for name in MODELS if name in known):
        shapes = shapes_of_model(name)
        shares[name] = (given & shapes).total() / max(given.total(), shapes.total())
    best = max(shares, key=lambda name: shares[name])
    return best if shares[best] >= LEAST_SHARE else None


@cache
def shapes_of_model(name: str) -> Counter[torch.Size]:
    """Count how often each weight's shape occurs in a network.

    It has its defaults and 19 classes.
    """
    with shapes_only():
        state = build_model(name, 19).state_dict()
    return Counter(value.shape for value in state.values() if value.ndim > 1)


@cache
def shapes_of_backbone(name: str, whole: bool) -> dict[str, torch.Size]:
    """Return the shapes of a backbone's tensors by name.

    Without counters. whole: False for those that ImageNet weights have.
    """
    with shapes_only():
        backbone = build_backbone(name)
    absent = () if whole else tuple(f"{part}." for part in getattr(backbone, "own_parts", ()))
    state = backbone.state_dict()
    return {
        key: value.shape for key, value in state.items() if not key.endswith(COUNTER) and not key.startswith(absent)
    }


def shorten(names: Iterable[str], most: int = 8) -> str:
    """List the first names of many, and count the rest."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _may_lack(layout: Layout, name: str) -> bool:
    return name.endswith(COUNTER) or (layout.zeros is not None and re.fullmatch(layout.zeros, name) is not None)


def _refusal(tensors: Tensors, attempts: list[Attempt]) -> str:
    """Why a checkpoint is of no family: the nearest one, and what does not fit."""
    origins = "; ".join(dict.fromkeys(re.sub(r".*\((.*)\)$", r"\1", layout.source) for layout in LAYOUTS))
    text = f"the checkpoint is of no published family known here: it has {shorten(tensors)}. "
    if not attempts:
        near = nearest_model(tensors)
        layouts = [layout for layout in LAYOUTS if near is None or layout.model == near]
        placed = [sum(layout.place(key) is not None for key in tensors) for layout in layouts]
        if near is not None or any(placed):
            nearest = layouts[placed.index(max(placed))]
            attempts = [attempt(nearest, tensors)]
            attempts[0].add("keys are in every such file", (key for key in nearest.markers if key not in tensors))
    if attempts:
        best = min(attempts, key=lambda one: one.misfits)
        text += f"Nearest: {best.layout.source}, but {'; '.join(best.problems)}. "
    return f"{text}Known are networks of {origins}"
