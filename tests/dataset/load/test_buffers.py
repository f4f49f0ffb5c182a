"""Memory of batches: used again when nothing refers to it any more, never before; and what loaders do with it."""

import gc
import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from dataset import build_dataset, build_loader
from dataset.augment.transform import TrainTransform
from dataset.load import batch as batch_module
from dataset.load import buffers
from dataset.load import loader as loader_module
from dataset.load.buffers import Buffers

COUNT, CLASSES = 8, ("x", "y", "z")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for i in range(COUNT):
        Image.fromarray(rng.integers(0, 256, (24, 32 + i, 3)).astype(np.uint8)).save(folder / f"{i}.png")
        Image.fromarray(rng.integers(0, 3, (24, 32 + i)).astype(np.uint8)).save(folder / f"{i}_label.png")
    (folder / "train.txt").write_text("".join(f"{i}.png {i}_label.png\n" for i in range(COUNT)))
    return folder


def make(root, transform=None):
    return build_dataset("custom", root, classes=CLASSES, transform=transform or TrainTransform((16, 20)))


@pytest.mark.parametrize(
    "keep",
    [
        lambda t: t[1],
        lambda t: t.permute(1, 0),
        lambda t: t.numpy()[2:],
        lambda t: t.view(-1)[5:7],
        lambda t: torch.from_numpy(t.numpy()),
    ],
)
def test_memory_is_lent_again_only_when_no_view_is_left(keep):
    lend = Buffers(most=2)
    first = lend.take((3, 4))
    place = first.data_ptr()
    first.copy_(torch.arange(12).view(3, 4))
    view = keep(first)
    del first
    other = lend.take((3, 4))
    assert other.data_ptr() != place
    before = torch.as_tensor(view).clone()
    other.fill_(99)
    assert torch.equal(torch.as_tensor(view), before)
    del view
    assert lend.take((4, 3)).data_ptr() == place  # of the same size, whatever its shape


def test_no_more_than_the_agreed_number_is_kept():
    lend = Buffers(most=2)
    lent = [lend.take((5,)) for _ in range(6)]
    assert len({tensor.data_ptr() for tensor in lent}) == 6
    del lent
    assert [memory.size for memory in lend.free[5]] == [5, 5]


def test_memory_outlives_what_lent_it():
    tensor = Buffers(most=1).take((1000,)).fill_(7)
    gc.collect()
    assert tensor.sum() == 7000


@pytest.mark.parametrize("workers", [0, 2])
def test_a_consumer_may_keep_batches_or_drop_them(root, workers):
    """Kept ones never change; of dropped ones a loader needs the memory of few."""
    kept = list(itertools.islice(build_loader(make(root), 2, workers=workers, loader="threads"), 12))
    batches = iter(build_loader(make(root), 2, workers=workers, loader="threads"))
    places = set()
    for before in kept:
        batch = next(batches)
        assert torch.equal(batch["image"], before["image"]) and torch.equal(batch["label"], before["label"])
        places.add(batch["image"].data_ptr())
    ahead = loader_module.AHEAD * workers // 2
    assert len(places) <= ahead + 2 + workers < len(kept)  # a thread may drop its last job late


@pytest.mark.parametrize("workers, batch, ahead", [(2, 8, 1), (8, 2, 8), (3, 4, 2)])
def test_threads_have_work_ahead_and_no_more(root, monkeypatch, workers, batch, ahead):
    """Two samples a thread, and at least a batch."""
    given = []
    monkeypatch.setattr(loader_module, "run_ahead", lambda *arguments: given.append(arguments) or iter(()))
    list(build_loader(make(root), batch, workers=workers, loader="threads"))
    assert given[0][2:] == (workers, ahead)


@pytest.fixture
def page_locked(monkeypatch):
    """Stands in for page-locked memory, which needs a GPU; the addresses of what was taken."""
    taken = {}

    def new(shape):
        tensor = torch.empty(shape, dtype=torch.uint8)
        taken[tensor.data_ptr()] = tensor
        return tensor

    for module in (buffers, loader_module, batch_module):
        monkeypatch.setattr(module, "new_pinned", new)
    return taken


@pytest.mark.parametrize("kind", ["host"])
def test_threads_write_into_page_locked_memory(root, page_locked, kind):
    """Whole batches, and the pictures of any size that the device augments."""
    transform = TrainTransform((16, 20))
    pinned = iter(build_loader(make(root, transform), 2, workers=2, loader="threads", pin_memory=True))
    plain = iter(build_loader(make(root, transform), 2, workers=2, loader="threads"))
    for _ in range(6):
        found, expected = next(pinned), next(plain)
        for name in ("image", "label"):
            pairs = zip(*([each[name]] if kind == "host" else each[name] for each in (found, expected)), strict=True)
            for tensor, wanted in pairs:
                assert tensor.data_ptr() in page_locked and torch.equal(tensor, wanted)
                assert tensor.stride() == wanted.stride()
        assert found["name"] == expected["name"] and found.get("drawn") == expected.get("drawn")


@pytest.mark.gpu
@pytest.mark.parametrize("loader", ["threads", "processes"])
@pytest.mark.parametrize("kind", ["host"])
def test_on_a_gpu_all_batches_are_page_locked(root, loader, kind):
    transform = TrainTransform((16, 20))
    for workers in (0, 2):
        batches = iter(build_loader(make(root, transform), 2, workers=workers, loader=loader, pin_memory=True))
        for _ in range(4):
            batch = next(batches)
            for name in ("image", "label"):
                parts = batch[name] if kind == "device" else [batch[name]]
                assert all(tensor.is_pinned() and tensor.dtype == torch.uint8 for tensor in parts)
        del batches


class Frozen:
    """A transform that says whether Python's collector leaves the parent's objects alone."""

    crop, mean = (4, 4), (0.0, 0.0, 0.0)

    def __call__(self, image, label, rng, out):
        for array in out:
            array[:] = gc.get_freeze_count() > 0
        return out


def test_the_collector_of_a_worker_leaves_the_memory_of_its_parent_shared(root):
    batch = next(iter(build_loader(make(root, Frozen()), 2, workers=1, loader="processes")))
    assert batch["image"].eq(1).all() and gc.get_freeze_count() == 0
