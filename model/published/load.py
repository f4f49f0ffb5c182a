"""Weights in the key names of published repositories, put under ours.

The key tables are in `model.published.table`. Loading is strict: a key without a place or a parameter without
a value is an error, and what may be left out is declared, never guessed. Checkpoints of this project need
none of this.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from model.backbone import BACKBONES, build_backbone
from model.published.layout import Layout, Tensors, same
from model.published.table import LAYOUTS

COUNTER = ".num_batches_tracked"
CLASSIFIER = "classifier.4.weight"


class Recognised(NamedTuple):
    """What a published checkpoint holds.

    `build_model(model, num_classes, backbone, **options)` builds the network for it; for ImageNet weights of
    a backbone alone, `model` and `num_classes` are None and `build_backbone(backbone)` does. `family` says
    whose names the keys are.
    """

    family: str
    model: str | None
    num_classes: int | None
    backbone: str
    options: dict[str, object]


@dataclass(frozen=True)
class LoadReport:
    """What became of a checkpoint."""

    source: str
    mapped: dict[str, str]  # published key -> ours
    dropped: tuple[str, ...]  # published keys
    missing: tuple[str, ...]  # ours, left as initialised
    zeroed: tuple[str, ...]  # ours, which the published network lacks and for which it has zero

    def __str__(self) -> str:
        text = f"{self.source}: {len(set(self.mapped.values()))} tensors loaded"
        if self.dropped:
            text += f"; {len(self.dropped)} unused ones dropped ({_list(self.dropped)})"
        if self.missing:
            text += f"; {len(self.missing)} of ours left as initialised ({_list(self.missing)})"
        if self.zeroed:
            text += f"; {len(self.zeroed)} of ours set to zero ({_list(self.zeroed)})"
        return text


def recognise_family(state_dict: Mapping[str, object]) -> Recognised:
    """Say which published network a checkpoint holds, from its keys and shapes alone.

    Options are those that the keys decide (heads, context, gate), and those that the repository implies. What
    leaves no trace in the weights, such as the output stride of a dilated network, is not among them.

    Raises:
        ValueError: for a checkpoint of no family in `LAYOUTS`, or of one of those with a backbone that no
            published network of that family has.
    """
    tensors = _unwrap(state_dict)
    found = _recognise(tensors)
    if found is None:
        families = "; ".join(dict.fromkeys(layout.source for layout in LAYOUTS))
        raise ValueError(
            f"the checkpoint is of no published family known here: it has {_list(tensors)}. Known: {families}"
        )
    return found


def load_published(model: nn.Module, state_dict: Mapping[str, object], allow_missing: Iterable[str] = ()) -> LoadReport:
    """Load a checkpoint that is in a published repository's own key names, strictly.

    Args:
        model: made by `build_model` or `build_backbone`; it is changed only if everything fits.
        state_dict: the checkpoint; the wrappers "state_dict" and "model" and the prefix "module." are taken
            off. Values are cast to the type of the parameter (half-precision files).
        allow_missing: heads of ours, or parts of them, such as "aux" or "classifier.4", that the checkpoint
            may lack as a whole or have for another number of classes.

    Returns:
        What was mapped, dropped by declaration, left as initialised and set to zero. Counters of batch norm
        (`num_batches_tracked`), which files older than PyTorch 0.4.1 lack, are left as they are.

    Raises:
        ValueError: listing keys without a place, parameters without a value, shapes that differ, copies of
            one tensor that differ, or the option with which the model must be built instead.
    """
    tensors, heads = _unwrap(state_dict), tuple(allow_missing)
    layout = _choose_layout(model, tensors)
    _check_options(model, layout, tensors)
    target = model.state_dict()
    values, mapped, dropped, strangers = _translate(model, layout, tensors)
    for head in heads:
        _drop_misfit(head, target, values, mapped, dropped)
    zeroed = _zeros(layout, target, values)
    missing = [name for name in target if name not in values and name not in zeroed]
    allowed = {name for name in missing if _may_miss(name, values, heads)}
    problems = []
    if strangers:
        problems.append(f"{len(strangers)} keys without a place in the model: {_list(strangers)}")
    if lacking := [name for name in missing if name not in allowed]:
        problems.append(f"{len(lacking)} parameters without a value: {_list(lacking)}")
    if problems:
        fits = f"the checkpoint does not fit {_describe(model)} ({layout.source})"
        raise ValueError(". ".join([fits, *problems]))
    _check_shapes(model, target, values, mapped)
    values = {name: value.to(target[name].dtype) for name, value in values.items()}
    model.load_state_dict(target | values | zeroed)
    return LoadReport(layout.source, mapped, tuple(dropped), tuple(missing), tuple(zeroed))


def load_backbone_weights(backbone: nn.Module, state_dict: Mapping[str, object]) -> LoadReport:
    """Load ImageNet weights into a backbone, strictly; only the declared classifier keys may be left over.

    Known files: the deep-stem ResNets of semseg and of SFSegNets, its DFNets and STDC networks, torchvision's
    ResNets and MobileNet-V2, the MobileNet-V2 of the published Sketch-and-Fill code, and any weights of timm
    for the backbone of that name. Otherwise as `load_published`.
    """
    if "num_classes" in backbone.spec:
        raise ValueError("load_backbone_weights wants the backbone alone: pass model.backbone, not the model")
    return load_published(backbone, state_dict)


def _unwrap(checkpoint: Mapping[str, object]) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint, without wrappers and without the prefix of data parallelism."""
    for wrapper in ("state_dict", "model"):
        if isinstance(checkpoint, Mapping) and isinstance(checkpoint.get(wrapper), Mapping):
            checkpoint = checkpoint[wrapper]
    if not isinstance(checkpoint, Mapping) or not checkpoint:
        raise ValueError(f"a checkpoint maps names to tensors; this is {type(checkpoint).__name__}, or empty")
    strange = [
        str(key) for key, value in checkpoint.items() if not isinstance(value, torch.Tensor) or not isinstance(key, str)
    ]
    if strange:
        raise ValueError(f"the checkpoint has entries that are no tensors with a name: {_list(strange)}")
    if all(key.startswith("module.") for key in checkpoint):
        return {key.removeprefix("module."): value for key, value in checkpoint.items()}
    return dict(checkpoint)


