"""Inputs that nobody meant: valid files with bytes changed, and the rule by which every reader is judged.

A reader may return, or raise a ValueError or OSError that names the file (or the override). Anything else, a second
of `HANG`, or `MEMORY` bytes more than before, is a defect.
"""

import faulthandler
import io
import json
import resource
import struct
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

import cv2
import numpy as np
import torch
import yaml
from hypothesis import strategies as st
from PIL import Image

from dataset import street
from dataset.base import SegDataset
from dataset.load.uniform import find_points
from dataset.prepare.check import check_dataset
from dataset.prepare.pack import pack
from dataset.read import DataError, shard
from dataset.read.image import read_header, read_image, read_label
from dataset.read.listfile import read_list
from dataset.read.packed import IMAGE, Packed
from util import checkpoint
from util.checkpoint import manifest
from util.config import legacy
from util.config.load import load, saved_config

HANG = 60  # seconds for one input, on a busy machine
MEMORY = 1 << 30  # bytes that the resident memory may grow by
ADDRESSES = 4 << 30  # bytes that the address space may grow by
NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


@dataclass(frozen=True)
class Reader:
    """seeds: valid inputs. tokens: what is inserted into them. read: raises, or returns anything.

    share: of the 10,000 inputs of the long run.
    """

    suffix: str
    seeds: Callable[[], list[bytes]]
    read: Callable[[Path], object]
    share: int
    tokens: tuple[bytes, ...] = ()
    build: Callable[[bytes], bytes] = bytes  # puts what was changed into the file that holds it


# --- the judge ---


def judge(reader: Reader, folder: Path, data: bytes) -> bool:
    """Whether the reader took the input; AssertionError where it broke the rule."""
    path = folder / f"hostile_input{reader.suffix}"
    path.write_bytes(reader.build(data))
    faulthandler.dump_traceback_later(HANG, exit=True, file=sys.__stderr__)
    try:
        reader.read(path)
        return True
    except (ValueError, OSError) as error:
        text = f"{error} {getattr(error, 'filename', '')}"
        words = [word[:12] for word in data.decode("utf-8", "surrogateescape").split(" ")]
        quoted = any(f"'{word}" in text for word in words)  # of overrides
        named = path.name in text or quoted or "override" in text or "command line: " in text
        assert named, f"unnamed {type(error).__name__}: {error}"
        return False
    finally:
        faulthandler.cancel_dump_traceback_later()


