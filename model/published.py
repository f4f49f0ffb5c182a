"""Weights in the key names of published repositories, put under ours.

A `Layout` is the key table of one family. To add a family, add one to `LAYOUTS`. Loading is strict: a key
without a place or a parameter without a value is an error, and what may be left out is declared, never
guessed. Checkpoints of this project need none of this.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn


@dataclass(frozen=True)
class Layout:
    """How one published repository names what one kind of model of ours holds.

    Prefixes end at a dot or at the end of a key. Two published names may lead to the same tensor of ours,
    where the published code registers a module twice; their values must then be equal.
    """

    source: str  # whose names these are, for messages and the report
    models: tuple[str, ...]  # names in MODELS; empty for a backbone alone
    backbones: str  # regular expression for the name of the backbone
    marker: str  # a key of this layout that the others for the same model lack
    rename: Mapping[str, str]  # published prefix -> ours; the longest one wins
    unused: tuple[str, ...] = ()  # published prefixes of what the published forward never uses
    heads: tuple[str, ...] = ()  # heads a model may be built without (None); their keys are then dropped
    options: Mapping[str, str] = field(default_factory=dict)  # published prefix -> the option deciding on it


@dataclass(frozen=True)
class LoadReport:
    """What became of a checkpoint: `mapped` from published keys to ours, `dropped`, `missing` ours."""

    source: str
    mapped: dict[str, str]
    dropped: tuple[str, ...]
    missing: tuple[str, ...]

    def __str__(self) -> str:
        text = f"{self.source}: {len(set(self.mapped.values()))} tensors loaded"
        if self.dropped:
            text += f"; {len(self.dropped)} unused ones dropped ({_list(self.dropped)})"
        if self.missing:
            text += f"; {len(self.missing)} of ours left as initialised ({_list(self.missing)})"
        return text


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


def _inside(prefix: str, table: Mapping[str, str]) -> dict[str, str]:
    """The table for the same part one level down: what leads to `ours` leads to `prefix.ours`."""
    return {published: f"{prefix}.{ours}" for published, ours in table.items()}


STAGES = _same("layer1", "layer2", "layer3", "layer4")

# semseg flattens stem and max-pool into layer0 in its networks, and calls the same layers conv1..bn3 in
# ImageNet files.
SEMSEG_RESNET = _inside("backbone", {"layer0": "stem", **STAGES})
SEMSEG_IMAGENET = {
    **{f"conv{i + 1}": f"stem.{3 * i}" for i in range(3)},
    **{f"bn{i + 1}": f"stem.{3 * i + 1}" for i in range(3)},
    **STAGES,
}

# The published code registers the blocks twice: as a whole, and again as the first four and the rest.
SKETCHFILL_MOBILENET = {
    "mobilenet.features": "backbone.features",
    "mobilenet.low_level_features": "backbone.features",
    "mobilenet.high_level_features": "backbone.features",
}

SKETCHFILL_HEAD = {
    **{f"aspp.aspp{i + 1}.atrous_conv": f"aspp.branches.{i}.0" for i in range(4)},
    **{f"aspp.aspp{i + 1}.bn": f"aspp.branches.{i}.1" for i in range(4)},
    "aspp.global_avg_pool.1": "aspp.pool.0",
    "aspp.global_avg_pool.2": "aspp.pool.1",
    "aspp.conv1": "aspp.project.0",
    "aspp.bn1": "aspp.project.1",
    **{f"gate{i}.F": f"gate{i}.transform" for i in (1, 2, 3)},
    **{f"gate{i}.H": f"gate{i}.gate" for i in (1, 2, 3)},
    **{f"conv_f{i}": f"skip{i}" for i in (1, 2, 3)},
    **{f"conv_h{i}": f"reduce{i}" for i in (2, 3)},
    "cls": "classifier",
    "aux": "aux",
}

# torchvision nests convolution and norm of a block; its first block has no expansion.
TORCHVISION_MOBILENET = {
    "features.0": "features.0",
    "features.1.conv.0": "features.1.conv",
    "features.1.conv.1": "features.1.conv.3",
    "features.1.conv.2": "features.1.conv.4",
    **{f"features.{i}.conv.0": f"features.{i}.conv" for i in range(2, 18)},
    **{f"features.{i}.conv.1.0": f"features.{i}.conv.3" for i in range(2, 18)},
    **{f"features.{i}.conv.1.1": f"features.{i}.conv.4" for i in range(2, 18)},
    **{f"features.{i}.conv.2": f"features.{i}.conv.6" for i in range(2, 18)},
    **{f"features.{i}.conv.3": f"features.{i}.conv.7" for i in range(2, 18)},
}

LAYOUTS = (
    Layout(
        source="Sketch-and-Fill on ResNet (youngsjjn/SFNet)",
        models=("sketchfill",),
        backbones=r"resnet(50|101|152)",
        marker="gate1.F.0.weight",
        rename={**SEMSEG_RESNET, **SKETCHFILL_HEAD},
        heads=("aux",),
        options={"conv_f1": "fine_conv"},
    ),
    Layout(
        source="Sketch-and-Fill on MobileNet-V2 (youngsjjn/SFNet)",
        models=("sketchfill",),
        backbones="mobilenet_v2",
        marker="gate1.F.0.weight",
        rename={**SKETCHFILL_MOBILENET, **SKETCHFILL_HEAD},
        heads=("aux",),
        options={"conv_f1": "fine_conv"},
    ),
    Layout(
        source="PSPNet (hszhao/semseg)",
        models=("pspnet",),
        backbones=r"resnet(50|101|152)",
        marker="cls.0.weight",
        rename={
            **SEMSEG_RESNET,
            **{f"ppm.features.{i}": f"ppm.stages.{i}" for i in range(4)},
            "cls": "classifier",
            "aux": "aux",
        },
        heads=("aux",),
    ),
    Layout(
        source="deep-stem ResNet, ImageNet (hszhao/semseg)",
        models=(),
        backbones=r"resnet\d+",
        marker="conv3.weight",
        rename=SEMSEG_IMAGENET,
        unused=("fc",),
    ),
    Layout(
        source="ResNet, ImageNet (torchvision)",
        models=(),
        backbones=r"torchvision/resnet\d+",
        marker="conv1.weight",
        rename={**_same("conv1", "bn1"), **STAGES},
        unused=("fc",),
    ),
    Layout(
        source="MobileNet-V2, ImageNet (flat blocks, mobilenet_v2-6a65762b)",
        models=(),
        backbones="mobilenet_v2",
        marker="features.1.conv.3.weight",
        rename={f"features.{i}": f"features.{i}" for i in range(18)},
        unused=("features.18", "classifier"),
    ),
    Layout(
        source="MobileNet-V2, ImageNet (torchvision)",
        models=(),
        backbones="mobilenet_v2",
        marker="features.1.conv.0.0.weight",
        rename=TORCHVISION_MOBILENET,
        unused=("features.18", "classifier"),
    ),
)


def load_published(
    model: nn.Module, state_dict: Mapping[str, object], allow_missing: Iterable[str] = ()
) -> LoadReport:
    """Load a checkpoint that is in a published repository's own key names, strictly.

    Args:
        model: made by `build_model` or `build_backbone`; it is changed only if everything fits.
        state_dict: the checkpoint; the wrappers "state_dict" and "model" and the prefix "module." are taken
            off. Values are cast to the type of the parameter (half-precision files).
        allow_missing: heads of ours, such as "aux", that the checkpoint may lack as a whole.

    Returns:
        What was mapped, dropped by declaration and left as initialised. Counters of batch norm
        (`num_batches_tracked`), which files older than PyTorch 0.4.1 lack, are left as they are.

    Raises:
        ValueError: listing keys without a place, parameters without a value, shapes that differ, copies of
            one tensor that differ, or the option with which the model must be built instead.
    """
    tensors = _unwrap(state_dict)
    layout = _choose_layout(model, tensors)
    _check_options(model, layout, tensors)
    target = model.state_dict()
    values, mapped, dropped, strangers = _translate(model, layout, tensors)
    missing = [name for name in target if name not in values]
    allowed = {name for name in missing if _may_miss(name, values, allow_missing)}
    problems = []
    if strangers:
        problems.append(f"{len(strangers)} keys without a place in the model: {_list(strangers)}")
    if lacking := [name for name in missing if name not in allowed]:
        problems.append(f"{len(lacking)} parameters without a value: {_list(lacking)}")
    if problems:
        fits = f"the checkpoint does not fit {_describe(model)} ({layout.source})"
        raise ValueError(". ".join([fits, *problems]))
    _check_shapes(model, target, values, mapped)
    model.load_state_dict(target | {name: value.to(target[name].dtype) for name, value in values.items()})
    return LoadReport(layout.source, mapped, tuple(dropped), tuple(missing))


def load_backbone_weights(backbone: nn.Module, state_dict: Mapping[str, object]) -> LoadReport:
    """Load ImageNet weights into a backbone, strictly; only the declared classifier keys may be left over.

    Known files: semseg's deep-stem ResNets, torchvision's ResNets and MobileNet-V2, the MobileNet-V2 of the
    published Sketch-and-Fill code, and any weights of timm for the backbone of that name. Otherwise as
    `load_published`.
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
    strange = [str(key) for key, value in checkpoint.items() if not isinstance(value, torch.Tensor)]
    if strange:
        raise ValueError(f"the checkpoint has entries that are no tensors: {_list(strange)}")
    if all(key.startswith("module.") for key in checkpoint):
        return {key.removeprefix("module."): value for key, value in checkpoint.items()}
    return dict(checkpoint)


