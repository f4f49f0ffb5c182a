"""Keys of published backbones."""

from model.published.layout import Layout, inside, same

STAGES = same("layer1", "layer2", "layer3", "layer4")


# semseg flattens stem and max-pool into layer0 in its networks, and calls the same layers conv1..bn3 in
# ImageNet files.
SEMSEG_RESNET = inside("backbone", {"layer0": "stem", **STAGES})

SEMSEG_IMAGENET = {
    **{f"conv{i + 1}": f"stem.{3 * i}" for i in range(3)},
    **{f"bn{i + 1}": f"stem.{3 * i + 1}" for i in range(3)},
    **STAGES,
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

SFSEG_RESNET = inside(
    "backbone", {**{f"layer0.0.{i}": f"stem.{i}" for i in (0, 1, 3, 4, 6)}, "layer0.1": "stem.7", **STAGES}
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

LAYOUTS = (
    Layout(
        source="deep-stem ResNet, ImageNet (hszhao/semseg)",
        model=None,
        backbones=r"resnet\d+(_v1s)?",
        marker="conv3.weight",
        rename=SEMSEG_IMAGENET,
        unused=("fc",),
    ),
    Layout(
        source="deep-stem ResNet, ImageNet (PyTorch-Encoding, GluonCV, lxtGH/SFSegNets)",
        model=None,
        backbones=r"resnet\d+(_v1[cs])?",
        marker="conv1.6.weight",
        rename=SFSEG_IMAGENET,
        unused=("fc",),
    ),
    Layout(
        source="ResNet-V1c, ImageNet (MMSegmentation)",
        model=None,
        backbones=r"resnet\d+_v1c",
        marker="stem.6.weight",
        rename={**same("stem"), **STAGES},
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
        source="VGG-16, ImageNet (torchvision)",
        model=None,
        backbones="vgg16",
        marker=("features.28.weight", "classifier.6.weight"),
        rename=same("features"),
        unused=("classifier",),
    ),
    Layout(
        source="DenseNet, ImageNet (torchvision)",
        model=None,
        backbones=r"densenet\d+",
        marker="features.norm5.weight",
        patterns=((r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2."),),  # files of before PyTorch 0.4.1
        rename=same("features"),
        unused=("classifier",),
    ),
    Layout(
        source="MobileNet-V3-Large, ImageNet (torchvision)",
        model=None,
        backbones="mobilenet_v3_large",
        marker="features.4.block.2.fc1.weight",
        rename=same("features"),
        unused=("classifier",),
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
