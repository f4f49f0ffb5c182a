"""Keys of published CGNets."""

from model.published.layout import CONV_MODULE, Layout, Preprocessing, count

TRAMAC_BLOCK = {
    **{f"conv.{part}": f"conv.{i}" for i, part in enumerate(("conv", "bn", "prelu"))},
    "f_loc.conv": "local",
    "f_sur.conv": "surround",
    "bn": "join.0",
    "prelu": "join.1",
    "reduce": "reduce",
    "f_glo.fc": "gate",
}
TRAMAC = {
    **{f"stage1_{i}.{k}": f"stem.{i}.{j}" for i in range(3) for j, k in enumerate(("conv", "bn", "prelu"))},
    **{f"bn_prelu{i}.{k}": f"join{i}.{j}" for i in (1, 2, 3) for j, k in enumerate(("bn", "prelu"))},
    **{f"stage{i}_0.{k}": f"down{i}.{v}" for i in (2, 3) for k, v in TRAMAC_BLOCK.items()},
    **{f"stage{i}.{j}.{k}": f"stage{i}.{j}.{v}" for i in (2, 3) for j in range(50) for k, v in TRAMAC_BLOCK.items()},
    "head.1": "classifier",
}

# The authors' names, as regular expressions that turn them into Tramac's, who follows their code.
AUTHORS = (
    (r"^level", "stage"),
    (r"\.conv1x1\.", ".conv."),
    (r"\.bn_prelu\.", "."),
    (r"\.F_(loc|sur|glo)\.", r".f_\1."),
    (r"\.reduce\.conv\.", ".reduce."),
    (r"^b1\.", "bn_prelu1."),
    (r"^bn_prelu_", "bn_prelu"),
    (r"\.act\.", ".prelu."),
    (r"^classifier\.\d\.conv\.", "head.1."),
)

# MMSegmentation counts from one stage earlier, and the block that halves the size is the first of its list.
MMSEG_BLOCK = {
    **{f"conv1x1.{i}": f"conv.{i}" for i in range(3)},
    "f_loc": "local",
    "f_sur": "surround",
    "join": "join.0",
    "activate": "join.1",
    "bottleneck": "reduce",
    "f_glo.fc": "gate",
}
MMSEG = {
    "backbone.stem": "stem",
    **{f"backbone.norm_prelu_{i}": f"join{i + 1}" for i in range(3)},
    **{f"backbone.level{i}.0.{k}": f"down{i + 1}.{v}" for i in (1, 2) for k, v in MMSEG_BLOCK.items()},
    **{
        f"backbone.level{i}.{j}.{k}": f"stage{i + 1}.{j - 1}.{v}"
        for i in (1, 2)
        for j in range(1, 50)
        for k, v in MMSEG_BLOCK.items()
    },
    "decode_head.conv_seg": "classifier",
}

CITYSCAPES = Preprocessing((72.39239876, 82.90891754, 73.15835921), (1.0, 1.0, 1.0))
CAMVID = Preprocessing((105.65775, 103.329834, 99.625404), (1.0, 1.0, 1.0))
FIXED = {"eps": 1e-3, "align_corners": False}


def _authors(data: str, preprocessing: Preprocessing, for_classes: tuple[int, ...] = ()) -> Layout:
    """Give the authors' layout; they subtract the means of B, G, R from R, G, B, and the weights expect it."""
    return Layout(
        source=f"CGNet, {data} (wutianyiRosun/CGNet)",
        model="cgnet",
        marker="level1_0.conv.weight",
        rename=TRAMAC,
        patterns=AUTHORS,
        num_classes="classifier.0.conv.weight",
        options={**FIXED, "classifier_bias": False, "blocks2": count("level2", 1), "blocks3": count("level3", 1)},
        preprocessing=preprocessing,
        for_classes=for_classes,
    )


LAYOUTS = (
    Layout(
        source="CGNet (Tramac/awesome-semantic-segmentation-pytorch)",
        model="cgnet",
        marker="stage2_0.f_loc.conv.weight",
        rename=TRAMAC,
        num_classes="head.1.weight",
        options={
            "eps": 1e-5,
            "align_corners": True,
            "classifier_bias": True,
            "blocks2": count("stage2", 1),
            "blocks3": count("stage3", 1),
        },
    ),
    _authors("CamVid", CAMVID, (11,)),
    _authors("Cityscapes", CITYSCAPES),
    Layout(
        source="CGNet (MMSegmentation)",
        model="cgnet",
        marker="backbone.norm_prelu_0.0.weight",
        rename=MMSEG,
        patterns=(
            (r"(level\d\.\d+)\.bn\.", r"\1.join."),
            (r"\.conv1x1\.activate\.", ".conv1x1.2."),
            (r"(stem\.\d)\.activate\.", r"\1.2."),
            *CONV_MODULE,
        ),
        num_classes="decode_head.conv_seg.weight",
        options={
            **FIXED,
            "classifier_bias": True,
            "blocks2": count("backbone.level1"),
            "blocks3": count("backbone.level2"),
        },
        preprocessing=CITYSCAPES,
    ),
)
