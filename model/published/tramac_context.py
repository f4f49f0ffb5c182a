"""Keys of the networks of context of Tramac/awesome-semantic-segmentation-pytorch."""

from collections.abc import Callable
from typing import Any

import torch

from model.published.backbone import STAGES
from model.published.layout import Layout, Tensors, inside

REPOSITORY = "Tramac/awesome-semantic-segmentation-pytorch"
DATASETS = {19: "cityscapes", 20: "lip", 21: "voc", 150: "ade20k", 2: "sbu"}

# The ImageNet classifier of a backbone, which is never used.
CLASSIFIERS = ("pretrained.fc", "pretrained.classifier")

RESNET = inside(
    "backbone",
    {
        **{f"pretrained.conv1.{i}": f"stem.{i}" for i in (0, 1, 3, 4, 6)},
        "pretrained.bn1": "stem.7",
        **{f"pretrained.{stage}": stage for stage in STAGES},
    },
)
VGG = {f"pretrained.{i}": f"backbone.features.{i}" for i in range(31)}
XCEPTION = {
    "pretrained.conv1": "backbone.stem.0",
    "pretrained.bn1": "backbone.stem.1",
    "pretrained.conv2": "backbone.stem.3",
    "pretrained.bn2": "backbone.stem.4",
    **{f"pretrained.block{i}": f"backbone.block{i}" for i in (1, 2, 3, 20)},
    # The ReLU that a block begins with counts as a layer there.
    **{
        f"pretrained.{block}.body.{layer}": f"backbone.{ours}.body.{layer - 1}"
        for block, ours in (
            ("block3", "block3"),
            ("block20", "block20"),
            *((f"midflow.{i}", f"middle.{i}") for i in range(16)),
        )
        for layer in range(1, 9)
    },
    **{f"pretrained.conv{i + 3}": f"backbone.exit.{3 * i}" for i in range(3)},
    **{f"pretrained.bn{i + 3}": f"backbone.exit.{3 * i + 1}" for i in range(3)},
}
XCEPTION_PATTERNS = (
    (r"\.skip\.", ".shortcut.0."),
    (r"\.skipbn\.", ".shortcut.1."),
    (r"\.rep\.", ".body."),
    (r"(body\.\d+|conv[345])\.conv1\.", r"\1.0."),
    (r"(body\.\d+|conv[345])\.bn\.", r"\1.1."),
    (r"(body\.\d+|conv[345])\.pointwise\.", r"\1.2."),
    (r"\.(c1_block|block\.\d)\.conv\.", r".\1.0."),
    (r"\.(c1_block|block\.\d)\.bn\.", r".\1.1."),
)

CORNERS = {"align_corners": True}  # where a network of ours has the choice

