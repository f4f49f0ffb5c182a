"""Ways in which the newest checkpoint of a run may be found damaged: name -> function of its two files."""

import json
import os
import shutil
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from util import checkpoint
from util.record import files


def truncate(share: float, path: Path, notes: Path) -> None:
    os.truncate(path, int(path.stat().st_size * share))


def cut_last_byte(path: Path, notes: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def append(path: Path, notes: Path) -> None:
    with open(path, "ab") as file:
        file.write(b"\0" * 4096)


def flip_bit(share: float, path: Path, notes: Path) -> None:
    with open(path, "r+b") as file:
        file.seek(int((path.stat().st_size - 1) * share))
        value = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([value ^ 1]))


def zero_block(share: float, path: Path, notes: Path) -> None:
    """A block that was allocated but never written, as after a power cut."""
    size = path.stat().st_size
    with open(path, "r+b") as file:
        file.seek(int(size * share))
        file.write(bytes(min(4096, size - int(size * share))))


def zero_all(path: Path, notes: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def empty(path: Path, notes: Path) -> None:
    path.write_bytes(b"")


def remove(path: Path, notes: Path) -> None:
    path.unlink()
    (path.parent / "last.pth").unlink()


def folder_instead(path: Path, notes: Path) -> None:
    path.unlink()
    path.mkdir()


def foreign_pickle(path: Path, notes: Path) -> None:
    torch.save({"x": zipfile.ZipInfo()}, path)


def web_page(path: Path, notes: Path) -> None:
    path.write_text("<html>404</html>")


def older_content(path: Path, notes: Path) -> None:
    """A whole checkpoint, but not this one: a restored backup, or a rename that a power cut undid."""
    older = sorted(p for p in path.parent.glob("*_*.pth") if p != path)[-1]
    content = older.read_bytes()
    path.write_bytes(content)


def no_manifest(path: Path, notes: Path) -> None:
    """The run was killed after the checkpoint and before its manifest."""
    notes.unlink()


def empty_manifest(path: Path, notes: Path) -> None:
    notes.write_text("")


def half_manifest(path: Path, notes: Path) -> None:
    notes.write_text(notes.read_text()[: len(notes.read_text()) // 2])


def binary_manifest(path: Path, notes: Path) -> None:
    notes.write_bytes(bytes(range(256)))


def wrong_sum(path: Path, notes: Path) -> None:
    content = json.loads(notes.read_text())
    content["sha256"] = "0" * 64
    notes.write_text(json.dumps(content))


def flipped_manifest(path: Path, notes: Path) -> None:
    """One digit of the serial number: it would still be read, and be in the wrong place."""
    content = json.loads(notes.read_text())
    content["serial"] += 8
    notes.write_text(json.dumps(content))


def manifest_of_another(path: Path, notes: Path) -> None:
    other = sorted(p for p in notes.parent.glob("*.json") if p != notes)[-1]
    shutil.copyfile(other, notes)


def stale_manifest(path: Path, notes: Path) -> None:
    """The checkpoint was written again, its manifest is that of the time before."""
    checkpoint.save(path, checkpoint.load(path) | {"note": "again"})


def manifest_is_a_list(path: Path, notes: Path) -> None:
    notes.write_text("[1, 2]")


def half_written(path: Path, notes: Path) -> None:
    """The run was killed while it wrote this checkpoint: only the temporary file is there."""
    half = path.read_bytes()[: path.stat().st_size // 2]
    path.with_name(f".{path.name}.4711{files.TEMPORARY}").write_bytes(half)
    path.unlink()
    notes.unlink()
    (path.parent / "last.pth").unlink()


DAMAGES: dict[str, Callable[[Path, Path], None]] = {
    "file cut at 0.1 %": partial(truncate, 0.001),
    "file cut at a third": partial(truncate, 0.33),
    "file cut at 90 %": partial(truncate, 0.9),
    "last byte missing": cut_last_byte,
    "bytes appended": append,
    "bit flipped at the start": partial(flip_bit, 0.0),
    "bit flipped at a quarter": partial(flip_bit, 0.25),
    "bit flipped in the middle": partial(flip_bit, 0.5),
    "bit flipped at three quarters": partial(flip_bit, 0.75),
    "bit flipped at the end": partial(flip_bit, 1.0),
    "block of zeros inside": partial(zero_block, 0.4),
    "block of zeros at the end": partial(zero_block, 0.95),
    "only zeros": zero_all,
    "empty file": empty,
    "file missing": remove,
    "folder in its place": folder_instead,
    "foreign pickle": foreign_pickle,
    "web page": web_page,
    "content of an older checkpoint": older_content,
    "manifest missing": no_manifest,
    "manifest empty": empty_manifest,
    "manifest cut": half_manifest,
    "manifest of random bytes": binary_manifest,
    "manifest with a wrong sum": wrong_sum,
    "manifest with a flipped digit": flipped_manifest,
    "manifest of another file": manifest_of_another,
    "manifest of an earlier write": stale_manifest,
    "manifest no mapping": manifest_is_a_list,
    "half-written temporary file": half_written,
}
