"""Keys of published BiSeNets, V1 and V2.

Also of the STDC networks that follow V1.
"""

from typing import Any

import torch

from model.published.backbone import STAGES, STDC, STDC_UNUSED
from model.published.layout import CONV_MODULE, Layout, Preprocessing

# Data set -> preprocessing of CoinCheung/BiSeNet, its own mean and deviation of each.
COINCHEUNG = {
    "ade20k": Preprocessing((125.8253565, 119.3894747, 109.92046965), (65.4858345, 65.0416206, 69.92842395)),
    "coco_stuff": Preprocessing((119.75374155, 113.834622, 103.83290685), (70.04783595, 68.88152055, 72.71562915)),
    "cityscapes": Preprocessing((83.0535, 94.095, 82.1865), (53.856, 54.774, 54.7825)),
}
COINCHEUNG_CLASSES = {"ade20k": 150, "coco_stuff": 171, "cityscapes": 19}

MMSEG_HEADS = {
    "decode_head.convs.0": "classifier",
    "decode_head.conv_seg": "classifier.4",
    **{f"auxiliary_head.{i}.convs.0": f"aux{i}" for i in (0, 1)},
    **{f"auxiliary_head.{i}.conv_seg": f"aux{i}.4" for i in (0, 1)},
}
COINCHEUNG_HEADS = {
    f"{theirs}.{part}": f"{ours}{end}"
    for theirs, ours in (
        ("conv_out", "classifier"),
        ("conv_out16", "aux0"),
        ("conv_out32", "aux1"),
        ("conv_out_sp8", "detail"),
    )
    for part, end in (("conv", ""), ("conv_out", ".4"))
}
# The names say to which stride a feature belonged before it was enlarged.
COINCHEUNG_CONTEXT = {
    "cp.conv_avg": "context.mean",
    **{
        f"cp.arm{stride}.{part}": f"context.attend.{i}.{ours}"
        for i, stride in enumerate((32, 16))
        for part, ours in (("conv", "conv"), ("conv_atten", "gate.0"), ("bn_atten", "gate.1"))
    },
    **{f"cp.conv_head{stride}": f"context.refine.{i}" for i, stride in enumerate((32, 16))},
    "ffm.convblk": "fuse.project",
}
RESNET = ("conv1", "bn1", *STAGES)

TRAMAC = {
    **{f"context_path.{part}": f"backbone.{part}" for part in RESNET},
    **{
        f"spatial_path.{part}": f"spatial.{i}"
        for i, part in enumerate(("conv7x7", "conv3x3_1", "conv3x3_2", "conv1x1"))
    },
    **{f"context_path.global_context.gap.{i + 1}": f"context.mean.{i}" for i in (0, 1)},
    **{f"context_path.arms.{i}.conv3x3": f"context.attend.{i}.conv" for i in (0, 1)},
    **{f"context_path.arms.{i}.channel_attention.1": f"context.attend.{i}.gate" for i in (0, 1)},
    "context_path.refines": "context.refine",
    "ffm.conv1x1": "fuse.project",
    **{f"ffm.channel_attention.{i + 1}": f"fuse.gate.{i}" for i in (0, 1)},
    **{
        f"{theirs}.block.{k}": f"{ours}.{v}" if v else ours
        for theirs, ours in (("head", "classifier"), ("auxlayer1", "aux1"), ("auxlayer2", "aux0"))
        for k, v in (("0", ""), ("2", "4"))
    },
}
MMSEG = {
    **{f"backbone.context_path.backbone.{part}": f"backbone.{part}" for part in RESNET},
    **{f"backbone.spatial_path.layer{i + 1}": f"spatial.{i}" for i in range(4)},
    "backbone.context_path.gap_conv.1": "context.mean",
    **{
        f"backbone.context_path.arm{stride}.{part}": f"context.attend.{i}.{ours}"
        for i, stride in enumerate((32, 16))
        for part, ours in (("conv_layer", "conv"), ("atten_conv_layer.1", "gate"))
    },
    **{f"backbone.context_path.conv_head{stride}": f"context.refine.{i}" for i, stride in enumerate((32, 16))},
    "backbone.ffm.conv1": "fuse.project",
    "backbone.ffm.conv_atten.0": "fuse.gate.0",
    **MMSEG_HEADS,
}
AUX = {"aux0": "auxiliary", "aux1": "auxiliary"}


