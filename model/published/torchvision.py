"""Keys of torchvision's segmentation networks."""

from model.published.backbone import STAGES
from model.published.layout import Layout

DATASETS = {21: "voc"}

RESNET = {f"backbone.{part}": f"backbone.{part}" for part in ("conv1", "bn1", *STAGES)}
MOBILENET = {f"backbone.{i}": f"backbone.features.{i}" for i in range(17)}
AUX = {"aux_classifier": "aux"}
ASPP = {
    **{f"classifier.0.convs.{i}": f"aspp.branches.{i}" for i in range(4)},
    "classifier.0.convs.4.1": "aspp.pool.0",
    "classifier.0.convs.4.2": "aspp.pool.1",
    "classifier.0.project": "aspp.project",
    **{f"classifier.{i}": f"classifier.{i - 1}" for i in (1, 2)},
    "classifier.4": "classifier.4",
}


def _deeplabv3(name: str, backbones: str, marker: str, table: dict[str, str], aux_level: int, stride: int) -> Layout:
    return Layout(
        source=f"DeepLabv3 on {name} (torchvision)",
        model="deeplabv3",
        backbones=backbones,
        marker=(marker, "classifier.0.convs.0.0.weight"),
        rename={**table, **ASPP, **AUX},
        num_classes="classifier.4.weight",
        heads={"aux": "auxiliary"},
        options={"project_kernel": 1, "aux_level": aux_level, "align_corners": False},
        implied={"output_stride": stride},
        datasets=DATASETS,
    )


LAYOUTS = (
    Layout(
        source="FCN (torchvision)",
        model="fcn",
        backbones=r"torchvision/resnet(50|101)",
        marker=("backbone.layer1.0.conv1.weight", "classifier.4.weight"),
        rename={**RESNET, "classifier": "classifier", **AUX},
        num_classes="classifier.4.weight",
        heads={"aux": "auxiliary"},
        options={"concat_input": False, "align_corners": False},
        datasets=DATASETS,
    ),
    _deeplabv3("ResNet", r"torchvision/resnet(50|101)", "backbone.layer1.0.conv1.weight", RESNET, -2, 8),
    _deeplabv3("MobileNet-V3", "mobilenet_v3_large", "backbone.1.block.0.0.weight", MOBILENET, -3, 16),
    Layout(
        source="LR-ASPP (torchvision)",
        model="lraspp",
        backbones="mobilenet_v3_large",
        marker=("backbone.1.block.0.0.weight", "classifier.cbr.0.weight"),
        rename={
            **MOBILENET,
            "classifier.cbr": "reduce",
            "classifier.scale.1": "gate",
            "classifier.low_classifier": "low_classifier",
            "classifier.high_classifier": "high_classifier",
        },
        num_classes="classifier.low_classifier.weight",
        datasets=DATASETS,
    ),
)
