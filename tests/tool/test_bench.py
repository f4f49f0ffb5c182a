"""Parameters and MACs, against counts by hand, published figures and the page that prints them."""

import json
import re
from functools import cache

import pytest
import torch
import yaml
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from model import build_model
from model.backbone import build_backbone
from tests.paths import ROOT, SHARED
from tool import bench
from tool.bench.flops import Cost, count
from tool.shared import cli

KEYS = SHARED / "parity" / "keys"
FULL = (1024, 2048)
DSN = sum(1024 * 2048 // stride**2 * (9 * 128 * 128 + 128 * 19) for stride in (4, 8, 16))


@cache
def cost_of(name: str, backbone: str, size=FULL, **options) -> Cost:
    with torch.device("meta"):  # no initial values are needed either
        model = build_model(name, 19, backbone, **options)
    return count(model, size)


class Tiny(nn.Module):
    """A convolution, a linear layer on pooled features, and a head for training only."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1, groups=1)
        self.norm = nn.BatchNorm2d(8)
        self.pooled = nn.ModuleList([nn.Linear(8, 5, bias=False)])
        self.aux = nn.Conv2d(8, 5, 1)
        self.frozen = nn.Parameter(torch.zeros(7), requires_grad=False)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        x = self.norm(self.conv(x)).relu()
        pooled = self.pooled[0](x.mean((2, 3)))
        logits = {"out": self.scale * pooled[:, :, None, None] * x[:, :5]}
        return logits | ({"aux": self.aux(x)} if self.training else {})


def test_counts_by_hand():
    """20 x 30 pixels become 10 x 15, each of 8 channels of 27 products; the linear layer has 8 x 5."""
    cost = count(Tiny(), (20, 30))
    assert cost.macs == 10 * 15 * 8 * 27 + 8 * 5 and cost.flops == 2 * cost.macs
    assert cost.parameters == (8 * 27 + 8) + 2 * 8 + 8 * 5 + (8 * 5 + 5) + 1
    assert cost.reached == cost.parameters - 45
    parts = {part.name: (part.parameters, part.macs) for part in cost.parts}
    assert parts == {"conv": (224, 32400), "norm": (16, 0), "pooled": (40, 40), "aux": (45, 0), "(no layer)": (1, 0)}


def test_the_network_is_left_as_it_is():
    """Counting on tensors without values must not touch those of the network."""
    model = Tiny()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    count(model, FULL)
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(p.device.type == "cpu" and p.grad is None for p in model.parameters())


def test_macs_grow_with_the_area():
    small, large = (cost_of("fcn", "resnet18", size) for size in ((64, 96), (128, 192)))
    assert large.macs == 4 * small.macs and large.parameters == small.parameters
    assert sum(part.macs for part in large.parts) == large.macs
    assert sum(part.parameters for part in large.parts) == large.parameters


@pytest.mark.parametrize(
    ("backbone", "options", "parameters", "macs"),
    [
        ("resnet18", {}, 12.87e6, 243.3e9),
        ("resnet18", {"deep_supervision": True}, 13.32e6, None),
        ("resnet50", {}, 31.33e6, 664.1e9),
        ("resnet101", {}, 50.32e6, 819.5e9),
    ],
)
def test_published_figures_of_semantic_flow(backbone, options, parameters, macs):
    """The readme of xiaojianzhong/SFNet, whose "FLOPs" are MACs."""
    cost = cost_of("semanticflow", backbone, **options)
    assert cost.parameters == pytest.approx(parameters, rel=5e-4)
    assert macs is None or cost.macs == pytest.approx(macs, rel=0.01)


class WhatMmcvAdds(TorchDispatchMode):
    """Counts what mmcv 1.3 counts beside the MACs of convolutions, norms (as SyncBN) left out."""

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        if name in ("relu", "relu_") or (name == "convolution" and args[2] is not None):
            self.total += result.numel()
        elif "pool" in name or name == "mean":  # pooling to 1 x 1 is a mean
            self.total += args[0].numel()
        return result


@pytest.mark.parametrize(
    ("backbone", "published"), [("resnet18", 243.32e9), ("resnet50", 664.07e9), ("resnet101", 819.46e9)]
)
def test_published_macs_counted_as_they_were(backbone, published):
    with torch.device("meta"):
        model = build_model("semanticflow", 19, backbone).eval()
    with torch.no_grad(), WhatMmcvAdds() as extra:
        model(torch.empty(1, 3, *FULL, device="meta"))
    assert cost_of("semanticflow", backbone).macs + extra.total == pytest.approx(published, rel=4e-5)


@pytest.mark.parametrize(
    ("file", "name", "backbone", "options"),
    [
        ("sketchfill_resnet50", "sketchfill", "resnet50", {}),
        ("sketchfill_resnet101", "sketchfill", "resnet101", {}),
        ("sketchfill_resnet50_os8", "sketchfill", "resnet50", {"output_stride": 8}),
        ("sketchfill_resnet50_nof1", "sketchfill", "resnet50", {"fine_conv": False}),
        ("sketchfill_mobilenet", "sketchfill", "mobilenet_v2", {}),
        ("pspnet50", "pspnet", "resnet50", {"size": (1025, 2049)}),  # the published code takes 8k + 1
        ("pspnet101", "pspnet", "resnet101", {"size": (1025, 2049)}),
        ("sfnet_r18", "semanticflow", "resnet18", {}),
        ("sfnet_r50", "semanticflow", "resnet50", {}),
        ("sfnet_r101", "semanticflow", "resnet101", {}),
        ("sfnet_dfnetv1", "semanticflow", "dfnet_v1", {}),
        ("sfnet_dfnetv2", "semanticflow", "dfnet_v2", {}),
        ("mmseg_sfnet_r18", "semanticflow", "resnet18", {}),
        ("mmseg_sfnet_r50", "semanticflow", "resnet50", {}),
        ("mmseg_sfnet_r101", "semanticflow", "resnet101", {}),
    ],
)
def test_counts_of_the_published_code(file, name, backbone, options):
    published, cost = published_counts(file), cost_of(name, backbone, **options)
    assert (cost.parameters, cost.macs) == published


@pytest.mark.parametrize(
    ("file", "name", "backbone", "dropped", "run_in_vain"),
    [
        # Heads of deep supervision, run in evaluation too: 3x3 and 1x1 at strides 4, 8 and 16.
        ("sfnet_r18_dsn", "semanticflow", "resnet18", 0, DSN),
        # There they have no bias.
        ("mmseg_sfnet_r18_dsn", "semanticflow", "resnet18", -3 * 128, 0),
        # A head and a lateral that nothing calls; with STDC the classifier of ImageNet.
        ("sfnet_lite_r18", "semanticflow_lite", "resnet18", 12_296_074 - 12_079_863, 0),
        ("sfnet_lite_stdc1", "semanticflow_lite", "stdc1", 9_709_162 - 6_433_623, 0),
        ("sfnet_lite_stdc2", "semanticflow_lite", "stdc2", 13_739_626 - 10_464_087, 0),
    ],
)
def test_published_code_that_does_more_than_it_needs(file, name, backbone, dropped, run_in_vain):
    parameters, macs = published_counts(file)
    options = {"deep_supervision": True} if file.endswith("dsn") else {}
    cost = cost_of(name, backbone, **options)
    assert (cost.parameters + dropped, cost.macs + run_in_vain) == (parameters, macs)


def published_counts(file: str) -> tuple[int, int]:
    path = KEYS / f"{file}.json"
    if not path.is_file():
        pytest.skip(f"published counts not present: no {path}")
    found = json.loads(path.read_text())
    return found["params"], found["macs_1024x2048"]


def test_counts_of_the_published_backbone():
    """Whose file also holds the classifier of ImageNet, 2048 x 1000 and biases, which we leave out."""
    parameters, macs = published_counts("semseg_resnet50_backbone")

    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = build_backbone("resnet50")

        def forward(self, x):
            return {"out": self.backbone(x)[-1]}

    cost = count(Last(), FULL)
    assert (cost.parameters + 2048 * 1000 + 1000, cost.macs) == (parameters, macs)


def test_the_page_prints_what_is_counted():
    text = (ROOT / "docs" / "benchmark.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([^`]+)` \|" + r" ([\d.]+) [MG] \|" * 4 + "$", text, re.M)
    assert len(rows) >= 15
    for network, *printed in rows:
        name, backbone, *options = network.split()
        options = {key: yaml.safe_load(value) for key, _, value in (pair.partition("=") for pair in options)}
        cost = cost_of(name, backbone, **options)
        numbers = (cost.parameters / 1e6, cost.reached / 1e6, cost.macs / 1e9, cost.flops / 1e9)
        assert printed == [f"{number:.2f}" for number in numbers], network


def test_command(tmp_path, capsys, monkeypatch):
    """Text and JSON say the same; options, size and overrides in any order."""
    monkeypatch.chdir(ROOT)
    file = tmp_path / "new" / "cost.json"
    words = ["params", "street", "sfnet_mobile", "--size", "64", "96", "train.epochs=3", "--json", str(file)]
    assert bench.main([*words, "model.options={output_stride: 8}"]) == 0
    text, figures = capsys.readouterr().out, json.loads(file.read_text())
    cost = count(build_model("sketchfill", 12, "mobilenet_v2", output_stride=8), (64, 96))
    assert (figures["macs"], figures["flops"]) == (cost.macs, cost.flops)
    assert figures["parameters_reached_by_output"] == cost.reached < cost.parameters == figures["parameters"]
    assert figures["size"] == [64, 96] and figures["network"]["options"]["output_stride"] == 8
    assert figures["overrides"] == ["train.epochs=3", "model.options={output_stride: 8}"]
    assert f"{cost.parameters:,}" in text and f"{cost.macs / 1e9:.2f} G multiply-accumulates" in text
    assert "64 x 96" in text and f"FLOPs       {cost.flops / 1e9:.2f} G" in text


def test_size_is_that_of_a_crop_unless_told(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert bench.main(["params", "street", "fcn18", "augment.crop=[40,72]"]) == 0
    assert "one picture of 40 x 72" in capsys.readouterr().out


def test_mistakes(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    for words, expected in (
        (["params", "street", "sfnet_mobil"], "did you mean 'sfnet_mobile'"),
        (["params", "street", "fcn18", "--size", "0", "9"], "at least one pixel"),
        (["params", "street", "fcn18", "model.name=fnc"], "did you mean 'fcn'"),
        (["params", "street", "fcn18", "--sise", "9"], "unknown arguments: --sise"),
        ([], "COMMAND"),
    ):
        with pytest.raises(SystemExit) as status:
            cli.command(lambda words=words: bench.main(words))
        assert status.value.code == 2
        error = capsys.readouterr().err
        assert expected in error and "Traceback" not in error
