"""A training step: where the host may wait, what is copied ahead, and what is computed twice."""

import copy
import json
import time

import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils._python_dispatch import TorchDispatchMode

from model import build_model
from tests.conftest import CLASSES, make_experiment
from tests.util.dist.test_dist import run_processes
from tool import train
from util.config.load import load
from util.train import loop
from util.train import prefetch as prefetch_module
from util.train.prefetch import Prefetch, Waits
from util.train.recompute import recompute_blocks


class Set:
    """A data set's length and classes."""

    classes = CLASSES

    def __len__(self):
        return 400


def start(tmp_path, device="cpu", size=(48, 64), **sections):
    """A training at its first step, and the parts of a step."""
    path = make_experiment(tmp_path, tmp_path, **sections)
    config = load(path).config
    training = train.build_training(config, Set(), torch.device(device))
    training.net.train()
    generator = torch.Generator().manual_seed(0)
    n = config.train.batch_size // config.train.accumulate
    parts = [
        {
            "image": torch.randint(0, 256, (n, *size, 3), dtype=torch.uint8, generator=generator).permute(0, 3, 1, 2),
            "label": torch.randint(0, 3, (n, *size), dtype=torch.uint8, generator=generator),
            "name": ["x"] * n,
        }
        for _ in range(config.train.accumulate)
    ]
    return training, parts


def step(training, parts):
    terms = loop.optimizer_step(training, [loop.to_device(part, training) for part in parts])
    training.step += 1
    return terms


def test_images_are_normalised_and_their_channels_put_in_order(tmp_path):
    facts = {"mean": [1.0, 2.0, 3.0], "std": [4.0, 5.0, 6.0]}
    training, parts = start(tmp_path, data=facts)
    expected = (parts[0]["image"].float() - torch.tensor([1.0, 2.0, 3.0])[:, None, None]) / torch.tensor(
        [4.0, 5.0, 6.0]
    )[:, None, None]
    assert torch.equal(loop.to_device(parts[0], training)[0], expected)
    training, _ = start(tmp_path, data=facts | {"channel_order": "bgr"})
    assert torch.equal(loop.to_device(parts[0], training)[0], expected[:, [2, 1, 0]])


class Reads(TorchDispatchMode):
    """Names of the operations that need a tensor's values, or the number of those that are true, on the host."""

    NEED = (
        "aten._local_scalar_dense",
        "aten.nonzero",
        "aten.masked_select",
        "aten.is_nonzero",
        "aten.equal",
        "aten.unique_consecutive",
        "aten._unique2",
    )

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        masked = str(function).startswith(("aten.index.", "aten.index_put")) and any(
            i is not None and i.dtype == torch.bool for i in args[1]
        )
        if masked or str(function).startswith(self.NEED):
            self.found.append(str(function))
        return function(*args, **(kwargs or {}))


STEPS = {
    "plain": {},
    "ohem, clipped": {"loss": {"name": "ohem", "options": {"min_kept": 100}}, "optim": {"clip_grad": 1.0}},
    "parts, average": {"train": {"accumulate": 2, "ema": 0.9}, "loss": {"class_weights": [1.0, 2.0, 0.5]}},
    "adamw, bf16, dice": {"optim": {"name": "adamw"}, "train": {"amp": "bf16"}, "loss": {"extra": {"dice": 0.5}}},
    "relaxed, recomputed": {"loss": {"name": "relaxed"}, "train": {"checkpointing": True}},
    "semantic flow": {"model": {"name": "semanticflow"}, "loss": {"weights": {"out": 1.0}}},
}


def test_a_read_is_found():
    values = torch.ones(3)
    for read in (lambda: values.sum().item(), lambda: bool(values.sum()), lambda: values[values > 0], values.nonzero):
        with Reads() as reads:
            read()
        assert reads.found


@pytest.mark.parametrize("sections", STEPS.values(), ids=STEPS)
def test_the_host_reads_nothing_between_log_lines(tmp_path, sections):
    training, parts = start(tmp_path, **sections)
    step(training, parts)  # tables are made once
    with Reads() as reads:
        step(training, parts)
        step(training, parts)
    assert not reads.found


ON_A_GPU = STEPS | {
    "fp16": {"train": {"amp": "fp16"}, "optim": {"clip_grad": 1.0}},
    "compiled": {"train": {"compile": True, "amp": "bf16"}},
    "compiled, recomputed": {"train": {"compile": True, "checkpointing": True, "ema": 0.9}},
}


