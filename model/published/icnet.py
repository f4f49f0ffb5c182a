"""Keys of published ICNets."""

import torch

from model.published.layout import CONV_MODULE, Layout
from model.published.tramac_context import CLASSIFIERS, DATASETS, REPOSITORY, RESNET

FUSIONS = {
    f"{prefix}.cff_{place}.conv_{part}": f"fuse{place}.{part}"
    for prefix in ("head", "neck")
    for place in (12, 24)
    for part in ("low", "high")
}


def _pools_last(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The convolution behind the pyramid, with the poolings behind the features as in ours; theirs come first."""
    join, pool = "backbone.psp_bottleneck.conv.weight", "backbone.psp_modules.0.1.conv.weight"
    if join in tensors and pool in tensors:
        width = 4 * tensors[pool].shape[0]
        tensors[join] = torch.cat([tensors[join][:, width:], tensors[join][:, :width]], 1)
    return tensors


LAYOUTS = (
    Layout(
        source=f"ICNet ({REPOSITORY})",
        model="icnet",
        backbones=r"resnet\d+_v1s",
        marker=("pretrained.conv1.6.weight", "head.cff_12.conv_low.0.weight"),
        patterns=CONV_MODULE,
        rename={
            **RESNET,
            "conv_sub1": "light",
            **FUSIONS,
            "head.cff_12.conv_low_cls": "aux12",
            "head.cff_24.conv_low_cls": "aux24",
            "head.conv_cls": "classifier",
        },
        num_classes="head.conv_cls.weight",
        unused=CLASSIFIERS,
        heads={"aux12": "auxiliary", "aux24": "auxiliary"},
        datasets=DATASETS,
    ),
    Layout(
        source="ICNet (MMSegmentation)",
        model="icnet_ppm",
        backbones=r"resnet\d+_v1c",
        marker=("backbone.psp_bottleneck.conv.weight", "neck.cff_12.conv_low.conv.weight"),
        patterns=CONV_MODULE,
        rename={
            "backbone.backbone": "backbone",
            "backbone.conv_sub1": "light",
            "backbone.conv_sub2": "reduce_middle",
            "backbone.conv_sub4": "reduce_coarse",
            **{f"backbone.psp_modules.{i}.1.{j}": f"ppm.stages.{i}.{j + 1}" for i in range(4) for j in (0, 1)},
            "backbone.psp_bottleneck": "context",
            **FUSIONS,
            "decode_head.convs.0": "classifier",
            "decode_head.conv_seg": "classifier.4",
            **{f"auxiliary_head.{i}.convs.0": f"aux{1 - i}" for i in (0, 1)},
            **{f"auxiliary_head.{i}.conv_seg": f"aux{1 - i}.4" for i in (0, 1)},
        },
        num_classes="decode_head.conv_seg.weight",
        heads={"aux0": "auxiliary", "aux1": "auxiliary"},
        options={"align_corners": False},
        convert=_pools_last,
    ),
)