@contextmanager
def bounded() -> Iterator[None]:
    """Fails where the block takes more memory than it may."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    limits = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ADDRESSES, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    assert grown < MEMORY, f"{grown / 2**20:.0f} MiB more than before"


# --- changing bytes ---


def inputs(reader: Reader) -> st.SearchStrategy[bytes]:
    """Valid files with up to six changes, and, rarely, bytes of no kind."""
    seeds = reader.seeds()
    number = st.integers(0, 2**20)
    edits = st.lists(st.tuples(st.integers(0, 8), number, number), max_size=6)
    changed = st.builds(lambda seed, list_: change(seed, list_, reader.tokens), st.sampled_from(seeds), edits)
    return st.one_of(changed, changed, changed, st.binary(max_size=200))


def change(data: bytes, edits, tokens: tuple[bytes, ...] = ()) -> bytes:
    for kind, where, what in edits:
        at = where % (len(data) + 1)
        size = 1 + what % 64
        insert = {
            3: tokens[what % len(tokens)] if tokens else b"\0",
            5: data[at : at + size],
            6: struct.pack(">I" if what % 2 else "<I", NUMBERS[what // 2 % len(NUMBERS)]),
            8: bytes([what % 256]) * (what // 256 % 4096),
        }.get(kind, b"")
        if kind == 0:
            data = data[:at]
        elif kind == 1:
            data = data[:at] + bytes(b ^ (1 << what % 8) for b in data[at : at + 1]) + data[at + 1 :]
        elif kind == 2:
            data = data[:at] + bytes([what % 256]) + data[at + 1 :]
        elif kind == 4:
            data = data[:at] + data[at + size :]
        elif kind == 7:
            data = data[:at] + bytes(size) + data[at + size :]
        else:
            data = data[:at] + insert + data[at + (4 if kind == 6 else 0) :]
    return data


# --- pictures ---


def scene(channels: int = 3, dtype=np.uint8) -> np.ndarray:
    picture = np.random.default_rng(0).integers(0, 3, (24, 40, channels)).astype(dtype)
    return picture if channels > 1 else picture[:, :, 0]


def pillow(picture: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def opencv(picture: np.ndarray, suffix: str) -> bytes:
    return cv2.imencode(suffix, picture)[1].tobytes()


def pictures() -> list[bytes]:
    rgb, grey = Image.fromarray(scene()), Image.fromarray(scene(1))
    exif = Image.Exif()
    exif[0x0112] = 6
    return [
        *png_pictures(),
        opencv(scene(3, np.uint16), ".tiff"),
        pillow(rgb, "JPEG"),
        pillow(rgb, "JPEG", progressive=True),
        pillow(grey, "JPEG", exif=exif),
        pillow(rgb, "TIFF"),
        pillow(grey, "TIFF", compression="tiff_lzw"),
        pillow(rgb, "TIFF", compression="tiff_deflate"),
        pillow(rgb, "BMP"),
        pillow(rgb, "WEBP", lossless=True),
        pillow(rgb, "WEBP"),
        pillow(rgb, "PPM"),
        pillow(rgb.convert("P"), "GIF"),
    ]


def png_pictures() -> list[bytes]:
    rgb, grey = Image.fromarray(scene()), Image.fromarray(scene(1))
    return [
        pillow(rgb, "PNG"),
        pillow(grey, "PNG"),
        pillow(rgb.convert("RGBA"), "PNG"),
        pillow(grey.convert("LA"), "PNG"),
        pillow(grey.convert("P"), "PNG"),
        pillow(grey.convert("1"), "PNG"),
        opencv(scene(3, np.uint16), ".png"),
        opencv(scene(1, np.uint16), ".png"),
        png(scene(1), interlaced=True),
    ]


def png(
    picture: np.ndarray,
    interlaced: bool = False,
    size: tuple[int, int] | None = None,
    depth: int = 8,
    colour: int = 0,
    pixels: bytes | None = None,
    extra: tuple[tuple[bytes, bytes], ...] = (),
) -> bytes:
    """A grey PNG, written chunk by chunk as the standard says; what is given instead is written as it is."""
    height, width = size or picture.shape
    passes = [(0, 0, 1, 1)]
    if interlaced:  # Adam7: first row, first column, step of rows, step of columns
        passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    if pixels is None:
        pixels = b"".join(
            b"\0" + row.tobytes()
            for top, left, down, right in passes
            for row in picture[top::down, left::right]
            if row.size
        )
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, int(interlaced))
    chunks = [(b"IHDR", header), *extra, (b"IDAT", zlib.compress(pixels)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def with_checksums(data: bytes) -> bytes:
    """A changed PNG whose checksums are right again, so that the change reaches the decoder."""
    out, start = data[:8], 8
    while start + 12 <= len(data):
        length = int.from_bytes(data[start : start + 4], "big")
        if start + 12 + length > len(data):
            break
        out += chunk(data[start + 4 : start + 8], data[start + 8 : start + 8 + length])
        start += 12 + length
    return out + data[start:]


# --- texts ---

EXPERIMENT = {
    "data": {"name": "custom", "root": "/data", "classes": ["a", "b"], "label_map": {0: 0, 7: 1, "1,2,3": 255}},
    "model": {"name": "fcn", "backbone": "resnet18", "options": {"dropout": 0.0}},
    "loss": {"name": "ohem", "options": {"min_kept": 1000}, "extra": {"dice": 0.5}},
    "train": {"epochs": 2, "batch_size": 4},
    "test": {"scales": [0.5, 1.0], "window": "none"},
}
OLD = {
    "DATA": {
        "data_root": "/data",
        "train_list": "a.txt",
        "val_list": "b.txt",
        "classes": 19,
        "names_path": "x/cityscapes_names.txt",
    },
    "TRAIN": {
        "arch": "psp",
        "layers": 50,
        "train_h": 473,
        "train_w": 473,
        "batch_size": 16,
        "base_lr": 0.01,
        "epochs": 200,
        "train_gpu": [0, 1],
        "workers": 16,
        "ignore_label": 255,
        "save_path": "exp/a/model",
    },
    "TEST": {"scales": [1.0], "base_size": 2048, "test_h": 473, "test_w": 473},
}
YAML_TOKENS = (
    b"&a ",
    b"*a",
    b"<<: *a\n",
    b"<<: [*a, *a]\n",
    b"!!python/object/apply:os.system ",
    b"!!binary ",
    b"!!set ",
    b"!!timestamp ",
    b"!!int ",
    b"!!float ",
    b"!!bool ",
    b"!!omap ",
    b"!!pairs ",
    b"!!null ",
    b"2001-99-99",
    b".nan",
    b"-.inf",
    b"1:99:99",
    b"0x",
    b"- ",
    b"? ",
    b": ",
    b"{",
    b"}",
    b"[",
    b"]",
    b"\t",
    b"\n",
    b"---\n",
    b"...\n",
    b"%YAML 9.9\n",
    b'"\\ud800"',
    b'"\\0"',
    b"'",
    b'"',
    b"#",
    b"|\n",
    b">9\n",
    b"@",
    b"`",
    b"\xef\xbb\xbf",
    b"\0",
    b"\r",
    b"\xc2\x85",
    b"\xff\xfe",
    b"base: hostile_input.yaml\n",
    b"base: /dev/zero\n",
    b"base: 5\n",
    b"~",
    b"true",
    b"9" * 120,
    b"1e999",
)


def experiments() -> list[bytes]:
    texts = [
        yaml.safe_dump(EXPERIMENT),
        "x: &a {b: 1}\ny: {<<: *a}\n",
        "data: &a [1, *b]\n",
        json.dumps(EXPERIMENT),
        yaml.safe_dump({**EXPERIMENT, "data": {"name": "camvid", "root": "."}}),
    ]
    return [text.encode() for text in texts]


def read_config(path: Path):
    return load(path).config


def read_override(path: Path):
    pair = path.read_bytes().decode("utf-8", "surrogateescape")
    return saved_config(EXPERIMENT, str(path), [pair])


def read_old_override(path: Path):
    words = path.read_bytes().decode("utf-8", "surrogateescape").split(" ")
    old = path.with_name("old.yaml")
    old.write_text(yaml.safe_dump(OLD))
    return load(old, words).config


def read_names(path: Path):
    raw = {**OLD, "DATA": {**OLD["DATA"], "classes": 2, "names_path": str(path), "colors_path": str(path)}}
    return legacy.translate(raw, [], str(path))


def read_lines(path: Path):
    for name in ("a.png", "b c.png"):
        (path.parent / name).touch()
    pairs = read_list(path, path.parent, True)
    return list(pairs), [pairs.missing(index) for index in range(min(len(pairs), 20))]


# --- what the programs remember ---


def data_set(folder: Path) -> SegDataset:
    if not (folder / "train.txt").is_file():
        cv2.imwrite(str(folder / "p.png"), scene())
        cv2.imwrite(str(folder / "l.png"), scene(1))
        (folder / "train.txt").write_text("p.png l.png\n")
    return SegDataset(folder, classes=("a", "b", "c"))


def stamps() -> list[bytes]:
    """A stamp of any data set: `read_stamp` puts the fingerprint of its own in."""
    report = {
        "name": "custom",
        "split": "train",
        "list_file": "x",
        "images": 1,
        "labelled": 1,
        "smallest": [24, 40],
        "largest": [24, 40],
        "pixels": [1, 2, 3],
        "ignored": 0,
        "warnings": ["w"],
        "cached": False,
    }
    return [json.dumps({"fingerprint": "FINGERPRINT", "report": report}).encode(), b'{"fingerprint": "FINGERPRINT"}']


def read_stamp(path: Path):
    from dataset.read.identity import fingerprint

    folder = path.parent / "set"
    folder.mkdir(exist_ok=True)
    dataset = data_set(folder)
    path.write_bytes(path.read_bytes().replace(b"FINGERPRINT", fingerprint(dataset).encode()))
    report = check_dataset(dataset, 1, path)
    assert len(report.pixels) == 3 and report.largest[0] >= 0 and isinstance(report.warnings, tuple)


def records() -> list[bytes]:
    """Records of a check that was cut after the first sample of `data_set`."""
    values = {"first": 0, "pixels": {"0": 500, "2": 460}, "unknown": {"7": {"count": 1, "files": ["l.png"], "code": 3}}}
    sums = {"mapped": {"0": 500}, "around": {"0": 960}, "values": {"x": values}, "palette": {"1": [[1, 2, 3], "l.png"]}}
    tally = {"done": 1, "images": 1, "labelled": 1, "smallest": [24, 40], "chosen": [0], **sums}
    return [json.dumps({"fingerprint": "FINGERPRINT 1", "tally": tally}).encode()]


def read_record(path: Path):
    from dataset.read.identity import fingerprint

    folder = path.parent / "set"
    folder.mkdir(exist_ok=True)
    dataset = data_set(folder)
    record = path.read_bytes().replace(b"FINGERPRINT", fingerprint(dataset).encode())
    (path.parent / "check.json.part").write_bytes(record)
    (path.parent / "check.json").unlink(missing_ok=True)
    try:
        return check_dataset(dataset, 1, path.parent / "check.json")
    except DataError as error:  # names the list, or the label, of what the record says of samples that were read before
        assert str(folder) in str(error) or "l.png" in str(error)
        raise DataError(f"{path}: {error}") from None


def tars() -> list[bytes]:
    out = []
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
            for name in ("a.png", "a.seg.png", "é/b.png", "é/b.mask.png", "c" * 120 + ".png", "._a.png", "d.json"):
                info = tarfile.TarInfo(name)
                info.size = 9
                tar.addfile(info, io.BytesIO(b"no image!"))
        out.append(buffer.getvalue()[: 512 * 24])
    return out


def read_shard(path: Path):
    index = shard._indexed(str(path), "")
    return [index.pair(row) for row in range(len(index.table))]


def points() -> list[bytes]:
    out = []
    for table in (np.zeros((2, 4), np.int32), np.ones((2, 4), np.float64), np.array([[9, 9, 9, 9]], np.int32)):
        file = io.BytesIO()
        np.savez_compressed(file, key=np.array("k"), table=table)
        out.append(file.getvalue())
    return out


def read_points(path: Path):
    folder = path.parent / "set"
    folder.mkdir(exist_ok=True)
    table = find_points(data_set(folder), 16, 1, path).table
    assert table.dtype == np.int32 and table.shape[1] == 4 and len(table)


def read_remembered_points(path: Path):
    from dataset.load.uniform import _read

    table = _read(path, "k", 1)
    assert table is None or (table.dtype == np.int32 and table[:, 1].max() == 0)


def read_street(path: Path):
    path.replace(path.parent / street.STAMP)
    street._read_stamp(path.parent)


def packed_images() -> list[bytes]:
    out = []
    for array in (np.zeros((24, 40, 3), np.uint8), np.zeros((2, 2), np.float64)):
        file = io.BytesIO()
        np.save(file, array)
        out.append(file.getvalue())
    return out


def read_packed(path: Path):
    folder = path.parent / "set"
    folder.mkdir(exist_ok=True)
    dataset = data_set(folder)
    if not (folder / "packed").is_dir():
        pack(dataset, folder / "packed")
    packed = Packed(folder / "packed", dataset)
    Path(packed.stems[0] + IMAGE).write_bytes(path.read_bytes())
    try:
        image, label = packed.open(0)
        assert image.dtype == np.uint8 and image.ndim == 3 and label.ndim == 2
    except (ValueError, OSError) as error:
        assert "packed" in str(error), error
        raise ValueError(f"{path.name}: {error}") from None


def manifests() -> list[bytes]:
    known: dict = {
        field.name: "1" if field.type == "str" or field.type is str else 1 for field in fields(manifest.Manifest)
    }
    known |= {"file": "hostile_input.pth", "best": "epoch_0001.pth"}
    return [json.dumps({**known, "seal": manifest.digest(known)}).encode()]


def read_manifest(path: Path):
    """A checkpoint's manifest, as the folder of checkpoints reads it: what is wrong with it is told beside its name."""
    try:
        manifest.read_manifest(path)
    except (ValueError, OSError) as error:
        raise ValueError(f"{path.name}: {error}") from None


