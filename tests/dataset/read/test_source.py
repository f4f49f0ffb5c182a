"""The memory cache, threads and batches filled in place give the samples that the files give, bit for bit."""

import gc
import itertools
import os
import signal
import threading
import time
import weakref

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from dataset import build_dataset, build_eval_loader, build_loader
from dataset.augment.transform import TrainTransform
from dataset.load import batch as batch_module
from dataset.load import loader as loader_module
from dataset.load.loader import worker_kind
from dataset.load.threads import ForkGate, run_ahead
from dataset.read import cache
from dataset.read.cache import MemoryCache, keep_in_memory

COUNT = 7


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Pictures of different sizes; the last one is a JPEG that is stored lying, whose label stands upright."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    lines = []
    for i in range(COUNT):
        size, suffix = (24 + i, 33 - i), "jpg" if i == COUNT - 1 else "png"
        exif = Image.Exif()
        exif[0x0112] = 6
        options = {"exif": exif} if suffix == "jpg" else {}
        label = rng.integers(0, 3, size).astype(np.uint8)
        Image.fromarray(rng.integers(0, 256, (*size, 3)).astype(np.uint8)).save(folder / f"{i}.{suffix}", **options)
        Image.fromarray(label.T if suffix == "jpg" else label).save(folder / f"{i}_label.png")
        lines.append(f"{i}.{suffix} {i}_label.png\n")
    (folder / "train.txt").write_text("".join(lines))
    return folder


def make(root, **options):
    return build_dataset("custom", root, classes=["x", "y", "z"], seed=4, **options)


def same(a, b):
    return torch.equal(a["image"], b["image"]) and torch.equal(a["label"], b["label"]) and a["name"] == b["name"]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_cache_gives_the_samples_of_the_files(root, workers):
    files, cached = make(root), make(root)
    size = keep_in_memory([cached])
    assert size >= sum(24 * 33 * 4 for _ in range(COUNT))
    cached.source.prepare(workers)
    assert cached.source.filled.all()
    cached.source.source = None  # the files are not asked again
    for index in range(COUNT):
        assert same(files[index], cached[index])
        assert all(np.array_equal(*pair) for pair in zip(files.read(index), cached.read(index), strict=True))


def test_what_is_done_to_a_cached_sample_stays_outside_the_cache(root):
    cached = make(root)
    keep_in_memory([cached])
    cached.source.prepare(0)
    before = cached[0]["image"].clone()
    cached[0]["image"].zero_()
    cached.read(0)[1][:] = 9
    assert torch.equal(cached[0]["image"], before) and cached[0]["label"].max() < 3
    with pytest.raises(ValueError, match="read-only"):
        cached.source.open(0)[0][:] = 0


def test_a_file_that_cannot_be_cached_raises_its_own_error_when_its_turn_comes(root, tmp_path):
    for path in root.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    bad = tmp_path / "2_label.png"
    Image.fromarray(np.full((26, 31), 7, np.uint8)).save(bad)
    cached = make(tmp_path)
    keep_in_memory([cached])
    cached.source.prepare(2)
    assert cached.source.filled.sum() == COUNT - 1
    with pytest.raises(ValueError, match=f"^{bad}: value 7 is not in"):
        list(build_eval_loader(cached, range(4), workers=2))


def test_a_cache_that_does_not_fit_is_refused_with_the_arithmetic(root, monkeypatch):
    monkeypatch.setattr(cache, "free_memory", lambda: 60_000)
    keep_in_memory([make(root)])
    with pytest.raises(ValueError, match="14 pictures are .* x 3 processes = .*more than 80% of .*loader.packed"):
        keep_in_memory([make(root), make(root)], processes=3)


def test_free_memory_is_a_part_of_this_machine():
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < cache.free_memory() <= total


def test_workers_are_threads_where_nothing_is_decoded(root):
    files, cached = make(root), make(root)
    cached.source = MemoryCache(cached)
    assert worker_kind(files) == "processes" and worker_kind(cached) == "threads"
    assert worker_kind(files, "threads") == "threads" and worker_kind(cached, "processes") == "processes"
    with pytest.raises(ValueError, match="auto, threads or processes"):
        worker_kind(files, "thread")


@pytest.mark.parametrize("loader", ["threads", "processes"])
@pytest.mark.parametrize("in_memory", [False, True])
def test_batches_do_not_depend_on_the_workers_or_the_source(root, loader, in_memory):
    transform = TrainTransform((16, 20), jitter=0.3, photometric=True)
    alone = itertools.islice(build_loader(make(root, transform=transform), 3, seed=1), 7)
    data = make(root, transform=transform)
    if in_memory:
        keep_in_memory([data])
    helped = itertools.islice(build_loader(data, 3, seed=1, workers=2, loader=loader), 7)
    for one, other in zip(alone, helped, strict=True):
        assert same(one, other) and one["step"] == other["step"]
        assert other["image"].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("jitter, photometric", [(0.0, False), (0.3, False), (0.0, True), (0.3, True)])
