"""Keys of published ESPNets."""

from typing import Any

from model.published.layout import Layout, Preprocessing, Tensors, count

ACTIVATED = {"conv": "0", "bn": "1", "act": "2"}
NORM = {"bn": "0", "act": "1"}
BRANCHES = {f"d{2**i}.conv": f"branches.{i}" for i in range(5)}
DOWN = {"c1.conv": "reduce", **BRANCHES, **{k: f"norm.{v}" for k, v in NORM.items()}}
BLOCK = {"c1.conv": "reduce", **BRANCHES, **{f"bn.{k}": f"norm.{v}" for k, v in NORM.items()}}

ENCODER = {
    **{f"level1.{k}": f"stem.{v}" for k, v in ACTIVATED.items()},
    **{f"b{i}.{k}": f"join{i}.{v}" for i in (1, 2, 3) for k, v in NORM.items()},
    **{f"level{i}_0.{k}": f"down{i}.{v}" for i in (2, 3) for k, v in DOWN.items()},
    **{f"level{i}.{j}.{k}": f"stage{i}.{j}.{v}" for i in (2, 3) for j in range(20) for k, v in BLOCK.items()},
    "classifier.conv": "classifier3",
}
DECODER = {
    **{f"encoder.{k}": v for k, v in ENCODER.items()},
    "br": "decoder.norm3",
    "up_l3.0": "decoder.up3",
    "level3_C.conv": "decoder.classifier2",
    **{f"combine_l2_l3.0.{k}": f"decoder.join2.0.{v}" for k, v in NORM.items()},
    **{f"combine_l2_l3.1.{k}": f"decoder.join2.1.{v}" for k, v in BLOCK.items()},
    "up_l2.0": "decoder.up2.0",
    **{f"up_l2.1.{k}": f"decoder.up2.{int(v) + 1}" for k, v in NORM.items()},
    **{f"conv.{k}": f"decoder.join1.{v}" for k, v in ACTIVATED.items()},
    "classifier": "decoder.up1",
}


def bgr(mean: tuple[float, ...], std: tuple[float, ...]) -> Preprocessing:
    """Make the preprocessing of networks that see B, G, R.

    They divide by 255 after the deviation; mean and std are given as B, G, R.
    """
    return Preprocessing(mean[::-1], tuple(255 * value for value in std[::-1]), "bgr")


CITYSCAPES = bgr((72.3923111, 82.90893555, 73.15840149), (45.3192215, 46.15289307, 44.91483307))
CAMVID = bgr((110.331024, 108.40887, 105.033195), (72.12571, 72.69074, 69.90435))


def _joins_input(tensors: Tensors) -> bool:
    """Whether the last join of a decoder sees the 19 channels of features and image, or the 16 of features."""
    return tensors["conv.conv.weight"].shape[1] - tensors["classifier.weight"].shape[0] == 19


def _layouts(
    data: str, preprocessing: Preprocessing, datasets: dict[int, str], for_classes: tuple[int, ...] = ()
) -> tuple[Layout, ...]:
    """Give the layouts of decoder and encoder; their last class stands for all that is ignored."""
    shared: dict[str, Any] = {
        "model": "espnet",
        "preprocessing": preprocessing,
        "datasets": datasets,
        "for_classes": for_classes,
    }
    return (
        Layout(
            source=f"ESPNet, {data} (sacmehta/ESPNet)",
            marker="level3_C.conv.weight",
            rename=DECODER,
            num_classes="classifier.weight",
            options={
                "eps": 1e-3,
                "decoder": True,
                "join_input": _joins_input,
                "blocks2": count("encoder.level2"),
                "blocks3": count("encoder.level3"),
            },
            **shared,
        ),
        Layout(
            source=f"ESPNet-C, {data} (sacmehta/ESPNet)",
            marker=("level2_0.d16.conv.weight", "classifier.conv.weight"),
            rename=ENCODER,
            num_classes="classifier.conv.weight",
            options={
                "eps": 1e-3,
                "decoder": False,
                "join_input": False,
                "blocks2": count("level2"),
                "blocks3": count("level3"),
            },
            **shared,
        ),
    )


LAYOUTS = (*_layouts("CamVid", CAMVID, {12: "camvid"}, (12,)), *_layouts("Cityscapes", CITYSCAPES, {20: "cityscapes"}))