AUX = {"auxlayer.block": "aux"}
HEAD = {"head.block": "classifier", **AUX}
PYRAMID = {
    **{f"head.psp.conv{i + 1}.0": f"ppm.stages.{i}.1" for i in range(4)},
    **{f"head.psp.conv{i + 1}.1": f"ppm.stages.{i}.2" for i in range(4)},
}
JPU = {
    **{f"jpu.conv{i + 3}": f"jpu.reduce.{i}" for i in range(3)},
    **{f"jpu.dilation{i + 1}.0.conv": f"jpu.branches.{i}.0.0" for i in range(4)},
    **{f"jpu.dilation{i + 1}.0.bn": f"jpu.branches.{i}.0.1" for i in range(4)},
    **{f"jpu.dilation{i + 1}.0.pointwise": f"jpu.branches.{i}.1.0" for i in range(4)},
    **{f"jpu.dilation{i + 1}.1": f"jpu.branches.{i}.1.1" for i in range(4)},
}
ASPP = {
    "head.aspp.b0": "aspp.branches.0",
    **{f"head.aspp.b{i}.block": f"aspp.branches.{i}" for i in range(1, 4)},
    "head.aspp.b4.gap.1": "aspp.pool.0",
    "head.aspp.b4.gap.2": "aspp.pool.1",
    "head.aspp.project": "aspp.project",
}
DENSEASPP = {
    **{
        f"head.dense_aspp_block.aspp_{rate}.conv{j}": f"branches.{i}.{j - 1}.0"
        for i, rate in enumerate((3, 6, 12, 18, 24))
        for j in (1, 2)
    },
    **{
        f"head.dense_aspp_block.aspp_{rate}.bn{j}": f"branches.{i}.{j - 1}.1"
        for i, rate in enumerate((3, 6, 12, 18, 24))
        for j in (1, 2)
    },
}
ENCNET = {
    "head.conv5": "reduce",
    "head.encmodule.encoding.0": "project.0",
    "head.encmodule.encoding.1": "project.1",
    "head.encmodule.encoding.3": "encoding",
    "head.encmodule.encoding.4": "norm",
    "head.encmodule.fc.0": "gate",
    "head.encmodule.selayer": "se",
    "head.conv6": "classifier",
}
DANET = {
    "head.conv_p1": "position_in",
    "head.conv_p2": "position_out",
    "head.conv_p3": "position_classifier",
    "head.conv_c1": "channel_in",
    "head.conv_c2": "channel_out",
    "head.conv_c3": "channel_classifier",
    "head.pam.conv_b": "position.query",
    "head.pam.conv_c": "position.key",
    "head.pam.conv_d": "position.value",
    "head.pam.alpha": "position.weight",
    "head.cam.beta": "channel.weight",
    "head.out": "classifier",
}
# One module is registered as key and as query.
ATTENTION = {"f_key": "key", "f_query": "key", "f_value": "value", "W": "project"}
OCNET = {
    "base": {
        **{f"head.context.{i}": f"context.reduce.{i}" for i in (0, 1)},
        **{f"head.context.3.stages.0.{k}": f"context.attention.{ours}" for k, ours in ATTENTION.items()},
        "head.context.3.project": "context.project",
    },
    "pyramid": {
        **{f"head.context.{i}": f"context.reduce.{i}" for i in (0, 1)},
        **{
            f"head.context.3.stages.{i}.{k}": f"context.attentions.{i}.{ours}"
            for i in range(4)
            for k, ours in ATTENTION.items()
        },
        "head.context.3.up_dr": "context.expand",
        "head.context.3.project": "context.project",
    },
    "asp": {
        **{f"head.context.context.{i}": f"context.reduce.{i}" for i in (0, 1)},
        **{f"head.context.context.3.stages.0.{k}": f"context.attention.{ours}" for k, ours in ATTENTION.items()},
        "head.context.context.3.project": "context.refine",
        **{f"head.context.b{i + 1}": f"context.branches.{i}" for i in range(4)},
        "head.context.project": "context.project",
    },
}
DUNET = {
    "head.fuse.conv3": "skips.0",
    "head.fuse.conv2": "skips.1",
    **{f"head.block.{3 * i + j}": f"fuse.{i}.{j}" for i in (0, 1) for j in (0, 1)},
    "dupsample.conv_w": "upsample.0",
    "auxlayer.block": "aux.0",
    "aux_dupsample.conv_w": "aux.1.0",
}
PSANET = {
    **{
        f"head.psa.{kind}_attention.{published}": f"{kind}.{ours}"
        for kind in ("collect", "distribute")
        for published, ours in (
            ("conv_reduce.conv", "reduce.0"),
            ("conv_reduce.bn", "reduce.1"),
            ("attention.0.conv", "attention.0.0"),
            ("attention.0.bn", "attention.0.1"),
            ("attention.1", "attention.1"),
        )
    },
    "head.conv_post.conv": "expand.0",
    "head.conv_post.bn": "expand.1",
    "head.project.0.conv": "fuse.0",
    "head.project.0.bn": "fuse.1",
    "head.project.2": "classifier.1",
}


def _on_resnet(
    name: str, model: str, marker: str, table: dict, classes: str | Callable[[Tensors], int], **more: Any
) -> Layout:
    """A network of theirs on the ResNets of PyTorch-Encoding."""
    return Layout(
        source=f"{name} ({REPOSITORY})",
        model=model,
        backbones=r"resnet\d+_v1s",
        marker=("pretrained.conv1.6.weight", marker),
        rename={**RESNET, **table},
        num_classes=classes,
        unused=CLASSIFIERS,
        heads=more.pop("heads", {"aux": "auxiliary"}),
        datasets=DATASETS,
        **more,
    )


