"""`train.compile`: every region one graph, the same training, the same names; validation stays as it is."""

import copy
import json
import os

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import model
from model import build_model
from model.backbone.resnet import BasicBlock
from model.base import SegModel
from tests.conftest import make_experiment
from tests.faults.runs import TOY
from tests.util.dist.test_dist import TRAIN, run_processes
from tests.util.train.test_step import start, step
from tool import train
from tool.shared import network as shared
from util.train import compile as compile_module
from util.train.compile import blocks, compile_regions, obstacle, regions
from util.train.recompute import recompute_blocks

NETWORKS = (
    [(name, "resnet18") for name in ("fcn", "pspnet", "semanticflow", "semanticflow_lite", "sketchfill")]
    + [("sketchfill", "mobilenet_v2")]
    + [
        pytest.param(*names, marks=pytest.mark.slow)
        for names in (
            ("semanticflow", "dfnet_v1"),
            ("semanticflow_lite", "stdc1"),
            ("fcn", "torchvision/resnet18"),
            ("fcn", "timm/convnext_atto"),
            ("fcn", "timm/mobilenetv3_small_050"),
        )
    ]
)


class Residual(SegModel):
    """Two residual blocks at a quarter of the size: what has everything, and is compiled in seconds."""

    def __init__(self, num_classes: int, dropout: float = 0.0):
        stem = nn.Sequential(nn.Conv2d(3, 8, 5, 4, 2), nn.BatchNorm2d(8))
        super().__init__(nn.Sequential(stem, *(BasicBlock(8, 8, 1, (1, 1)) for _ in range(2))))
        self.head = nn.Conv2d(8, num_classes, 1)

    def forward_features(self, x):
        return [self.backbone(x)]

    def decode(self, features):
        return {"out": self.head(features[0])}


@pytest.fixture(autouse=True)
def fresh():
    torch.compiler.reset()


@pytest.fixture
def graphs(monkeypatch):
    """What counts the graphs of a training and runs them without compiling them."""
    counter = CompileCounterWithBackend("eager")
    monkeypatch.setattr(shared, "compile_regions", lambda network: compile_regions(network, counter))
    monkeypatch.setattr(shared, "obstacle", lambda device: None)  # without a compiler, too
    return counter


@pytest.mark.parametrize(("name", "backbone"), NETWORKS)
def test_every_region_is_one_graph_and_nothing_is_left_out(name, backbone):
    options = {"deep_supervision": True} if name.startswith("semanticflow") else {}
    plain = build_model(name, 3, backbone, dropout=0.0, **options).train()
    network, counter = copy.deepcopy(plain), CompileCounterWithBackend("eager")
    parts = list(regions(network))
    inside = [id(p) for part in parts for p in part.parameters()]
    assert len(inside) == len(set(inside))
    assert compile_regions(network, counter) == len(parts) >= 8
    x = torch.randn(2, 3, 64, 96)
    outputs = []
    for each in (plain, network):
        torch.manual_seed(1)  # dropout inside of ASPP
        outputs.append(each(x))
    assert counter.frame_count <= len(parts)
    for key, value in outputs[0].items():
        torch.testing.assert_close(outputs[1][key], value)
    assert list(network.state_dict()) == list(plain.state_dict())
    norms = {id(m) for part in parts for m in part.modules()}
    stem = {"torchvision/resnet18": {"backbone.bn1"}}.get(backbone, set())
    left = {n for n, m in network.named_modules() if isinstance(m, nn.BatchNorm2d) and id(m) not in norms}
    assert left <= stem


def test_equal_blocks_share_a_graph():
    backbone, counter = build_model("fcn", 3, "resnet101").backbone.train(), CompileCounterWithBackend("eager")
    assert compile_regions(backbone, counter) == 33 + 1  # blocks and stem
    backbone(torch.randn(1, 3, 65, 65))
    assert counter.frame_count <= 1 + 4 * 2  # of each stage the first block and the others


def test_a_graph_break_is_an_error():
    class Broken(nn.Sequential):
        def forward(self, x):
            torch._dynamo.graph_break()
            return super().forward(x)

    network = nn.Sequential(Broken(nn.Conv2d(3, 3, 1)))
    compile_regions(network, "eager")
    with pytest.raises(torch._dynamo.exc.Unsupported):
        network(torch.ones(1, 3, 4, 4))


@pytest.mark.parametrize(
    ("network", "amp"),
    [
        ({"name": "residual", "backbone": None}, "off"),
        ({"name": "sketchfill", "backbone": "mobilenet_v2", "options": {"dropout": 0.0}}, "bf16"),
    ],
    ids=["off", "bf16"],
)
def test_three_steps_are_those_without(tmp_path, graphs, monkeypatch, network, amp):
    monkeypatch.setitem(model.MODELS, "residual", "tests.util.train.test_compile.Residual")
    losses, states = [], []
    for compiled in (False, True):
        training, parts = start(
            tmp_path, model=network, train={"compile": compiled, "amp": amp, "ema": 0.5}, optim={"lr": 1e-4}
        )
        torch.manual_seed(1)
        losses.append([float(step(training, parts)["loss"]) for _ in range(3)])
        states.append(training.model.state_dict() | {f"ema.{k}": v for k, v in training.ema.state_dict().items()})
    assert graphs.frame_count >= 3
    tolerance = 1e-6 if amp == "off" else 1e-3
    assert losses[1] == pytest.approx(losses[0], rel=tolerance)
    assert states[0].keys() == states[1].keys()
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, rtol=1e-3, atol=100 * tolerance)


