"""`loader.on_error`: what happens to a training sample that cannot be read."""

import shutil

import cv2
import numpy as np
import pytest
import torch

from dataset import build_dataset, build_loader
from dataset.augment.device import DeviceTransform
from dataset.augment.transform import TrainTransform
from dataset.load.uniform import ClassUniform, find_points
from dataset.prepare.check import check_dataset
from dataset.read.cache import keep_in_memory
from dataset.read.skip import Skips
from tests.conftest import CLASSES, make_data, make_experiment
from tool import train
from util import checkpoint
from util.loss import SegLoss

MEAN = (123.675, 116.28, 103.53)


@pytest.fixture
def broken(tmp_path):
    """16 samples, of which 3 have a picture cut short, 5 a label with a strange id, and 7 a label of another size."""
    data = make_data(tmp_path / "data")
    picture = data / "image" / "train_003.png"
    picture.write_bytes(picture.read_bytes()[:500])
    label = data / "label" / "train_005.png"
    cv2.imwrite(str(label), np.full((64, 96), 77, np.uint8))
    cv2.imwrite(str(data / "label" / "train_007.png"), np.zeros((5, 5), np.uint8))
    return data


BAD = ("train_003", "train_005", "train_007")


def training_set(data):
    transform = TrainTransform((48, 64), (0.8, 1.25), (-5.0, 5.0), 0.5, 0.5, 0.5, (0, 0, 0, 0), MEAN)
    return build_dataset("custom", data, None, "train", transform, 0, CLASSES)


def batches(data, tmp_path, count=8, prepare=lambda dataset: None, limit=3, **options):
    """The first batches, and what was skipped."""
    dataset = training_set(data)
    dataset.skip_errors = True
    prepare(dataset)
    said = []
    skips = Skips(dataset.list_file, limit, tmp_path / "skipped.txt", said.append)
    iterator = iter(build_loader(dataset, 4, skips=skips, **options))
    found = [next(iterator) for _ in range(count)]
    return found, said


def test_the_run_stops_at_a_bad_file_by_default(broken):
    with pytest.raises(ValueError, match="train_00[357].png"):
        for _, _batch in zip(range(4), build_loader(training_set(broken), 4), strict=False):
            pass


def test_a_bad_sample_is_void_in_its_place_and_the_others_are_as_ever(broken, tmp_path):
    found, said = batches(broken, tmp_path)
    shutil.rmtree(broken)
    truth = build_loader(training_set(make_data(broken)), 4)  # the same pictures, all good
    seen = []
    for batch, good in zip(found, truth, strict=False):
        assert batch["name"] == good["name"] and "skipped" not in batch
        for place, name in enumerate(batch["name"]):
            image, label = batch["image"][place], batch["label"][place]
            if name in BAD:
                seen.append(name)
                assert (label == 255).all()
                assert (image == torch.tensor(np.round(MEAN)).to(torch.uint8)[:, None, None]).all()
            else:
                assert torch.equal(image, good["image"][place]) and torch.equal(label, good["label"][place])
    assert sorted(seen) == sorted([*BAD, *BAD]), "once in each of the two epochs"
    assert len(said) == 3, "but told once"
    lines = (tmp_path / "skipped.txt").read_text().splitlines()
    assert len(lines) == 3 and all(any(name in line for line in lines) for name in BAD)


@pytest.mark.parametrize(
    "options",
    [
        {"workers": 2, "loader": "processes"},
        {"workers": 2, "loader": "threads"},
        {"prepare": lambda dataset: keep_in_memory([dataset])},
        {"prepare": lambda dataset: keep_in_memory([dataset]), "workers": 2},
    ],
    ids=["processes", "threads", "cache", "cached threads"],
)
def test_every_loader_gives_the_same_batches_and_the_same_list(broken, tmp_path, options):
    expected, told = batches(broken, tmp_path)
    found, said = batches(broken, tmp_path, **options)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a["image"], b["image"]) and torch.equal(a["label"], b["label"]) and a["name"] == b["name"]
    assert sorted(line.partition(": ")[2] for line in said) == sorted(line.partition(": ")[2] for line in told)
    assert len((tmp_path / "skipped.txt").read_text().splitlines()) == 3, "listed once, however often it is run"


def test_two_processes_see_the_batches_of_one(broken, tmp_path):
    expected, _ = batches(broken, tmp_path)
    shares = [batches(broken, tmp_path, rank=rank, world_size=2)[0] for rank in (0, 1)]
    for whole, first, second in zip(expected, *shares, strict=True):
        assert torch.equal(whole["image"], torch.cat([first["image"], second["image"]]))
        assert torch.equal(whole["label"], torch.cat([first["label"], second["label"]]))


