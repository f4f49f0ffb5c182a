"""Keys of published Semantic-Flow networks."""

from collections.abc import Mapping

from model.published.backbone import DFNET, SFSEG_RESNET, STAGES, STDC, STDC_UNUSED
from model.published.layout import Layout, Tensors, has, inside, under

SFSEG_CONTEXT = {f"head.ppm.{part}": f"context.{part}" for part in ("stages", "down", "bottleneck")}

SFSEG_ALIGN = {"down_l": "reduce_fine", "down_h": "reduce_coarse", "flow_make": "flow"}

SFSEG_CLASSIFIER = {"head.conv_last.0": "classifier", "head.conv_last.1": "classifier.4"}

SFSEG_HEAD = {
    **SFSEG_CONTEXT,
    **SFSEG_CLASSIFIER,
    "head.fpn_in": "lateral",
    **{f"head.fpn_out.{i}.0": f"smooth.{i}" for i in range(3)},
    **{f"head.fpn_out_align.{i}.{k}": f"align.{i}.{ours}" for i in range(3) for k, ours in SFSEG_ALIGN.items()},
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
    **inside("backbone", {"backbone.stem": "stem", **{f"backbone.{stage}": stage for stage in STAGES}}),
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
        num_classes="head.conv_last.1.weight",
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
        num_classes="head.conv_last.1.weight",
        unused=("head.dsn", "head.fpn_in.2", *unused),
        options={"context": _context, "gate": has("head.flow_align_module.flow_gate"), "gate_input": _gate_input},
    )


LAYOUTS = (
    _sfseg(r"resnet\d+", SFSEG_RESNET),
    _sfseg(r"dfnet_v[12]", under("backbone", DFNET)),
    _sfseg(r"stdc[12]", under("backbone", STDC), tuple(f"backbone.{part}" for part in STDC_UNUSED)),
    _sfseg_lite(r"resnet\d+", SFSEG_RESNET),
    _sfseg_lite(r"stdc[12]", under("backbone", STDC), tuple(f"backbone.{part}" for part in STDC_UNUSED)),
    Layout(
        source="Semantic Flow in MMSegmentation (xiaojianzhong/SFNet)",
        model="semanticflow",
        backbones=r"resnet\d+",
        marker="neck.fams.0.flow_conv.weight",
        rename=MMSEG_FLOW,
        num_classes="decode_head.conv_seg.weight",
        heads={"dsn": "deep_supervision"},
        implied={"flow_align_corners": False},
        zeros=r"dsn\.\d+\.0\.bias",
    ),
)
