"""Which network a published checkpoint is of, told by its keys."""

import pytest
import torch
import torchvision

from model import build_model
from model.published import load_published, recognise_family
from model.published.layout import CONV_MODULE, Layout
from model.published.recognise import unwrap
from tests.published_keys import FAMILIES, NETWORKS, key_list, meta


@pytest.mark.parametrize("file", NETWORKS)
def test_network_is_recognised_by_its_keys(file):
    found = recognise_family({"state_dict": {f"module.{k}": v for k, v in meta(key_list(file)).items()}})
    assert (found.model, found.backbone, found.options) == NETWORKS[file]
    assert found.num_classes == 19
    begin = max((begin for begin in FAMILIES if file.startswith(begin)), key=len)
    assert found.family.startswith(FAMILIES[begin])


def test_backbone_alone_is_recognised():
    found = recognise_family(meta(key_list("semseg_resnet50_backbone")))
    assert found[1:] == (None, None, "resnet50", {})
    assert "hszhao/semseg" in found.family
    resnet = recognise_family(torchvision.models.resnet34().state_dict())
    assert resnet.backbone == "torchvision/resnet34"
    assert recognise_family(torchvision.models.mobilenet_v2().state_dict()).backbone == "mobilenet_v2"


def test_variants_of_the_published_code_are_recognised():
    golden = key_list("sfnet_lite_r18")
    weights = meta(golden)
    weights["head.flow_align_module.flow_gate.0.weight"] = torch.empty(1, 128, 3, 3, device="meta")
    for key in [key for key in weights if key.startswith("head.ppm.stages.3.")]:
        weights[key.replace("stages.3.1", "down.0").replace("stages.3.2", "down.1")] = weights.pop(key)
    weights["head.ppm.bottleneck.0.weight"] = torch.empty(128, 128, 1, 1, device="meta")
    found = recognise_family(weights)
    assert found.options == {"context": "sppm", "gate": True, "gate_input": "features"}
    seven = {"weight": torch.empty(7, 128, 1, 1, device="meta"), "bias": torch.empty(7, device="meta")}
    weights = meta(golden) | {f"head.conv_last.1.{part}": value for part, value in seven.items()}
    assert recognise_family(weights).num_classes == 7


@pytest.mark.parametrize(
    "change",
    [
        lambda w: w | {"head.other.weight": torch.zeros(1)},
        lambda w: {key: value for key, value in w.items() if not key.startswith("layer3.1.")},
        lambda w: {key: value for key, value in w.items() if "conv_last" not in key},
        lambda w: {"features.weight": torch.zeros(1)},
    ],
    ids=["strange key", "another depth", "no classifier", "another network"],
)
def test_what_is_not_recognised_is_listed(change):
    weights = change(meta(key_list("sfnet_r18")))
    with pytest.raises(ValueError) as error:
        recognise_family(weights)
    for part in (next(iter(weights)), "Known are networks of youngsjjn/SFNet; hszhao/semseg; ", "torchvision"):
        assert part in str(error.value)


def test_what_marks_a_layout_is_said_to_be_missing():
    weights = meta(key_list("icnet_resnet50"))
    del weights["head.cff_12.conv_low.0.weight"]
    with pytest.raises(ValueError, match=r"Nearest: ICNet \(Tramac/.*1 keys are in every such file: head\.cff_12\."):
        recognise_family(weights)


def test_another_family_is_named():
    with torch.device("meta"):
        network = build_model("semanticflow", 19, "resnet18")
    with pytest.raises(ValueError, match=r"has SFNet-Lite \(lxtGH/SFSegNets\) on resnet18"):
        load_published(network, meta(key_list("sfnet_lite_r18")))


def test_patterns_come_before_prefixes():
    layout = Layout("names", "fcn", "a", {"decode_head.convs.0": "head", "neck": "neck"}, patterns=CONV_MODULE)
    assert layout.place("decode_head.convs.0.conv.weight") == "head.0.weight"
    assert layout.place("decode_head.convs.0.bn.running_mean") == "head.1.running_mean"
    assert layout.place("neck.depthwise_conv.bn.bias") == "neck.0.1.bias"
    assert layout.place("neck.pointwise_conv.conv.weight") == "neck.1.0.weight"
    assert layout.place("backbone.conv.weight") is None


@pytest.mark.parametrize("prefix", ["module.", "model.", "module.model."])
def test_prefixes_of_a_trainer_are_taken_off(prefix):
    saved = {"model.weight": torch.zeros(1), "loss.criterion.weight": torch.zeros(19)}
    assert set(unwrap(saved)) == {"weight", "loss.criterion.weight"}
    assert set(unwrap({f"{prefix}stem.weight": torch.zeros(1)})) == {"stem.weight"}
    kept = {"model.weight": torch.zeros(1), "stem.weight": torch.zeros(1)}
    assert set(unwrap(kept)) == set(kept)