def _choose_layout(model: nn.Module, tensors: Tensors) -> Layout:
    """The layout for this model whose marker the checkpoint has."""
    whole = "num_classes" in model.spec
    backbone = (model.spec["backbone"] or "") if whole else model.spec["name"]
    if not whole and backbone.startswith("timm/"):
        names, unused = model.published_names()
        return Layout(f"{backbone} (timm)", None, backbone, next(iter(names)), names, tuple(unused))
    candidates = [
        layout
        for layout in LAYOUTS
        if re.fullmatch(layout.backbones, backbone) and layout.model == (model.spec["name"] if whole else None)
    ]
    if not candidates:
        raise ValueError(f"no published checkpoints are known for {_describe(model)}")
    for layout in candidates:
        if layout.marker in tensors:
            return layout
    if set(model.state_dict()) <= set(tensors):
        raise ValueError("the checkpoint is in this project's own key names: use model.load_state_dict")
    wanted = " or ".join(f"{layout.marker!r} of {layout.source}" for layout in candidates)
    found = _recognise(tensors)
    has = f"{found.family} on {found.backbone}" if found else _list(tensors)
    raise ValueError(f"the checkpoint is in no layout known for {_describe(model)}: it lacks {wanted}, and has {has}")


def _recognise(tensors: Tensors) -> Recognised | None:
    """What the first layout with a place for every key, and with a backbone of these shapes, says."""
    for layout in LAYOUTS:
        if layout.marker not in tensors:
            continue
        names = {key: _rename(key, layout.rename) for key in tensors}
        unused = same(*layout.unused)
        if any(name is None and _rename(key, unused) is None for key, name in names.items()):
            continue
        shapes = {name: tensors[key].shape for key, name in names.items() if name is not None}
        backbone = _which_backbone(layout, shapes)
        if backbone is None or (layout.model is not None and CLASSIFIER not in shapes):
            continue
        heads = {o: any(name.startswith(f"{head}.") for name in shapes) for head, o in layout.heads.items()}
        options = {option: decide(tensors) for option, decide in layout.options.items()}
        num_classes = None if layout.model is None else shapes[CLASSIFIER][0]
        return Recognised(layout.source, layout.model, num_classes, backbone, {**heads, **options, **layout.implied})
    return None


