"""The order of the samples and the loaders: nothing depends on workers, processes, or where a run began."""

import gc
import itertools
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from dataset import build_dataset, build_eval_loader, build_loader
from dataset.augment.transform import TrainTransform
from dataset.base import Key
from dataset.load import loader
from dataset.load.sampler import StepSampler, epoch_order

COUNT = 13


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    lines = []
    for i in range(COUNT):
        Image.fromarray(rng.integers(0, 256, (24, 32, 3)).astype(np.uint8)).save(folder / f"{i:02}.png")
        Image.fromarray(rng.integers(0, 3, (24, 32)).astype(np.uint8)).save(folder / f"{i:02}_label.png")
        lines.append(f"{i:02}.png {i:02}_label.png\n")
    (folder / "train.txt").write_text("".join(lines))
    (folder / "test.txt").write_text("".join(line.split()[0] + "\n" for line in lines))
    return folder


@pytest.fixture(scope="module")
def dataset(root):
    return build_dataset("custom", root, classes=["x", "y", "z"], seed=4, transform=TrainTransform((16, 20)))


def take(loader, count):
    batches = list(itertools.islice(iter(loader), count))
    assert len(batches) == count
    return batches


def same(a, b):
    return torch.equal(a["image"], b["image"]) and torch.equal(a["label"], b["label"]) and a["name"] == b["name"]


def slow_batches(root, seed, size, count):
    """Batch after batch as the docstrings promise: read with Pillow, ordered by (seed, epoch), augmented by (seed,
    epoch, index); no data set, no sampler and no loader."""
    transform, steps = TrainTransform((16, 20)), COUNT // size
    for step in range(count):
        epoch, place = divmod(step, steps)
        chosen = np.random.default_rng([2, seed, epoch]).permutation(COUNT)[place * size :][:size]
        pairs = []
        for i in chosen:
            image, label = (np.asarray(Image.open(root / f"{i:02}{end}.png")) for end in ("", "_label"))
            pairs.append(transform(image, label, np.random.default_rng([1, 4, epoch, i])))
        yield {
            "image": torch.from_numpy(np.stack([image for image, _ in pairs]).transpose(0, 3, 1, 2)),
            "label": torch.from_numpy(np.stack([label for _, label in pairs])),
            "name": [f"{i:02}" for i in chosen],
        }


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_the_obvious_way(root, dataset, workers):
    batches = take(build_loader(dataset, 4, workers=workers, seed=9), 7)
    for batch, expected in zip(batches, slow_batches(root, 9, 4, 7), strict=True):
        assert same(batch, expected) and batch.keys() == expected.keys()
        assert batch["image"].shape == (4, 3, 16, 20) and batch["image"].dtype == batch["label"].dtype == torch.uint8
        assert batch["image"].is_contiguous(memory_format=torch.channels_last)


