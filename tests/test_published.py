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
from model.published import load_backbone_weights, load_published, recognise_family

PARITY = Path(__file__).resolve().parents[2] / "shared" / "parity"
NO_DROPOUT = (nn.BatchNorm2d, nn.Dropout, nn.Dropout2d)
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
AS_PUBLISHED = {"context": "ppm"}
PORT = {"flow_align_corners": False}
LITE = {"context": "ppm", "gate": True, "gate_input": "pooled"}
SKETCH, SKETCH_BARE = ({"auxiliary": True, "fine_conv": fine_conv} for fine_conv in (True, False))

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
}
# What the published code registers but never calls: key list -> prefixes of the keys.
NEVER_CALLED = {
    "sfnet_lite_r18": ("head.dsn.", "head.fpn_in.2."),
    **{
        f"sfnet_lite_{kind}": (
            "head.dsn.",
            *(f"backbone.{part}." for part in ("conv_last", "fc", "bn", "linear")),
        )
        for kind in ("stdc1", "stdc2")
    },
}


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
    ("file", "name"), [("sfnet_r18", "semanticflow"), ("sfnet_lite_r18", "semanticflow_lite")]
)
def test_logits_of_semantic_flow_are_those_of_the_published_code(fill, file, name):
    golden = fill.load_golden(PARITY / f"{file}.npz")
    network = build_model(name, 19, "resnet18").eval()
    load_published(network, fill.state_dict_for(golden))
    with torch.no_grad():
        fill.compare(golden, "logits", network(fill.make_input(*golden["input_hw"]))["out"])


def key_list(file: str) -> dict:
    path = PARITY / "keys" / f"{file}.json"
    if not path.is_file():
        pytest.skip(f"key list not present: no {path}")
    return json.loads(path.read_text())


def count(tensors: dict[str, torch.Tensor]) -> int:
    """Parameters among these, copies of one tensor once."""
    return sum(
        value.numel()
        for value in {id(v): v for key, v in tensors.items() if not key.endswith(BUFFERS)}.values()
    )


def numbered(golden: dict) -> dict[str, torch.Tensor]:
    """A checkpoint of these keys in which every tensor has a value of its own."""
    made = {key: torch.full(shape, number) for number, (key, shape) in enumerate(golden["keys"].items())}
    return {key: made[golden["aliases"].get(key, key)] for key in made}


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


def meta(golden: dict) -> dict[str, torch.Tensor]:
    return {key: torch.empty(shape, device="meta") for key, shape in golden["keys"].items()}


@pytest.mark.parametrize("file", NETWORKS)
def test_network_is_recognised_by_its_keys(file):
    found = recognise_family({"state_dict": {f"module.{k}": v for k, v in meta(key_list(file)).items()}})
    assert (found.model, found.backbone, found.options) == NETWORKS[file]
    assert found.num_classes == 19
    family = {"sketchfill": "Sketch-and-Fill", "pspnet": "PSPNet", "mmseg": "Semantic Flow in MMSegmentation"}
    family |= {"sfnet": "SFNet-Lite" if "lite" in file else "Semantic Flow (lxtGH/SFSegNets)"}
    assert found.family.startswith(next(text for key, text in family.items() if file.startswith(key)))


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
    found = recognise_family(weights)
    assert found.options == {"context": "sppm", "gate": True, "gate_input": "features"}
    weights = meta(golden) | {"head.conv_last.1.weight": torch.empty(7, 128, 1, 1, device="meta")}
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
    for part in (next(iter(weights)), "Known: Sketch-and-Fill on ResNet", "SFNet-Lite"):
        assert part in str(error.value)


def test_another_family_is_named():
    with torch.device("meta"):
        network = build_model("semanticflow", 19, "resnet18")
    with pytest.raises(ValueError, match=r"has SFNet-Lite \(lxtGH/SFSegNets\) on resnet18"):
        load_published(network, meta(key_list("sfnet_lite_r18")))


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


def renamed(backbone: nn.Module, names: dict[str, str]) -> dict[str, torch.Tensor]:
    """The weights of a backbone with each of our prefixes replaced by the published one."""
    weights = {}
    for key, value in backbone.state_dict().items():
        ours = next((prefix for prefix in names if key.startswith(prefix)), "")
        weights[names.get(ours, "") + key[len(ours) :]] = value
    return weights


def test_imagenet_file_of_the_deep_stem_with_its_last_norm_outside():
    theirs = build_backbone("resnet18")
    weights = renamed(theirs, {"stem.7.": "bn1.", "stem.": "conv1."})
    assert "conv1.6.weight" in weights
    weights |= {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    backbone = build_backbone("resnet18", dilations=(1, 1, 2, 4))
    assert load_backbone_weights(backbone, weights).dropped == ("fc.weight", "fc.bias")
    assert_equal_states(backbone, theirs)
    assert recognise_family(weights).backbone == "resnet18"
    with pytest.raises(ValueError, match="conv1.weight"):
        load_backbone_weights(build_backbone("torchvision/resnet18"), weights)


@pytest.mark.parametrize(
    ("name", "numbers"), [("dfnet_v1", "2 3 4 5"), ("dfnet_v2", "2_1 2_2 3_1 3_2 4_1 4_2")]
)
def test_imagenet_file_of_dfnet(name, numbers):
    theirs = build_backbone(name)
    names = {f"stages.{i}.": f"stage{number}." for i, number in enumerate(numbers.split())}
    weights = renamed(theirs, {"stem.": "stage1.", **names})
    weights |= {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    backbone = build_backbone(name)
    assert load_backbone_weights(backbone, weights).dropped == ("fc.weight", "fc.bias")
    assert_equal_states(backbone, theirs)
    assert recognise_family(weights).backbone == name


@pytest.mark.parametrize("name", ["stdc1", "stdc2"])
def test_imagenet_file_of_stdc(name):
    golden = key_list(f"sfnet_lite_{name}")
    whole = {
        key.removeprefix("backbone."): v for key, v in numbered(golden).items() if key.startswith("backbone.")
    }
    once = {key: value for key, value in whole.items() if not key.startswith("x")}
    backbones = [build_backbone(name) for _ in range(2)]
    for backbone, weights in zip(backbones, (whole, once), strict=True):
        report = load_backbone_weights(backbone, {"state_dict": weights, "epoch": 300})
        assert {key.split(".")[0] for key in report.dropped} == {"conv_last", "fc", "bn", "linear"}
        assert report.missing == ()
        assert recognise_family(weights)[1:] == (None, None, name, {})
    assert_equal_states(*backbones)


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
