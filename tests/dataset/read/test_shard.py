"""Samples in tar shards and behind URLs, against the same samples as files."""

import io
import os
import pickle
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataset import build_dataset
from dataset.augment.transform import TrainTransform
from dataset.load.loader import build_eval_loader, build_loader
from dataset.prepare.check import check_dataset, shared_images
from dataset.prepare.doctor import examine
from dataset.prepare.pack import pack, verify
from dataset.read import shard
from dataset.read.files import open_file, read_bytes
from dataset.read.identity import facts, fingerprint
from dataset.read.packed import Packed
from dataset.read.remote import Member, Part
from dataset.read.shard import expand
from tests.file_server import serving
from tests.three_pictures import build, fails, picture, save

fsspec = pytest.importorskip("fsspec")
pytest.importorskip("aiohttp")

COUNT = 10


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def root(tmp_path) -> Path:
    """Ten pictures as files with a list, and as two shards: train-00.tar with the first six, train-01.tar."""
    folder, rng = tmp_path / "data", np.random.default_rng(0)
    lines = []
    for i in range(COUNT):
        save(folder / f"f/{i:03}.{'png' if i % 2 else 'jpg'}", picture(rng, 12 + i, 16))
        save(folder / f"f/{i:03}.seg.png", rng.integers(0, 3, (12 + i, 16)).astype(np.uint8))
        lines.append(f"f/{i:03}.{'png' if i % 2 else 'jpg'} f/{i:03}.seg.png\n")
    (folder / "train.txt").write_text("".join(lines))
    for number, chosen in enumerate((lines[:6], lines[6:])):
        with tarfile.open(folder / f"train-{number:02}.tar", "w") as tar:
            for line in chosen:
                for name in line.split():
                    tar.add(folder / name, name)
    return folder


def add(tar: tarfile.TarFile, name: str, data: bytes | np.ndarray = b"x") -> None:
    if isinstance(data, np.ndarray):
        buffer = io.BytesIO()
        Image.fromarray(data).save(buffer, "PNG")
        data = buffer.getvalue()
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def made(file: Path, names: list[str], **options) -> Path:
    """A tar of small pictures (`.png`, `.jpg`) and other files."""
    with tarfile.open(file, "w", **options) as tar:
        for name in names:
            pixels = np.zeros((4, 4) if ".seg" in name or ".mask" in name else (4, 4, 3), np.uint8)
            add(tar, name, pixels if name.endswith((".png", ".jpg")) else b"x")
    return file


def to_memory(root: Path, folder: str) -> str:
    """The same files in fsspec's file system in memory; return its URL."""
    for file in root.rglob("*"):
        if file.is_file():
            fsspec.filesystem("memory").pipe_file(f"/{folder}/{file.relative_to(root)}", file.read_bytes())
    return f"memory://{folder}"


def same(one, other) -> None:
    assert len(one) == len(other) == COUNT
    for i in range(COUNT):
        assert np.array_equal(one[i]["image"], other[i]["image"]) and np.array_equal(one[i]["label"], other[i]["label"])
        assert Path(one[i]["name"]).name == Path(other[i]["name"]).name


def batches(dataset, workers=0) -> list:
    dataset.transform = TrainTransform((8, 8))
    loader = iter(build_loader(dataset, 4, seed=3, workers=workers))
    return [next(loader) for _ in range(5)]


@pytest.mark.parametrize("where", ["file", "memory", "http"])
def test_files_and_shards_anywhere_are_read_as_files_here(root, where, monkeypatch):
    files = build(root)
    with serving(root, monkeypatch) as server:
        url = {"file": f"file://{root}", "memory": to_memory(root, f"m{os.getpid()}"), "http": server.url}[where]
        there, shards = build(url), build(url, list_file=f"{url}/train-{{00..01}}.tar")
        for dataset in (there, shards):
            same(files, dataset)
            for one, other in zip(batches(build(root)), batches(dataset), strict=True):
                assert np.array_equal(one["image"], other["image"]) and np.array_equal(one["label"], other["label"])
        assert facts(there) == facts(files), "a moved root is the same data"
        assert check_dataset(there).pixels == check_dataset(shards).pixels == check_dataset(files).pixels


