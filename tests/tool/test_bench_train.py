"""`bench train`: the plain loop and ours train the same."""

import json

import pytest
import torch

from tool import bench
from tool.bench import train
from tool.shared.experiment import find_experiment
from util.config.load import load

SMALL = ["model.weights=none", "train.ema=null", "train.batch_size=2", "train.accumulate=1"]


def task_of(experiment, *overrides):
    path = find_experiment("camvid", experiment)
    return train.Task(load(path, [*SMALL, *overrides]).config, 11, 2, (64, 96), "cpu", 1)


@pytest.mark.parametrize("experiment", ["sfnet_mobile", "semflow18"])
def test_both_loops_have_the_same_loss(experiment):
    rate = ["optim.lr=0.001", "optim.head_factor=1.0", "optim.warmup_iters=0", "optim.decay_norm=true"]
    task = task_of(experiment, *rate)
    plain, batch = train.build_plain(task), train.draw_batch(task)
    training, step = train.build_ours(task, train.OURS["+ fused optimiser"])
    training.model.load_state_dict(plain.network.state_dict())
    losses = []
    for _ in range(2):
        torch.manual_seed(3)  # dropout
        expected = plain.step(*batch)
        torch.manual_seed(3)
        losses.append((float(step()["loss"]), float(expected)))
    assert losses[0][0] == pytest.approx(losses[0][1], rel=1e-5)
    assert losses[1][0] == pytest.approx(losses[1][1], rel=1e-2)  # the first step's rounding is multiplied by ten
    assert losses[0][1] != pytest.approx(losses[1][1], rel=1e-3)


def test_a_loss_that_the_plain_loop_lacks_is_refused():
    with pytest.raises(ValueError, match="the plain loop has cross_entropy and ohem"):
        train.build_plain(task_of("sfnet_mobile", "loss.name=dice"))


def test_the_command_prints_and_writes_its_table(tmp_path, monkeypatch, capsys):
    best = "+ bf16"
    monkeypatch.setattr(train, "OURS", {best: train.OURS[best]})
    monkeypatch.setattr(train, "peak_of", lambda task, name: 1.0)
    file = tmp_path / "train.json"
    assert (
        bench.main(
            [
                "train",
                "camvid",
                "sfnet_mobile",
                "--size",
                "64",
                "96",
                "--batch",
                "2",
                "--rounds",
                "1",
                "--threads",
                "1",
                "--json",
                str(file),
            ]
        )
        == 0
    )
    shown, value = capsys.readouterr().out, json.loads(file.read_text())
    assert train.PLAIN in shown and "training step" in shown
    assert [row["name"] for row in value["tables"][0]["rows"]] == [train.PLAIN, best]


def test_one_picture_is_refused():
    with pytest.raises(ValueError, match="--batch 1"):
        bench.main(["train", "camvid", "sfnet_mobile", "--batch", "1"])


def test_a_gpu_has_two_plain_loops_and_compiles():
    assert train.contenders_of("cuda", False) == [train.PLAIN, train.PLAIN_TF32, *train.OURS]
    on_cpu = train.contenders_of("cpu", False)
    assert on_cpu[0] == train.PLAIN and not any("compile" in name or "TF32" in name for name in on_cpu)
    assert train.contenders_of("cpu", True) == [train.PLAIN, *train.OURS]


def test_the_plain_loop_computes_float32_in_full_only_where_it_says_so():
    train.set_kernels()
    seen = [train.in_precision(full, lambda: torch.backends.cudnn.allow_tf32)() for full in (True, False)]
    assert seen == [False, True] and not torch.backends.cudnn.allow_tf32
