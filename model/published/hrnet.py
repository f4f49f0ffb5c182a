"""Keys of the authors' HRNet checkpoints (HRNet/HRNet-Semantic-Segmentation and HRNet-Image-Classification)."""

from model.published.layout import Layout, inside, same

BACKBONE = {
    "conv1": "stem.0",
    "bn1": "stem.1",
    "conv2": "stem.3",
    "bn2": "stem.4",
    "transition2.2": "transition2",
    "transition3.3": "transition3",
    **same("layer1", "transition1", "stage2", "stage3", "stage4"),
}

# Norms are a Sequential of norm and activation there.
OCR = "ocr_distri_head.object_context_block"
OCR_HEAD = {
    "aux_head": "aux",
    "conv3x3_ocr": "pixels",
    "cls_head": "classifier",
    **{
        f"{OCR}.{part}.{theirs}": f"context.{ours}.{place}"
        for part, ours in {"f_pixel": "query", "f_object": "key", "f_down": "value", "f_up": "expand"}.items()
        for theirs, place in {"0": 0, "1.0": 1, "2": 3, "3.0": 4}.items()
    },
    "ocr_distri_head.conv_bn_dropout.0": "context.project.0",
    "ocr_distri_head.conv_bn_dropout.1.0": "context.project.1",
}

UNTOLD = (
    "align_corners: False in the authors' branch pytorch-v1.1 and in the configurations of plain HRNet in their branch "
    "HRNet-OCR, whose code has True by default, with the same keys"
)

LAYOUTS = (
    Layout(
        source="HRNet (HRNet/HRNet-Semantic-Segmentation)",
        model="hrnet",
        backbones=r"hrnet_w\w+",
        marker=("transition1.0.0.weight", "last_layer.0.weight"),
        rename={**inside("backbone", BACKBONE), "last_layer": "classifier"},
        num_classes="last_layer.3.weight",
        implied={"align_corners": False},
        untold=UNTOLD,
        unused=("loss",),
    ),
    Layout(
        source="HRNet with OCR (HRNet/HRNet-Semantic-Segmentation)",
        model="hrnet_ocr",
        backbones=r"hrnet_w\w+",
        marker=("transition1.0.0.weight", "cls_head.weight"),
        rename={**inside("backbone", BACKBONE), **OCR_HEAD},
        num_classes="cls_head.weight",
        options={"align_corners": True},
        unused=("loss",),
    ),
    Layout(
        source="HRNet, ImageNet (HRNet/HRNet-Image-Classification)",
        model=None,
        backbones=r"hrnet_w\w+",
        marker=("transition1.0.0.weight", "incre_modules.0.0.conv1.weight"),
        rename=BACKBONE,
        unused=("incre_modules", "downsamp_modules", "final_layer", "classifier"),
    ),
)
