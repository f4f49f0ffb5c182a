"""Checkpoint files: whole or not there, and nothing in them is executed."""

import os

import pytest
import torch
from safetensors.torch import save_file

from util import checkpoint
from util.record.files import sha256

pytestmark = pytest.mark.fast


def test_saved_is_loaded(tmp_path):
    state = {"model": {"w": torch.arange(3.0)}, "spec": {"name": "fcn"}, "step": 4, "classes": ["a", "b"]}
    checkpoint.save(tmp_path / "last.pth", state)
    loaded = checkpoint.load(tmp_path / "last.pth")
    assert torch.equal(loaded["model"]["w"], state["model"]["w"])
    assert loaded["step"] == 4 and loaded["classes"] == ["a", "b"]
    assert checkpoint.is_ours(loaded)
    assert os.listdir(tmp_path) == ["last.pth"]


def test_safetensors_are_loaded_and_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file({"w": torch.arange(3.0)}, path)
    assert torch.equal(checkpoint.load(path)["w"], torch.arange(3.0))
    other = path.rename(tmp_path / "weights.pth")  # known by its content, whatever its name
    assert torch.equal(checkpoint.load(other)["w"], torch.arange(3.0))
    path.write_bytes(other.read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"weights\.safetensors: not a safetensors file, or damaged"):
        checkpoint.load(path)


def test_a_failed_write_leaves_the_earlier_file(tmp_path):
    path = tmp_path / "last.pth"
    checkpoint.save(path, {"step": 1})
    with pytest.raises((AttributeError, TypeError, RuntimeError)):
        checkpoint.save(path, {"step": 2, "bad": lambda: None})  # cannot be written
    assert checkpoint.load(path)["step"] == 1
    assert os.listdir(tmp_path) == ["last.pth"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
def test_a_full_disk_is_told_and_the_earlier_file_stays(tmp_path, monkeypatch):
    path = tmp_path / "last.pth"
    checkpoint.save(path, {"step": 1})
    real = open

    def full(name, *args, **kwargs):
        return real("/dev/full" if str(name).endswith(".part") else name, *args, **kwargs)

    monkeypatch.setattr("builtins.open", full)
    with pytest.raises(OSError, match=r"last\.pth.*no space left"):
        checkpoint.save(path, {"w": torch.zeros(100000)})
    monkeypatch.undo()
    assert checkpoint.load(path)["step"] == 1


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 half a zip"])
def test_a_damaged_file_is_named(tmp_path, content):
    path = tmp_path / "broken.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.pth"):
        checkpoint.load(path)


def test_a_truncated_file_is_named(tmp_path):
    path = tmp_path / "last.pth"
    checkpoint.save(path, {"w": torch.zeros(10000)})
    path.write_bytes(path.read_bytes()[:20000])
    with pytest.raises(ValueError, match=r"last\.pth.*damaged"):
        checkpoint.load(path)


def test_a_flipped_bit_in_the_weights_is_named(tmp_path):
    path = tmp_path / "last.pth"
    checkpoint.save(path, {"step": 3, "model": {"a.weight": torch.zeros(9), "b.weight": torch.zeros(10000)}})
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1  # among the 40,000 bytes of the second tensor
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"last\.pth: damaged, the checksum of tensor model\.b\.weight"):
        checkpoint.load(path)


class Harmful:
    def __reduce__(self):
        return os.system, ("true",)


def test_code_in_a_file_is_refused(tmp_path):
    path = tmp_path / "harmful.pth"
    torch.save({"x": Harmful()}, path)
    with pytest.raises(ValueError, match=r"harmful\.pth: refused"):
        checkpoint.load(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.pth"):
        checkpoint.load(tmp_path / "none.pth")


def test_strict_loading_lists_what_does_not_fit():
    module = torch.nn.Conv2d(3, 4, 1)
    weights = {"weight": torch.zeros(5, 3, 1, 1), "other": torch.zeros(1)}
    with pytest.raises(ValueError) as error:
        checkpoint.load_strictly(module, weights, "file.pth")
    for part in ("file.pth", "missing: bias", "left over: other", "weight (5, 3, 1, 1), the network has (4, 3, 1, 1)"):
        assert part in str(error.value)


def test_skipped_prefixes_keep_their_values():
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 3))
    kept = module[1].weight.detach().clone()
    weights = {"0.weight": torch.ones(2, 2), "0.bias": torch.ones(2), "1.weight": torch.ones(9, 2)}
    skipped = checkpoint.load_strictly(module, weights, "file.pth", skip=("1.",))
    assert sorted(skipped) == ["1.bias", "1.weight"]
    assert torch.equal(module[1].weight, kept) and torch.equal(module[0].weight, torch.ones(2, 2))


def test_sha256_is_that_of_the_bytes(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    assert sha256(tmp_path / "f") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