def _choose_layout(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> Layout:
    """The layout for this model whose marker the checkpoint has."""
    whole = "num_classes" in model.spec
    backbone = (model.spec["backbone"] or "") if whole else model.spec["name"]
    if not whole and backbone.startswith("timm/"):
        names, unused = model.published_names()
        return Layout(f"{backbone} (timm)", (), backbone, next(iter(names)), names, tuple(unused))
    candidates = [
        layout
        for layout in LAYOUTS
        if re.fullmatch(layout.backbones, backbone)
        and (model.spec["name"] in layout.models if whole else not layout.models)
    ]
    if not candidates:
        raise ValueError(f"no published checkpoints are known for {_describe(model)}")
    for layout in candidates:
        if layout.marker in tensors:
            return layout
    if set(model.state_dict()) <= set(tensors):
        raise ValueError("the checkpoint is in this project's own key names: use model.load_state_dict")
    wanted = " or ".join(f"{layout.marker!r} of {layout.source}" for layout in candidates)
    raise ValueError(
        f"the checkpoint is in no layout known for {_describe(model)}: "
        f"it lacks {wanted}, and has {_list(tensors)}"
    )


def _check_options(model: nn.Module, layout: Layout, tensors: Mapping[str, torch.Tensor]) -> None:
    """Raise where the model was built with another option than the checkpoint's network."""
    for prefix, option in layout.options.items():
        present = any(key.startswith(f"{prefix}.") for key in tensors)
        if present != model.spec["options"][option]:
            has = "has" if present else "lacks"
            raise ValueError(f"the checkpoint {has} {prefix}: build the model with {option}={present}")


def _translate(
    model: nn.Module, layout: Layout, tensors: Mapping[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], dict[str, str], list[str], list[str]]:
    """Our names with values, published key -> our name, keys dropped by declaration, keys without a place."""
    ours = set(model.state_dict())
    absent = tuple(f"{head}." for head in layout.heads if getattr(model, head) is None)
    values, mapped, dropped, strangers, origin = {}, {}, [], [], {}
    for key, value in tensors.items():
        name = _rename(key, layout.rename)
        if name in ours:
            if name in values and not torch.equal(values[name], value):
                raise ValueError(f"{origin[name]} and {key} are one tensor in {layout.source}, but differ")
            values[name], mapped[key] = value, name
            origin.setdefault(name, key)
        elif _rename(key, _same(*layout.unused)) or (name or "").startswith(absent):
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


def _may_miss(name: str, values: Mapping[str, torch.Tensor], heads: Iterable[str]) -> bool:
    """Whether our tensor may lack a value: a batch norm's counter, or part of a head absent as a whole."""
    if name.endswith(".num_batches_tracked"):
        return True
    absent = [head for head in heads if not any(given.startswith(f"{head}.") for given in values)]
    return name.startswith(tuple(f"{head}." for head in absent))


def _check_shapes(
    model: nn.Module,
    target: Mapping[str, torch.Tensor],
    values: Mapping[str, torch.Tensor],
    mapped: Mapping[str, str],
) -> None:
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
