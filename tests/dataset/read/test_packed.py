"""Packed data give what the files give, bit for bit; they are finished after a kill, and refused where they do not
fit or are damaged."""

import atexit
import itertools
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import namedtuple

import numpy as np
import pytest
import torch
from PIL import Image

from dataset import build_dataset, build_loader
from dataset.augment.transform import TrainTransform
from dataset.prepare import lock
from dataset.prepare import pack as pack_module
from dataset.prepare.pack import pack, pack_for_a_run, verify
from dataset.read.files import replacing
from dataset.read.packed import IMAGE, LABEL, Packed
from tests.conftest import failure, make_data, make_experiment
from tests.paths import ROOT
from tool.pack import main
from tool.train import main as train

COUNT = 9
LABEL_MAP = {0: 0, 7: 1, 300: 2, "9,9,9": 1, "1,2,3": 255}


@pytest.fixture
def root(tmp_path):
    """Every kind of file: grey, 16 bit, alpha, a lying JPEG; labels of 16 bit, of colours, and with map and 255."""
    rng = np.random.default_rng(0)
    lines = []
    for i in range(COUNT):
        size = (60 + 5 * i, 80 - 7 * i)
        image = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
        ids = rng.choice(np.array([0, 7, 255], np.uint16), size)
        suffix, options = "png", {}
        if i == 1:
            image = image[:, :, 0]
        elif i == 2:
            image = rng.integers(0, 65536, size).astype(np.uint16)
        elif i == 3:
            image = np.dstack([image, image[:, :, :1]])
        elif i == 4:
            exif = Image.Exif()
            exif[0x0112] = 6
            suffix, options, ids = "jpg", {"exif": exif}, ids.T
        if i == 5:
            ids[:20] = 300
        label = ids if i == 5 else ids.astype(np.uint8)
        if i == 6:
            label = np.where((ids == 7)[..., None], np.array([9, 9, 9]), np.array([1, 2, 3])).astype(np.uint8)
        Image.fromarray(image).save(tmp_path / f"{i}.{suffix}", **options)
        Image.fromarray(label).save(tmp_path / f"{i}_label.png")
        lines.append(f"{i}.{suffix} {i}_label.png\n")
    (tmp_path / "train.txt").write_text("".join(lines))
    (tmp_path / "test.txt").write_text("".join(line.split()[0] + "\n" for line in lines))
    return tmp_path


def make(root, **options):
    return build_dataset("custom", root, classes=["x", "y", "z"], label_map=LABEL_MAP, seed=4, **options)


def opened(root, folder, **options):
    dataset = make(root, **options)
    dataset.source = Packed(folder, dataset)
    return dataset