def _coincheung(data: str) -> dict[str, Any]:
    """Preprocessing and name of a data set; of one that is not theirs, those of Cityscapes, as their demo has it."""
    known = COINCHEUNG_CLASSES[data]
    return {
        "preprocessing": COINCHEUNG[data],
        "for_classes": () if data == "cityscapes" else (known,),
        "datasets": {known: data},
    }


def _bisenet_coincheung(data: str) -> Layout:
    return Layout(
        source=f"BiSeNet, {data} (CoinCheung/BiSeNet)",
        model="bisenet",
        backbones=r"torchvision/resnet\d+",
        marker=("cp.resnet.conv1.weight", "ffm.bn.weight"),
        patterns=((r"^ffm\.conv\.", "fuse.gate.0.0."), (r"^ffm\.bn\.", "fuse.gate.0.1."), *CONV_MODULE),
        rename={
            **{f"cp.resnet.{part}": f"backbone.{part}" for part in RESNET},
            **{f"sp.{part}": f"spatial.{i}" for i, part in enumerate(("conv1", "conv2", "conv3", "conv_out"))},
            **COINCHEUNG_CONTEXT,
            "fuse.gate": "fuse.gate",
            **COINCHEUNG_HEADS,
        },
        num_classes="conv_out.conv_out.weight",
        heads=AUX,
        options={
            "gate_relu": False,
            "fusion_width": None,
            "fusion_relu": False,
            "nearest": True,
            "head_width": 256,
            "aux_width": 64,
            "align_corners": False,
        },
        **_coincheung(data),
    )


V2_STAGES = {**{i + 1: f"S{i + 3}" for i in range(2)}, 3: "S5_4"}  # of the semantic branch, behind its stem
V2_COINCHEUNG = {
    **{f"detail.S{i + 1}": f"detail.{i}" for i in range(3)},
    "segment.S1S2.conv": "semantic.0.conv",
    "segment.S1S2.left": "semantic.0.branch",
    "segment.S1S2.fuse": "semantic.0.fuse",
    **{
        f"segment.{theirs}.{block}.{part}": f"semantic.{stage}.{block}.{ours}"
        for stage, theirs in V2_STAGES.items()
        for block in range(4)
        for part, ours in {
            "conv1": "conv",
            "dwconv": "depthwise.0",
            "dwconv1": "depthwise.0",
            "dwconv2": "depthwise.1",
            "conv2": "project",
            "shortcut.0": "shortcut.0.0",
            "shortcut.1": "shortcut.0.1",
            "shortcut.2": "shortcut.1.0",
            "shortcut.3": "shortcut.1.1",
        }.items()
    },
    "segment.S5_5.norm": "embed.norm",
    "segment.S5_5.conv_gap": "embed.mean",
    "segment.S5_5.conv_last": "embed.last",
    **{
        f"bga.{theirs}.{i}": f"aggregate.{ours}.{place}"
        for theirs, ours in {"left1": "detail_keep", "right2": "semantic_keep"}.items()
        for i, place in enumerate(("0.0", "0.1", "1"))
    },
    **{f"bga.left2.{i}": f"aggregate.detail_down.0.{i}" for i in (0, 1)},
    "bga.right1": "aggregate.semantic_up",
    "bga.conv": "aggregate.join",
    "head.conv": "classifier",
    "head.conv_out.1": "classifier.4",
    **{
        f"{theirs}.{part}": f"aux.{i}.{ours}"
        for i, theirs in enumerate(("aux2", "aux3", "aux4", "aux5_4"))
        for part, ours in {"conv": "0", "conv_out.0.1": "3", "conv_out.1": "4"}.items()
    },
}
V2_MMSEG = {
    "backbone.detail.detail_branch": "detail",
    "backbone.semantic.stage1.conv_first": "semantic.0.conv",
    "backbone.semantic.stage1.convs": "semantic.0.branch",
    "backbone.semantic.stage1.fuse_last": "semantic.0.fuse",
    **{
        f"backbone.semantic.stage{stage + 1}.{block}.{part}": f"semantic.{stage}.{block}.{ours}"
        for stage in (1, 2, 3)
        for block in range(4)
        for part, ours in {
            "conv1": "conv",
            "dwconv": "depthwise",
            "conv2.0": "project",
            "shortcut.0": "shortcut",
        }.items()
    },
    "backbone.semantic.stage4_CEBlock.gap.1": "embed.norm",
    "backbone.semantic.stage4_CEBlock.conv_gap": "embed.mean",
    "backbone.semantic.stage4_CEBlock.conv_last": "embed.last",
    "backbone.bga.detail_dwconv.0": "aggregate.detail_keep",
    "backbone.bga.semantic_dwconv.0": "aggregate.semantic_keep",
    # Convolutions without a norm in a module that could have one.
    "backbone.bga.detail_dwconv.0.1.0": "aggregate.detail_keep.1",
    "backbone.bga.semantic_dwconv.0.1.0": "aggregate.semantic_keep.1",
    "backbone.bga.detail_down.0": "aggregate.detail_down.0",
    "backbone.bga.semantic_conv.0": "aggregate.semantic_up",
    "backbone.bga.conv": "aggregate.join",
    "decode_head.convs.0": "classifier",
    "decode_head.conv_seg": "classifier.4",
    **{f"auxiliary_head.{i}.convs.{j}": f"aux.{i}.{j}" for i in range(4) for j in (0, 1)},
    **{f"auxiliary_head.{i}.conv_seg": f"aux.{i}.3" for i in range(4)},
}