def test_epochs_are_different_permutations():
    orders = [epoch_order(1, epoch, 50) for epoch in range(5)] + [epoch_order(2, 0, 50)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == 6
    seen = Counter(i for keys in itertools.islice(StepSampler(12, 4), 3) for _, i, *_ in keys)
    assert seen == dict.fromkeys(range(12), 1)


def test_shares_of_the_processes_make_up_the_global_batch(dataset):
    whole = take(build_loader(dataset, 6, seed=1), 5)
    shares = [take(build_loader(dataset, 6, rank=rank, world_size=2, seed=1), 5) for rank in range(2)]
    for one, parts in zip(whole, zip(*shares, strict=True), strict=True):
        assert torch.equal(one["image"], torch.cat([part["image"] for part in parts]))
        assert torch.equal(one["label"], torch.cat([part["label"] for part in parts]))
        assert one["name"] == [name for part in parts for name in part["name"]]


def test_a_micro_batch_of_all_processes_is_one_of_the_batch(dataset):
    """Batch norm over all processes sees the pictures that it sees on one process, in every micro-batch."""
    alone = take(build_loader(dataset, 12, seed=1, accumulate=3), 3)
    shares = [take(build_loader(dataset, 12, rank, 2, seed=1, accumulate=3), 3) for rank in range(2)]
    whole = take(build_loader(dataset, 12, seed=1), 1)[0]
    assert torch.equal(whole["image"], torch.cat([one["image"] for one in alone]))
    for one, *parts in zip(alone, *shares, strict=True):
        assert torch.equal(one["image"], torch.cat([part["image"] for part in parts]))


def test_workers_whose_batches_have_no_room_in_shared_memory_are_refused_with_both_remedies(dataset, monkeypatch):
    """Docker gives 64 MB unless told otherwise."""
    room = shutil.disk_usage("/")._replace(free=64_000_000)
    monkeypatch.setattr(loader.shutil, "disk_usage", lambda place: room)
    monkeypatch.setattr(loader, "SHARED", Path("/"))
    loader.check_shared_memory(1024 * 1024 * 4, workers=7, processes=1)  # 15 batches of 4.2 MB: 62.9 MB
    with pytest.raises(ValueError, match=r"64 MB free.*2 x 7 loader workers need 126 MB.*--shm-size.*loader.workers=0"):
        loader.check_shared_memory(1024 * 1024 * 4, workers=7, processes=2)
    loader.check_shared_memory(1 << 40, workers=0, processes=2)


@pytest.mark.parametrize("start, workers", [(1, 0), (3, 2), (5, 0)])
def test_resumed_run_continues_the_full_run(dataset, start, workers):
    full = take(build_loader(dataset, 4, seed=2, accumulate=2), 16)
    rest = build_loader(dataset, 4, seed=2, accumulate=2, start_step=start, workers=workers)
    tail = take(rest, 16 - 2 * start)
    assert all(same(a, b) for a, b in zip(full[2 * start :], tail, strict=True))


def test_every_iteration_begins_at_the_start_step(dataset):
    loader = build_loader(dataset, 4, seed=2, start_step=4)
    assert same(take(loader, 2)[0], take(loader, 1)[0])


def test_augmentation_depends_on_seed_epoch_and_index_alone(root, dataset):
    torch.manual_seed(0)
    first = dataset[Key(2, 5)]
    torch.manual_seed(1)
    np.random.default_rng()
    assert torch.equal(first["image"], dataset[Key(2, 5)]["image"])
    assert not torch.equal(first["image"], dataset[Key(3, 5)]["image"])
    assert torch.equal(dataset[5]["image"], dataset[Key(0, 5)]["image"])
    other = build_dataset("custom", root, classes=["x", "y", "z"], seed=5, transform=TrainTransform((16, 20)))
    assert not torch.equal(first["image"], other[Key(2, 5)]["image"])


def test_a_pickled_data_set_gives_the_same_samples(root, dataset):
    """Workers that are started afresh, not forked, receive it so."""
    by_color = build_dataset("custom", root, classes=["x"], label_map={0: 0, 1: 0, 2: 0, "9,9,9": 255})
    for original in (dataset, by_color):
        assert same(original[Key(3, 2)], pickle.loads(pickle.dumps(original))[Key(3, 2)])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"batch_size": 6, "world_size": 4}, "6 does not divide by 4 processes x 1 micro-batches = 4"),
        ({"batch_size": 6, "world_size": 2, "accumulate": 2}, "2 processes x 2 micro-batches = 4"),
        ({"batch_size": 0}, "the next that does is 1"),
        ({"batch_size": 16, "world_size": 2}, "16 exceeds the data set, which has 13 samples; take at most 12"),
        ({"batch_size": 14, "world_size": 14}, "a step has 14 shares, use fewer"),
    ],
)
def test_batch_sizes_that_cannot_be_shared(dataset, options, message):
    with pytest.raises(ValueError, match=message):
        build_loader(dataset, **options)


def test_training_needs_labels(root):
    unlabelled = build_dataset("custom", root, classes=["x"], split="test")
    with pytest.raises(ValueError, match="test.txt: 13 of 13 lines name no label"):
        build_loader(unlabelled, 2)


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_gives_single_samples_in_order(root, workers):
    dataset = build_dataset("custom", root, classes=["x", "y", "z"])
    loader = build_eval_loader(dataset, [5, 0, 12, 7], workers=workers)
    for _ in range(2):
        samples = list(loader)
        assert len(loader) == 4 and [sample["name"] for sample in samples] == ["05", "00", "12", "07"]
        assert torch.equal(samples[2]["image"], dataset[12]["image"])
        assert samples[0]["label"].shape == (24, 32)
    unlabelled = build_dataset("custom", root, classes=["x"], split="test")
    assert "label" not in next(iter(build_eval_loader(unlabelled, [1], workers=workers)))


