"""Two processes give what one gives. Each test starts real processes with gloo on the CPU."""

import json
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from tests.conftest import free_port, make_experiment
from tests.paths import ROOT
from util import dist
from util.dist import collective


def run_processes(count: int, code: str, *arguments: str, visible: str = "") -> list[str]:
    """Runs Python code in `count` processes of one group; the last printed line of each, by rank.

    visible: GPUs that they may use.
    """
    env = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": visible,
        "PYTHONPATH": str(ROOT),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(count),
    }
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**env, "RANK": str(r), "LOCAL_RANK": str(r)},
        )
        for r in range(count)
    ]
    outputs = [process.communicate(timeout=240)[0] for process in started]
    assert all(p.returncode == 0 for p in started), "\n".join(outputs)
    return [(output.strip().splitlines() or [""])[-1] for output in outputs]


SYNC_BN = """
import torch
from torch import nn
from util import dist
device = dist.init()
torch.manual_seed(0)
net = dist.convert_sync_batchnorm(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)), device)
x = torch.randn(6, 3, 8, 9)
mine = x[:4] if dist.rank() == 0 else x[4:]
out = net(mine)
(out.square().sum()).backward()
grads = [dist.all_reduce_sum_(p.grad.clone()) for p in net.parameters()]
sums = [float(dist.all_reduce_sum_(out.detach().double().sum())), *(float(g.double().abs().sum()) for g in grads),
        *(float(b.double().sum()) for b in net.buffers())]
print(sums)
dist.close()
"""


def whole_batch() -> list[float]:
    """Sums of outputs, gradients and buffers that one process has with ordinary batch norm on the CPU."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
    out = net(torch.randn(6, 3, 8, 9))
    out.square().sum().backward()
    return [
        float(out.detach().double().sum()),
        *(float(p.grad.double().abs().sum()) for p in net.parameters()),
        *(float(b.double().sum()) for b in net.buffers()),
    ]


def test_sync_bn_on_cpu_equals_batch_norm_on_the_whole_batch():
    for line in run_processes(2, SYNC_BN):
        assert json.loads(line) == pytest.approx(whole_batch(), rel=1e-5, abs=1e-4)


SYNC_BN_ON_A_GPU = """
import os, sys
os.environ["NGPU"] = "0"  # so that the processes form a group of gloo, which can share one GPU
import torch
from torch import nn
from util import dist
dist.init()
device, compiled = torch.device("cuda", 0), sys.argv[1] == "True"
torch.backends.cudnn.allow_tf32 = False
torch.manual_seed(0)
net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
x = torch.randn(6, 3, 8, 9)
net = dist.convert_sync_batchnorm(net, device, compiled).to(device)
if compiled:
    net.compile(fullgraph=True)
mine = (x[:4] if dist.rank() == 0 else x[4:]).to(device)
out = net(mine)
out.square().sum().backward()
grads = [dist.all_reduce_sum_(p.grad.clone()) for p in net.parameters()]
print([float(dist.all_reduce_sum_(out.detach().double().sum())), *(float(g.double().abs().sum()) for g in grads),
       *(float(b.double().sum()) for b in net.buffers())])
dist.close()
"""


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True])
def test_sync_bn_of_two_processes_on_one_gpu_equals_batch_norm_on_the_whole_batch(compiled):
    for line in run_processes(2, SYNC_BN_ON_A_GPU, str(compiled), visible=os.environ.get("CUDA_VISIBLE_DEVICES", "0")):
        assert json.loads(line) == pytest.approx(whole_batch(), rel=1e-4, abs=1e-3)


def test_sync_bn_is_ordinary_on_one_process():
    net = nn.Sequential(nn.BatchNorm2d(4))
    assert type(dist.convert_sync_batchnorm(net, torch.device("cpu"))[0]) is nn.BatchNorm2d


TRAIN = """
import sys, json, re
from tool import train
import util.train.loop as loop
losses = []
original = loop.optimizer_step
def record(training, parts):
    terms = original(training, parts)
    from util import dist
    losses.append(float(dist.all_reduce_sum_(terms["loss"].clone()) / dist.world_size()))
    return terms
loop.optimizer_step = record
status = train.main(sys.argv[1:])
print(json.dumps(losses))
"""


@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_processes_train_like_one(tmp_path, data, accumulate):
    # An untrained network with batch norm multiplies a rounding difference by ten a step at the usual learning rate.
    sections = {"model": {"sync_bn": True}, "train": {"accumulate": accumulate, "val_every": 0}, "optim": {"lr": 1e-4}}
    experiment = str(make_experiment(tmp_path, data, **sections))
    arguments = [TRAIN, "--config", experiment, "--exp"]
    one = json.loads(run_processes(1, *arguments, str(tmp_path / "one"))[0])
    two = [json.loads(line) for line in run_processes(2, *arguments, str(tmp_path / "two"))]
    assert len(one) == 8 and two[0] == two[1]
    assert two[0] == pytest.approx(one, abs=1e-5) if accumulate == 1 else len(two[0]) == 8


def test_no_thread_is_left_in_a_program_that_does_not_leave_its_group():
    """A thread that is inside the store when Python ends takes the process with it: "terminate called"."""
    code = "import atexit, threading\natexit.register(lambda: print(threading.active_count()))\n"
    assert run_processes(2, code + "from util import dist\ndist.init()\n") == ["1", "1"]


def test_a_global_count_must_divide(monkeypatch):
    monkeypatch.setattr(collective, "world_size", lambda: 4)
    assert dist.share(8, "train.batch_size") == 2
    with pytest.raises(ValueError, match="train.batch_size 6 does not divide by 4 processes.*use 4 or 8"):
        dist.share(6, "train.batch_size")
