"""The networks by name, and the functions that build one.

>>> model = build_model("sketchfill", num_classes=19, backbone="resnet101")
>>> logits = model(images)["out"]                       # (N, 19, H, W) for images (N, 3, H, W)

To add a network, copy `model/fcn.py`, change it, and add one line to `MODELS`; likewise for `BACKBONES` in
`model/backbone/__init__.py`. A network outside this folder is added
as `MODELS["mypkg.net.MyNet"] = "mypkg.net.MyNet"`. `model.inference.optimize` makes a trained network faster.
"""

import inspect
from collections.abc import Callable, Mapping

from model.backbone import BACKBONES as BACKBONES
from model.backbone import build_backbone as build_backbone
from model.base import SegModel
from model.table import ModelError, complete, place_in, plain, resolve

MODELS: dict[str, str | Callable[..., SegModel]] = {
    "ann": "model.ann.ANN",
    "bisenet": "model.bisenet.BiSeNet",
    "bisenetv2": "model.bisenetv2.BiSeNetV2",
    "cgnet": "model.cgnet.CGNet",
    "danet": "model.danet.DANet",
    "ddrnet": "model.ddrnet.DDRNet",
    "deeplabv3": "model.deeplabv3.DeepLabV3",
    "deeplabv3plus": "model.deeplabv3plus.DeepLabV3Plus",
    "denseaspp": "model.denseaspp.DenseASPP",
    "dfanet": "model.dfanet.DFANet",
    "dunet": "model.dunet.DUNet",
    "encnet": "model.encnet.EncNet",
    "enet": "model.enet.ENet",
    "espnet": "model.espnet.ESPNet",
    "espnetv2": "model.espnetv2.ESPNetV2",
    "fastscnn": "model.fastscnn.FastSCNN",
    "fcn": "model.fcn.FCN",
    "fcn16s": "model.fcn_skip.FCN16s",
    "fcn32s": "model.fcn_skip.FCN32s",
    "fcn8s": "model.fcn_skip.FCN8s",
    "hrnet": "model.hrnet.HRNet",
    "hrnet_ocr": "model.hrnet.HRNetOCR",
    "icnet": "model.icnet.ICNet",
    "icnet_ppm": "model.icnet.ICNetPPM",
    "lednet": "model.lednet.LEDNet",
    "lraspp": "model.lraspp.LRASPP",
    "ocnet": "model.ocnet.OCNet",
    "pidnet": "model.pidnet.PIDNet",
    "psanet": "model.psanet.PSANet",
    "pspnet": "model.pspnet.PSPNet",
    "segformer": "model.segformer.SegFormer",
    "semanticflow": "model.semanticflow.SemanticFlow",
    "semanticflow_lite": "model.semanticflow.SemanticFlowLite",
    "sketchfill": "model.sketchfill.SketchFill",
    "stdc": "model.stdc.STDCSeg",
    "upernet": "model.upernet.UPerNet",
}


def build_model(name: str, num_classes: int, backbone: str | None = None, **options: object) -> SegModel:
    """Build a network with freshly initialised weights.

    Args:
        name: a key of `MODELS`.
        num_classes: channels of the logits, at least 2.
        backbone: a key of `BACKBONES` or "timm/NAME"; None takes the network's own default.
        options: keyword arguments of the network's constructor.

    Returns:
        The model. `model.spec` holds the name, the number of classes, the backbone and every option (defaults
        too) as plain types, so that the same network can be built again from a checkpoint.

    Raises:
        ModelError: for an unknown name or option (with the nearest known one) or an unsuitable value.
    """
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 2:
        raise ModelError(f"num_classes must be a whole number of at least 2, not {num_classes!r}")
    builder, backbone, options = resolve_network(name, backbone, options)
    takes_backbone = "backbone" in inspect.signature(builder).parameters
    try:
        model = builder(num_classes, **({"backbone": backbone} if takes_backbone else {}), **options)
    except ModelError:
        raise
    except ValueError as error:  # PyTorch's layers refuse a width, say
        raise ModelError(f"model {name!r} cannot have these options: {error}{place_in(error, builder)}") from error
    if not isinstance(model, SegModel):
        raise ModelError(
            f"model {name!r} is a {type(model).__name__}; a network is a subclass of model.base.SegModel "
            "(docs/own_code.md shows how to make one of any other module)"
        )
    if "_modules" not in vars(model):
        raise ModelError(f"model {name!r}: its __init__ never calls super().__init__(backbone)")
    model.spec = {"name": name, "num_classes": num_classes, "backbone": backbone, "options": plain(options)}
    return model


def resolve_network(
    name: str, backbone: str | None, options: Mapping[str, object]
) -> tuple[Callable[..., SegModel], str | None, dict[str, object]]:
    """Return a network's builder, its backbone's name and all options.

    Nothing is built: a mistake is told at once.

    Raises:
        ModelError: as `build_model`.
    """
    builder = resolve("model", name, MODELS)
    chosen = inspect.signature(builder).parameters.get("backbone")
    if chosen is None and backbone is not None:
        raise ModelError(
            f"model {name!r} brings its own backbone; leave out backbone={backbone!r} (model.backbone=null)"
        )
    if chosen is not None:
        backbone = chosen.default if backbone is None else backbone
    complete_options = complete("model", name, builder, options, reserved=("num_classes", "backbone"))
    return builder, backbone, complete_options