def test_workers_read_over_http_in_the_same_order(root, monkeypatch):
    with serving(root, monkeypatch) as server:
        shards = build(root, list_file=f"{server.url}/train-{{00..01}}.tar")
        shards[0]  # this process has its connection already
        for one, other in zip(batches(build(root)), batches(shards, workers=2), strict=True):
            assert np.array_equal(one["image"], other["image"]) and one["name"] == [n[-3:] for n in other["name"]]


def test_a_shard_is_read_where_its_sample_is(root, monkeypatch):
    """The tar is read once for its index; a sample then takes a request a file, the index none."""
    with serving(root, monkeypatch) as server:
        shards = build(root, list_file=f"{server.url}/train-00.tar")
        server.asked.clear()
        image, label = shards.samples[4]
        shards[4]
        parts = [f"bytes={each.offset}-{each.offset + each.size - 1}" for each in (label, image)]
        assert [wanted for _, _, wanted in server.asked] == parts
        server.asked.clear()
        build(root, list_file=f"{server.url}/train-00.tar")
        assert [method for method, *_ in server.asked] == ["HEAD"]


@pytest.mark.fast
def test_members_that_are_no_sample_are_left_alone(tmp_path):
    names = ["0001.jpg", "._0001.jpg", "0001.seg.png", "a/._0001.seg.png", "0001.json", "a/b/x.PNG", "a/b/x.mask.png"]
    names += [".hidden.png", "0001.depth.png", "n" * 150 + "/" + "m" * 120 + ".png", "é.png", "é.seg.tif"]
    names += ["n" * 150 + "/" + "m" * 120 + ".seg.png"]
    file = made(tmp_path / "x.tar", names, format=tarfile.PAX_FORMAT)
    with tarfile.open(file, "a") as tar:
        folder = tarfile.TarInfo("c.png")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    pairs = list(shard.read_samples(file, tmp_path, True))
    long = "n" * 150 + "/" + "m" * 120
    wanted = ["0001.jpg 0001.seg.png", "a/b/x.PNG a/b/x.mask.png", f"{long}.png {long}.seg.png", "é.png é.seg.tif"]
    assert pairs == [tuple(f"{file}/{name}" for name in line.split()) for line in wanted]
    with tarfile.open(file) as tar:
        image = pairs[1][0]
        assert read_bytes(image, 1 << 20) == tar.extractfile("a/b/x.PNG").read()
        again = pickle.loads(pickle.dumps(image))
        assert (again, again.offset, again.size) == (image, image.offset, image.size) and type(again) is Member


@pytest.mark.fast
@pytest.mark.parametrize(
    "names, message",
    [
        (["a.seg.png"], "x.tar: the label a.seg.png has no image; it would be called a.jpg or a.png"),
        (["a.png", "a.jpg"], "x.tar: two images of one stem, a.png and a.jpg; a label is a.seg.png"),
        (["a.png", "b.png", "a.png"], "x.tar: two images of one stem, a.png and a.png"),
        (["a.png", "a.seg.png", "a.mask.png"], "x.tar: two labels of one stem, a.seg.png and a.mask.png"),
        (["a.b.png", "a.b.seg.png"], "x.tar: no image (it holds a.b.png); a sample is STEM.jpg and STEM.seg.png"),
        ([], "x.tar: no image;"),
        (["a.png", "a.seg.png", "b.png"], "x.tar: 1 of 2 images have no label (first: b.png); the label of 0001.jpg"),
    ],
)
def test_a_shard_that_is_none_is_refused_by_its_member(tmp_path, names, message):
    made(tmp_path / "x.tar", names)
    fails(f"{tmp_path}/{message}", build, tmp_path, list_file=tmp_path / "x.tar")
    if "b.png" in names and "a.seg.png" in names:
        dataset = build(tmp_path, list_file=tmp_path / "x.tar", split="test")
        assert dataset.samples.unlabelled == 1 and "label" not in dataset[1] and dataset[0]["name"] == "a"


