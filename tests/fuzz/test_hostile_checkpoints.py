"""Checkpoints that would run code, claim petabytes or never end: refused by name, and nothing happens."""

import io
import math
import os
import pickle
import struct
import tarfile
import zipfile

import numpy as np
import pytest
import torch

from model import build_model
from tests.fuzz import hostile
from tool.shared.network import rebuild
from tool.shared.segmenter import Segmenter
from util import checkpoint


def refused(path, *reasons):
    with hostile.bounded(), pytest.raises(ValueError) as error:
        checkpoint.load(path)
    for part in (path.name, *reasons):
        assert part in str(error.value)


def written(path, pickled: bytes):
    """A file of torch.save with these operations as its pickle."""
    path.write_bytes(hostile.in_archive(pickled))
    return path


def call(function: str, *arguments: bytes) -> bytes:
    """Operations that call a function, a module and a name, with operations for its arguments."""
    return b"c" + function.replace(" ", "\n").encode() + b"\n(" + b"".join(arguments) + b"tR"


def number(value: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", value)


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def program(value: bytes) -> bytes:
    """{"x": value}"""
    return b"\x80\x02}" + text("x") + value + b"s."


FLOATS = b"((" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K<tQ"  # 60 of them


def tensor(offset: int, size: bytes, stride: bytes) -> bytes:
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n"
        + FLOATS
        + number(offset)
        + size
        + stride
        + b"\x89ccollections\nOrderedDict\n)RtR"
    )


@pytest.mark.parametrize(
    "function",
    [
        "os system",
        "posix system",
        "builtins eval",
        "builtins exec",
        "builtins getattr",
        "subprocess Popen",
        "importlib import_module",
        "builtins __import__",
        "torch load",
        "torch.hub load",
        "numpy load",
        "os path.join",
        "torch.utils.collect_env run",
        "collections namedtuple",
        "functools partial",
        "types FunctionType",
        "sys exit",
        "numpy.testing._private.utils runstring",
        "torch._utils __builtins__",
        "cv2 imread",
        "runpy run_path",
    ],
)
def test_a_call_of_any_function_is_refused_and_not_made(tmp_path, function):
    mark = tmp_path / "executed"
    path = written(tmp_path / "bad.pth", program(call(function, text(f"touch {mark}"))))
    refused(path, "refused, it holds more than tensors and plain values")
    nested = call("collections OrderedDict", call(function, text(f"touch {mark}")))
    refused(written(tmp_path / "nested.pth", program(nested)), "refused")
    assert not mark.exists()


def test_the_pickles_written_here_are_understood(tmp_path):
    one = program(tensor(0, b"(K\x05K\x0ct", b"(K\x0cK\x01t"))
    assert torch.equal(
        checkpoint.load(written(tmp_path / "good.pth", one))["x"].flatten().sort().values, torch.arange(60.0)
    )


def test_petabytes_are_refused_before_they_are_asked_for(tmp_path):
    for count in (10**15, 10**12, 2**62, -1, 61):
        storage = FLOATS.replace(b"K<", number(count))
        value = tensor(0, b"(K\x01t", b"(K\x01t").replace(FLOATS, storage)
        refused(written(tmp_path / "bomb.pth", program(value)))
    expanded = tensor(0, b"(" + number(10**9) + number(10**6) + b"t", b"(K\0K\0t")
    refused(written(tmp_path / "wide.pth", program(expanded)), "larger than the file")
    meta = call(
        "torch._utils _rebuild_meta_tensor_no_storage",
        b"ctorch\nfloat32\n",
        b"(" + number(10**15) + b"t",
        b"(K\x01t",
        b"\x89",
    )
    refused(written(tmp_path / "meta.pth", program(meta)), "without values")
    for function in ("builtins bytearray", "torch FloatTensor", "torch UntypedStorage"):
        for count in (10**15, 2**63 - 1, -5):
            refused(written(tmp_path / "call.pth", program(call(function, number(count)))))


@pytest.mark.parametrize(
    "offset, size, stride",
    [
        (0, b"(J\xff\xff\xff\xffK\x05t", b"(K\x05K\x01t"),  # negative size
        (0, b"(K\x05K\x05t", b"(J\xff\xff\xff\xffK\x01t"),  # negative stride
        (-8, b"(K\x05t", b"(K\x01t"),
        (59, b"(K\x05t", b"(K\x01t"),
        (2**62, b"(K\x05t", b"(K\x01t"),
        (0, b"(K\x05t", b"(" + number(2**61) + b"t"),
        (0, b"(K\x05K\x05t", b"(K\x01t"),
        (0, b"(" + number(2**33) + number(2**33) + b"t", b"(K\x01K\x01t"),  # a product beyond 64 bits
        (0, text("abc"), text("abc")),
        (0, b"N", b"N"),
    ],
)
def test_impossible_tensors_are_refused(tmp_path, offset, size, stride):
    refused(written(tmp_path / "bad.pth", program(tensor(offset, size, stride))))


