"""The key names of published checkpoints: one `Layout` a family.

To add a family, add its layout to `LAYOUTS`; `model.published` does the rest.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Layout:
    """How one published repository names what one kind of model of ours holds.

    Prefixes end at a dot or at the end of a key. Two published names may lead to the same tensor of ours,
    where the published code registers a module twice; their values must then be equal.
    """

    source: str  # whose names these are, for messages and the report
    model: str | None  # name in MODELS; None for a backbone alone
    backbones: str  # regular expression for the name of the backbone
    marker: str  # a key of this layout that the others for the same model lack
    rename: Mapping[str, str]  # published prefix -> ours; the longest one wins
    unused: tuple[str, ...] = ()  # published prefixes of what the published forward never uses
    # Heads a model may be built without, their keys being dropped then, and the option that decides.
    heads: Mapping[str, str] = field(default_factory=dict)
    # Options of ours that the checkpoint determines: how to read them off its keys and shapes.
    options: Mapping[str, Callable[[Tensors], object]] = field(default_factory=dict)
    # Options that the keys do not tell but that the published code implies.
    implied: Mapping[str, object] = field(default_factory=dict)
    zeros: str | None = None  # regular expression for parameters of ours that are zero there


def same(*names: str) -> dict[str, str]:
    """A table that leaves these prefixes as they are."""
    return {name: name for name in names}


def has(prefix: str) -> Callable[[Tensors], bool]:
    """Whether a checkpoint has keys of that prefix."""
    return lambda tensors: any(f"{key}.".startswith(f"{prefix}.") for key in tensors)


def _inside(prefix: str, table: Mapping[str, str]) -> dict[str, str]:
    """The table for the same part one level down: what leads to `ours` leads to `prefix.ours`."""
    return {published: f"{prefix}.{ours}" for published, ours in table.items()}


def _under(prefix: str, table: Mapping[str, str]) -> dict[str, str]:
    """The table for a part that both sides have under the same prefix."""
    return {f"{prefix}.{published}": f"{prefix}.{ours}" for published, ours in table.items()}


STAGES = same("layer1", "layer2", "layer3", "layer4")

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

# SFSegNets leaves the third norm of the stem outside the Sequential of its convolutions; in ImageNet files
# the two are conv1 and bn1, in its networks layer0.0 and layer0.1.
SFSEG_IMAGENET = {**{f"conv1.{i}": f"stem.{i}" for i in (0, 1, 3, 4, 6)}, "bn1": "stem.7", **STAGES}
SFSEG_RESNET = _inside(
    "backbone",
    {**{f"layer0.0.{i}": f"stem.{i}" for i in (0, 1, 3, 4, 6)}, "layer0.1": "stem.7", **STAGES},
)

# The stages of both versions have names that the other lacks, so that one table serves both.
DFNET = {
    "stage1": "stem",
    **{f"stage{i + 2}": f"stages.{i}" for i in range(4)},
    **{f"stage{i + 2}_{j + 1}": f"stages.{2 * i + j}" for i in range(3) for j in range(2)},
}

# The published code registers the blocks as a whole and again by resolution. STDC2 has the most of them, 14.
STDC_BLOCK = {
    **{f"conv_list.{j}.conv": f"convs.{j}.0" for j in range(4)},
    **{f"conv_list.{j}.bn": f"convs.{j}.1" for j in range(4)},
    "avd_layer": "downsample",
    "conv": "0",
    "bn": "1",
}
STDC = {
    f"{whole}.{i}.{published}": f"features.{i}.{ours}"
    for whole in ("features", "x2.0", "x4.0", "x8.0", "x16.0", "x32.0")
    for i in range(14)
    for published, ours in STDC_BLOCK.items()
}
STDC_UNUSED = ("conv_last", "fc", "bn", "linear")

SFSEG_CONTEXT = {f"head.ppm.{part}": f"context.{part}" for part in ("stages", "down", "bottleneck")}
SFSEG_ALIGN = {"down_l": "reduce_fine", "down_h": "reduce_coarse", "flow_make": "flow"}
SFSEG_CLASSIFIER = {"head.conv_last.0": "classifier", "head.conv_last.1": "classifier.4"}
SFSEG_HEAD = {
    **SFSEG_CONTEXT,
    **SFSEG_CLASSIFIER,
    "head.fpn_in": "lateral",
    **{f"head.fpn_out.{i}.0": f"smooth.{i}" for i in range(3)},
    **{
        f"head.fpn_out_align.{i}.{k}": f"align.{i}.{ours}"
        for i in range(3)
        for k, ours in SFSEG_ALIGN.items()
    },
    "head.dsn": "dsn",
}
SFSEG_LITE_HEAD = {
    **SFSEG_CONTEXT,
    **SFSEG_CLASSIFIER,
    "head.fpn_in.0": "lateral.0",
    "head.fpn_in.1": "lateral.1",
    **{f"head.flow_align_module.{k}": f"align.{ours}" for k, ours in SFSEG_ALIGN.items()},
    "head.flow_align_module.flow_gate.0": "align.gate",
}

# The port numbers the heads of deep supervision from coarse to fine, and their 3x3 has no bias.
MMSEG_FLOW = {
    **_inside("backbone", {"backbone.stem": "stem", **{f"backbone.{stage}": stage for stage in STAGES}}),
    **{f"neck.ppm.{i}.1.conv": f"context.stages.{i}.1" for i in range(4)},
    **{f"neck.ppm.{i}.1.bn": f"context.stages.{i}.2" for i in range(4)},
    "neck.bottleneck.conv": "context.bottleneck.0",
    "neck.bottleneck.bn": "context.bottleneck.1",
    **{f"neck.fams.{i}.low_conv.conv": f"lateral.{i}.0" for i in range(3)},
    **{f"neck.fams.{i}.low_conv.bn": f"lateral.{i}.1" for i in range(3)},
    **{f"neck.fams.{i}.low_down_conv": f"align.{i}.reduce_fine" for i in range(3)},
    **{f"neck.fams.{i}.high_down_conv": f"align.{i}.reduce_coarse" for i in range(3)},
    **{f"neck.fams.{i}.flow_conv": f"align.{i}.flow" for i in range(3)},
    **{f"neck.convs.{i}.conv": f"smooth.{i}.0" for i in range(3)},
    **{f"neck.convs.{i}.bn": f"smooth.{i}.1" for i in range(3)},
    "decode_head.convs.0.conv": "classifier.0",
    "decode_head.convs.0.bn": "classifier.1",
    "decode_head.conv_seg": "classifier.4",
    **{f"auxiliary_head.{i}.convs.0.conv": f"dsn.{2 - i}.0" for i in range(3)},
    **{f"auxiliary_head.{i}.convs.0.bn": f"dsn.{2 - i}.1" for i in range(3)},
    **{f"auxiliary_head.{i}.conv_seg": f"dsn.{2 - i}.4" for i in range(3)},
}


def _context(tensors: Tensors) -> str:
    return "sppm" if has("head.ppm.down")(tensors) else "ppm"


def _gate_input(tensors: Tensors) -> str:
    """What the gate of SFNet-Lite sees: four pooled maps, or features."""
    gate = tensors.get("head.flow_align_module.flow_gate.0.weight")
    return "pooled" if gate is None or gate.shape[1] == 4 else "features"


def _sfseg(backbones: str, trunk: Mapping[str, str], unused: tuple[str, ...] = ()) -> Layout:
    return Layout(
        source="Semantic Flow (lxtGH/SFSegNets)",
        model="semanticflow",
        backbones=backbones,
        marker="head.fpn_out_align.0.flow_make.weight",
        rename={**trunk, **SFSEG_HEAD},
        unused=unused,
        heads={"dsn": "deep_supervision"},
        options={"context": _context},
    )


def _sfseg_lite(backbones: str, trunk: Mapping[str, str], unused: tuple[str, ...] = ()) -> Layout:
    return Layout(
        source="SFNet-Lite (lxtGH/SFSegNets)",
        model="semanticflow_lite",
        backbones=backbones,
        marker="head.flow_align_module.flow_make.weight",
        rename={**trunk, **SFSEG_LITE_HEAD},
        # Never called there, so these hold the values they were initialised with.
        unused=("head.dsn", "head.fpn_in.2", *unused),
        options={
            "context": _context,
            "gate": has("head.flow_align_module.flow_gate"),
            "gate_input": _gate_input,
        },
    )


LAYOUTS = (
    Layout(
        source="Sketch-and-Fill on ResNet (youngsjjn/SFNet)",
        model="sketchfill",
        backbones=r"resnet(50|101|152)",
        marker="gate1.F.0.weight",
        rename={**SEMSEG_RESNET, **SKETCHFILL_HEAD},
        heads={"aux": "auxiliary"},
        options={"fine_conv": has("conv_f1")},
    ),
    Layout(
        source="Sketch-and-Fill on MobileNet-V2 (youngsjjn/SFNet)",
        model="sketchfill",
        backbones="mobilenet_v2",
        marker="gate1.F.0.weight",
        rename={**SKETCHFILL_MOBILENET, **SKETCHFILL_HEAD},
        heads={"aux": "auxiliary"},
        options={"fine_conv": has("conv_f1")},
    ),
    Layout(
        source="PSPNet (hszhao/semseg)",
        model="pspnet",
        backbones=r"resnet(50|101|152)",
        marker="cls.0.weight",
        rename={
            **SEMSEG_RESNET,
            **{f"ppm.features.{i}": f"ppm.stages.{i}" for i in range(4)},
            "cls": "classifier",
            "aux": "aux",
        },
        heads={"aux": "auxiliary"},
    ),
    _sfseg(r"resnet\d+", SFSEG_RESNET),
    _sfseg(r"dfnet_v[12]", _under("backbone", DFNET)),
    _sfseg(r"stdc[12]", _under("backbone", STDC), tuple(f"backbone.{part}" for part in STDC_UNUSED)),
    _sfseg_lite(r"resnet\d+", SFSEG_RESNET),
    _sfseg_lite(r"stdc[12]", _under("backbone", STDC), tuple(f"backbone.{part}" for part in STDC_UNUSED)),
    Layout(
        source="Semantic Flow in MMSegmentation (xiaojianzhong/SFNet)",
        model="semanticflow",
        backbones=r"resnet\d+",
        marker="neck.fams.0.flow_conv.weight",
        rename=MMSEG_FLOW,
        heads={"dsn": "deep_supervision"},
        implied={"flow_align_corners": False},
        zeros=r"dsn\.\d+\.0\.bias",
    ),
    Layout(
        source="deep-stem ResNet, ImageNet (hszhao/semseg)",
        model=None,
        backbones=r"resnet\d+",
        marker="conv3.weight",
        rename=SEMSEG_IMAGENET,
        unused=("fc",),
    ),
    Layout(
        source="deep-stem ResNet, ImageNet (lxtGH/SFSegNets)",
        model=None,
        backbones=r"resnet\d+",
        marker="conv1.6.weight",
        rename=SFSEG_IMAGENET,
        unused=("fc",),
    ),
    Layout(
        source="DFNet, ImageNet (lxtGH/SFSegNets)",
        model=None,
        backbones=r"dfnet_v[12]",
        marker="stage1.0.weight",
        rename=DFNET,
        unused=("fc",),
    ),
    Layout(
        source="STDC, ImageNet (STDC-Seg, also used by lxtGH/SFSegNets)",
        model=None,
        backbones=r"stdc[12]",
        marker="features.0.conv.weight",
        rename=STDC,
        unused=STDC_UNUSED,
    ),
    Layout(
        source="ResNet, ImageNet (torchvision)",
        model=None,
        backbones=r"torchvision/resnet\d+",
        marker="conv1.weight",
        rename={**same("conv1", "bn1"), **STAGES},
        unused=("fc",),
    ),
    Layout(
        source="MobileNet-V2, ImageNet (flat blocks, mobilenet_v2-6a65762b)",
        model=None,
        backbones="mobilenet_v2",
        marker="features.1.conv.3.weight",
        rename={f"features.{i}": f"features.{i}" for i in range(18)},
        unused=("features.18", "classifier"),
    ),
    Layout(
        source="MobileNet-V2, ImageNet (torchvision)",
        model=None,
        backbones="mobilenet_v2",
        marker="features.1.conv.0.0.weight",
        rename=TORCHVISION_MOBILENET,
        unused=("features.18", "classifier"),
    ),
)
