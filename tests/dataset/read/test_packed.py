"""Packed data give what the files give, bit for bit; they are finished after a kill, and refused where they do not
fit or are damaged."""

import itertools
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dataset import build_dataset, build_eval_loader, build_loader
from dataset.augment.transform import TrainTransform
from dataset.prepare import pack as pack_module
from dataset.prepare.pack import encode, pack
from dataset.read.packed import TILE, Packed, index_file, read_index, verify
from tests.conftest import make_data, make_experiment
from tool.pack import main
from tool.train import main as train

COUNT = 9
LABEL_MAP = {0: 0, 7: 1, 300: 2, "9,9,9": 1, "1,2,3": 255}
CODECS = ("raw", "lz4")


@pytest.fixture
def root(tmp_path):
    """Every kind of file: grey, 16 bit, alpha, a lying JPEG; labels of 16 bit, of colours, and with map and 255."""
    rng = np.random.default_rng(0)
    lines = []
    for i in range(COUNT):
        size = (2 * TILE[0] + 5 * i - 9, TILE[1] + 20 - 7 * i)
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
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def equal(a, b):
    return all((x is None and y is None) or np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("workers", [1, 2])
def test_packed_samples_are_those_of_the_files(root, codec, split, workers):
    files, folder = make(root, split=split), root / "packed"
    pack(files, folder, codec, workers)
    assert verify(folder, split) == COUNT
    packed = opened(root, folder, split=split)
    for index in range(COUNT):
        assert equal(files.read(index), packed.read(index))
        assert torch.equal(files[index]["image"], packed[index]["image"])
    assert equal(packed.read(3), pickle.loads(pickle.dumps(packed)).read(3))


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("loader", ["threads", "processes"])
def test_packed_batches_are_those_of_the_files(root, codec, loader):
    transform = TrainTransform((40, 50), jitter=0.3)
    pack(make(root), root / "packed", codec)
    plain = build_loader(make(root, transform=transform), 4, seed=2)
    packed = build_loader(opened(root, root / "packed", transform=transform), 4, seed=2, workers=2, loader=loader)
    for one, other in itertools.islice(zip(plain, packed, strict=False), 6):
        assert torch.equal(one["image"], other["image"]) and torch.equal(one["label"], other["label"])
        assert one["name"] == other["name"]


def test_a_window_of_tiles_is_that_of_the_array(root):
    files = make(root)
    pack(files, root / "packed", "lz4")
    packed = opened(root, root / "packed")
    for index in (0, 3, 8):
        for whole, tiles in zip(files.read(index), packed.source.open(index), strict=True):
            assert tiles.shape == whole.shape
            height, width = whole.shape[:2]
            for rows in (slice(0, height), slice(TILE[0] - 1, TILE[0] + 1), slice(3, 9), slice(height - 1, height)):
                for columns in (slice(0, width), slice(5, 9), slice(TILE[1] - 40, width)):
                    assert np.array_equal(tiles[rows, columns], whole[rows, columns])


def test_only_the_tiles_of_the_window_are_unpacked(root):
    files = make(root)
    pack(files, root / "packed", "lz4")
    image, _ = opened(root, root / "packed").source.open(0)
    unpacked = []
    tile = image._tile
    image._tile = lambda *place: unpacked.append(place) or tile(*place)
    image[TILE[0] : TILE[0] + 3, 0:4]
    assert unpacked == [(1, 0)]


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
        assert equal(packed.read(index), files.read(original))


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


@pytest.mark.parametrize(
    "change, message",
    [
        (touch_picture, "0.png has changed since the data were packed; remove .*train.json and pack again"),
        (touch_label, "the label of .*5.png has changed"),
        (add_line, "new.png of .*train.txt is not among the packed pictures; remove .*train.json and pack again"),
    ],
)
def test_packed_data_that_no_longer_fit_are_refused(root, change, message):
    pack(make(root), root / "packed")
    change(root)
    with pytest.raises(ValueError, match=f"^{root}/packed/train.json: .*{message}"):
        opened(root, root / "packed")


def test_another_label_map_is_refused(root):
    pack(make(root), root / "packed")
    other = build_dataset("custom", root, classes=["x", "y", "z"], label_map={**LABEL_MAP, 7: 0})
    with pytest.raises(ValueError, match="the label map of custom has changed"):
        Packed(root / "packed", other)


def test_a_moved_data_set_fits(root, tmp_path_factory):
    files = make(root)
    pack(files, root / "packed")
    other = tmp_path_factory.mktemp("other") / "place"
    root.rename(other)
    try:
        assert equal(opened(other, other / "packed").read(1), make(other).read(1))
    finally:
        other.rename(root)


def flip(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 16
    file.write_bytes(content)


@pytest.mark.parametrize("codec", CODECS)
def test_damaged_data_are_found_by_their_checksums(root, codec):
    files = make(root)
    index = pack(files, root / "packed", codec)
    record = index.records[5]
    flip(root / "packed" / index.data, record.start + record.length - 1)
    with pytest.raises(ValueError, match=rf"{index.data}: 1 of 9 samples are damaged: 5.png; remove"):
        verify(root / "packed", "train")
    if codec == "lz4":
        packed = opened(root, root / "packed")
        assert equal(packed.read(4), files.read(4))
        with pytest.raises(ValueError, match=f"{index.data}: sample .*5.png is damaged; remove .* and pack again"):
            packed.read(5)
        with pytest.raises(ValueError, match="5.png is damaged"):
            list(build_eval_loader(packed, range(COUNT), workers=2))


def test_lost_and_cut_files_are_named(root):
    with pytest.raises(FileNotFoundError, match="train.json: no packed data of the split train there; pack it"):
        opened(root, root / "packed")
    index = pack(make(root), root / "packed")
    data, before = root / "packed" / index.data, opened(root, root / "packed")
    os.truncate(data, 5000)
    for read in (lambda: opened(root, root / "packed"), lambda: before.read(COUNT - 1)):
        with pytest.raises(ValueError, match=f"{data}: 5000 bytes, where train.json tells of {index.size}"):
            read()
    data.unlink()
    with pytest.raises(ValueError, match=f"{data}: missing, although train.json names it"):
        opened(root, root / "packed")
    for text in ("{", "[]", '{"format": 1}', '{"format": 99}'):
        index_file(root / "packed", "train").write_text(text)
        with pytest.raises(ValueError, match="train.json: (no index|written by another version)"):
            opened(root, root / "packed")


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("stop", [0, 2, 5, COUNT])
def test_an_interrupted_packing_goes_on_to_the_same_bytes(root, monkeypatch, codec, stop):
    files = make(root)
    pack(files, root / "whole", codec)
    monkeypatch.setattr(pack_module, "SYNC_EVERY", 2)
    encoded = []

    def counted(dataset, codec, index):
        if len(encoded) == stop:
            raise KeyboardInterrupt
        encoded.append(index)
        return encode(dataset, codec, index)

    if stop == COUNT:  # killed when all is written, between the name and the index
        monkeypatch.setattr(pack_module.Index, "save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    monkeypatch.setattr(pack_module, "_check_room", lambda *_: None)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pack_module, "encode", counted)
        pack(files, root / "packed", codec)
    monkeypatch.undo()
    assert not index_file(root / "packed", "train").exists()
    encoded.clear()
    monkeypatch.setattr(pack_module, "_check_room", lambda *_: None)
    monkeypatch.setattr(pack_module, "encode", lambda *a: encoded.append(a[2]) or encode(*a))
    pack(files, root / "packed", codec)
    assert encoded == list(range(stop // 2 * 2 if stop < COUNT else COUNT, COUNT))
    assert contents(root / "packed") == contents(root / "whole")


@pytest.mark.faults
def test_a_killed_packing_goes_on_to_the_same_bytes(tmp_path):
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
    subprocess.run([*command, str(tmp_path / "whole")], check=True, capture_output=True)
    for _ in range(2):
        process = subprocess.Popen(
            [*command, str(tmp_path / "packed")],
            start_new_session=True,
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        journal = tmp_path / "packed" / "train.journal"
        before = journal.stat().st_size if journal.exists() else 0
        while process.poll() is None and (not journal.exists() or journal.stat().st_size <= before + 1000):
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run([*command, str(tmp_path / "packed")], check=True, capture_output=True)
    assert contents(tmp_path / "packed") == contents(tmp_path / "whole")


def test_packing_again_replaces_what_no_longer_fits(root):
    first = pack(make(root), root / "packed")
    assert pack(make(root), root / "packed").data == first.data
    old = opened(root, root / "packed")
    before = old.read(0)
    touch_picture(root)
    second = pack(make(root), root / "packed")
    assert second.data != first.data and set(contents(root / "packed")) == {"train.json", second.data}
    assert equal(old.read(0), before)  # who has the old data open keeps them
    assert equal(opened(root, root / "packed").read(0), make(root).read(0))


def test_a_full_disk_is_told_before_and_while_writing(root, monkeypatch):
    Usage = namedtuple("Usage", "free")
    monkeypatch.setattr(pack_module.shutil, "disk_usage", lambda _: Usage(10_000))
    for codec in CODECS:
        with pytest.raises(OSError, match=f"{root}/packed: packing needs .*0.0 GB are free; .*--out DIR"):
            pack(make(root), root / "packed", codec)
    assert not list((root / "packed").glob("*.pack")) and not (root / "packed" / "train.json").exists()
    monkeypatch.undo()

    def full(_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="train.part: no space left .* goes on there"):
        patch.setattr(pack_module.os, "fsync", full)
        patch.setattr(pack_module, "_append", lambda *_: None)
        pack(make(root), root / "packed")
    pack(make(root), root / "packed")
    assert verify(root / "packed", "train") == COUNT


def test_a_bad_file_stops_the_packing_with_its_name(root):
    (root / "7.png").write_bytes((root / "7.png").read_bytes()[:-40])
    for workers in (1, 2):
        with pytest.raises(ValueError, match="7.png: not a readable picture"):
            pack(make(root), root / "packed", workers=workers)
    assert not index_file(root / "packed", "train").exists()


def test_two_packings_of_one_split_do_not_mix(root, monkeypatch):
    began, go_on = threading.Event(), threading.Event()

    def waiting(*arguments):
        began.set()
        go_on.wait(20)
        return encode(*arguments)

    monkeypatch.setattr(pack_module, "encode", waiting)
    thread = threading.Thread(target=pack, args=(make(root), root / "packed"))
    thread.start()
    began.wait(20)
    with pytest.raises(OSError, match="another process is packing this split"):
        pack(make(root), root / "packed")
    go_on.set()
    thread.join()
    assert verify(root / "packed", "train") == COUNT


def test_the_command_packs_verifies_and_trains(tmp_path, capsys):
    data = make_data(tmp_path / "data", train=8, val=2)
    config = make_experiment(tmp_path, data, train={"epochs": 1, "val_every": 1})
    weights = {}
    for name, overrides in (
        ("files", []),
        ("packed", ["loader.packed=auto", "loader.workers=2"]),
        ("memory", ["loader.cache=memory", "loader.workers=2"]),
    ):
        if name == "packed":
            assert main(["--config", str(config), "--workers", "1"]) == 0
            assert "train: 8 pictures" in (out := capsys.readouterr().out) and "val: 2 pictures" in out
            assert main(["--config", str(config), "--verify"]) == 0
            assert "all 8 packed pictures are as they were written" in capsys.readouterr().out
        assert train(["--config", str(config), "--exp", str(tmp_path / name), *overrides]) == 0
        weights[name] = torch.load(tmp_path / name / "model" / "last.pth", weights_only=True)["model"]
    for name in ("packed", "memory"):
        assert all(torch.equal(weights["files"][key], value) for key, value in weights[name].items())


def test_mistakes_at_the_command_line_are_named(tmp_path, capsys):
    assert main(["camvid", "--root", str(tmp_path)]) == 2
    assert f"{tmp_path}: no list file there" in capsys.readouterr().err
    assert main(["camvid", "--root", str(tmp_path), "--verify"]) == 2
    assert f"{tmp_path}/packed: nothing is packed there" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["camvid"])
    assert "give a data set and --root DIR, or --config FILE" in capsys.readouterr().err


def test_the_index_is_plain_json(root):
    pack(make(root), root / "packed", "lz4")
    content = json.loads(index_file(root / "packed", "train").read_text())
    assert content["codec"] == "lz4" and len(content["records"]) == COUNT
    assert read_index(index_file(root / "packed", "train")).records[0].start == 0
