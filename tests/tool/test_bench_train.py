"""`bench train`: both loops train the same, and the paper model is that of a calculation by hand."""

import json
from pathlib import Path

import pytest
import torch

from tool import bench
from tool.bench import train, train_grow
from tool.shared.experiment import find_experiment, load_experiment

SMALL = ["model.weights=none", "train.ema=null", "train.batch_size=2", "train.accumulate=1"]


def task_of(experiment, *overrides):
    path = str(find_experiment("camvid", experiment))
    return train.Task(load_experiment(path, [*SMALL, *overrides])[0], 11, 2, (64, 96), "cpu", 1)


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


def test_the_stages_are_those_of_the_step(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "OURS", {train.BEST: train.OURS[train.BEST]})
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
    assert all(stage in shown for stage in train.STAGES)
    assert [row["name"] for row in value["tables"][0]["rows"]] == [train.PLAIN, train.BEST]
    for seconds in value["figures"]["stages, seconds a picture"].values():
        assert list(seconds) == list(train.STAGES) and min(seconds.values()) > 0


def test_one_picture_is_refused():
    with pytest.raises(ValueError, match="--batch 1"):
        bench.main(["train", "camvid", "sfnet_mobile", "--batch", "1"])


def test_bytes_of_an_all_reduce_by_hand():
    # Two GPUs exchange each half of the gradients twice; with very many each sends them all twice.
    assert train_grow.all_reduce_bytes(2, 100) == 100
    assert train_grow.all_reduce_bytes(8, 800) == 1400
    assert train_grow.all_reduce_bytes(10**9, 100) == pytest.approx(200)


def test_bandwidths_by_hand():
    task = task_of("sfnet_mobile", f"data.root={Path('/nowhere')}")
    parameters = [torch.zeros(1000, 1000, requires_grad=True), torch.zeros(7)]
    batch = [torch.zeros(2, 3, 64, 96, dtype=torch.uint8), torch.zeros(2, 64, 96, dtype=torch.uint8)]
    model = train_grow.cluster(task, {"forward": 1.0, "backward": 3.0}, parameters, batch)
    assert model["gradient bytes"] == 4_000_000 and model["bytes a picture, host to device"] == 4 * 64 * 96
    row = next(row for row in model["rows"] if row["GPUs"] == 8 and row["seconds a step"] == 0.5)
    assert row["network, GB/s a GPU"] == pytest.approx(2 * 7 / 8 * 4e6 / (0.75 * 0.5) / 1e9)
    assert row["host to device, GB/s a GPU"] == pytest.approx(2 * 4 * 64 * 96 / 0.5 / 1e9)
    assert row["storage, GB/s in all, files"] is None


def test_a_gpu_has_two_plain_loops_and_compiles():
    assert train.contenders_of("cuda", False) == [train.PLAIN, train.PLAIN_TF32, *train.OURS]
    on_cpu = train.contenders_of("cpu", False)
    assert on_cpu[0] == train.PLAIN and not any("compile" in name or "TF32" in name for name in on_cpu)
    assert train.contenders_of("cpu", True) == [train.PLAIN, *train.OURS]


def test_the_plain_loop_computes_float32_in_full_only_where_it_says_so():
    train.set_kernels()
    seen = [train.in_precision(full, lambda: torch.backends.cudnn.allow_tf32)() for full in (True, False)]
    assert seen == [False, True] and not torch.backends.cudnn.allow_tf32


def test_growth_is_a_pictures_share():
    """Steps that take as many seconds as there are numbers in the batch."""
    task, built = task_of("sfnet_mobile"), []

    def build(each, options):
        built.append(each)
        return None, (each.batch * each.size[0] * each.size[1] * each.classes)

    tables = train_grow.growth(
        task,
        {},
        build,
        3,
        lambda steps, rounds, warmup: {name: [float(seconds)] * rounds for name, seconds in steps.items()},
    )
    size, classes, batch = tables
    assert [row.name for row in size.rows] == ["64 x 64", "64 x 72", "64 x 96"]
    assert size.rows[2].ratio == pytest.approx(64 / 96)
    assert [row.name for row in classes.rows] == ["2", "19", "150"] and classes.rows[1].ratio == pytest.approx(2 / 19)
    assert all(row.ratio == 1 for row in batch.rows) and [each.batch for each in built[-3:]] == [2, 4, 8]
    assert size.facts["64 x 96"]["ns a pixel"] == pytest.approx(1e9 * 11)
