"""Keys of published DDRNets and PIDNets, the authors' and MMSegmentation's."""

from collections.abc import Callable

import torch

from model.published.layout import CONV_MODULE, Layout, Tensors

SCALES = range(5)
BRANCHES = {"": "i_branch", "_": "p_branch", "_d": "d_branch"}  # ends of the authors' names for a branch's stages
LOSSES = ("loss", "sem_loss")  # class weights of the loss, which a trainer that holds network and loss saves


def _pyramid(theirs: str, parallel: bool) -> dict[str, str]:
    """The authors' names of norm, ReLU and convolution in a pyramid; the pool counts as a layer."""
    pairs = {f"scale{k}.{j + (k > 0)}": f"scales.{k}.{j}" for k in SCALES for j in (0, 2)}
    pairs |= {"scale_process": "process"} if parallel else {f"process{k}": f"process.{k - 1}" for k in range(1, 5)}
    pairs |= {"compression": "compress", "shortcut": "shortcut"}
    return {f"{theirs}.{k}": f"pyramid.{v}" for k, v in pairs.items()}


AUTHORS_HEAD = {"bn1": "0", "conv1": "2", "bn2": "3", "conv2": "5"}
# Convolution and norm of a block stand beside one another there.
AUTHORS_BLOCK = ((r"^(layer.*)\.conv(\d)\.", r"\1.conv\2.0."), (r"^(layer.*)\.bn(\d)\.", r"\1.conv\2.1."))
AUTHORS_STEM = {
    **{f"conv1.{3 * i + j}": f"stem.{i}.{j}" for i in (0, 1) for j in (0, 1)},
    "layer1": "stem.2",
    "layer2": "stem.4",
    "compression3": "compress.0",
    "compression4": "compress.1",
}
MMSEG_STEM = {f"backbone.stem.{i}": f"stem.{i}" for i in (0, 1, 2, 4)} | {
    "backbone.compression_1": "compress.0",
    "backbone.compression_2": "compress.1",
}
# Where the norm comes first, a module of MMSegmentation is norm, ReLU and convolution of ours.
MMSEG_FIRST_NORM = (
    (r"^backbone\.spp\.scales\.(\d)\.1\.", r"backbone.spp.scales.\1."),
    (r"^(backbone\.spp\..*)\.bn\.", r"\1.0."),
    (r"^(backbone\.spp\..*)\.conv\.", r"\1.2."),
    (r"^backbone\.dfm\.conv\.bn\.", "backbone.dfm.0."),
    (r"^backbone\.dfm\.conv\.conv\.", "backbone.dfm.2."),
    (r"^(decode_head\.\w*head\.(?:0|conv))\.bn\.", r"\1.0."),
    (r"^(decode_head\.\w*head\.(?:0|conv))\.conv\.", r"\1.2."),
)
MMSEG_PYRAMID = {
    "backbone.spp.scales": "pyramid.scales",
    "backbone.spp.processes": "pyramid.process",
    "backbone.spp.compression": "pyramid.compress",
    "backbone.spp.shortcut": "pyramid.shortcut",
}


def _heads(names: dict[str, str], table: dict[str, str]) -> dict[str, str]:
    return {f"{head}.{k}": f"{ours}.{v}" for head, ours in names.items() for k, v in table.items()}