@pytest.mark.gpu
@pytest.mark.parametrize("sections", ON_A_GPU.values(), ids=ON_A_GPU)
def test_the_host_does_not_wait_for_the_gpu(tmp_path, sections):
    training, parts = start(tmp_path, "cuda", **sections)
    pinned = [part | {name: part[name].pin_memory() for name in ("image", "label")} for part in parts]
    batches = Prefetch(iter(pinned * 8), training.device, training.config.train.accumulate)
    step(training, next(batches))  # tables are made, and graphs, once
    step(training, next(batches))
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            batches.stage()
            step(training, next(batches))
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_average_is_that_of_pytorch(tmp_path):
    training, parts = start(tmp_path, train={"ema": 0.75})
    expected = AveragedModel(training.model, multi_avg_fn=get_ema_multi_avg_fn(0.75), use_buffers=True)
    for _ in range(3):
        step(training, parts)
        expected.update_parameters(training.model)
    assert int(training.ema.n_averaged) == 3
    values = training.ema.module.state_dict()
    for name, value in expected.module.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(values[name], value)


@pytest.mark.parametrize("parts", [1, 3])
def test_on_the_cpu_batches_pass_through(parts):
    source = [{"image": torch.full((1, 3, 2, 2), i), "label": torch.zeros(1, 2, 2), "name": [str(i)]} for i in range(6)]
    feed = iter(source)
    batches = Prefetch(feed, torch.device("cpu"), parts)
    batches.stage()
    first = next(batches)
    assert len(first) == parts and all(a is b for a, b in zip(first, source, strict=False))
    assert [part["name"] for step in batches for part in step] == [[str(i)] for i in range(parts, 6)]


def test_a_staged_step_is_the_next_one():
    """The order in which batches are fetched and given; the stream that copies them is a GPU's."""
    source = [{"image": torch.full((1,), i), "label": torch.full((1,), -i)} for i in range(4)]
    taken = []
    batches = Prefetch((taken.append(i) or batch for i, batch in enumerate(source)), torch.device("cpu"), 2)
    batches.stage(always=True)
    batches.stage(always=True)
    assert taken == [0, 1]
    assert [int(part["image"]) for part in next(batches)] == [0, 1] and taken == [0, 1]
    assert [int(part["label"]) for part in next(batches)] == [-2, -3]
    with pytest.raises(StopIteration):
        next(batches)


class Gpu:
    """A GPU's queue and its host on one made-up clock: work takes the GPU's time, everything else the host's."""

    def __init__(self):
        self.host = self.gpu = 0.0

    def work(self, seconds):
        self.gpu = max(self.gpu, self.host) + seconds

    def feed(self, count, seconds):
        """Batches that the loader has only `seconds` after it is asked for."""
        for _ in range(count):
            self.host += seconds
            yield {"image": torch.zeros(1), "label": torch.zeros(1)}

    def event(self, **_):
        return Event(self)


class Event:
    """`torch.cuda.Event`: its time is when the GPU comes to it, at the earliest when the host has put it there."""

    def __init__(self, gpu):
        self.gpu = gpu

    def record(self, stream):
        self.gpu.work(0)
        self.time = self.gpu.gpu

    def synchronize(self):
        self.gpu.host = max(self.gpu.host, self.time)

    def elapsed_time(self, end):
        assert self.gpu.host >= end.time, "not reached yet"
        return 1000 * (end.time - self.time)


@pytest.mark.parametrize("loading, expected", [(0.5, 0.0), (1.0, 0.0), (3.0, 2.0)])
def test_only_an_idle_gpu_counts_as_waiting(monkeypatch, loading, expected):
    """Steps of one second: the host waits 0.5, 1 or 3 seconds for each batch, the GPU 0, 0 or 2."""
    gpu = Gpu()
    monkeypatch.setattr(prefetch_module.torch.cuda, "Event", gpu.event)
    monkeypatch.setattr(prefetch_module.torch.cuda, "current_stream", lambda device: None)
    batches = Prefetch(gpu.feed(9, loading), torch.device("cpu"))
    batches.waits = Waits(torch.device("cuda"))
    next(batches)
    assert batches.waits.take() == pytest.approx(loading)  # of the first batch nothing is hidden
    for _ in range(8):
        gpu.work(1.0)
        batches.stage(always=True)
        next(batches)
    assert batches.waits.take() == pytest.approx(8 * expected)
    assert batches.waits.take() == 0


def test_on_the_cpu_all_of_the_time_for_a_batch_is_waiting(monkeypatch):
    clock = iter([10.0, 12.5, 20.0, 20.5])
    monkeypatch.setattr(prefetch_module.time, "perf_counter", lambda: next(clock))
    batches = Prefetch(iter([{}, {}]), torch.device("cpu"))
    next(batches), next(batches)
    assert batches.waits.take() == 3.0 and batches.waits.take() == 0


