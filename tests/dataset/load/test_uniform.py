"""Class-uniform sampling: where the classes are, and the order of the epochs drawn from it."""

import itertools
import os
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from dataset import build_dataset, build_loader
from dataset.augment.transform import TrainTransform
from dataset.base import Key
from dataset.load.sampler import StepSampler
from dataset.load.uniform import ClassUniform, Points, find_points, points_of_tile
from tests.conftest import CLASSES, make_experiment
from tool import train
from util import checkpoint

pytestmark = pytest.mark.fast

COUNT, SIZE = 12, (60, 100)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Class 0 everywhere, 1 in half of the pictures, 2 in one; 3 nowhere; a strip is ignored."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for i in range(COUNT):
        label = np.zeros(SIZE, np.uint8)
        label[:, :3] = 255
        if i % 2:
            label[10 + i : 20 + i, 80:95] = 1
        if i == 4:
            label[40:46, 30:37] = 2
        Image.fromarray(rng.integers(0, 256, (*SIZE, 3)).astype(np.uint8)).save(folder / f"{i:02}.png")
        Image.fromarray(label).save(folder / f"{i:02}_label.png")
    (folder / "train.txt").write_text("".join(f"{i:02}.png {i:02}_label.png\n" for i in range(COUNT)))
    return folder


def dataset_of(root, **options):
    return build_dataset("custom", root, classes=["a", "b", "c", "d"], seed=4, **options)


@pytest.fixture(scope="module")
def dataset(root):
    return dataset_of(root, transform=TrainTransform((30, 40), scale=(1, 2), rotate=(0, 0)))


@pytest.fixture(scope="module")
def points(dataset):
    return find_points(dataset, 50, workers=2)


def slow_points(label):
    """Class, and every pixel of it that is nearest to its centre of mass, up to rounding of the centre."""
    for number in np.unique(label[label != 255]):
        places = np.argwhere(label == number)
        distance = np.linalg.norm(places - places.mean(0), axis=1)
        yield number, {tuple(place) for place in places[distance <= distance.min() + 1.0]}


def test_every_class_of_a_tile_has_a_point_near_its_centre():
    rng = np.random.default_rng(2)
    for _ in range(20):
        label = np.repeat(np.repeat(rng.choice([0, 1, 7, 255], (6, 7)), 5, 0), 5, 1).astype(np.uint8)
        found = {number: (row, column) for number, row, column in points_of_tile(label)}
        expected = dict(slow_points(label))
        assert set(found) == set(expected)
        for number, place in found.items():
            assert label[place] == number and place in expected[number]


def test_a_centre_that_lies_on_another_class_is_not_taken():
    label = np.full((21, 21), 3, np.uint8)
    label[5:16, 5:16] = 9  # the centre of class 3 lies in here
    label[10, 10] = 255
    found = {number: (row, column) for number, row, column in points_of_tile(label)}
    assert label[found[3]] == 3 and max(abs(found[3][0] - 10), abs(found[3][1] - 10)) == 6
    assert label[found[9]] == 9 and max(abs(found[9][0] - 10), abs(found[9][1] - 10)) == 1