def _fold_stem(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The biases of the first two convolutions in the norms behind them, which take them off the running means."""
    for conv, norm in (("conv1.0", "conv1.1"), ("conv1.3", "conv1.4")):
        if f"{conv}.bias" in tensors and f"{norm}.running_mean" in tensors:
            tensors[f"{norm}.running_mean"] = tensors[f"{norm}.running_mean"] - tensors.pop(f"{conv}.bias")
    return tensors


def _pidnet_size(stem: str, third: str) -> Callable[[Tensors], str]:
    """The size by the width of the first layer and whether there is a third block."""

    def size(tensors: Tensors) -> str:
        if tensors[stem].shape[0] == 32:
            return "s"
        return "l" if third in tensors else "m"

    return size


def _ddrnet_size(stem: str) -> Callable[[Tensors], str]:
    return lambda tensors: "23_slim" if tensors[stem].shape[0] == 32 else "23"


DDRNET_AUTHORS = {
    **AUTHORS_STEM,
    **{f"layer{3 + k}": f"context.{k}" for k in range(3)},
    **{f"layer{3 + k}_": f"detail.{k}" for k in range(3)},
    "down3": "down.0.0",
    **{f"down4.{3 * i + j}": f"down.1.{i}.{j}" for i in (0, 1) for j in (0, 1)},
    **_pyramid("spp", parallel=False),
    **_heads({"final_layer": "classifier", "seghead_extra": "aux"}, AUTHORS_HEAD),
}
DDRNET_MMSEG = {
    **MMSEG_STEM,
    "backbone.context_branch_layers": "context",
    "backbone.spatial_branch_layers": "detail",
    "backbone.down_1": "down.0.0",
    "backbone.down_2": "down.1",
    **MMSEG_PYRAMID,
    **_heads({"decode_head.head": "classifier", "decode_head.aux_head": "aux"}, {"0.0": "0", "0.2": "2", "1": "3"}),
    "decode_head.conv_seg": "classifier.5",
    "decode_head.aux_cls_seg": "aux.5",
}
PIDNET_AUTHORS = {
    **AUTHORS_STEM,
    **{f"layer{3 + k}{end}": f"{ours}.{k}" for k in range(3) for end, ours in BRANCHES.items()},
    **{f"pag{3 + k}.f_x": f"attend.{k}.detail" for k in (0, 1)},
    **{f"pag{3 + k}.f_y": f"attend.{k}.context" for k in (0, 1)},
    **{f"diff{3 + k}": f"difference.{k}" for k in (0, 1)},
    "dfm.conv_p": "fuse.detail",
    "dfm.conv_i": "fuse.context",
    "dfm.conv": "fuse",
    **_heads({"final_layer": "classifier", "seghead_p": "aux", "seghead_d": "boundary"}, AUTHORS_HEAD),
}
PIDNET_MMSEG = {
    **MMSEG_STEM,
    **{f"backbone.{kind}_branch_layers": f"{kind}_branch" for kind in "pid"},
    **{f"backbone.pag_{k + 1}.f_p": f"attend.{k}.detail" for k in (0, 1)},
    **{f"backbone.pag_{k + 1}.f_i": f"attend.{k}.context" for k in (0, 1)},
    **{f"backbone.diff_{k + 1}": f"difference.{k}" for k in (0, 1)},
    **MMSEG_PYRAMID,
    "backbone.dfm.f_p": "fuse.detail",
    "backbone.dfm.f_i": "fuse.context",
    "backbone.dfm": "fuse",
    **_heads(
        {"decode_head.i_head": "classifier", "decode_head.p_head": "aux", "decode_head.d_head": "boundary"},
        {"conv.0": "0", "conv.2": "2", "norm": "3"},
    ),
    "decode_head.conv_seg": "classifier.5",
    "decode_head.p_cls_seg": "aux.5",
    "decode_head.d_cls_seg": "boundary.5",
}


def _pidnet_authors(marker: str, parallel: bool) -> Layout:
    return Layout(
        source="PIDNet (XuJiacong/PIDNet)",
        model="pidnet",
        marker=("pag3.f_x.0.weight", marker),
        patterns=AUTHORS_BLOCK,
        rename={**PIDNET_AUTHORS, **_pyramid("spp", parallel)},
        num_classes="final_layer.conv2.weight",
        heads={"aux": "auxiliary", "boundary": "auxiliary"},
        options={"size": _pidnet_size("conv1.0.weight", "layer1.2.conv1.weight"), "rectified_heads": True},
        implied={"align_corners": True},
        unused=LOSSES,
        convert=_fold_stem,
    )


LAYOUTS = (
    _pidnet_authors("spp.scale_process.0.weight", parallel=True),
    _pidnet_authors("spp.process1.0.weight", parallel=False),
    Layout(
        source="PIDNet (MMSegmentation)",
        model="pidnet",
        marker="backbone.pag_1.f_i.conv.weight",
        patterns=(*MMSEG_FIRST_NORM, *CONV_MODULE),
        rename=PIDNET_MMSEG,
        num_classes="decode_head.conv_seg.weight",
        heads={"aux": "auxiliary", "boundary": "auxiliary"},
        options={
            "size": _pidnet_size("backbone.stem.0.conv.weight", "backbone.stem.2.2.conv1.conv.weight"),
            "rectified_heads": False,
        },
        implied={"align_corners": True},
    ),
    Layout(
        source="DDRNet (ydhongHIT/DDRNet)",
        model="ddrnet",
        marker=("down4.0.weight", "spp.process1.0.weight"),
        patterns=AUTHORS_BLOCK,
        rename=DDRNET_AUTHORS,
        num_classes="final_layer.conv2.weight",
        heads={"aux": "auxiliary"},
        options={"size": _ddrnet_size("conv1.0.weight")},
        unused=LOSSES,
        convert=_fold_stem,
    ),
    Layout(
        source="DDRNet (MMSegmentation)",
        model="ddrnet",
        marker="backbone.down_2.0.conv.weight",
        patterns=(*MMSEG_FIRST_NORM, *CONV_MODULE),
        rename=DDRNET_MMSEG,
        num_classes="decode_head.conv_seg.weight",
        heads={"aux": "auxiliary"},
        options={"size": _ddrnet_size("backbone.stem.0.conv.weight")},
    ),
)