def _which_backbone(layout: Layout, shapes: Mapping[str, torch.Size]) -> str | None:
    """The backbone that has exactly these parameters, given under our names; None if there is none."""
    prefix = "" if layout.model is None else "backbone."
    given = {
        name.removeprefix(prefix): shape
        for name, shape in shapes.items()
        if name.startswith(prefix) and not name.endswith(COUNTER)
    }
    for backbone in BACKBONES:
        if re.fullmatch(layout.backbones, backbone):
            with torch.device("meta"):
                state = build_backbone(backbone).state_dict()
            if given == {name: value.shape for name, value in state.items() if not name.endswith(COUNTER)}:
                return backbone
    return None


def _check_options(model: nn.Module, layout: Layout, tensors: Tensors) -> None:
    """Raise where the model was built with another option than the checkpoint's network."""
    for option, decide in layout.options.items():
        value = decide(tensors)
        if value != model.spec["options"][option]:
            raise ValueError(
                f"the checkpoint's network has {option}={value!r}, not {model.spec['options'][option]!r}: "
                f"build the model with {option}={value!r}"
            )


def _translate(
    model: nn.Module, layout: Layout, tensors: Tensors
) -> tuple[dict[str, torch.Tensor], dict[str, str], list[str], list[str]]:
    """Our names with values, published key -> our name, keys dropped by declaration, keys without a place."""
    ours = set(model.state_dict())
    absent = tuple(f"{head}." for head in layout.heads if getattr(model, head) is None)
    unused = same(*layout.unused)
    values, mapped, dropped, strangers, origin = {}, {}, [], [], {}
    for key, value in tensors.items():
        name = _rename(key, layout.rename)
        if name in ours:
            if name in values and not torch.equal(values[name], value):
                raise ValueError(f"{origin[name]} and {key} are one tensor in {layout.source}, but differ")
            values[name], mapped[key] = value, name
            origin.setdefault(name, key)
        elif _rename(key, unused) or (name or "").startswith(absent):
            dropped.append(key)
        else:
            strangers.append(key)
    return values, mapped, dropped, strangers


def _rename(key: str, table: Mapping[str, str]) -> str | None:
    """`key` with its longest prefix in the table replaced; None if it has none."""
    parts = key.split(".")
    for length in range(len(parts), 0, -1):
        prefix = ".".join(parts[:length])
        if prefix in table:
            return table[prefix] + key[len(prefix) :]
    return None


def _drop_misfit(
    head: str, target: Tensors, values: dict[str, torch.Tensor], mapped: dict[str, str], dropped: list[str]
) -> None:
    """Drop a head of the checkpoint, as a whole, if its shapes are not ours."""
    inside = {key: name for key, name in mapped.items() if name.startswith(f"{head}.")}
    if any(values[name].shape != target[name].shape for name in inside.values()):
        for key, name in inside.items():
            del mapped[key]
            values.pop(name, None)
        dropped.extend(inside)


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


def _check_shapes(model: nn.Module, target: Tensors, values: Tensors, mapped: Mapping[str, str]) -> None:
    """Raise where a tensor has another shape than the parameter it is meant for."""
    wrong = [key for key, name in mapped.items() if values[name].shape != target[name].shape]
    if not wrong:
        return
    lines = [
        f"{key} {tuple(values[mapped[key]].shape)} for {mapped[key]} {tuple(target[mapped[key]].shape)}"
        for key in wrong
    ]
    message = f"shapes differ between the checkpoint and {_describe(model)}: {_list(lines)}"
    classes = {values[mapped[key]].shape[0] for key in wrong if values[mapped[key]].ndim}
    ours = {target[mapped[key]].shape[0] for key in wrong if target[mapped[key]].ndim}
    if len(classes) == 1 and ours == {model.spec.get("num_classes")}:
        message += f". Build the model with num_classes={classes.pop()}"
    raise ValueError(message)


def _describe(model: nn.Module) -> str:
    backbone = model.spec.get("backbone")
    return f"{model.spec['name']!r} on {backbone!r}" if backbone else f"{model.spec['name']!r}"


def _list(names: Iterable[str], most: int = 8) -> str:
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