# --- checkpoints ---


def states() -> list[bytes]:
    out = []
    state = {
        "model": {"w": torch.arange(60.0).reshape(5, 12).t(), "b": torch.zeros(2, dtype=torch.int64)},
        "spec": {"name": "fcn", "options": {"a": (1, 2.5, None)}},
        "best": np.float64(0.5),
        "step": 3,
    }
    for modern in (True, False):
        file = io.BytesIO()
        torch.save(state, file, _use_new_zipfile_serialization=modern)
        out.append(file.getvalue())
    return out


def pickles() -> list[bytes]:
    with zipfile.ZipFile(io.BytesIO(states()[0])) as archive:
        return [archive.read("archive/data.pkl")]


def in_archive(pickled: bytes) -> bytes:
    """A file of torch.save with another data.pkl."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(states()[0])) as old, zipfile.ZipFile(out, "w") as new:
        for entry in old.infolist():
            new.writestr(entry.filename, pickled if entry.filename.endswith("data.pkl") else old.read(entry))
    return out.getvalue()


PICKLE_TOKENS = (
    b"cos\nsystem\n",
    b"cbuiltins\neval\n",
    b"ctorch\nFloatStorage\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"cnumpy\ndtype\n",
    b"cnumpy._core.multiarray\nscalar\n",
    b"ccollections\nOrderedDict\n",
    b"ctorch\nSize\n",
    b"ctorch._utils\n_rebuild_meta_tensor_no_storage\n",
    b"cbuiltins\nbytearray\n",
    b"ccollections\nCounter\n",
    b"ctorch\nUntypedStorage\n",
    b"ctorch\nFloatTensor\n",
    b"ctorch._utils\n_rebuild_sparse_tensor\n",
    b"R",
    b"Q",
    b"b",
    b"s",
    b"u",
    b"a",
    b"e",
    b"t",
    b"(",
    b")",
    b"]",
    b"}",
    b"\x81",
    b"\x85",
    b"\x86",
    b"\x87",
    b"N",
    b"q\x00",
    b"h\x00",
    b"h\x01",
    b"J\xff\xff\xff\x7f",
    b"J\xff\xff\xff\xff",
    b"\x8a\x08" + b"\xff" * 7 + b"\x7f",
    b"X\x02\x00\x00\x00O8",
    b"X\x04\x00\x00\x00V999",
    b"U\x08" + b"a" * 8,
    b"\x89",
    b".",
)

JSON_TOKENS = (b"null", b"[" * 2000, b"1e999", b"9" * 5000, b"-1", b'"')
LIST_TOKENS = (b'"', b"'", b"\0", b"\r", b"../", b"/dev/zero ", b"\xff\xfe", b"# ", b"\xe2\x80\xa8")
VALUE_TOKENS = (b" ", b"(", b"[", b"-" * 900, b"**", b"None ", b"classes ")


def lists() -> list[bytes]:
    return [b'a.png "b c.png"\n', b"\xef\xbb\xbfa.png a.png\r\n\r\n'b c.png' a.png\n"]


READERS = {
    "pictures": Reader(".png", pictures, read_image, 1600),
    "pictures, header only": Reader(".jpg", pictures, read_header, 700),
    "labels": Reader(".png", pictures, read_label, 1100),
    "PNG pictures with right checksums": Reader(".png", png_pictures, read_image, 800, build=with_checksums),
    "PNG labels with right checksums": Reader(".png", png_pictures, read_label, 700, build=with_checksums),
    "list files": Reader(".txt", lists, read_lines, 900, LIST_TOKENS),
    "YAML of experiments": Reader(".yaml", experiments, read_config, 900, YAML_TOKENS),
    "YAML of the older style": Reader(".yaml", lambda: [yaml.safe_dump(OLD).encode()], read_config, 500, YAML_TOKENS),
    "overrides": Reader(
        ".txt",
        lambda: [b"train.epochs=2", b"data.label_map={0: 1}", b"test.scales=[0.5, 1]"],
        read_override,
        500,
        (*YAML_TOKENS, b"=", b".", b"\xff"),
    ),
    "overrides of the older style": Reader(
        ".txt", lambda: [b"epochs 3 base_lr 0.1", b"scales [0.5,1] optim.lr=2"], read_old_override, 300, VALUE_TOKENS
    ),
    "files of names and colours": Reader(".txt", lambda: [b"1 2 3\n4 5 6\n", b"a\nb\n"], read_names, 200),
    "checkpoints": Reader(".pth", states, checkpoint.load, 700),
    "pickles in checkpoints": Reader(".pth", pickles, checkpoint.load, 1200, PICKLE_TOKENS, in_archive),
    "stamps of the check": Reader(".json", stamps, read_stamp, 300, JSON_TOKENS),
    "records of a check": Reader(".json", records, read_record, 300, JSON_TOKENS),
    "tar shards": Reader(".tar", tars, read_shard, 500, (b"\0", b"\x80", b"\xff", b"00000000000", b"77777777777")),
    "points of class-uniform sampling": Reader(".npz", points, read_remembered_points, 300),
    "points that are found anew": Reader(".npz", points, read_points, 100),
    "images of packed data": Reader(".npy", packed_images, read_packed, 300),
    "manifests of checkpoints": Reader(".json", manifests, read_manifest, 200, JSON_TOKENS),
    "stamps of the street scenes": Reader(
        ".json", lambda: [b'{"version": 1, "size": [1, 2], "seed": 0}'], read_street, 200, JSON_TOKENS
    ),
}