def _classes_first(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The filters of DUpsampling in the order of `nn.PixelShuffle`; theirs count the classes fastest."""
    for key in ("dupsample.conv_w.weight", "aux_dupsample.conv_w.weight"):
        if key in tensors:
            tensors[key] = tensors[key].unflatten(0, (64, -1)).transpose(0, 1).flatten(0, 1)
    return tensors


def _skip(name: str, model: str, pools: dict[str, int], skips: tuple[str, ...]) -> Layout:
    """FCN-32s and its kin: VGG is there as a whole, and again in parts that begin at these layers."""
    parts = {f"{part}.{i - first}": f"backbone.features.{i}" for part, first in pools.items() for i in range(first, 31)}
    return Layout(
        source=f"{name} ({REPOSITORY})",
        model=model,
        backbones="vgg16",
        marker=("pretrained.28.weight", "head.block.4.weight"),
        rename={**VGG, **parts, **HEAD, **{skip: f"scores.{i}" for i, skip in enumerate(skips)}},
        num_classes="head.block.4.weight",
        heads={"aux": "auxiliary"},
        datasets=DATASETS,
    )


LAYOUTS = (
    _skip("FCN-32s", "fcn32s", {}, ()),
    _skip("FCN-16s", "fcn16s", {"pool4": 0, "pool5": 24}, ("score_pool4",)),
    _skip("FCN-8s", "fcn8s", {"pool3": 0, "pool4": 17, "pool5": 24}, ("score_pool4", "score_pool3")),
    _on_resnet(
        "FCN on ResNet",
        "fcn",
        "head.block.4.weight",
        HEAD,
        "head.block.4.weight",
        options={"concat_input": False, **CORNERS},
    ),
    _on_resnet(
        "PSPNet",
        "pspnet",
        "head.psp.conv1.0.weight",
        {**PYRAMID, **HEAD, **JPU},
        "head.block.4.weight",
        options={"jpu": lambda tensors: "jpu.conv3.0.weight" in tensors, **CORNERS},
    ),
    _on_resnet(
        "DeepLabv3",
        "deeplabv3",
        "head.aspp.b0.0.weight",
        {**ASPP, **HEAD},
        "head.block.4.weight",
        options={"project_kernel": 1, **CORNERS},
    ),
    _on_resnet(
        "EncNet",
        "encnet",
        "head.encmodule.encoding.3.codewords",
        {**ENCNET, **AUX},
        "head.conv6.1.weight",
        heads={"aux": "auxiliary", "se": "semantic_encoding"},
        options={"squared_scale": True, **CORNERS},
    ),
    _on_resnet(
        "DANet",
        "danet",
        "head.pam.alpha",
        DANET,
        "head.out.1.weight",
        heads={"position_classifier": "auxiliary", "channel_classifier": "auxiliary"},
        options={"deep_supervision": False, **CORNERS},
    ),
    *(
        _on_resnet(
            "OCNet",
            "ocnet",
            "head.out.weight",
            {**table, "head.out": "classifier", **AUX},
            "head.out.weight",
            options={"context": context},
        )
        for context, table in OCNET.items()
    ),
    _on_resnet(
        "DUNet",
        "dunet",
        "dupsample.conv_w.weight",
        DUNET,
        lambda tensors: tensors["dupsample.conv_w.weight"].shape[0] // 64,
        convert=_classes_first,
    ),
    _on_resnet(
        "PSANet",
        "psanet",
        "head.psa.collect_attention.attention.1.weight",
        {**PSANET, **AUX},
        "head.project.2.weight",
        options={"cells": lambda tensors: tensors["head.psa.collect_attention.attention.1.weight"].shape[0]},
    ),
    Layout(
        source=f"DenseASPP ({REPOSITORY})",
        model="denseaspp",
        backbones=r"densenet\d+",
        marker="head.dense_aspp_block.aspp_3.conv1.weight",
        rename={"pretrained.features": "backbone.features", **DENSEASPP, "head.block": "classifier", **AUX},
        num_classes="head.block.1.weight",
        unused=CLASSIFIERS,
        heads={"aux": "auxiliary"},
        datasets=DATASETS,
    ),
    Layout(
        source=f"DeepLabv3+ ({REPOSITORY})",
        model="deeplabv3plus",
        backbones="xception65",
        marker=("pretrained.midflow.0.rep.1.conv1.weight", "head.c1_block.conv.weight"),
        patterns=XCEPTION_PATTERNS,
        rename={
            **XCEPTION,
            **ASPP,
            "head.c1_block": "low",
            "head.block.0": "decoder.0",
            "head.block.2": "decoder.2",
            "head.block.4": "classifier.1",
            **AUX,
        },
        num_classes="head.block.4.weight",
        unused=CLASSIFIERS,
        heads={"aux": "auxiliary"},
        options={"low_kernel": 3, "project_kernel": 1, "separable": False, **CORNERS},
        datasets=DATASETS,
    ),
)
