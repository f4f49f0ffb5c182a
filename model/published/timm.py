"""Classification networks of timm as backbones.

Also files that others made of the same networks.
"""

import math

from model.layer.shapes import shapes_only
from model.published.layout import COUNTER, Layout, Preprocessing, Tensors

LITE_BLOCKS = (1, 2, 2, 3, 3, 4, 1)
LITE_DEPTHS = (1.0, 1.1, 1.2, 1.4, 1.8)
LITE_WIDTHS = (320, 320, 352, 384, 448)  # of the last block


def timm_backbone(tensors: Tensors) -> str | None:
    """Return the timm network with these keys and shapes, or None.

    Its classifier is among them. Of networks that do not differ in their weights it is the first by name. The networks
    are built one after the other on the meta device, but for those whose first and last layer, which timm knows by
    name, are not in the checkpoint.
    """
    import timm  # here: it takes as long to import as PyTorch

    given = {name: value.shape for name, value in tensors.items() if not name.endswith(COUNTER)}
    for name in timm.list_models():
        config = timm.get_pretrained_cfg(name)
        ends = _ends(config.first_conv, config.classifier) if config else []
        if not ends or any(f"{layer}.weight" not in given for layer in ends):
            continue
        with shapes_only():
            state = timm.create_model(name).state_dict()
        if {key: value.shape for key, value in state.items() if not key.endswith(COUNTER)} == given:
            return name
    return None


def _ends(*layers: str | tuple[str, ...] | None) -> list[str]:
    """The layers of a network that timm names, by one name or by several."""
    return [name for layer in layers if layer for name in ((layer,) if isinstance(layer, str) else layer)]


def _lite(number: int) -> Layout:
    """The layout of EfficientNet-Lite in efficientnet_lite_pytorch, which numbers all blocks in a row."""
    middle = [math.ceil(count * LITE_DEPTHS[number]) for count in LITE_BLOCKS[1:-1]]
    places = [(stage, block) for stage, count in enumerate([1, *middle, 1]) for block in range(count)]
    rename = {"_conv_stem": "body.conv_stem", "_bn0": "body.bn1"}
    for place, (stage, block) in enumerate(places):
        layers = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
        if stage > 0:
            layers = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
            layers |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}
        rename |= {
            f"_blocks.{place}.{theirs}": f"body.blocks.{stage}.{block}.{ours}" for theirs, ours in layers.items()
        }
    name, last = f"timm/tf_efficientnet_lite{number}", f"_blocks.{len(places) - 1}._project_conv.weight"

    def fits(tensors: Tensors) -> str | None:
        value, further = tensors.get(last), f"_blocks.{len(places)}._project_conv.weight"
        return name if value is not None and value.shape[0] == LITE_WIDTHS[number] and further not in tensors else None

    return Layout(
        source=f"EfficientNet-Lite{number}, ImageNet (efficientnet_lite_pytorch)",
        model=None,
        backbones=fits,
        marker=("_conv_stem.weight", last),
        rename=rename,
        unused=("_conv_head", "_bn1", "_fc"),
        preprocessing=Preprocessing((127.5, 127.5, 127.5), (127.5, 127.5, 127.5)),
    )


LAYOUTS = tuple(_lite(number) for number in range(len(LITE_DEPTHS)))
