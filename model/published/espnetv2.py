"""Keys of published ESPNetv2 networks."""

from model.published.espnet import CITYSCAPES
from model.published.layout import Layout, Tensors

ACTIVATED = {"conv": "0", "bn": "1", "act": "2"}
NORM = {"bn": "0", "act": "1"}
EESP = {
    **{f"proj_1x1.{k}": f"reduce.{v}" for k, v in ACTIVATED.items()},
    **{f"spp_dw.{i}.conv": f"branches.{i}" for i in range(4)},
    **{f"br_after_cat.{k}": f"norm.{v}" for k, v in NORM.items()},
    "conv_1x1_exp.conv": "expand.0",
    "conv_1x1_exp.bn": "expand.1",
    "module_act": "activation",
}
DOWN = {
    **{f"eesp.{k}": f"eesp.{v}" for k, v in EESP.items() if k != "module_act"},
    **{f"inp_reinf.0.{k}": f"image.0.{v}" for k, v in ACTIVATED.items()},
    "inp_reinf.1.conv": "image.1.0",
    "inp_reinf.1.bn": "image.1.1",
    "act": "activation",
}
AUTHORS = {
    **{f"net.level1.{k}": f"stem.{v}" for k, v in ACTIVATED.items()},
    **{f"net.level{i + 2}_0.{k}": f"down.{i}.{v}" for i in range(3) for k, v in DOWN.items()},
    **{f"net.level{i}.{j}.{k}": f"stage{i}.{j}.{v}" for i in (3, 4) for j in range(7) for k, v in EESP.items()},
    **{f"proj_L4_C.{k}": f"project4.{v}" for k, v in ACTIVATED.items()},
    **{f"pspMod.0.{k}": f"context.0.{v}" for k, v in EESP.items()},
    **{f"pspMod.1.stages.{i}.conv": f"context.1.stages.{i}" for i in range(4)},
    **{f"pspMod.1.project.{k}": f"context.1.project.{v}" for k, v in ACTIVATED.items()},
    "project_l3.1.conv": "classifier3",
    **{f"act_l3.{k}": f"norm3.{v}" for k, v in NORM.items()},
    **{f"project_l2.{k}": f"project2.{v}" for k, v in ACTIVATED.items()},
    "project_l1.1.conv": "classifier1",
}

# Tramac follows the authors' code, but calls the backbone and the activations otherwise and nests fewer convolutions.
TRAMAC = (
    (r"^pretrained\.", "net."),
    (r"\.prelu\.", ".act."),
    (r"\.(spp_dw|stages)\.(\d)\.weight", r".\1.\2.conv.weight"),
    (r"^project_l([13])\.1\.weight", r"project_l\1.1.conv.weight"),
)
# Built into every strided block, whose output passes by it.
NEVER_CALLED = tuple(f"level{i}_0.eesp.module_act" for i in (2, 3, 4))
# The rest of the classification network.
IMAGENET = ("level5_0", "level5", "fc")


def _scale(tensors: Tensors) -> float:
    """The width relative to the paper's, of whose last features there are 256 channels."""
    return tensors["proj_L4_C.conv.weight"].shape[1] / 256


LAYOUTS = (
    Layout(
        source="ESPNetv2 (sacmehta/ESPNetv2)",
        model="espnetv2",
        marker="net.level2_0.eesp.proj_1x1.conv.weight",
        rename=AUTHORS,
        unused=tuple(f"net.{key}" for key in NEVER_CALLED),
        num_classes="project_l1.1.conv.weight",
        options={"scale": _scale},
        preprocessing=CITYSCAPES,
        datasets={20: "cityscapes"},  # and the last for all that is ignored
    ),
    Layout(
        source="ESPNetv2 (Tramac/awesome-semantic-segmentation-pytorch)",
        model="espnetv2",
        marker="pretrained.level2_0.eesp.proj_1x1.conv.weight",
        rename=AUTHORS,
        patterns=TRAMAC,
        unused=tuple(f"pretrained.{key}" for key in (*NEVER_CALLED, *IMAGENET)),
        num_classes="project_l1.1.weight",
        options={"scale": _scale},
    ),
)
