"""The keys of published checkpoints, and the networks that they are of."""

import importlib.util
import json
from types import ModuleType

import pytest
import torch
from torch import nn

from tests.paths import SHARED

PARITY = SHARED / "parity"
AS_PUBLISHED = {"context": "ppm"}
PORT = {"flow_align_corners": False}
LITE = {"context": "ppm", "gate": True, "gate_input": "pooled"}
SKETCH, SKETCH_BARE = ({"auxiliary": True, "fine_conv": fine_conv} for fine_conv in (True, False))

CGNET = {"eps": 1e-5, "align_corners": True, "classifier_bias": True, "blocks2": 3, "blocks3": 21}
FASTSCNN = {"stem_padding": 0, "depthwise_relu": True, "context_kernel": 1, "fusion_dilation": 1, "align_corners": True}
FASTSCNN_PORT = {
    "auxiliary": True,
    "auxiliary_context": True,
    "stem_padding": 1,
    "depthwise_relu": False,
    "context_kernel": 3,
    "fusion_dilation": 1,
    "align_corners": False,
}

# Key list -> how the network is built for it, and that network's options which the keys decide.
NETWORKS = {
    "sketchfill_resnet50": ("sketchfill", "resnet50", SKETCH),
    "sketchfill_resnet101": ("sketchfill", "resnet101", SKETCH),
    "sketchfill_resnet50_os8": ("sketchfill", "resnet50", SKETCH),
    "sketchfill_resnet50_nof1": ("sketchfill", "resnet50", SKETCH_BARE),
    "sketchfill_mobilenet": ("sketchfill", "mobilenet_v2", SKETCH),
    "pspnet50": ("pspnet", "resnet50", {"auxiliary": True}),
    "pspnet101": ("pspnet", "resnet101", {"auxiliary": True}),
    "sfnet_r18": ("semanticflow", "resnet18", {"deep_supervision": False, **AS_PUBLISHED}),
    "sfnet_r18_dsn": ("semanticflow", "resnet18", {"deep_supervision": True, **AS_PUBLISHED}),
    "sfnet_r50": ("semanticflow", "resnet50", {"deep_supervision": False, **AS_PUBLISHED}),
    "sfnet_r101": ("semanticflow", "resnet101", {"deep_supervision": False, **AS_PUBLISHED}),
    "sfnet_dfnetv1": ("semanticflow", "dfnet_v1", {"deep_supervision": False, **AS_PUBLISHED}),
    "sfnet_dfnetv2": ("semanticflow", "dfnet_v2", {"deep_supervision": False, **AS_PUBLISHED}),
    "sfnet_lite_r18": ("semanticflow_lite", "resnet18", LITE),
    "sfnet_lite_stdc1": ("semanticflow_lite", "stdc1", LITE),
    "sfnet_lite_stdc2": ("semanticflow_lite", "stdc2", LITE),
    "mmseg_sfnet_r18": ("semanticflow", "resnet18", {"deep_supervision": False, **PORT}),
    "mmseg_sfnet_r18_dsn": ("semanticflow", "resnet18", {"deep_supervision": True, **PORT}),
    "mmseg_sfnet_r50": ("semanticflow", "resnet50", {"deep_supervision": False, **PORT}),
    "mmseg_sfnet_r101": ("semanticflow", "resnet101", {"deep_supervision": False, **PORT}),
    "fast_scnn": ("fastscnn", None, {"auxiliary": False, **FASTSCNN}),
    "fast_scnn_aux": ("fastscnn", None, {"auxiliary": True, **FASTSCNN}),
    "mmseg_fastscnn": ("fastscnn", None, FASTSCNN_PORT),
    "cgnet": ("cgnet", None, CGNET),
    "espnet": ("espnetv2", None, {"scale": 1.0}),
    "enet": ("enet", None, {"all_blocks": False}),
    "lednet": ("lednet", None, {}),
    "dfanet": ("dfanet", None, {}),
}
# Beginning of the name of a key list -> beginning of its family; the longest beginning counts.
FAMILIES = {
    "sketchfill": "Sketch-and-Fill",
    "pspnet": "PSPNet",
    "sfnet": "Semantic Flow (lxtGH/SFSegNets)",
    "sfnet_lite": "SFNet-Lite",
    "mmseg_sfnet": "Semantic Flow in MMSegmentation",
    "fast_scnn": "Fast-SCNN (Tramac/Fast-SCNN-pytorch)",
    "mmseg_fastscnn": "Fast-SCNN (MMSegmentation)",
    "cgnet": "CGNet (Tramac/awesome",
    "espnet": "ESPNetv2 (Tramac/awesome",
    "enet": "ENet (Tramac/awesome",
    "lednet": "LEDNet (Tramac/awesome",
    "dfanet": "DFANet (Tramac/awesome",
}


def key_list(file: str) -> dict:
    path = PARITY / "keys" / f"{file}.json"
    if not path.is_file():
        pytest.skip(f"key list not present: no {path}")
    return json.loads(path.read_text())


def load_fill() -> ModuleType:
    """The module that makes the weights and pictures of the published logits."""
    path = PARITY / "fill.py"
    if not path.is_file():
        pytest.skip(f"published logits not present: no {path}")
    spec = importlib.util.spec_from_file_location("fill", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def numbered(golden: dict) -> dict[str, torch.Tensor]:
    """A checkpoint of these keys in which every tensor has a value of its own."""
    made = {key: torch.full(shape, number) for number, (key, shape) in enumerate(golden["keys"].items())}
    return {key: made[golden["aliases"].get(key, key)] for key in made}


def meta(golden: dict) -> dict[str, torch.Tensor]:
    made = {key: torch.empty(shape, device="meta") for key, shape in golden["keys"].items()}
    return {key: made[golden["aliases"].get(key, key)] for key in made}


def assert_equal_states(one: nn.Module, other: nn.Module) -> None:
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))