@pytest.mark.fast
def test_damaged_shards_are_refused_by_name(tmp_path):
    file = made(tmp_path / "x.tar", ["a.png", "a.seg.png", "b.png", "b.seg.png"])
    whole = file.read_bytes()
    options = {"list_file": file}
    for length, where in ((3624, "within b.seg.png"), (3300, "at byte 3,072"), (4096, "at byte 4,096")):
        file.write_bytes(whole[:length])
        fails([f"{file}: cut short {where}; fetch it again"], build, tmp_path, **options)
    header = tarfile.TarInfo("other.txt")
    header.size = -512
    file.write_bytes(header.tobuf(tarfile.GNU_FORMAT) + whole)
    fails(f"{file}: 'other.txt' is damaged", build, tmp_path, **options)
    header.size, header.type = 1 << 70, tarfile.GNUTYPE_LONGNAME
    file.write_bytes(header.tobuf(tarfile.GNU_FORMAT) + whole)
    fails(f"{file}: no tar that can be read", build, tmp_path, **options)
    file.write_bytes(whole[:2048] + b"?" * 512 + whole[2560:])
    fails(f"{file}: damaged at byte 2,048", build, tmp_path, **options)
    file.write_bytes(b"\x1f\x8b" + bytes(range(256)) * 9)
    fails([f"{file}: no tar that can be read", "a shard is not compressed"], build, tmp_path, **options)
    file.write_bytes(b"")
    fails(str(file), build, tmp_path, **options)
    fails("none.tar: no such file", build, tmp_path, list_file=tmp_path / "none.tar", error=FileNotFoundError)
    file.write_bytes(whole.replace(b"IDAT", b"IDOT", 1))
    fails(f"{file}/a.png: not a readable picture", build(tmp_path, **options).__getitem__, 0)
    fails([f"{file}: 1 of 2 samples", f"{file}/a.png: not a"], check_dataset, build(tmp_path, **options))


@pytest.mark.fast
def test_the_index_is_remembered_until_the_shard_changes(root, cache, monkeypatch):
    options = {"list_file": root / "train-{00..01}.tar"}
    first = list(build(root, **options).samples)
    files = sorted(cache.rglob("*.npz"))
    assert len(files) == 2
    with monkeypatch.context() as patch:
        patch.setattr(shard, "_indexed", lambda *_: pytest.fail("read again"))
        assert list(build(root, **options).samples) == first
    files[0].write_bytes(files[0].read_bytes()[:100])
    assert list(build(root, **options).samples) == first
    before = fingerprint(build(root, **options))
    os.utime(root / "train-01.tar", ns=(1, 1))
    with monkeypatch.context() as patch:
        patch.setattr(shard, "_indexed", lambda *_: pytest.fail("read again"))
        with pytest.raises(pytest.fail.Exception):
            build(root, **options)
    assert fingerprint(build(root, **options)) != before
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/no folder to write to")
    assert list(build(root, **options).samples) == first


@pytest.mark.fast
def test_the_way_from_shards_to_packed_data_and_the_doctor(root, tmp_path):
    shards, files = build(root, list_file=root / "train-{00..01}.tar"), build(root)
    pack(shards, tmp_path / "packed")
    shards.source = Packed(tmp_path / "packed", shards)
    same(files, shards)
    verify(build(root, list_file=root / "train-{00..01}.tar"), tmp_path / "packed")
    one, other = (examine(build(root, **each)) for each in ({}, {"list_file": root / "train-{00..01}.tar"}))
    assert one.report.pixels == other.report.pixels and one.mean == other.mean and not other.findings
    assert shared_images(shards.samples, shards.samples) == list(range(COUNT))
    assert list(build_eval_loader(shards, [3]))[0]["name"] == "003"


def test_a_file_that_is_missing_behind_a_url_is_named_by_line(root, monkeypatch):
    (root / "f/004.seg.png").unlink()
    with serving(root, monkeypatch) as server:
        dataset = build(server.url)
        message = f"{server.url}/train.txt:5: f/004.seg.png does not exist (looked for {server.url}/f/004.seg.png)"
        fails(message, dataset.__getitem__, 4, error=FileNotFoundError)
        fails(["1 of 10 samples", message], check_dataset, dataset)
        fails(f"{server.url}/val.txt: no such file", build, server.url, split="val", error=FileNotFoundError)