def contents(folder):
    """Every file of packed data but the lock, with its bytes."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def equal(a, b):
    return all((x is None and y is None) or np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("split, workers", [("train", 0), ("train", 2), ("test", 0)])
def test_packed_samples_are_those_of_the_files(root, split, workers):
    files, folder = make(root, split=split), root / "packed"
    done = []
    size = pack(files, folder, workers, lambda: done.append(1))
    assert len(done) == COUNT and size >= sum(3 * (60 + 5 * i) * (80 - 7 * i) for i in range(COUNT))
    verify(files, folder)
    packed = opened(root, folder, split=split)
    for index in range(COUNT):
        assert equal(files.source.open(index), packed.source.open(index))
        assert torch.equal(files[index]["image"], packed[index]["image"])
    assert equal(packed.source.open(3), pickle.loads(pickle.dumps(packed)).source.open(3))
    facts = json.loads((folder / split / "manifest.json").read_text())
    assert facts["data set"] == "custom" and facts["pictures"] == COUNT and facts["bytes"] == size


def test_numpy_opens_packed_files(root):
    pack(make(root), root / "packed")
    packed, (image, label) = opened(root, root / "packed").source, make(root).source.open(4)
    assert np.array_equal(np.load(packed.stems[4] + IMAGE), image) and image.dtype == np.uint8
    assert np.array_equal(np.load(packed.stems[4] + LABEL), label)


def test_packed_batches_are_those_of_the_files(root):
    transform = TrainTransform((40, 50), jitter=0.3)
    pack(make(root), root / "packed")
    plain = build_loader(make(root, transform=transform), 4, seed=2)
    packed = build_loader(opened(root, root / "packed", transform=transform), 4, seed=2, workers=2)
    for one, other in itertools.islice(zip(plain, packed, strict=False), 6):
        assert torch.equal(one["image"], other["image"]) and torch.equal(one["label"], other["label"])
        assert one["name"] == other["name"]


def test_packed_pixels_cannot_be_changed(root):
    pack(make(root), root / "packed")
    packed = opened(root, root / "packed")
    before = packed[0]["image"].clone()
    packed[0]["image"].zero_()
    assert torch.equal(packed[0]["image"], before)
    with pytest.raises(ValueError, match="read-only"):
        packed.source.open(0)[0][:] = 0


def test_any_part_of_the_packed_list_is_served_in_any_order(root):
    files = make(root)
    pack(files, root / "packed")
    lines = (root / "train.txt").read_text().splitlines()
    (root / "less.txt").write_text("\n".join([lines[6], lines[0], lines[4]]) + "\n")
    packed = opened(root, root / "packed", list_file=root / "less.txt")
    for index, original in enumerate((6, 0, 4)):
        assert equal(packed.source.open(index), files.source.open(original))


def touch_picture(root):
    image = np.asarray(Image.open(root / "0.png")).copy()
    image[0, 0] ^= 1
    Image.fromarray(image).save(root / "0.png")
    os.utime(root / "0.png", ns=(1, 1))


def touch_label(root):
    os.utime(root / "5_label.png", ns=(1, 1))


def add_line(root):
    Image.fromarray(np.zeros((5, 5, 3), np.uint8)).save(root / "new.png")
    with open(root / "train.txt", "a") as file:
        file.write("new.png 0_label.png\n")


@pytest.mark.parametrize("change, name", [(touch_picture, "0.png"), (touch_label, "5.png"), (add_line, "new.png")])
def test_packed_data_that_no_longer_fit_are_refused(root, change, name):
    pack(make(root), root / "packed")
    change(root)
    message = f"^{root}/packed/train: {root}/{name} of {root}/train.txt is not packed, or its files or the label map"
    with pytest.raises(ValueError, match=message + r".* changed since; pack it again \(python -m tool.pack --config "):
        opened(root, root / "packed")


def test_another_label_map_is_refused(root):
    pack(make(root), root / "packed")
    other = build_dataset("custom", root, classes=["x", "y", "z"], label_map={**LABEL_MAP, 7: 0})
    with pytest.raises(ValueError, match="the label map of custom have changed since"):
        Packed(root / "packed", other)


def test_data_of_the_older_form_are_refused_with_the_command_that_packs_anew(root):
    Image.fromarray(np.zeros((5, 5, 3), np.uint8)).save(root / "a.png")
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(root / "a_label.png")
    (root / "train.txt").write_text("a.png a_label.png\n")
    dataset = build_dataset("camvid", root)
    (root / "ssd").mkdir()
    (root / "ssd" / "train.json").write_text("{}")
    command = f"python -m tool.pack camvid --root {root} --split train --out {root}/ssd"
    with pytest.raises(FileNotFoundError, match=f"older form; pack it again \\({command}\\), or set loader.packed to"):
        Packed(root / "ssd", dataset)


def test_a_moved_data_set_fits(root, tmp_path_factory):
    pack(make(root), root / "packed")
    other = tmp_path_factory.mktemp("other") / "place"
    root.rename(other)
    try:
        assert equal(opened(other, other / "packed").source.open(1), make(other).source.open(1))
    finally:
        other.rename(root)


def test_lost_cut_and_changed_files_are_named(root):
    files, folder = make(root), root / "packed"
    with pytest.raises(FileNotFoundError, match="train/manifest.json: the split is not packed, or not all of it; pack"):
        opened(root, folder)
    pack(files, folder)
    source = opened(root, folder).source
    image, label = (source.stems[5] + end for end in (IMAGE, LABEL))
    with open(image, "r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([255 - last]))
    with pytest.raises(ValueError, match=f"^{image}: differs from .*5.png"):
        verify(files, folder)
    os.truncate(image, 500)
    with pytest.raises(ValueError, match=f"^{image}: damaged or cut short .* remove it and pack it again"):
        source.open(5)
    np.save(image, np.zeros((3, 4)))
    with pytest.raises(ValueError, match=rf"^{image}: holds float64 \(3, 4\)"):
        source.open(5)
    os.remove(label)
    os.remove(image)
    with pytest.raises(ValueError, match=f"^{image}: missing"):
        source.open(5)
    pack(files, folder)
    verify(files, folder)


@pytest.mark.parametrize("stop", [0, 3, 2 * COUNT])
def test_an_interrupted_packing_goes_on_with_what_is_missing(root, monkeypatch, stop):
    """stop: files that are written before it ends; the third is the label of a sample whose image then is missing."""
    files, written = make(root), []
    pack(files, root / "whole")

    def counted(path):
        if len(written) == stop:
            raise KeyboardInterrupt
        written.append(path)
        return replacing(path)

    monkeypatch.setattr(pack_module, "replacing", counted)
    with pytest.raises(KeyboardInterrupt):
        pack(files, root / "packed")
    assert not (root / "packed" / "train" / "manifest.json").exists()
    again = []
    monkeypatch.setattr(pack_module, "replacing", lambda path: again.append(path) or replacing(path))
    pack(files, root / "packed")
    assert len(again) == 2 * (COUNT - stop // 2) + 1
    assert contents(root / "packed") == contents(root / "whole")


@pytest.mark.faults
def test_a_killed_packing_goes_on_to_the_same_bytes(tmp_path):
    """Killed is the process that was started; its workers end with it."""
    data = make_data(tmp_path / "data", train=400, val=1)
    config = make_experiment(tmp_path, data)
    command = [
        sys.executable,
        "-m",
        "tool.pack",
        "--config",
        str(config),
        "--split",
        "train",
        "--workers",
        "2",
        "--out",
    ]
    quiet = {"cwd": ROOT, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run([*command, str(tmp_path / "whole")], check=True, **quiet)
    packed = tmp_path / "packed" / "train"
    for _ in range(2):
        before = len(list(packed.glob("*/*.npy")))
        process = subprocess.Popen([*command, str(tmp_path / "packed")], start_new_session=True, **quiet)
        while process.poll() is None and len(list(packed.glob("*/*.npy"))) < before + 100:
            time.sleep(0.01)
        assert process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        until = time.monotonic() + 30
        while subprocess.run(["pgrep", "-g", str(process.pid)], check=False, capture_output=True).returncode == 0:
            assert time.monotonic() < until, "a worker outlives its parent"
            time.sleep(0.2)
    subprocess.run([*command, str(tmp_path / "packed")], check=True, **quiet)
    assert contents(tmp_path / "packed") == contents(tmp_path / "whole")


def test_packing_again_replaces_what_no_longer_fits(root):
    pack(make(root), root / "packed")
    old = opened(root, root / "packed")
    before, mapped = contents(root / "packed"), old.source.open(0)
    truth = [np.array(array) for array in mapped]
    pack(make(root), root / "packed")
    assert contents(root / "packed") == before
    touch_picture(root)
    (root / "packed/train/00").mkdir(exist_ok=True)
    (root / "packed/train/00/left.npy.12.tmp").write_bytes(b"of a killed packing")
    pack(make(root), root / "packed")
    assert len(contents(root / "packed")) == len(before) and len(contents(root / "packed").keys() - before.keys()) == 2
    assert equal(mapped, truth)  # who has the old data open keeps them
    assert equal(opened(root, root / "packed").source.open(0), make(root).source.open(0))


def test_a_full_disk_is_told_before_anything_is_written(root, monkeypatch):
    Usage = namedtuple("Usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10_000))
    with pytest.raises(
        OSError, match=f"{root}/packed/train: packing needs [1-9][0-9,]+ bytes, and 10,000 are free; make room"
    ):
        pack(make(root), root / "packed")
    assert not contents(root / "packed")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_file_stops_the_packing_with_its_name(root, workers):
    (root / "7.png").write_bytes((root / "7.png").read_bytes()[:-40])
    with pytest.raises(ValueError, match=f"^{root}/7.png: not a readable picture"):
        pack(make(root), root / "packed", workers)
    assert not (root / "packed" / "train" / "manifest.json").exists()


def test_a_packing_that_stands_still_is_named_and_not_waited_for(root, monkeypatch, capsys):
    monkeypatch.setattr(lock, "PATIENCE", 0.5)
    monkeypatch.setattr(lock, "TOLD", 0.2)
    (root / "packed" / "train").mkdir(parents=True)
    with open(root / "packed" / "train" / "lock", "a+") as other:
        lock.hold(other)
        with pytest.raises(ValueError, match=rf"lock: process {os.getpid()} on .* has done nothing for 0.5 s; end it"):
            pack(make(root), root / "packed")
        assert "waiting for process" in capsys.readouterr().out
    assert pack(make(root), root / "packed")


def test_a_second_packing_of_one_split_waits_for_the_first(root, monkeypatch):
    began, go_on, written = threading.Event(), threading.Event(), []

    def waiting(path):
        began.set()
        go_on.wait(20)
        written.append(path)
        return replacing(path)

    monkeypatch.setattr(pack_module, "replacing", waiting)
    threads = [threading.Thread(target=pack, args=(make(root), root / "packed")) for _ in range(2)]
    threads[0].start()
    assert began.wait(20)
    threads[1].start()
    go_on.set()
    for thread in threads:
        thread.join()
    assert sum(str(path).endswith(".npy") for path in written) == 2 * COUNT
    verify(make(root), root / "packed")


def run_with_packed_data(root, number, connection):
    atexit._clear()  # of what the parent has registered
    connection.send(pack_for_a_run([make(root)], number, 0))
    connection.recv()
    atexit._run_exitfuncs()


def test_data_packed_for_a_run_are_gone_after_it(root):
    """Processes of a run share them; what a killed one leaves is removed by the next."""
    fork = multiprocessing.get_context("fork")

    def begin(number):
        ours, theirs = fork.Pipe()
        process = fork.Process(target=run_with_packed_data, args=(root, number, theirs), daemon=True)
        process.start()
        theirs.close()
        return process, ours, ours.recv()

    def end(process, connection):
        connection.send("end")
        process.join()

    number = 10**9 + os.getpid()
    (first, to_first, folder), (second, _, same) = begin(number), begin(number)
    assert folder == same and len(contents(folder)) == 2 * COUNT + 2
    end(first, to_first)
    assert folder.is_dir()
    second.kill()
    second.join()
    assert folder.is_dir()
    third, to_third, other = begin(number + 1)
    assert other != folder and not folder.exists()
    end(third, to_third)
    assert not other.exists()


def test_the_command_packs_verifies_and_trains(tmp_path, capsys):
    data = make_data(tmp_path / "data", train=8, val=2)
    config = make_experiment(tmp_path, data, train={"epochs": 1, "val_every": 0})
    assert main(["--config", str(config), "--workers", "0"]) == 0
    assert "train: 8 images" in (out := capsys.readouterr().out) and "val: 2 images" in out
    assert main(["--config", str(config), "--split", "train", "--verify"]) == 0
    assert "all 8 packed images are those of the files" in capsys.readouterr().out
    weights = []
    for name, override in (("packed", "loader.packed=auto"), ("memory", "loader.cache=memory")):
        assert train(["--config", str(config), "--exp", str(tmp_path / name), "loader.workers=2", override]) == 0
        weights.append(torch.load(tmp_path / name / "model" / "last.pth", weights_only=True)["model"])
    assert all(torch.equal(weights[0][key], value) for key, value in weights[1].items())


def test_mistakes_at_the_command_line_are_named(tmp_path, capsys):
    assert f"{tmp_path}: no list file there" in failure(capsys, main, ["camvid", "--root", str(tmp_path)])
    assert "give a data set and --root DIR, or --config FILE" in failure(capsys, main, ["camvid"])
