"""Weights in the key names of published repositories, put under ours.

The families are in `model.published.table`. Loading is strict: a key without a place or a parameter without a value is
an error, and what may be left out is declared, never guessed. Checkpoints of this project need none of this.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch

from model.backbone.base import Backbone
from model.base import SegModel
from model.published.layout import COUNTER, Layout, Tensors, rename, same
from model.published.recognise import attempt, shorten, unwrap
from model.published.table import LAYOUTS
from model.table import ModelError

Network = SegModel | Backbone


@dataclass(frozen=True)
class LoadReport:
    """What became of a checkpoint.

    Args:
        source: the published repository whose keys it has.
        mapped: published key -> ours.
        dropped: published keys that are not used.
        missing: keys of ours that are left as initialised.
        zeroed: keys of ours that are set to zero, since the published network lacks them.
    """

    source: str
    mapped: dict[str, str]
    dropped: tuple[str, ...]
    missing: tuple[str, ...]
    zeroed: tuple[str, ...]

    def __str__(self) -> str:
        text = f"{self.source}: {len(set(self.mapped.values()))} tensors loaded"
        if self.dropped:
            text += f"; {len(self.dropped)} unused ones dropped ({shorten(self.dropped)})"
        if counters := sum(name.endswith(COUNTER) for name in self.missing):
            text += f"; {counters} counters of batch norm, which older files lack, begin at 0"
        if missing := [name for name in self.missing if not name.endswith(COUNTER)]:
            text += f"; {len(missing)} of ours left as initialised ({shorten(missing)})"
        if self.zeroed:
            text += f"; {len(self.zeroed)} of ours set to zero ({shorten(self.zeroed)})"
        return text


def load_published(model: Network, state_dict: Mapping[str, object], allow_missing: Iterable[str] = ()) -> LoadReport:
    """Load a checkpoint that has a published repository's keys.

    Strictly.

    Args:
        model: made by `build_model` or `build_backbone`; it is changed only if everything fits.
        state_dict: the checkpoint; the wrappers "state_dict" and "model" and the prefix "module." are taken off. Values
            are cast to the type of the parameter (half-precision files).
        allow_missing: heads of ours, or parts of them, such as "aux" or "classifier.4", that the checkpoint may lack as
            a whole or have for another number of classes.

    Returns:
        What was mapped, dropped by declaration, left as initialised and set to zero. Counters of batch norm
        (`num_batches_tracked`), which files older than PyTorch 0.4.1 lack, are left as they are.

    Raises:
        ModelError: listing keys without a place, parameters without a value, shapes that differ, copies of one tensor
            that differ, or the option with which the model must be built instead.
    """
    tensors, heads = unwrap(state_dict), tuple(allow_missing)
    layout = _choose_layout(model, tensors)
    tensors = layout.converted(tensors)
    target = model.state_dict()
    given = _translate(model, layout, tensors)
    for head in heads:
        given.drop_misfit(head, target)
    if "num_classes" not in model.spec:
        given.adapt_channels(target, model.spec["options"].get("in_channels", 3))
    zeroed = _zeros(layout, target, given.values)
    missing = [name for name in target if name not in given.values and name not in zeroed]
    allowed = {name for name in missing if _may_miss(name, given.values, heads)}
    problems = []
    if given.strangers:
        problems.append(f"{len(given.strangers)} keys without a place in the model: {shorten(given.strangers)}")
    if lacking := [name for name in missing if name not in allowed]:
        problems.append(f"{len(lacking)} parameters without a value: {shorten(lacking)}")
    if problems:
        fits = f"the checkpoint does not fit {_describe(model)} ({layout.source})"
        raise ModelError(". ".join([fits, *problems]))
    _check_shapes(model, target, given)
    values = {name: value.to(target[name].dtype) for name, value in given.values.items()}
    endless = [key for key, name in given.mapped.items() if name in values and not _is_finite(values[name])]
    if endless:
        raise ModelError(f"{len(endless)} tensors hold values that are not finite: {shorten(endless)}")
    model.load_state_dict(target | values | zeroed)
    return LoadReport(layout.source, given.mapped, tuple(given.dropped), tuple(missing), tuple(zeroed))


def load_backbone_weights(backbone: Backbone, state_dict: Mapping[str, object]) -> LoadReport:
    """Load ImageNet weights into a backbone, strictly.

    Only the declared classifier keys may be left over. Known files: the deep-stem ResNets of semseg and of SFSegNets,
    its DFNets and STDC networks, torchvision's ResNets and MobileNet-V2, the MobileNet-V2 of the published
    Sketch-and-Fill code, and any weights of timm for the backbone of that name. Otherwise as `load_published`; but
    where the backbone takes other pictures than of three channels, its first convolution gets the published kernels
    repeated, scaled to the same sum (as timm does).
    """
    if "num_classes" in backbone.spec:
        raise ModelError("load_backbone_weights wants the backbone alone: pass model.backbone, not the model")
    return load_published(backbone, state_dict, getattr(backbone, "own_parts", ()))


@dataclass
class Translation:
    """The tensors of a checkpoint under our names."""

    values: dict[str, torch.Tensor] = field(default_factory=dict)  # our name -> tensor
    mapped: dict[str, str] = field(default_factory=dict)  # published key -> our name
    dropped: list[str] = field(default_factory=list)  # published keys left out by declaration
    strangers: list[str] = field(default_factory=list)  # published keys without a place

    def adapt_channels(self, target: Tensors, in_channels: int) -> None:
        """Fit kernels for three channels to a layer for `in_channels`."""
        from timm.models import adapt_input_conv  # here: timm takes as long to import as PyTorch

        for name, value in self.values.items():
            wanted = (*value.shape[:1], in_channels, *value.shape[2:])
            if value.ndim == 4 and value.shape[1] == 3 != in_channels and target[name].shape == wanted:
                self.values[name] = adapt_input_conv(in_channels, value)

    def drop_misfit(self, head: str, target: Tensors) -> None:
        """Drop a head of the checkpoint if its shapes differ.

        It is dropped as a whole.
        """
        inside = {key: name for key, name in self.mapped.items() if name.startswith(f"{head}.")}
        if any(self.values[name].shape != target[name].shape for name in inside.values()):
            for key, name in inside.items():
                del self.mapped[key]
                self.values.pop(name, None)
            self.dropped.extend(inside)


def _is_finite(value: torch.Tensor) -> bool:
    return value.is_meta or not value.is_floating_point() or bool(torch.isfinite(value).all())


def _choose_layout(model: Network, tensors: Tensors) -> Layout:
    """The layout for this model that the checkpoint fits best.

    Raises:
        ModelError: there is none for this model, the checkpoint is of another family, or the model was built with other
            options than the family fixes.
    """
    whole = "num_classes" in model.spec
    name, backbone = (model.spec["name"], model.spec["backbone"]) if whole else (None, model.spec["name"])
    candidates = [layout for layout in LAYOUTS if layout.model == name and layout.admits(backbone, tensors)]
    marked = [layout for layout in candidates if layout.marks(tensors)]
    if marked:
        layout = min(marked, key=lambda one: attempt(one, tensors).misfits) if len(marked) > 1 else marked[0]
        _check_options(model, layout, tensors)
        return layout
    if not whole and backbone.startswith("timm/"):
        names, unused = model.published_names()  # type: ignore[union-attr,operator]  # a TimmBackbone
        return Layout(f"{backbone} (timm)", None, next(iter(names)), names, backbone, unused=tuple(unused))
    if set(model.state_dict()) <= set(tensors):
        raise ModelError("the checkpoint is in this project's own key names: use model.load_state_dict")
    if not candidates:
        raise ModelError(f"no published checkpoints are known for {_describe(model)}")
    wanted = " or ".join(f"{shorten(layout.markers)} of {layout.source}" for layout in candidates)
    other = [attempt(layout, tensors) for layout in LAYOUTS if layout.marks(tensors)]
    found = next((one.found for one in other if not one.problems), None)
    kind = f"{found.family} on {found.backbone}" if found else shorten(tensors)
    raise ModelError(f"the checkpoint is in no layout known for {_describe(model)}: it lacks {wanted}, and has {kind}")


def _check_options(model: Network, layout: Layout, tensors: Tensors) -> None:
    """Raise where the model was built with another option than the checkpoint's network."""
    for option, value in layout.read_options(layout.converted(tensors)).items():
        built = model.spec["options"][option]
        if value != built:
            raise ModelError(
                f"the checkpoint's network has {option}={value!r}, not {built!r}: build the model with "
                f"{option}={value!r}"
            )