def test_a_network_that_fails_is_tried_again_and_then_told(root, monkeypatch):
    with serving(root, monkeypatch) as server:
        dataset, files = build(server.url), build(root)
        server.failures = [500, 503, 502]
        assert np.array_equal(dataset[1]["image"], files[1]["image"]) and not server.failures
        server.failures = [500] * 4
        fails([f"{server.url}/f/001.seg.png: ", "500"], dataset.__getitem__, 1, error=OSError)
        server.failures = [403]
        fails([f"{server.url}/f/001.seg.png: ", "403"], dataset.__getitem__, 1, error=OSError)
        shards = build(root, list_file=f"{server.url}/train-00.tar")
        server.ranges = False
        fails([f"{server.url}/train-00.tar: ", "HTTP range requests"], shards.__getitem__, 1, error=OSError)
        url = server.url
    fails(f"{url}/train.txt: ClientConnectorError", build, url, error=OSError)


@pytest.mark.fast
def test_what_is_not_installed_or_known_is_one_line(root, monkeypatch):
    fails("nosuch://x/train.txt: Protocol not known: nosuch", build, "nosuch://x")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    fails(["s3://bucket/set/train.txt: ", "s3fs"], build, "s3://bucket/set")
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    monkeypatch.setitem(sys.modules, "fsspec", None)
    fails("http://x/train.txt: a URL needs fsspec: python -m pip install -e '.[remote]'", build, "http://x/")
    assert len(build(root, list_file=root / "train-00.tar")) == 6, "shards on a disk do not"


@pytest.mark.fast
def test_lists_may_mix_urls_and_paths(root, tmp_path):
    url = to_memory(root, f"mixed{os.getpid()}")
    lines = f"{url}/f/000.jpg {root}/f/000.seg.png\n./f/001.png f/001.seg.png\nfile://{root}/f/002.jpg f/002.seg.png\n"
    (tmp_path / "list.txt").write_text(lines)
    for where in (root, url):
        dataset = build(where, list_file=tmp_path / "list.txt")
        assert [np.array_equal(dataset[i]["image"], build(root)[i]["image"]) for i in range(3)] == [True] * 3
        assert [dataset[i]["name"] for i in range(3)] == ["000", "001", "002"]


@pytest.mark.fast
def test_nothing_is_drawn_behind_a_url(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    url = to_memory(root, f"street{os.getpid()}")
    assert len(build_dataset("street", url)) == COUNT and not list(tmp_path.glob("memory*"))
    fails("train.txt: no such file", build_dataset, "street", "memory://nothing here", error=FileNotFoundError)


@pytest.mark.fast
def test_braces():
    assert expand("a-{08..11}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert expand("{x,y}/{0..1}") == ["x/0", "x/1", "y/0", "y/1"] and expand("plain.tar") == ["plain.tar"]
    for wrong in ("{3..1}.tar", "{a..c}.tar", "{..}.tar"):
        fails(f"{wrong}: ", expand, wrong)


@pytest.mark.fast
def test_a_part_of_a_file_is_a_file(tmp_path):
    data = bytes(range(256)) * 4
    (tmp_path / "x").write_bytes(data)
    rng = np.random.default_rng(0)
    for _ in range(50):
        offset, size = int(rng.integers(0, 500)), int(rng.integers(1, 500))
        ours, plain = (
            open_file(Member(str(tmp_path / "x"), "y", offset, size)),
            io.BytesIO(data[offset : offset + size]),
        )
        for _ in range(20):
            place, whence, count = int(rng.integers(-9, 600)), int(rng.integers(0, 3)), int(rng.integers(0, 99))
            place = max(place, 0) if whence == 0 else min(place, 0) if whence == 2 and place > -size else 0
            assert ours.seek(place, whence) == plain.seek(place, whence) and ours.read(count) == plain.read(count)
    fails(f"{tmp_path}/x: ends before byte 2,000", Part(str(tmp_path / "x"), 0, 2000).read)