def test_writing_into_given_arrays_changes_nothing(jitter, photometric):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (50, 60, 3)).astype(np.uint8)
    label = rng.integers(0, 5, (50, 60)).astype(np.uint8)
    transform = TrainTransform((30, 41), jitter=jitter, photometric=photometric)
    for seed in range(12):
        fresh = transform(image, label, np.random.default_rng(seed))
        batch = np.full((3, 30, 41, 3), 7, np.uint8), np.full((3, 30, 41), 7, np.uint8)
        given = transform(image, label, np.random.default_rng(seed), out=(batch[0][1], batch[1][1]))
        for one, other, whole in zip(fresh, given, batch, strict=True):
            assert np.array_equal(one, other) and np.array_equal(one, whole[1])
            assert one.flags.c_contiguous and (whole[[0, 2]] == 7).all()


@pytest.mark.parametrize("loader", ["threads", "processes"])
@pytest.mark.parametrize("kind", ["filled", "stacked", "single"])
def test_memory_of_a_batch_is_free_as_soon_as_it_is_dropped(tmp_path, monkeypatch, loader, kind):
    """Without Python's search for cycles, which comes seldom: batches are large and few."""
    for i in range(COUNT):
        Image.fromarray(np.zeros((24, 30, 3), np.uint8)).save(tmp_path / f"{i}.png")
        Image.fromarray(np.zeros((24, 30), np.uint8)).save(tmp_path / f"{i}_label.png")
    (tmp_path / "train.txt").write_text("".join(f"{i}.png {i}_label.png\n" for i in range(COUNT)))
    data = make(tmp_path, transform=TrainTransform((16, 20)) if kind == "filled" else None)
    began = []
    name = "Single" if kind == "single" else f"{kind.title()}Batch"
    module = loader_module if kind == "single" else batch_module
    monkeypatch.setattr(module, name, counted(getattr(module, name), began))
    workers = 2 if loader == "threads" else 0  # without workers the same code runs where it can be watched
    if kind == "single":
        batches = iter(build_eval_loader(data, list(range(COUNT)) * 4, workers, loader))
    else:
        batches = iter(build_loader(data, 2, workers=workers, loader=loader))
    gc.collect()
    gc.disable()
    try:
        for _ in range(20):
            next(batches)
        assert len(began) >= 20 and sum(reference() is not None for reference in began) <= 4
    finally:
        gc.enable()


def counted(kind, began):
    """The class `kind`, whose objects leave a weak reference in `began`."""

    class Counted(kind):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            began.append(weakref.ref(self))

    return Counted


class Item:
    """A key whose jobs note that they ran."""

    def __init__(self, key, ran, error=None):
        self.key, self.ran, self.error = key, ran, error
        self.jobs = [self._job, self._job]

    def _job(self):
        if self.error is not None:
            raise self.error
        self.ran.append(self.key)

    def finish(self):
        return self.key


def test_no_more_than_the_agreed_number_is_begun_ahead():
    begun, ran = [], []

    def begin(key):
        begun.append(key)
        return Item(key, ran)

    results = run_ahead(itertools.count(), begin, workers=3, ahead=2)
    for number in range(5):
        assert next(results) == number and len(begun) == number + 3
    results.close()
    time.sleep(0.05)
    assert len(begun) == 7
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("loader")]


def test_the_first_error_in_order_is_raised_and_ends_the_threads():
    error = ValueError("third.png: damaged")
    results = run_ahead(range(9), lambda key: Item(key, [], error if key >= 2 else None), workers=2, ahead=4)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="third.png: damaged") as caught:
        next(results)
    assert caught.value is error
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("loader")]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_ends_its_iteration():
    """OpenCV's threads, of which it has heard from its parent, do not run in it."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(4)
    cv2.GaussianBlur(cv2.resize(np.ones((600, 600, 3), np.uint8), (1200, 1200)), (5, 5), 0)  # starts them
    cv2.setNumThreads(0)
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        os._exit(list(run_ahead(range(3), lambda key: Item(key, []), workers=2, ahead=1)) != [0, 1, 2])
    cv2.setNumThreads(before)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_process_forks_only_between_jobs():
    gate, running, at_fork = ForkGate(), threading.Event(), []

    def job():
        with gate:
            running.set()
            time.sleep(0.1)
            at_fork.append("done")

    thread = threading.Thread(target=job)
    thread.start()
    running.wait()
    child = os.fork()
    if child == 0:
        with gate:  # the child's gate is open
            os._exit(len(at_fork))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    thread.join()
    with gate:
        pass