def _translate(model: Network, layout: Layout, tensors: Tensors) -> Translation:
    """Put the tensors under our names; the values of one tensor's several names must be equal."""
    ours = set(model.state_dict())
    absent = tuple(f"{head}." for head in layout.heads if getattr(model, head) is None)
    unused = same(*layout.unused)
    out = Translation()
    first: dict[str, str] = {}
    for key, value in tensors.items():
        name = layout.place(key)
        if name in ours:
            if name in out.values and out.values[name] is not value and not torch.equal(out.values[name], value):
                raise ModelError(f"{first[name]} and {key} are one tensor in {layout.source}, but differ")
            out.values[name], out.mapped[key] = value, name
            first.setdefault(name, key)
        elif rename(key, unused) is not None or (name or "").startswith(absent):
            out.dropped.append(key)
        else:
            out.strangers.append(key)
    return out


def _zeros(layout: Layout, target: Tensors, values: Tensors) -> dict[str, torch.Tensor]:
    """Parameters that the published network lacks next to a weight it has, and that are zero there."""
    if layout.zeros is None:
        return {}
    return {
        name: torch.zeros_like(value)
        for name, value in target.items()
        if name not in values and re.fullmatch(layout.zeros, name) and name.removesuffix("bias") + "weight" in values
    }


def _may_miss(name: str, values: Tensors, heads: Iterable[str]) -> bool:
    """Whether our tensor may lack a value: a batch norm's counter, or part of a head absent as a whole."""
    if name.endswith(COUNTER):
        return True
    absent = [head for head in heads if not any(given.startswith(f"{head}.") for given in values)]
    return name.startswith(tuple(f"{head}." for head in absent))


def _check_shapes(model: Network, target: Tensors, given: Translation) -> None:
    """Raise where a tensor has another shape than the parameter it is meant for."""
    pairs = {key: (given.values[name], target[name]) for key, name in given.mapped.items()}
    wrong = {key: pair for key, pair in pairs.items() if pair[0].shape != pair[1].shape}
    if not wrong:
        return
    lines = [
        f"{key} {tuple(theirs.shape)} for {given.mapped[key]} {tuple(ours.shape)}"
        for key, (theirs, ours) in wrong.items()
    ]
    message = f"shapes differ between the checkpoint and {_describe(model)}: {shorten(lines)}"
    classes = {theirs.shape[0] for theirs, _ in wrong.values() if theirs.ndim}
    if len(classes) == 1 and {ours.shape[0] for _, ours in wrong.values()} == {model.spec.get("num_classes")}:
        message += f". Build the model with num_classes={classes.pop()}"
    raise ModelError(message)


def _describe(model: Network) -> str:
    backbone = model.spec.get("backbone")
    return f"{model.spec['name']!r} on {backbone!r}" if backbone else f"{model.spec['name']!r}"