def test_nesting_and_cycles_are_refused(tmp_path):
    for depth in (1000, 200_000):
        refused(written(tmp_path / "deep.pth", program(b"]" * depth + b"a" * (depth - 1))), "nested deeper than 50")
        refused(written(tmp_path / "tuples.pth", program(b"N" + b"\x85" * depth)), "nested deeper than 50")
    refused(written(tmp_path / "cycle.pth", program(b"]q\x00h\x00a")), "nested deeper")
    refused(written(tmp_path / "self.pth", b"\x80\x02}q\x00" + text("state_dict") + b"h\x00s."), "nested deeper")
    shared = b"(]q\x00" + b"]h\x00ah\x00aq\x00" * 40 + b"t"  # lists that hold the one before twice
    refused(written(tmp_path / "shared.pth", program(shared)), "more than 1,000,000")


@pytest.mark.parametrize("value", [[1, 2], "text", 5, None, torch.zeros(3), (1,)])
def test_what_is_no_dictionary_is_refused(tmp_path, value):
    torch.save(value, tmp_path / "top.pth")
    refused(tmp_path / "top.pth", "maps names to tensors")


def test_compressed_and_forged_archives_are_refused_unread(tmp_path):
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(1 << 27))
    refused(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", os.urandom(99))
    refused(path)
    data = bytearray(hostile.states()[0])
    at = data.index(b"PK\x01\x02")  # the directory's first entry: its sizes
    data[at + 20 : at + 28] = struct.pack("<II", 0xFFFFFFF0, 0xFFFFFFF0)
    path.write_bytes(data)
    refused(path)
    with pytest.warns(UserWarning), zipfile.ZipFile(path, "w") as archive:
        for _ in range(2):
            archive.writestr("a/data.pkl", b"\x80\x02}.")
    refused(path)
    for names in ((), ("a/other",), ("../../data.pkl",), ("/data.pkl",)):
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, b"\x80\x02}.")
        refused(path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["bomb.pth"], "nothing is unpacked"


def test_other_containers_are_refused(tmp_path):
    with tarfile.open(tmp_path / "old.pth", "w") as archive:
        entry = tarfile.TarInfo("../../escaped")
        entry.size = 3
        archive.addfile(entry, io.BytesIO(b"abc"))
    refused(tmp_path / "old.pth", "not a checkpoint")
    assert not (tmp_path.parent.parent / "escaped").exists()
    contents = {
        "numpy.pth": pickle.dumps(np.zeros(3)),
        "html.pth": b"<!DOCTYPE html>",
        "empty.pth": b"",
        "pickle.pth": pickle.dumps({"a": 1}, 4),
        "gzip.pth": b"\x1f\x8b\x08" + bytes(50),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        refused(tmp_path / name, "not a checkpoint")
    os.mkfifo(tmp_path / "pipe.pth")
    for path in (tmp_path / "pipe.pth", tmp_path):
        with pytest.raises(FileNotFoundError, match=path.name):
            checkpoint.load(path)


def test_files_of_older_versions_are_read_and_their_claims_checked(tmp_path):
    path = tmp_path / "old.pth"
    modern, old = hostile.states()
    path.write_bytes(old)
    loaded = checkpoint.load(path)
    (tmp_path / "new.pth").write_bytes(modern)
    assert torch.equal(loaded["model"]["w"], checkpoint.load(tmp_path / "new.pth")["model"]["w"])
    assert old.count(b"K<") == 1
    path.write_bytes(old.replace(b"K<", number(10**15)))
    refused(path)


def test_a_file_of_torchscript_is_refused(tmp_path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "script.pth"))
    refused(tmp_path / "script.pth")


def test_what_trainers_save_is_read(tmp_path):
    """Shared tensors, views, half precision, NumPy numbers, nested lists, an optimiser: no rule is in their way."""
    layer = torch.nn.Linear(30, 30)
    adam = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(2, 30)).sum().backward()
    adam.step()
    big = torch.arange(1000.0)
    state = {
        "model": layer.state_dict(),
        "tied": {"a": layer.weight, "b": layer.weight},
        "optimizer": adam.state_dict(),
        "view": big[10:20],
        "half": big.half(),
        "step": 2**62,
        "best": np.float64(0.25),
        "seed": 2**64 - 1,
        "empty": torch.zeros(0, 5),
        "none": torch.zeros(()),
        "random": torch.get_rng_state(),
        "names": [["a", ("b", (1, 2))]] * 9,
        "set": {1, 2},
        "dtype": torch.float16,
        "size": torch.Size([1, 2]),
    }
    for modern in (True, False):
        torch.save(state, tmp_path / "a.pth", _use_new_zipfile_serialization=modern)
        loaded = checkpoint.load(tmp_path / "a.pth")
        assert loaded.keys() == state.keys() and torch.equal(loaded["view"], state["view"])
        assert loaded["names"] == state["names"] and loaded["seed"] == 2**64 - 1 and loaded["best"] == 0.25


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"spec": None}, "'spec'"),
        ({"spec": {"name": "fcn"}}, "'spec'"),
        ({"name": 5}, "'spec'"),
        ({"name": "none"}, "cannot be built"),
        ({"backbone": "none"}, "cannot be built"),
        ({"backbone": [1]}, "'spec'"),
        ({"num_classes": 10**12}, "classes"),
        ({"num_classes": -1}, "classes"),
        ({"num_classes": "3"}, "classes"),
        ({"options": [1]}, "'spec'"),
        ({"options": {1: 2}}, "options"),
        ({"options": {"nothing": 2}}, "nothing"),
        ({"options": {"dropout": "x"}}, "cannot be built"),
        ({"options": {"dropout": 2.0}}, "cannot be built"),
        ({"options": {"dropout": []}}, "cannot be built"),
        ({"options": {"dropout": math.nan}}, "dropout, which is not finite"),
        ({"model": {"w": 5}}, "no named tensor"),
        ({"model": {}}, "missing"),
        ({"model": {5: torch.zeros(1)}}, "no named tensor"),
        ({"classes": 5}, "'classes'"),
        ({"classes": ["a"]}, "'classes'"),
        ({"classes": [1, 2, 3]}, "'classes'"),
        ({"colors": [[1, 2]] * 3}, "'colors'"),
        ({"colors": [[1, 2, 999]] * 3}, "'colors'"),
        ({"config": [5]}, "'config'"),
        ({"config": {"data": {"mean": [1.0] * 5, "std": [1.0] * 5}}}, "mean and std of 5 channels"),
    ],
)
def test_a_checkpoint_of_ours_that_contradicts_itself_is_refused(tmp_path, small_network, change, reason):
    state = {
        "model": small_network.state_dict(),
        "spec": dict(small_network.spec),
        "classes": ["a", "b", "c"],
        "colors": [[0, 0, 0]] * 3,
        "config": {},
    }
    assert rebuild(state, "x.pth") is not None
    for key, value in change.items():
        (state if key in state else state["spec"])[key] = value
    checkpoint.save(tmp_path / "bad.pth", state)
    with hostile.bounded(), pytest.raises(ValueError, match=f"bad.pth.*{reason}"):
        rebuild(checkpoint.load(tmp_path / "bad.pth"), tmp_path / "bad.pth")


