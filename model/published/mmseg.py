"""Keys of published networks of MMSegmentation on its ResNets."""

from collections.abc import Callable

import torch

from model.published.backbone import STAGES
from model.published.layout import CONV_MODULE, Layout, Tensors

DATASETS = {19: "cityscapes", 21: "voc", 150: "ade20k"}
UNTOLD = (
    "files that were trained on crops of 769x769 have align_corners=True; the networks named d32 and the heads of "
    "FCN-D6 are dilated as ours never are, so that their files give wrong classes"
)

# The deep stem is that of ResNet-V1c, the 7x7 one that of V1b, which is torchvision's.
RESNET = {f"backbone.{part}": f"backbone.{part}" for part in ("stem", "conv1", "bn1", *STAGES)}
AUX = {"auxiliary_head.convs.0": "aux", "auxiliary_head.conv_seg": "aux.4"}
PYRAMID = {
    **{f"decode_head.psp_modules.{i}.1.0": f"ppm.stages.{i}.1" for i in range(4)},
    **{f"decode_head.psp_modules.{i}.1.1": f"ppm.stages.{i}.2" for i in range(4)},
}
ASPP = {
    "decode_head.image_pool.1": "aspp.pool",
    "decode_head.aspp_modules": "aspp.branches",
    "decode_head.bottleneck": "aspp.project",
    "decode_head.conv_seg": "classifier.1",
}


def _pool_last(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The convolution that joins the branches, with the image pooling behind them as in ours; theirs comes first."""
    pool, join = "decode_head.image_pool.1.conv.weight", "decode_head.bottleneck.conv.weight"
    if pool in tensors and join in tensors:
        width = tensors[pool].shape[0]
        tensors[join] = torch.cat([tensors[join][:, width:], tensors[join][:, :width]], 1)
    return tensors


def _one_element(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of the attentions as vectors; theirs have no axes."""
    return {key: value.reshape(1) if key.endswith("gamma.scale") else value for key, value in tensors.items()}


def _width(key: str) -> Callable[[Tensors], int]:
    """The number of filters of a convolution."""
    return lambda tensors: tensors[key].shape[0]


def _aux_width(tensors: Tensors) -> int:
    key = "auxiliary_head.convs.0.conv.weight"
    return tensors[key].shape[0] if key in tensors else 256


def _layout(name: str, model: str, marker: str, table: dict[str, str], **more) -> Layout:
    return Layout(
        source=f"{name} (MMSegmentation)",
        model=model,
        backbones=r"resnet\d+_v1c|torchvision/resnet(50|101|152)",
        marker=("backbone.layer1.0.conv1.weight", marker),
        patterns=CONV_MODULE,
        rename={**RESNET, **table, **AUX},
        num_classes="decode_head.conv_seg.weight",
        heads={"aux": "auxiliary"} | more.pop("heads", {}),
        implied={"align_corners": False},
        untold=UNTOLD,
        datasets=DATASETS,
        **more,
    )


LAYOUTS = (
    _layout(
        "FCN",
        "fcn",
        "decode_head.conv_cat.conv.weight",
        {
            "decode_head.convs": "classifier.convs",
            "decode_head.conv_cat": "classifier.join",
            "decode_head.conv_seg": "classifier.join.4",
        },
        options={"concat_input": True},
    ),
    _layout(
        "PSPNet",
        "pspnet",
        "decode_head.psp_modules.0.1.conv.weight",
        {**PYRAMID, "decode_head.bottleneck": "classifier", "decode_head.conv_seg": "classifier.4"},
        options={"jpu": False},
    ),
    _layout(
        "UPerNet",
        "upernet",
        "decode_head.fpn_bottleneck.conv.weight",
        {
            **PYRAMID,
            "decode_head.bottleneck": "context",
            "decode_head.lateral_convs": "lateral",
            "decode_head.fpn_convs": "smooth",
            "decode_head.fpn_bottleneck": "fuse",
            "decode_head.conv_seg": "classifier.1",
        },
        options={"width": _width("decode_head.fpn_bottleneck.conv.weight"), "aux_width": _aux_width},
    ),
    _layout(
        "DeepLabv3",
        "deeplabv3",
        "decode_head.aspp_modules.3.conv.weight",
        ASPP,
        options={"width": _width("decode_head.bottleneck.conv.weight"), "project_kernel": 3},
        convert=_pool_last,
    ),
    _layout(
        "DeepLabv3+",
        "deeplabv3plus",
        "decode_head.sep_bottleneck.0.depthwise_conv.conv.weight",
        {
            **ASPP,
            "decode_head.c1_bottleneck": "low",
            "decode_head.sep_bottleneck.0": "decoder.0",
            "decode_head.sep_bottleneck.1": "decoder.2",
        },
        options={
            "width": _width("decode_head.bottleneck.conv.weight"),
            "low_width": _width("decode_head.c1_bottleneck.conv.weight"),
            "low_kernel": 1,
            "project_kernel": 3,
            "separable": True,
        },
        convert=_pool_last,
    ),
    _layout(
        "EncNet",
        "encnet",
        "decode_head.enc_module.encoding.0.codewords",
        {
            "decode_head.bottleneck": "reduce",
            "decode_head.enc_module.encoding_project": "project",
            "decode_head.enc_module.encoding.0": "encoding",
            "decode_head.enc_module.encoding.1": "norm",
            "decode_head.enc_module.fc.0": "gate",
            "decode_head.se_layer": "se",
            "decode_head.conv_seg": "classifier.1",
        },
        heads={"se": "semantic_encoding"},
        options={"squared_scale": False},
    ),
    _layout(
        "DANet",
        "danet",
        "decode_head.pam.gamma.scale",
        {
            **{
                f"decode_head.{published}_{published_part}": f"{ours}_{part}"
                for published, ours in (("pam", "position"), ("cam", "channel"))
                for published_part, part in (("in_conv", "in"), ("out_conv", "out"), ("conv_seg", "classifier.1"))
            },
            **{f"decode_head.pam.{part}_project": f"position.{part}" for part in ("query", "key", "value")},
            "decode_head.pam.gamma.scale": "position.weight",
            "decode_head.cam.gamma.scale": "channel.weight",
            "decode_head.conv_seg": "classifier.1",
        },
        heads={"aux": "deep_supervision", "position_classifier": "auxiliary", "channel_classifier": "auxiliary"},
        convert=_one_element,
    ),
    _layout(
        "ANN",
        "ann",
        "decode_head.fusion.stages.0.key_project.conv.weight",
        {
            **{f"decode_head.fusion.stages.0.{part}_project": f"fusion.{part}" for part in ("query", "key", "value")},
            "decode_head.fusion.stages.0.out_project": "fusion.project",
            "decode_head.fusion.bottleneck": "fuse",
            "decode_head.bottleneck": "reduce",
            # One module is registered as key and as query.
            **{f"decode_head.context.stages.0.{part}_project": "context.key" for part in ("query", "key")},
            "decode_head.context.stages.0.value_project": "context.value",
            "decode_head.context.stages.0.out_project": "context.project",
            "decode_head.context.bottleneck": "join",
            "decode_head.conv_seg": "classifier.1",
        },
        options={"key_width": _width("decode_head.fusion.stages.0.key_project.conv.weight")},
    ),
)
