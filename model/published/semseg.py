"""Keys of published networks of hszhao/semseg."""

from model.published.backbone import SEMSEG_RESNET
from model.published.layout import Layout

LAYOUTS = (
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
        num_classes="cls.4.weight",
        heads={"aux": "auxiliary"},
    ),
)
