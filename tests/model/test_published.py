"""Published checkpoints load strictly and give the logits of the published code."""

from types import ModuleType

import pytest
import torch
from torch import nn

from model import build_model
from model.backbone import build_backbone
from model.published import load_backbone_weights, load_published
from tests.published_keys import NETWORKS, PARITY, key_list, load_fill, numbered

NO_DROPOUT = (nn.BatchNorm2d, nn.Dropout, nn.Dropout2d)
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
# What the published code registers but never calls: key list -> prefixes of the keys.
NEVER_CALLED = {
    "espnet": ("pretrained.level5", "pretrained.fc.", *(f"pretrained.level{i}_0.eesp.module_act." for i in (2, 3, 4))),
    "enet": ("bottleneck3_5.",),
    "dfanet": ("pretrained.fc.",),
    "sfnet_lite_r18": ("head.dsn.", "head.fpn_in.2."),
    **{
        f"sfnet_lite_{kind}": ("head.dsn.", *(f"backbone.{part}." for part in ("conv_last", "fc", "bn", "linear")))
        for kind in ("stdc1", "stdc2")
    },
}


@pytest.fixture(scope="module")
def fill() -> ModuleType:
    return load_fill()


@pytest.mark.parametrize(("file", "name"), [("sketchfill_resnet50", "sketchfill"), ("pspnet50", "pspnet")])
def test_logits_are_those_of_the_published_code(fill, file, name):
    golden = fill.load_golden(PARITY / f"{file}.npz")
    network = build_model(name, 19, "resnet50")
    load_published(network, fill.state_dict_for(golden))
    x = fill.make_input(*golden["input_hw"])
    with torch.no_grad():
        fill.compare(golden, "logits", network.eval()(x)["out"])
        for module in network.train().modules():
            module.training = not isinstance(module, NO_DROPOUT)
        trained = network(x)
    fill.compare(golden, "logits", trained["out"])
    fill.compare(golden, "train_aux0", trained["aux"])


def test_features_are_those_of_the_published_backbone(fill):
    golden = fill.load_golden(PARITY / "semseg_resnet50_backbone.npz")
    backbone = build_backbone("resnet50").eval()
    report = load_backbone_weights(backbone, fill.state_dict_for(golden))
    assert report.dropped == ("fc.weight", "fc.bias")
    x = fill.make_input(*golden["input_hw"])
    with torch.no_grad():
        fill.compare(golden, "layer0", backbone.maxpool(backbone.stem(x)))
        for stage, feature in enumerate(backbone(x), start=1):
            fill.compare(golden, f"layer{stage}", feature)


@pytest.mark.parametrize(("file", "name"), [("sfnet_r18", "semanticflow"), ("sfnet_lite_r18", "semanticflow_lite")])
def test_logits_of_semantic_flow_are_those_of_the_published_code(fill, file, name):
    golden = fill.load_golden(PARITY / f"{file}.npz")
    network = build_model(name, 19, "resnet18").eval()
    load_published(network, fill.state_dict_for(golden))
    with torch.no_grad():
        fill.compare(golden, "logits", network(fill.make_input(*golden["input_hw"]))["out"])


def count(tensors: dict[str, torch.Tensor]) -> int:
    """Parameters among these, copies of one tensor once."""
    return sum(
        value.numel() for value in {id(v): v for key, v in tensors.items() if not key.endswith(BUFFERS)}.values()
    )


@pytest.mark.parametrize("file", NETWORKS)
def test_published_keys_load_strictly(file):
    golden = key_list(file)
    checkpoint = numbered(golden)
    assert count(checkpoint) == golden["params"]
    name, backbone, options = NETWORKS[file]
    with torch.device("meta"):
        network = build_model(name, 19, backbone, **options)
    network.to_empty(device="cpu")
    report = load_published(network, {"epoch": 200, "state_dict": checkpoint, "optimizer": {}, "meta": {}})
    assert report.missing == ()
    assert set(report.mapped) | set(report.dropped) == set(checkpoint)
    assert all(key.startswith(NEVER_CALLED[file]) for key in report.dropped)
    state = network.state_dict()
    assert all(torch.equal(state[ours], checkpoint[key].float()) for key, ours in report.mapped.items())
    assert set(state) == set(report.mapped.values()) | set(report.zeroed)
    assert not any(state[ours].any() for ours in report.zeroed)
    loaded = sum(p.numel() for p in network.parameters()) - sum(state[ours].numel() for ours in report.zeroed)
    assert loaded == golden["params"] - count({key: checkpoint[key] for key in report.dropped})


def test_port_lacks_the_bias_of_deep_supervision():
    with torch.device("meta"):
        network = build_model("semanticflow", 19, "resnet18", deep_supervision=True)
    network.to_empty(device="cpu")
    report = load_published(network, numbered(key_list("mmseg_sfnet_r18_dsn")))
    assert report.zeroed == ("dsn.0.0.bias", "dsn.1.0.bias", "dsn.2.0.bias")
    assert report.mapped["auxiliary_head.0.conv_seg.weight"] == "dsn.2.4.weight"
    assert "3 of ours set to zero" in str(report)
    plain = numbered(key_list("mmseg_sfnet_r18"))
    with pytest.raises(ValueError, match=r"parameters without a value: dsn\.0\.0\.weight, dsn\.0\.0\.bias"):
        load_published(network, plain)
    report = load_published(network, plain, allow_missing=("dsn",))
    assert report.zeroed == ()
    assert "dsn.0.0.bias" in report.missing


@pytest.mark.parametrize("file", ["sfnet_r18_dsn", "mmseg_sfnet_r18_dsn"])
def test_deep_supervision_is_dropped_where_the_network_has_none(file):
    with torch.device("meta"):
        network = build_model("semanticflow", 19, "resnet18")
    network.to_empty(device="cpu")
    report = load_published(network, numbered(key_list(file)))
    assert {key.split(".")[0] for key in report.dropped} <= {"head", "auxiliary_head"}
    assert len(report.dropped) == (27 if file == "sfnet_r18_dsn" else 24)


def test_head_that_was_never_trained_is_not_loaded():
    with torch.device("meta"):
        network = build_model("semanticflow_lite", 19, "resnet18", deep_supervision=True)
    network.to_empty(device="cpu")
    checkpoint = numbered(key_list("sfnet_lite_r18"))
    with pytest.raises(ValueError, match="without a value: dsn"):
        load_published(network, checkpoint)
    report = load_published(network, checkpoint, allow_missing=("dsn",))
    assert {name.split(".")[0] for name in report.missing} == {"dsn"}