def test_what_stands_in_the_way_of_compiling_is_told_with_what_to_set(tmp_path, monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "new"))
    monkeypatch.setattr(compile_module.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert obstacle(cpu) is None
    monkeypatch.setattr(compile_module.shutil, "which", lambda name: None)
    assert "no C++ compiler" in obstacle(cpu) and obstacle(torch.device("cuda")) is None
    flags = type("Flags", (), {"f_flag": getattr(os, "ST_NOEXEC", 0)})
    if flags.f_flag:
        monkeypatch.setattr(os, "statvfs", lambda _: flags)
        assert f"{tmp_path} is mounted noexec; set TORCHINDUCTOR_CACHE_DIR" in obstacle(cpu)
        monkeypatch.undo()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/proc/none")  # a file system that nobody can write
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert "/proc cannot be written; set TORCHINDUCTOR_CACHE_DIR" in obstacle(cpu)


def test_a_training_goes_on_uncompiled_where_nothing_can_be_compiled(tmp_path, data, monkeypatch, capsys):
    monkeypatch.setitem(model.MODELS, "residual", "tests.util.train.test_compile.Residual")
    monkeypatch.setattr(shared, "obstacle", lambda device: "no")
    monkeypatch.setattr(shared, "compile_regions", None)
    network = {"name": "residual", "backbone": None}
    experiment = make_experiment(tmp_path, data, model=network, train={"compile": True, "epochs": 1})
    assert train.main(["--config", str(experiment), "--exp", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out.count("train.compile: not compiled, no\n") == 1


def test_a_copy_of_a_compiled_network_is_plain(graphs):
    network = build_model("fcn", 3, "resnet18").train()
    compile_regions(network, graphs)
    copied = copy.deepcopy(network)
    assert list(copied.state_dict()) == list(network.state_dict())
    copied(torch.randn(2, 3, 32, 32))
    assert graphs.frame_count == 0
    network(torch.randn(2, 3, 32, 32))
    assert graphs.frame_count > 0


def test_compiled_blocks_are_computed_again_too():
    """In double precision, where rounding hides nothing."""
    plain = Residual(3).double().train()
    networks = {"plain": plain, "compiled": copy.deepcopy(plain), "both": copy.deepcopy(plain)}
    recompute_blocks(networks["both"].backbone)
    for key in ("compiled", "both"):
        compile_regions(networks[key], "aot_eager")
    x, kept = torch.randn(2, 3, 64, 96, dtype=torch.float64), {}
    for key, network in networks.items():
        own = {p.data_ptr() for p in network.parameters()}
        sizes = []

        def pack(tensor, own=own, sizes=sizes):
            sizes.append(0 if tensor.data_ptr() in own else tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = sum(y.square().mean() for y in network(x).values())
        loss.backward()
        kept[key] = sum(sizes)
    assert kept["both"] < 0.7 * kept["compiled"]
    for key in ("compiled", "both"):
        for (parameter, a), b in zip(plain.named_parameters(), networks[key].parameters(), strict=True):
            torch.testing.assert_close(b.grad, a.grad, rtol=1e-5, atol=1e-9, msg=parameter)
        for (buffer, a), b in zip(plain.named_buffers(), networks[key].buffers(), strict=True):
            torch.testing.assert_close(b, a, msg=buffer)


def test_pictures_of_other_sizes_are_validated_without_compiling(tmp_path, data, graphs, monkeypatch):
    monkeypatch.setitem(model.MODELS, "toy", "tests.faults.toy.Toy")
    experiment = make_experiment(tmp_path, data, model=TOY, train={"compile": True})
    for epochs, count in ((1, 2), (2, 2)):  # the second run continues the first
        torch.compiler.reset()
        graphs.frame_count = 0
        assert train.main(["--config", str(experiment), "--exp", str(tmp_path / "run"), f"train.epochs={epochs}"]) == 0
        assert graphs.frame_count == count == len(list(regions(build_model("toy", 3, **TOY["options"]))))
    log = (tmp_path / "run" / "train.log").read_text()
    assert log.count("validation after epoch") == 2 and "continu" in log


PROCESSES = (
    """
import model
from tool.shared import network as shared
from util.train import compile
model.MODELS["residual"] = "tests.util.train.test_compile.Residual"
shared.compile_regions = lambda network: compile.compile_regions(network, "{backend}")
"""
    + TRAIN
)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_two_processes_with_everything_train_like_a_plain_one(tmp_path, data, backend):
    """Static graph, gradients as views of buckets, norms over both processes, blocks computed again."""
    network = {"name": "residual", "backbone": None, "sync_bn": True}
    losses = []
    for count in (1, 2):
        more = {} if count == 1 else {"compile": True, "checkpointing": True}
        experiment = make_experiment(tmp_path, data, model=network, train={"epochs": 1, "val_every": 0, **more})
        losses += map(
            json.loads,
            run_processes(
                count,
                PROCESSES.format(backend=backend),
                "--config",
                str(experiment),
                "--exp",
                str(tmp_path / f"run{count}"),
            ),
        )
    assert len(losses) == 3 and len(losses[0]) == 4
    assert losses[1] == losses[2] == pytest.approx(losses[0], abs=1e-5)
    assert losses[0][-1] != pytest.approx(losses[0][0], abs=1e-2)


def test_blocks_are_the_members_of_stages():
    found = [type(block).__name__ for block in blocks(build_model("fcn", 3, "resnet18"))]
    assert found == ["BasicBlock"] * 8
