"""Published checkpoints as they are found, wrapped or incomplete, and what is said when one does not fit."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from model import build_model
from model.published import load_published
from tests.published_keys import assert_equal_states


def narrow(**options: object) -> nn.Module:
    return build_model("sketchfill", 5, "mobilenet_v2", **options)


def published(network: nn.Module) -> dict[str, torch.Tensor]:
    """The weights of a Sketch-and-Fill network on MobileNet-V2 as its repository would save them."""
    pairs = [("backbone.features.", "mobilenet.features."), ("classifier.", "cls.")]
    pairs += [("aspp.pool.0.", "aspp.global_avg_pool.1."), ("aspp.pool.1.", "aspp.global_avg_pool.2.")]
    pairs += [("aspp.project.0.", "aspp.conv1."), ("aspp.project.1.", "aspp.bn1.")]
    for i in range(4):
        pairs += [(f"aspp.branches.{i}.0.", f"aspp.aspp{i + 1}.atrous_conv.")]
        pairs += [(f"aspp.branches.{i}.1.", f"aspp.aspp{i + 1}.bn.")]
    for i in (1, 2, 3):
        pairs += [(f"gate{i}.transform.", f"gate{i}.F."), (f"gate{i}.gate.", f"gate{i}.H.")]
        pairs += [(f"skip{i}.", f"conv_f{i}."), (f"reduce{i}.", f"conv_h{i}.")]
    checkpoint = {}
    for key, value in network.state_dict().items():
        for ours, theirs in pairs:
            if key.startswith(ours):
                key = theirs + key[len(ours) :]
                break
        checkpoint[key] = value.clone()
    for key in [key for key in checkpoint if key.startswith("mobilenet.features.")]:
        half = "low" if int(key.split(".")[2]) < 4 else "high"
        checkpoint[key.replace("features", f"{half}_level_features", 1)] = checkpoint[key].clone()
    return checkpoint


@pytest.fixture(scope="module")
def source() -> nn.Module:
    torch.manual_seed(1)
    network = narrow()
    for buffer in network.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    return network


@pytest.mark.parametrize(
    "wrap",
    [
        lambda weights: weights,
        lambda weights: {"epoch": 3, "state_dict": weights, "optimizer": {}},
        lambda weights: {"model": {f"module.{key}": value for key, value in weights.items()}},
        lambda weights: {key: v for key, v in weights.items() if not key.startswith("mobilenet.low_level")},
    ],
    ids=["bare", "state_dict", "model and module.", "one copy"],
)
def test_wrappers_prefixes_and_copies_are_taken_off(source, wrap):
    network = narrow()
    report = load_published(network, wrap(published(source)))
    assert_equal_states(network, source)
    assert report.dropped == report.missing == ()
    assert "Sketch-and-Fill on MobileNet-V2" in str(report)


def test_half_precision_is_cast_to_the_parameter(source):
    network = narrow()
    weights = {k: v.half() if v.is_floating_point() else v for k, v in published(source).items()}
    load_published(network, weights)
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    expected = source.state_dict()["classifier.0.weight"].half().float()
    assert torch.equal(network.state_dict()["classifier.0.weight"], expected)


def test_counters_of_old_files_may_lack(source):
    network = narrow()
    weights = {k: v for k, v in published(source).items() if not k.endswith("num_batches_tracked")}
    report = load_published(network, weights)
    assert report.missing
    assert all(name.endswith("num_batches_tracked") for name in report.missing)
    assert_equal_states(network, source)


def test_auxiliary_head_may_be_allowed_to_lack(source):
    weights = {key: value for key, value in published(source).items() if not key.startswith("aux.")}
    network = narrow()
    with pytest.raises(ValueError, match="7 parameters without a value: aux"):
        load_published(network, weights)
    report = load_published(network, weights, allow_missing=("aux",))
    assert {name.split(".")[0] for name in report.missing} == {"aux"}
    weights["aux.4.bias"] = torch.zeros(5)
    with pytest.raises(ValueError, match=r"aux\.0\.weight"):
        load_published(network, weights, allow_missing=("aux",))


def test_auxiliary_head_is_dropped_where_the_network_has_none(source):
    network = narrow(auxiliary=False)
    report = load_published(network, published(source))
    assert report.dropped
    assert all(key.startswith("aux.") for key in report.dropped)


def without(prefix: str) -> Callable[[dict], dict]:
    return lambda weights: {key: value for key, value in weights.items() if not key.startswith(prefix)}


@pytest.mark.parametrize(
    ("options", "change", "parts"),
    [
        ({}, without("gate2.F.3.weight"), ["1 parameters without a value: gate2.transform.3.weight"]),
        ({}, without("gate2.F.1.running_mean"), ["gate2.transform.1.running_mean"]),
        ({}, lambda w: w | {"psp.0.weight": torch.zeros(1)}, ["1 keys without a place", "psp.0.weight"]),
        ({}, without("conv_f1."), ["build the model with fine_conv=False"]),
        ({"fine_conv": False}, lambda w: w, ["build the model with fine_conv=True"]),
        ({}, lambda w: w | {"cls.4.weight": torch.zeros(19, 96, 1, 1)}, ["cls.4.weight", "(19, 96, 1, 1)"]),
        (
            {},
            lambda w: w | {"mobilenet.high_level_features.9.conv.0.weight": torch.zeros(384, 64, 1, 1)},
            ["mobilenet.features.9.conv.0.weight", "mobilenet.high_level_features.9.conv.0.weight", "differ"],
        ),
        ({}, without("gate1."), ["no layout", "gate1.F.0.weight"]),
        ({}, lambda w: {"epoch": 3, "weights": w}, ["no tensors", "epoch"]),
        ({}, lambda w: {}, ["maps names to tensors"]),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_changes(source, options, change, parts):
    network = narrow(**options)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(ValueError) as error:
        load_published(network, change(published(source)))
    for part in parts:
        assert part in str(error.value)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_another_number_of_classes_is_named(source):
    network = build_model("sketchfill", 19, "mobilenet_v2")
    with pytest.raises(ValueError, match="num_classes=5"):
        load_published(network, published(source))
    report = load_published(network, published(source), allow_missing=("classifier.4", "aux.4"))
    parts = ("classifier.4.weight", "classifier.4.bias", "aux.4.weight", "aux.4.bias")
    assert report.missing == parts
    assert sorted(report.dropped) == ["aux.4.bias", "aux.4.weight", "cls.4.bias", "cls.4.weight"]


def test_our_own_checkpoints_are_not_meant(source):
    with pytest.raises(ValueError, match="own key names: use model.load_state_dict"):
        load_published(narrow(), {"model": source.state_dict()})


def test_networks_without_published_checkpoints_say_so(source):
    with pytest.raises(ValueError, match="no published checkpoints are known for 'fcn' on 'mobilenet_v2'"):
        load_published(build_model("fcn", 5, "mobilenet_v2"), published(source))
