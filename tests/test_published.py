"""Published checkpoints: the logits of the published code, and what is said when a file does not fit."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import timm
import torch
import torchvision
from torch import nn

from model import build_backbone, build_model
from model.published import load_backbone_weights, load_published

PARITY = Path(__file__).resolve().parents[2] / "shared" / "parity"
NO_DROPOUT = (nn.BatchNorm2d, nn.Dropout, nn.Dropout2d)


@pytest.fixture(scope="module")
def fill() -> ModuleType:
    if not (PARITY / "fill.py").is_file():
        pytest.skip(f"reference logits not present: no {PARITY / 'fill.py'}")
    spec = importlib.util.spec_from_file_location("fill", PARITY / "fill.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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


@pytest.mark.parametrize(
    ("file", "name", "backbone", "options"),
    [
        ("sketchfill_resnet101", "sketchfill", "resnet101", {}),
        ("sketchfill_resnet50_os8", "sketchfill", "resnet50", {"output_stride": 8}),
        ("sketchfill_resnet50_nof1", "sketchfill", "resnet50", {"fine_conv": False}),
        ("sketchfill_mobilenet", "sketchfill", "mobilenet_v2", {}),
        ("pspnet101", "pspnet", "resnet101", {}),
    ],
)
def test_published_keys_load_strictly(fill, file, name, backbone, options):
    golden = json.loads((PARITY / "keys" / f"{file}.json").read_text())
    checkpoint = fill.fill_state_dict(golden["keys"], golden["aliases"])
    network = build_model(name, 19, backbone, **options)
    report = load_published(network, {"epoch": 200, "state_dict": checkpoint})
    assert set(report.mapped) == set(checkpoint)
    assert report.dropped == report.missing == ()
    assert sum(p.numel() for p in network.parameters()) == golden["params"]
    state = network.state_dict()
    assert all(torch.equal(state[name], checkpoint[key]) for key, name in report.mapped.items())


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


def assert_equal_states(one: nn.Module, other: nn.Module) -> None:
    assert all(
        torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    )


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
        ({}, without("conv_f1."), ["lacks conv_f1", "fine_conv=False"]),
        ({"fine_conv": False}, lambda w: w, ["has conv_f1", "fine_conv=True"]),
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


def test_our_own_checkpoints_are_not_meant(source):
    with pytest.raises(ValueError, match="own key names: use model.load_state_dict"):
        load_published(narrow(), {"model": source.state_dict()})


def test_networks_without_published_checkpoints_say_so(source):
    with pytest.raises(ValueError, match="no published checkpoints are known for 'fcn' on 'mobilenet_v2'"):
        load_published(build_model("fcn", 5, "mobilenet_v2"), published(source))


def features_of(backbone: nn.Module) -> list[torch.Tensor]:
    torch.manual_seed(2)
    with torch.no_grad():
        return backbone.eval()(torch.randn(1, 3, 64, 96))


def test_imagenet_file_of_the_deep_stem():
    theirs = build_backbone("resnet18")
    names = {
        f"stem.{3 * i + j}.": f"{part}{i + 1}." for i in range(3) for j, part in enumerate(("conv", "bn"))
    }
    weights = {}
    for key, value in theirs.state_dict().items():
        ours = next((prefix for prefix in names if key.startswith(prefix)), None)
        weights[key if ours is None else names[ours] + key[len(ours) :]] = value
    weights |= {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    backbone = build_backbone("resnet18", output_stride=8)
    report = load_backbone_weights(backbone, weights)
    assert report.dropped == ("fc.weight", "fc.bias")
    assert_equal_states(backbone, theirs)
    with pytest.raises(ValueError, match=r"without a place in the model: layer5\.0\.weight"):
        load_backbone_weights(backbone, weights | {"layer5.0.weight": torch.zeros(1)})


def test_imagenet_file_of_torchvision():
    theirs = torchvision.models.resnet18()
    backbone = build_backbone("torchvision/resnet18")
    assert load_backbone_weights(backbone, theirs.state_dict()).dropped == ("fc.weight", "fc.bias")
    whole = torchvision.models.feature_extraction.create_feature_extractor(theirs, ["layer1", "layer4"])
    expected = list(features_of(whole).values())
    first, *_, last = features_of(backbone)
    assert torch.equal(first, expected[0])
    assert torch.equal(last, expected[1])


@pytest.mark.parametrize("flat", [False, True], ids=["torchvision", "flat"])
def test_imagenet_file_of_mobilenet(flat):
    # With zero biases and means the border is zero after the expansion too, so torchvision's padding is ours.
    theirs = torchvision.models.mobilenet_v2()
    weights = theirs.state_dict()
    if flat:
        by_order = [name for name in weights if name.startswith("features.") and ".18." not in name]
        ours = list(build_backbone("mobilenet_v2").state_dict())
        weights = dict(zip(ours, (weights[name] for name in by_order), strict=True))
        weights["classifier.weight"] = torch.zeros(1000, 1280)
    backbone = build_backbone("mobilenet_v2")
    report = load_backbone_weights(backbone, weights)
    assert all(key.startswith(("features.18.", "classifier.")) for key in report.dropped)
    expected = features_of(theirs.features[:18])
    torch.testing.assert_close(features_of(backbone)[-1], expected)


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "test_vit"])
def test_weights_of_timm(name):
    theirs = timm.create_model(name)
    backbone = build_backbone(f"timm/{name}")
    report = load_backbone_weights(backbone, theirs.state_dict())
    assert report.missing == ()
    assert report.dropped
    state = backbone.state_dict()
    assert all(torch.equal(state[ours], theirs.state_dict()[key]) for key, ours in report.mapped.items())


def test_weights_of_another_network_are_refused():
    weights = torchvision.models.resnet18().state_dict()
    with pytest.raises(ValueError, match="conv3.weight"):
        load_backbone_weights(build_backbone("resnet18"), weights)
    with pytest.raises(ValueError, match="pass model.backbone"):
        load_backbone_weights(build_model("fcn", 5, "resnet18"), weights)