@pytest.mark.gpu
def test_a_gpu_that_is_busy_does_not_wait_for_a_slow_loader():
    """While the host waits 20 ms for each batch, the GPU has work for much longer, or none."""

    def slow():
        while True:
            time.sleep(0.02)
            yield {name: torch.zeros(4, dtype=torch.uint8).pin_memory() for name in ("image", "label")}

    for busy in (True, False):
        batches = Prefetch(slow(), torch.device("cuda"))
        next(batches)
        batches.waits.take()
        for _ in range(5):
            torch.cuda._sleep(200_000_000 if busy else 1000)  # cycles: 0.1 s at 2 GHz
            batches.stage()
            next(batches)
        waited = batches.waits.take()
        assert waited < 0.02 if busy else 0.08 < waited < 0.2


@pytest.mark.gpu
def test_batches_are_copied_while_the_gpu_computes():
    source = [
        {
            "image": torch.full((2, 3, 64, 64), i, dtype=torch.uint8).pin_memory(),
            "label": torch.full((2, 64, 64), i, dtype=torch.uint8).pin_memory(),
        }
        for i in range(20)
    ]
    batches = Prefetch(iter(source), torch.device("cuda"))
    weight = torch.randn(2048, 2048, device="cuda")
    sums = []
    for (part,) in batches:
        weight = (weight @ weight).clamp(-1, 1)  # work that the next copy overtakes
        sums.append(part["image"].long().sum() + part["label"].long().sum())
        del part
        batches.stage() if len(sums) < len(source) else None
    assert torch.stack(sums).tolist() == [i * 2 * 4 * 64 * 64 for i in range(20)]


@pytest.mark.parametrize(
    "name, backbone",
    [("sketchfill", "mobilenet_v2"), ("semanticflow", "resnet18"), ("semanticflow", "stdc1"), ("fcn", "timm/resnet18")],
)
def test_recomputed_blocks_change_nothing_but_memory(name, backbone):
    torch.manual_seed(0)
    plain = build_model(name, 3, backbone, dropout=0.0).train()
    lean = copy.deepcopy(plain)
    assert recompute_blocks(lean.backbone) >= 4
    assert list(lean.state_dict()) == list(plain.state_dict())
    x, kept = torch.randn(2, 3, 64, 64), []
    for network in (plain, lean):
        sizes = []
        torch.manual_seed(1)  # dropout inside of ASPP
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t):
            loss = sum(y.square().mean() for y in network(x).values())
        loss.backward()
        kept.append(sum(sizes))
    assert kept[1] < 0.7 * kept[0]
    for (key, a), b in zip(plain.named_parameters(), lean.parameters(), strict=True):
        assert (a.grad is None and b.grad is None) or torch.equal(a.grad, b.grad), key
    for (key, a), b in zip(plain.named_buffers(), lean.buffers(), strict=True):
        assert torch.equal(a, b), key
    assert torch.equal(plain.eval()(x)["out"], lean.eval()(x)["out"])


def test_what_cannot_be_recomputed_is_refused():
    with pytest.raises(ValueError, match="train.checkpointing"):
        recompute_blocks(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3)))


UNUSED = """
import json
import torch
from torch import nn
from util import dist
device = dist.init()
torch.manual_seed(0)
net = nn.ModuleDict({"used": nn.Linear(3, 2), "unused": nn.Linear(3, 2), "norm": nn.BatchNorm1d(3, momentum=1.0)})
net.forward = lambda x: net["used"](x) + 0 * net["norm"](x).sum()
shared = dist.wrap(net, device)
for step in range(3):
    shared(torch.full((2, 3), float(dist.rank() + step))).sum().backward()
found = [net["used"].weight.grad[0, 0].item(), net["norm"].running_mean[0].item()]
dist.share_buffers(net)
print(json.dumps([*found, net["norm"].running_mean[0].item()]))
dist.close()
"""


def test_parameters_without_a_gradient_are_allowed_and_buffers_are_shared_when_asked_for():
    # d(sum)/dw = 2 pictures x their value (rank + step), averaged over the ranks 0 and 1 and added over 3 steps.
    gradient = 2 * (0.5 + 1.5 + 2.5)
    found = [json.loads(line) for line in run_processes(2, UNUSED)]
    assert found == [[gradient, 2.0, 2.0], [gradient, 3.0, 2.0]]