def _bisenetv2_coincheung(data: str) -> Layout:
    return Layout(
        source=f"BiSeNet V2, {data} (CoinCheung/BiSeNet)",
        model="bisenetv2",
        marker="segment.S1S2.conv.conv.weight",
        patterns=((r"^segment\.S5_5\.bn\.", "segment.S5_5.norm."), *CONV_MODULE),
        rename=V2_COINCHEUNG,
        num_classes="head.conv_out.1.weight",
        heads={"aux": "auxiliary"},
        options={"nearest": True, "enlarging_heads": True, "align_corners": False},
        zeros=r"aggregate\.(detail|semantic)_keep\.1\.bias",
        **_coincheung(data),
    )


def _absolute_scales(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The scales of all norms outside the backbone as those of batch norms.

    They are in-place ABN there, which scales by the absolute value of its weight, and eps.
    """
    return {
        key: value.abs() + 1e-5
        if key.endswith((".bn.weight", ".bn_atten.weight")) and ".backbone." not in key
        else value
        for key, value in tensors.items()
    }


def _stdc_mmseg(backbone: str, depths: tuple[int, ...]) -> Layout:
    """The stages of MMSegmentation are lists of blocks; ours are one."""
    blocks = [(f"{stage + 2}.{block}", stage) for stage, depth in enumerate(depths) for block in range(depth)]
    trunk = {f"backbone.backbone.stages.{i}": f"backbone.features.{i}" for i in (0, 1)}
    for place, (theirs, _) in enumerate(blocks, start=2):
        trunk[f"backbone.backbone.stages.{theirs}.layers"] = f"backbone.features.{place}.convs"
        trunk[f"backbone.backbone.stages.{theirs}.downsample"] = f"backbone.features.{place}.downsample"
    return Layout(
        source="STDC (MMSegmentation)",
        model="stdc",
        backbones=backbone,
        marker=("backbone.backbone.stages.2.0.layers.0.conv.weight", "backbone.ffm.attention.1.conv.weight"),
        patterns=(
            (r"^backbone\.ffm\.attention\.1\.conv\.", "fuse.gate.0."),
            (r"^backbone\.ffm\.attention\.2\.conv\.", "fuse.gate.2."),
            *CONV_MODULE,
        ),
        rename={
            **trunk,
            "backbone.conv_avg": "context.mean",
            **{f"backbone.arms.{i}.conv_layer": f"context.attend.{i}.conv" for i in (0, 1)},
            **{f"backbone.arms.{i}.atten_conv_layer.1": f"context.attend.{i}.gate" for i in (0, 1)},
            "backbone.convs": "context.refine",
            "backbone.ffm.conv0": "fuse.project",
            "fuse.gate": "fuse.gate",
            **MMSEG_HEADS,
            "auxiliary_head.2.convs.0": "detail",
            "auxiliary_head.2.conv_seg": "detail.4",
        },
        unused=("auxiliary_head.2.fusion_kernel", "auxiliary_head.2.laplacian_kernel"),
        num_classes="decode_head.conv_seg.weight",
        heads={**AUX, "detail": "detail"},
        options={"detail_channels": 2, "align_corners": True},
    )


LAYOUTS = (
    Layout(
        source="BiSeNet (Tramac/awesome-semantic-segmentation-pytorch)",
        model="bisenet",
        backbones=r"torchvision/resnet\d+",
        marker=("context_path.conv1.weight", "ffm.channel_attention.2.conv.weight"),
        patterns=CONV_MODULE,
        rename=TRAMAC,
        num_classes="head.block.2.weight",
        heads=AUX,
        options={
            "gate_relu": True,
            "fusion_width": 64,
            "fusion_relu": True,
            "nearest": False,
            "head_width": 64,
            "aux_width": 256,
            "align_corners": True,
        },
        datasets={19: "cityscapes", 20: "lip", 21: "voc", 150: "ade20k", 2: "sbu"},
    ),
    Layout(
        source="BiSeNet (MMSegmentation)",
        model="bisenet",
        backbones=r"torchvision/resnet\d+",
        marker="backbone.context_path.gap_conv.1.conv.weight",
        patterns=CONV_MODULE,
        rename=MMSEG,
        num_classes="decode_head.conv_seg.weight",
        heads=AUX,
        options={
            "width": lambda tensors: tensors["backbone.context_path.gap_conv.1.conv.weight"].shape[0],
            "gate_relu": False,
            "fusion_width": None,
            "fusion_relu": True,
            "nearest": True,
            "head_width": lambda tensors: tensors["decode_head.conv_seg.weight"].shape[1],
            "aux_width": lambda tensors: tensors["decode_head.conv_seg.weight"].shape[1] // 4,
            "align_corners": False,
        },
    ),
    *(_bisenet_coincheung(data) for data in COINCHEUNG),
    *(_bisenetv2_coincheung(data) for data in COINCHEUNG),
    Layout(
        source="BiSeNet V2 (MMSegmentation)",
        model="bisenetv2",
        marker="backbone.semantic.stage1.conv_first.conv.weight",
        patterns=CONV_MODULE,
        rename=V2_MMSEG,
        num_classes="decode_head.conv_seg.weight",
        heads={"aux": "auxiliary"},
        options={"nearest": False, "enlarging_heads": False, "align_corners": False},
    ),
    Layout(
        source="STDC (MichaelFan01/STDC-Seg)",
        model="stdc",
        backbones=r"stdc[12]",
        marker=("cp.backbone.features.0.conv.weight", "ffm.conv1.weight"),
        patterns=(
            (r"^(?!cp\.backbone)(.*)\.conv\.(weight|bias)$", r"\1.0.\2"),
            (r"^(?!cp\.backbone)(.*)\.bn\.", r"\1.1."),
        ),
        rename={
            **{f"cp.backbone.{published}": f"backbone.{ours}" for published, ours in STDC.items()},
            **COINCHEUNG_CONTEXT,
            "ffm.conv1": "fuse.gate.0",
            "ffm.conv2": "fuse.gate.2",
            **COINCHEUNG_HEADS,
        },
        # The first four are the classifier of ImageNet; the heads on other features are computed there, but not used.
        unused=(*(f"cp.backbone.{part}" for part in STDC_UNUSED), *(f"conv_out_sp{stride}" for stride in (2, 4, 16))),
        num_classes="conv_out.conv_out.weight",
        heads={**AUX, "detail": "detail"},
        options={"detail_channels": 1},
        implied={"align_corners": True},
        untold="files named maxmIOU50 and maxmIOU75 are scored on images of 0.5 and 0.75 times the size: test.scales",
        zeros=r"(classifier|aux[01]|detail)\.4\.bias",
        convert=_absolute_scales,
    ),
    _stdc_mmseg("stdc1", (2, 2, 2)),
    _stdc_mmseg("stdc2", (4, 5, 3)),
)