def test_a_continued_run_sees_the_same_batches(broken, tmp_path):
    expected, _ = batches(broken, tmp_path)
    found, _ = batches(broken, tmp_path, count=5, start_step=3)
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(found, expected[3:], strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_beyond_the_limit_the_run_stops_with_the_list(broken, tmp_path, workers):
    with pytest.raises(ValueError, match=r"train\.txt: 3 samples cannot be used, and data\.max_errors is 2") as error:
        batches(broken, tmp_path, limit=2, workers=workers)
    assert all(f"{name}.png" in str(error.value) for name in BAD)


def test_class_uniform_sampling_goes_on_too(broken, tmp_path):
    dataset = training_set(broken)
    with pytest.raises(ValueError, match=r"train_00[57]\.png|train_005"):
        find_points(dataset, 32)
    dataset.skip_errors = True
    points = find_points(dataset, 32)
    assert 5 not in points.table[:, 1]
    found, said = batches(broken, tmp_path, uniform=ClassUniform(points, 16, 1.0), count=12)
    assert all(
        (batch["label"][place] == 255).all() == (name in BAD)
        for batch in found
        for place, name in enumerate(batch["name"])
    )
    assert said


def test_a_void_sample_adds_nothing_to_the_loss():
    criterion = SegLoss({"out": 1.0}, 3, 255)
    label = torch.randint(0, 3, (2, 8, 8))
    logits = torch.randn(2, 3, 8, 8, requires_grad=True)
    alone, _ = criterion({"out": logits}, label)
    both, _ = criterion(
        {"out": torch.cat([logits, torch.randn(1, 3, 8, 8)])}, torch.cat([label, torch.full((1, 8, 8), 255)])
    )
    torch.testing.assert_close(both, alone)


def test_a_fault_of_the_machine_is_never_skipped(broken, tmp_path, monkeypatch):
    def fails(path, *_):
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr("dataset.read.source.read_label", fails)
    with pytest.raises(OSError, match="Input/output error"):
        batches(broken, tmp_path)


def test_the_check_counts_what_may_be_skipped(broken, tmp_path):
    dataset, stamp = training_set(broken), tmp_path / "check.json"
    with pytest.raises(ValueError, match="2 of 16 samples cannot be used"):
        check_dataset(dataset, stamp=stamp, may_skip=1)
    report = check_dataset(dataset, stamp=stamp, may_skip=2)
    assert (report.images, len(report.skipped), report.cached) == (14, 2, False)  # a picture is seen by its header
    good = [
        cv2.imread(label, cv2.IMREAD_UNCHANGED)
        for _, label in dataset.samples
        if not any(name in label for name in BAD[1:])
    ]
    assert report.pixels == tuple(sum(int((label == i).sum()) for label in good) for i in range(3))
    assert check_dataset(dataset, stamp=stamp, may_skip=2).cached
    with pytest.raises(ValueError, match="2 of 16 samples cannot be used"):
        check_dataset(dataset, stamp=stamp)


def test_a_training_skips_and_evaluation_never_does(broken, tmp_path, capsys):
    experiment = make_experiment(tmp_path, broken, loader={"on_error": "skip", "max_errors": 3}, train={"epochs": 1})
    run = tmp_path / "run"
    assert train.main(["--config", str(experiment), "--exp", str(run)]) == 0
    assert len((run / "skipped.txt").read_text().splitlines()) == 3
    assert all(torch.isfinite(value).all() for value in checkpoint.load(run / "model" / "last.pth")["model"].values())
    log = (run / "train.log").read_text()
    assert "will be skipped" in log and "skipped (3 of at most 3)" in log
    picture = broken / "image" / "val_000.png"
    picture.write_bytes(picture.read_bytes()[:500])
    with pytest.raises(ValueError, match="val_000.png"):
        train.main(["--config", str(experiment), "--exp", str(tmp_path / "other")])


@pytest.mark.parametrize("workers", [0, 2])
def test_crops_made_on_the_device_skip_too(broken, tmp_path, workers):
    dataset = training_set(broken)
    dataset.transform = DeviceTransform(dataset.transform)
    skips = Skips(dataset.list_file, 3, tmp_path / "skipped.txt", lambda line: None)
    for _, batch in zip(range(4), build_loader(dataset, 4, workers=workers, skips=skips), strict=False):
        _, label = dataset.transform.apply(batch["image"], batch["label"], batch["drawn"])
        for place, name in enumerate(batch["name"]):
            assert (label[place] == 255).all() == (name in BAD)
    assert len(skips.found) == 3
