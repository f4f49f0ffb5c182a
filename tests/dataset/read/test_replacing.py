"""Files that are replaced whole."""

import errno
import os

import pytest

from dataset.read.files import replacing

pytestmark = pytest.mark.fast


def test_a_full_disk_names_the_file_and_leaves_the_old_one(tmp_path, monkeypatch):
    (tmp_path / "a.npy").write_bytes(b"old")

    def full(number):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="a.npy") as told, replacing(tmp_path / "a.npy") as file:
        file.write(b"new")
    assert told.value.filename == str(tmp_path / "a.npy")
    assert os.listdir(tmp_path) == ["a.npy"] and (tmp_path / "a.npy").read_bytes() == b"old"