def test_points_of_a_data_set(dataset, points):
    """60 x 100 in tiles of 50: one row of two tiles."""
    rows = points.table
    for number, index, row, column in rows:
        assert dataset.source.open(index)[1][row, column] == number
    count = Counter(rows[:, 0].tolist())
    assert count == {0: 2 * COUNT, 1: COUNT // 2, 2: 1}
    assert points.absent == ["d"]
    assert rows[rows[:, 0] == 2].tolist() == [[2, 4, 42, 33]]
    assert {(i, c // 50) for n, i, _, c in rows if n == 0} == {(i, t) for i in range(COUNT) for t in (0, 1)}
    order = list(map(tuple, rows[:, :2]))
    assert order == sorted(order)


@pytest.mark.parametrize("tile, tiles", [(1000, 1), (50, 2), (30, 6), (20, 15)])
def test_tiles_cover_the_whole_picture(dataset, tile, tiles):
    rows = find_points(dataset, tile).table
    assert (rows[rows[:, 0] == 0, 1] == 0).sum() == tiles


def held_of(order):
    """(sample, row, column) of the crops that must hold a point."""
    rows = np.column_stack([order.indices, order.points])
    return [tuple(row) for row in rows[rows[:, 1] >= 0].tolist()]


def test_every_class_comes_equally_often(points):
    drawn = ClassUniform(points, 1000, 0.5)
    order = drawn.build_epoch(3, 0)
    assert order.indices.shape == (1000,) and order.points.shape == (1000, 2)
    of_point = {tuple(row[1:]): row[0] for row in points.table.tolist()}
    held = held_of(order)
    assert len(held) == 500
    count = Counter(of_point[each] for each in held)
    assert sorted(count) == [0, 1, 2] and set(count.values()) <= {166, 167}
    for number in (0, 1, 2):  # no point twice before all had their turn
        times = Counter(each for each in held if of_point[each] == number)
        assert len(times) == (points.table[:, 0] == number).sum()
        assert max(times.values()) - min(times.values()) <= 1
    free = order.indices[order.points[:, 0] < 0]
    assert len(set(free.tolist())) == len(free) == 500


def test_a_small_share_goes_round_over_the_epochs(points):
    """Two samples of three classes: chance decides which."""
    drawn = ClassUniform(points, COUNT, 2 / COUNT)
    of_point = {tuple(row[1:]): row[0] for row in points.table.tolist()}
    seen = Counter()
    for epoch in range(60):
        held = held_of(drawn.build_epoch(0, epoch))
        assert len(held) == 2 and len({of_point[each] for each in held}) == 2
        seen.update(of_point[each] for each in held)
    assert min(seen.values()) > 25


@pytest.mark.parametrize("share, held", [(0, 0), (0.3, 4), (1, COUNT)])
def test_an_epoch_is_as_long_as_the_data_set(points, share, held):
    order = ClassUniform(points, COUNT, share).build_epoch(1, 2)
    assert len(order.indices) == COUNT and (order.points[:, 0] >= 0).sum() == held
    if not share:
        assert sorted(order.indices) == list(range(COUNT))


def test_the_order_depends_on_seed_and_epoch_alone(points):
    drawn, again = ClassUniform(points, COUNT, 0.5), ClassUniform(points, COUNT, 0.5)
    later = again.build_epoch(1, 5)
    first = drawn.build_epoch(1, 0)
    for order, same in ((drawn.build_epoch(1, 5), later), (again.build_epoch(1, 0), first)):
        assert np.array_equal(order.indices, same.indices) and np.array_equal(order.points, same.points)
    others = [drawn.build_epoch(1, 1), drawn.build_epoch(2, 0)]
    assert not any(np.array_equal(first.indices, other.indices) for other in others)


def take(loader, count):
    return list(itertools.islice(iter(loader), count))


def same(a, b):
    return all(torch.equal(a[key], b[key]) for key in ("image", "label")) and a["name"] == b["name"]


def test_crops_hold_the_class_they_were_drawn_for(dataset, points):
    of_point = {tuple(row[1:]): row[0] for row in points.table.tolist()}
    uniform = ClassUniform(points, COUNT, 0.5)
    keys = itertools.islice(StepSampler(COUNT, 4, uniform=uniform), 30)
    held = 0
    for key in itertools.chain.from_iterable(keys):
        epoch, index, position, point = key
        sample = dataset[key]
        assert sample["label"].shape == (30, 40) and 0 <= position < COUNT
        if point is not None:
            held += 1
            assert (sample["label"] == of_point[(index, *point)]).any()
    assert held == 60


def test_batches_do_not_depend_on_processes_workers_or_where_the_run_began(dataset, points):
    def loader(**options):
        return build_loader(dataset, 4, seed=7, uniform=ClassUniform(points, COUNT, 0.6), **options)

    whole = take(loader(), 8)
    assert all(same(a, b) for a, b in zip(whole, take(loader(workers=2), 8), strict=True))
    assert all(same(a, b) for a, b in zip(whole[5:], take(loader(start_step=5, workers=1), 3), strict=True))
    shares = [take(loader(rank=rank, world_size=2), 8) for rank in range(2)]
    parts = take(loader(accumulate=2), 16)
    for step, batch in enumerate(whole):
        for halves in ([share[step] for share in shares], parts[2 * step : 2 * step + 2]):
            assert torch.equal(torch.cat([half["image"] for half in halves]), batch["image"])
            assert sum([half["name"] for half in halves], []) == batch["name"]


def test_a_picture_that_comes_twice_in_an_epoch_is_augmented_anew(dataset):
    twice = [dataset[Key(3, 4, position, (42, 33))] for position in (0, 1, 0)]
    assert not torch.equal(twice[0]["image"], twice[1]["image"])
    assert torch.equal(twice[0]["image"], twice[2]["image"])
    assert not torch.equal(dataset[Key(3, 4, 0)]["image"], dataset[Key(3, 4)]["image"])


def test_without_it_nothing_changes(dataset):
    keys = [key for keys in itertools.islice(StepSampler(COUNT, 4), 3) for key in keys]
    assert all(key.position is None and key.point is None for key in keys)


def test_the_file_of_points_is_used_while_the_data_are_the_same(tmp_path, root, dataset, points, monkeypatch):
    file = tmp_path / "folder" / "points.npz"
    first = find_points(dataset, 50, file=file)
    assert np.array_equal(first.table, points.table)
    assert [path.name for path in file.parent.iterdir()] == ["points.npz"]
    read = []
    from dataset.load import uniform

    original = uniform._points_of
    monkeypatch.setattr(uniform, "_points_of", lambda *args: read.append(1) or original(*args))
    assert np.array_equal(find_points(dataset, 50, file=file).table, first.table) and not read
    assert find_points(dataset, 50, file=file).absent == ["d"]
    find_points(dataset, 25, file=file)
    assert len(read) == COUNT  # another tile
    find_points(dataset, 50, file=file)
    changed = root / "04_label.png"
    kept, times = changed.read_bytes(), os.stat(changed)
    try:
        label = np.array(Image.open(changed))
        label[label == 2] = 3
        Image.fromarray(label).save(changed)
        again = find_points(dataset, 50, file=file)
        assert len(read) == 3 * COUNT and again.absent == ["c"]
    finally:
        changed.write_bytes(kept)
        os.utime(changed, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize("damage", [b"", b"no archive", None])
def test_a_damaged_file_of_points_is_written_anew(tmp_path, dataset, points, damage):
    file = tmp_path / "points.npz"
    find_points(dataset, 50, file=file)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    assert np.array_equal(find_points(dataset, 50, file=file).table, points.table)
    assert file.read_bytes() == whole


def test_labels_without_any_class_are_told():
    nothing = Points(np.zeros((0, 4), np.int32), ("a", "b"))
    assert nothing.absent == ["a", "b"]
    with pytest.raises(ValueError, match="no label holds a pixel of any class"):
        ClassUniform(nothing, 5, 0.5)


@pytest.mark.parametrize(
    "make", [lambda points, _: ClassUniform(points, 5, 1.5), lambda _, dataset: find_points(dataset, 0)]
)
def test_arguments_out_of_range(points, dataset, make):
    with pytest.raises(ValueError, match="1.5 is no share|0 is no size"):
        make(points, dataset)


def test_a_run_with_everything_switched_on_continues_exactly(tmp_path, data, monkeypatch):
    options = [
        "loader.uniform=0.5",
        "augment.photometric=true",
        "data.colors=[[1, 2, 3], [4, 5, 6], [7, 8, 9], [9, 9, 9]]",
        f"data.classes=[{', '.join(CLASSES)}, cow]",
    ]
    experiment = make_experiment(
        tmp_path,
        data,
        train={"epochs": 2, "val_every": 0},
        loss={"name": "ohem", "options": {"min_kept": 500}, "extra": {"dice": 0.5}},
    )

    def run(folder, *overrides):
        assert train.main(["--config", str(experiment), "--exp", str(folder), *options, *overrides]) == 0
        return checkpoint.load(folder / "model" / "last.pth")["model"]

    class Killed(Exception):
        pass

    def save_then_die(*args):
        original(*args)
        raise Killed

    whole = run(tmp_path / "whole")
    original = train.save
    monkeypatch.setattr(train, "save", save_then_die)
    with pytest.raises(Killed):
        run(tmp_path / "halves")
    monkeypatch.setattr(train, "save", original)
    halves = run(tmp_path / "halves", "loader.workers=2")
    assert all(torch.equal(value, halves[name]) for name, value in whole.items())
    logged = (tmp_path / "whole" / "train.log").read_text()
    assert "no label holds the classes cow" in logged and " dice " in logged
    assert (tmp_path / "whole" / "uniform.npz").is_file()