@pytest.mark.parametrize("workers", [0, 2])
def test_worker_errors_arrive_as_they_were_raised(tmp_path, workers):
    for i in range(4):
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / f"{i}.png")
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / f"{i}_label.png")
    (tmp_path / "train.txt").write_text("".join(f"{i}.png {i}_label.png\n" for i in range(4)))
    dataset = build_dataset("custom", tmp_path, classes=["x"], transform=TrainTransform((8, 8)))
    bad = tmp_path / "2_label.png"
    Image.fromarray(np.full((8, 8), 7, np.uint8)).save(bad)
    for run in (
        lambda: take(build_loader(dataset, 2, workers=workers), 2),
        lambda: list(build_eval_loader(dataset, range(4), workers=workers)),
    ):
        with pytest.raises(ValueError) as caught:
            run()
        assert str(caught.value).startswith(f"{bad}: value 7 is not in") and "\n" not in str(caught.value)
    bad.unlink()
    with pytest.raises(FileNotFoundError) as caught:
        list(build_eval_loader(dataset, range(4), workers=workers))
    assert str(caught.value).startswith(f"{tmp_path}/train.txt:3: 2_label.png does not exist")


class Fatal(Dataset):
    """Sends its own process a signal at the third sample."""

    def __init__(self, number):
        self.number = number

    def __getitem__(self, index):
        if index == 2:
            os.kill(os.getpid(), self.number)
        return torch.zeros(2**18)


@pytest.mark.parametrize(
    "number, message",
    [
        (signal.SIGKILL, r"worker \(process \d+\) ended, SIGKILL: by the system for lack of memory"),
        (signal.SIGBUS, r"ended, SIGBUS: /dev/shm is full\. Give it more"),
        (signal.SIGSTOP, r"worker gave nothing for 2 s: process \d+ was stopped \(SIGSTOP\); the same"),
    ],
    ids=["killed", "no memory", "stopped"],
)
def test_a_worker_that_ends_or_stops_is_told_and_leaves_no_process(monkeypatch, number, message):
    monkeypatch.setenv("LOADER_TIMEOUT", "2")
    monkeypatch.setattr(loader, "GRACE", 1.0)
    others = multiprocessing.active_children()
    with pytest.raises(loader.WorkerLost, match=message):
        list(build_eval_loader(Fatal(number), range(8), workers=2))
    gc.collect()
    left = [child for child in multiprocessing.active_children() if child not in others]
    for child in left:
        child.join(20)
    assert not any(child.is_alive() for child in left)


@pytest.mark.parametrize("number", sorted(loader.GROUP | {signal.SIGTERM}), ids=lambda number: number.name)
def test_a_signal_to_the_group_ends_no_worker_that_is_starting(monkeypatch, number):
    """Until it has said what it does at one."""
    starting = multiprocessing.Process.start
    before = signal.signal(number, lambda *_: None)

    def hit(process):
        starting(process)
        subprocess.run(["kill", f"-{int(number)}", str(process.pid)], check=True)  # as from outside

    monkeypatch.setattr(multiprocessing.Process, "start", hit)
    try:
        assert len(list(build_eval_loader(Fatal(0), range(8), workers=2))) == 8
    finally:
        signal.signal(number, before)


def test_a_worker_that_dies_while_it_hands_a_batch_over_is_told_as_one_that_died(monkeypatch):
    """What arrives then is a broken connection."""
    iterate = DataLoader.__iter__

    def broken(self):
        return then_broken(iterate(self))

    def then_broken(iterator):
        yield from itertools.islice(iterator, 2)
        raise ConnectionResetError(104, "Connection reset by peer")

    monkeypatch.setattr(DataLoader, "__iter__", broken)
    with pytest.raises(loader.WorkerLost, match="ended, SIGKILL"):
        list(build_eval_loader(Fatal(signal.SIGKILL), range(8), workers=1))


@pytest.mark.parametrize("text", ["-1", "x", "nan", "1e300"])
def test_the_time_that_a_batch_may_take_is_a_number(dataset, monkeypatch, text):
    monkeypatch.setenv("LOADER_TIMEOUT", text)
    with pytest.raises(ValueError, match=f"LOADER_TIMEOUT={text}: expected a number of seconds"):
        build_loader(dataset, 4, workers=1)


def test_training_needs_a_transform(root):
    """Which makes samples of one size of images of any size."""
    with pytest.raises(ValueError, match="give the data set a transform with a crop"):
        build_loader(build_dataset("custom", root, classes=["x", "y", "z"]), 2)


@pytest.mark.gpu
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_for_a_gpu_are_page_locked(dataset, workers):
    pinned, pageable = (build_loader(dataset, 4, workers=workers, pin_memory=pin) for pin in (True, False))
    for found, plain in zip(take(pinned, 4), take(pageable, 4), strict=True):
        assert found["image"].is_pinned() and found["label"].is_pinned()
        assert same(found, plain) and found["image"].stride() == plain["image"].stride()
