"""Keys of light networks that Tramac/awesome-semantic-segmentation-pytorch alone has published here."""

from model.published.layout import Layout

SOURCE = "Tramac/awesome-semantic-segmentation-pytorch"

# The third layer of a branch is a norm in ours, with the convolution before it; an asymmetric one is two layers.
ENET_BRANCH = {
    **{f"conv{i + 1}": f"branch.{i}" for i in range(3)},
    "conv_down": "shortcut",
    "conv": "shortcut",
    **{f"block.{i}": f"branch.{i // 3}.{i % 3}" for i in range(8)},
    "act": "activation",
}
ENET_BLOCKS = {
    "1_0": "down1",
    **{f"1_{i}": f"stage1.{i - 1}" for i in range(1, 5)},
    "2_0": "down2",
    **{f"2_{i}": f"stage2.{i - 1}" for i in range(1, 9)},
    **{f"3_{i}": f"stage2.{7 + i - (i > 5)}" for i in (1, 2, 3, 4, 6, 7, 8)},
    "4_0": "up4",
    **{f"4_{i}": f"stage4.{i - 1}" for i in (1, 2)},
    "5_0": "up5",
    "5_1": "stage5.0",
}

LEDNET_LEVELS = {
    **{f"conv{i + 1}": f"down.{i}" for i in range(3)},
    **{f"level{i}": f"scores.{3 - i}" for i in (1, 2, 3)},
    "level4": "main",
    "level5.1": "mean",
}

DFANET_BLOCK = {
    **{
        f"rep.{3 * i + 1}.{k}": f"branch.{2 * i}.{j}"
        for i in range(3)
        for j, k in enumerate(("conv1", "bn", "pointwise"))
    },
    **{f"rep.{3 * i + 2}": f"branch.{2 * i}.3" for i in range(3)},
    "skip": "shortcut.0",
    "skipbn": "shortcut.1",
}
DFANET_STAGES = {
    **{f"pretrained.enc{i + 2}": f"encoder1.stages.{i}" for i in range(3)},
    **{f"enc{i + 2}_2": f"encoder2.stages.{i}" for i in range(3)},
    **{name: f"encoder3.stages.{i}" for i, name in enumerate(("enc2_3", "enc3_3", "enc3_4"))},
}
DFANET_ATTENTION = {"fc": "hidden", "conv.0": "weight.0", "conv.1": "weight.1"}

LAYOUTS = (
    Layout(
        source=f"ENet ({SOURCE})",
        model="enet",
        marker="bottleneck1_0.conv_down.0.weight",
        rename={
            "initial.conv": "initial.conv",
            "initial.bn": "initial.norm.0",
            "initial.act": "initial.norm.1",
            **{f"bottleneck{k}.{kk}": f"{v}.{vv}" for k, v in ENET_BLOCKS.items() for kk, vv in ENET_BRANCH.items()},
            "fullconv": "classifier",
        },
        unused=("bottleneck3_5",),
        num_classes=lambda tensors: tensors["fullconv.weight"].shape[1],
        options={"all_blocks": False},
    ),
    Layout(
        source=f"LEDNet ({SOURCE})",
        model="lednet",
        marker="encoder.1.branch1.0.weight",
        rename={
            **{f"encoder.{i}.conv{j + 1}": f"encoder.{i}.convs.{j}" for i in (0, 4, 7) for j in (0, 1)},
            **{f"encoder.{i}.branch{j + 1}": f"encoder.{i}.halves.{j}" for i in range(16) for j in (0, 1)},
            **{
                f"decoder.{k}.{part}": f"decoder.{v}.{j}"
                for k, v in LEDNET_LEVELS.items()
                for j, part in enumerate(("conv", "bn"))
            },
        },
        num_classes="decoder.level1.conv.weight",
    ),
    Layout(
        source=f"DFANet ({SOURCE})",
        model="dfanet",
        marker="enc2_2.block.0.rep.1.conv1.weight",
        rename={
            "pretrained.conv1": "stem",
            **{
                f"{k}.block.{i}.{kk}": f"{v}.{i}.{vv}"
                for k, v in DFANET_STAGES.items()
                for i in range(6)
                for kk, vv in DFANET_BLOCK.items()
            },
            **{
                f"{k}.{kk}": f"encoder{i + 1}.attention.{vv}"
                for i, k in enumerate(("pretrained.fca", "fca_2", "fca_3"))
                for kk, vv in DFANET_ATTENTION.items()
            },
            **{
                f"{k}.{part}": f"{v}.{j}"
                for k, v in {
                    **{f"enc2_{i + 1}_reduce": f"reduce_fine.{i}" for i in range(3)},
                    **{f"fca_{i + 1}_reduce": f"reduce_last.{i}" for i in range(3)},
                    "conv_fusion": "fuse",
                }.items()
                for j, part in enumerate(("conv", "bn"))
            },
            "conv_out": "classifier",
        },
        unused=("pretrained.fc",),
        num_classes="conv_out.weight",
    ),
)
