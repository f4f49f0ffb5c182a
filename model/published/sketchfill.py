"""Keys of published Sketch-and-Fill networks."""

from model.published.backbone import SEMSEG_RESNET
from model.published.layout import Layout, has

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

LAYOUTS = (
    Layout(
        source="Sketch-and-Fill on ResNet (youngsjjn/SFNet)",
        model="sketchfill",
        backbones=r"resnet(50|101|152)",
        marker="gate1.F.0.weight",
        rename={**SEMSEG_RESNET, **SKETCHFILL_HEAD},
        num_classes="cls.4.weight",
        heads={"aux": "auxiliary"},
        options={"fine_conv": has("conv_f1")},
    ),
    Layout(
        source="Sketch-and-Fill on MobileNet-V2 (youngsjjn/SFNet)",
        model="sketchfill",
        backbones="mobilenet_v2",
        marker="gate1.F.0.weight",
        rename={**SKETCHFILL_MOBILENET, **SKETCHFILL_HEAD},
        num_classes="cls.4.weight",
        heads={"aux": "auxiliary"},
        options={"fine_conv": has("conv_f1")},
    ),
)