@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda w: w.to_sparse(), "sparse, quantised, nested or without values"),
        (lambda w: w.to("meta"), "without values"),
        (lambda w: w.to(torch.complex64), "1 of another type: backbone.layer1.0.conv1.weight complex64"),
        (lambda w: w.to(torch.int8), "1 of another type: backbone.layer1.0.conv1.weight int8"),
        (lambda w: w * math.nan, "1 tensors hold values that are not finite: backbone.layer1.0.conv1.weight"),
        (lambda w: w.double() + 1e300, "not finite"),
    ],
    ids=["sparse", "meta", "complex", "whole numbers", "not a number", "too large"],
)
def test_weights_that_are_no_weights_are_refused(tmp_path, small_network, change, reason):
    weights = dict(small_network.state_dict())
    weights["backbone.layer1.0.conv1.weight"] = change(weights["backbone.layer1.0.conv1.weight"])
    file = tmp_path / "bad.pth"
    torch.save({"format": 1, "model": weights, "spec": dict(small_network.spec)}, file)
    with pytest.raises(ValueError, match=f"bad.pth.*{reason}"):
        rebuild(checkpoint.load(file), file)


@pytest.mark.parametrize(
    "protocol, reason",
    [
        ({"scales": "abc"}, "scales"),
        ({"scales": [math.nan]}, "a finite number is needed"),
        ({"scales": [1e9]}, "scales"),
        ({"window": [-1, -1]}, "window"),
        ({"evil": 1}, "unknown key 'evil'"),
        ({"flip": b"x"}, "bytes"),
    ],
    ids=["text", "not a number", "large", "window", "unknown", "bytes"],
)
def test_a_protocol_that_is_none_is_refused(tmp_path, small_network, protocol, reason):
    file = tmp_path / "bad.pth"
    state = {"model": small_network.state_dict(), "spec": dict(small_network.spec), "protocol": protocol}
    torch.save({"format": 1, **state}, file)
    with pytest.raises(ValueError, match=f"bad.pth: protocol: .*{reason}"):
        Segmenter(file)


@pytest.fixture(scope="module")
def small_network():
    return build_model("fcn", 3, "resnet18")
