"""A checkpoint: one file that continues a run, or rebuilds its network."""

import errno
import hashlib
import json
import os
import pickle
import shutil
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from util import UserError
from util.checkpoint.untrusted import check_content, check_network
from util.record.files import replacing, sha256

FORMAT = 1
# Entries of a checkpoint that stand beside the weights in safetensors: `Facts`, network, experiment and origin.
SLIM = ("spec", "dataset", "classes", "colors", "label_map", "protocol", "preprocessing", "config", "provenance")

# Published trainers keep their best score as a NumPy number, which torch.load refuses unless its parts are
# allowed: the function that rebuilds it from type and bytes, which NumPy 1 had elsewhere, and the types.
_REBUILD_NUMBER = np.float64().__reduce__()[0]
NUMPY_NUMBERS: list[Any] = [
    (_REBUILD_NUMBER, "numpy._core.multiarray.scalar"),
    (_REBUILD_NUMBER, "numpy.core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(kind)) for kind in (np.float32, np.float64, np.int64)),
]


def save(path: str | Path, state: dict) -> tuple[str, int]:
    """Write `state`, whole.

    `path` is at every moment the old file or the new one. The file is written beside it, synced, read back from the
    disk and compared, and only then renamed.

    Returns:
        SHA-256 and size of the file.

    Raises:
        OSError: the disk is full, not writable, or gives back other bytes; the file that was there is untouched.
    """
    path = Path(path)
    with replacing(path, durable=True) as temporary:
        try:
            with open(temporary, "wb") as file:
                sink = _Sink(file)
                torch.save({"format": FORMAT, **state}, cast(IO[bytes], sink))
                if sink.error is not None:
                    raise sink.error
                if hasattr(os, "posix_fadvise"):
                    # so that it is read back from the disk, not from memory
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        except OSError as error:
            raise _with_space(error, path, state) from None
        if sha256(temporary) != sink.digest.hexdigest():
            raise OSError(errno.EIO, f"{path}: the disk gives back other bytes than were written")
    return sink.digest.hexdigest(), sink.size


class _Sink:
    """Hashes the bytes that torch.save writes.

    Keeps the first error of the system, which torch would hide.
    """

    def __init__(self, file):
        self.file, self.digest, self.size, self.error = file, hashlib.sha256(), 0, None

    def write(self, block) -> int:
        if self.error is not None:
            return len(block)
        try:
            self.file.write(block)
        except OSError as error:
            self.error = error
        self.digest.update(block)
        self.size += len(block)
        return len(block)

    def flush(self) -> None:  # torch.save calls it at the end
        if self.error is not None:
            return
        try:
            self.file.flush()
            os.fsync(self.file.fileno())
        except OSError as error:
            self.error = error


def _with_space(error: OSError, path: Path, state: dict) -> OSError:
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return error
    needed = sum(value.nbytes for _, value in tensors(state)) / 2**20
    free = shutil.disk_usage(path.parent).free / 2**20
    return OSError(
        errno.ENOSPC,
        f"{path}: no space left for the checkpoint (about {needed:.0f} MiB needed, {free:.0f} MiB free); "
        "the earlier checkpoint is untouched. Free some space and start the same command again",
    )


def load(path: str | Path) -> dict:
    """Read a checkpoint, ours or published, onto the CPU.

    Nothing in it is executed.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: the file is damaged, by its own checksums too, or holds more than a dictionary of tensors, plain
            values and NumPy numbers.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    if path.suffix == ".safetensors" or _looks_like_safetensors(path):
        return _load_safetensors(path)
    state = _read(path)
    # all files of torch.save but those of PyTorch before 1.6 are archives with checksums
    damaged = _damaged_record(path) if zipfile.is_zipfile(path) else None
    try:
        check_content(state, path.stat().st_size)
    except ValueError as error:
        if damaged is None:
            raise UserError(f"{path}: refused: {error}") from None
        state = {}
    if damaged is not None:
        raise UserError(
            f"{path}: damaged, the checksum of {_tensor_of(path, damaged, state)} in it is wrong; "
            "take another copy of the file"
        )
    return state


def save_weights(path: str | Path, state: dict) -> None:
    """Write weights and facts of a checkpoint as safetensors.

    `load` reads them again as one of ours. The weights are the tensors; the entries of `SLIM` stand as JSON in the
    file's metadata. What continues a run is left out.
    """
    facts = {name: json.dumps(state[name]) for name in SLIM if name in state}
    weights = {name: tensor.contiguous().clone() for name, tensor in state["model"].items()}
    with replacing(Path(path), durable=True) as temporary:
        save_file(weights, temporary, {"format": "pt", **facts})


def _load_safetensors(path: Path) -> dict:
    """The tensors by name, or a checkpoint of ours where the metadata say which network it is."""
    try:
        with safe_open(path, "pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no dict
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise UserError(f"{path}: not a safetensors file, or damaged ({error})") from None
    if "spec" not in metadata:
        return weights
    try:
        facts = {name: json.loads(metadata[name]) for name in SLIM if name in metadata}
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: its metadata are no JSON ({error})") from None
    return {"format": FORMAT, "model": weights, **facts}


def _read(path: Path):
    try:
        with torch.serialization.safe_globals(NUMPY_NUMBERS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).partition("WeightsUnpickler error:")[2].strip() or str(error)
        # without torch's advice to trust the file
        reason = reason.partition("\n")[0].partition(". Please use")[0]
        # an unknown operation: some other kind of file, such as the web page of a failed download
        if "weights_only" in str(error).lower() and "Unsupported operand" not in reason:
            raise UserError(f"{path}: refused, it holds more than tensors and plain values: {reason}") from None
        raise UserError(f"{path}: not a checkpoint, or damaged ({reason})") from None
    # whatever half a file provokes
    except (
        RuntimeError,
        EOFError,
        LookupError,
        AttributeError,
        OSError,
        TypeError,
        ValueError,
        ArithmeticError,
        AssertionError,
        MemoryError,
        SystemError,
        struct.error,
    ) as error:
        if getattr(error, "filename", None) is not None:  # the operating system's word about the path
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path}: not a checkpoint, or damaged ({reason})") from None


def _looks_like_safetensors(path: Path) -> bool:
    """Whether the file starts with the size of a JSON header, eight bytes, and the header's brace."""
    with open(path, "rb") as file:
        start = file.read(9)
    return len(start) == 9 and start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size


def _damaged_record(path: Path) -> zipfile.ZipInfo | None:
    """Find the first record that does not have the checksum of torch.save, which torch.load does not look at."""
    try:
        with zipfile.ZipFile(path) as archive:
            wrong = archive.testzip()
            return None if wrong is None else archive.getinfo(wrong)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise UserError(f"{path}: not a checkpoint, or damaged ({error})") from None


def _tensor_of(path: Path, record: zipfile.ZipInfo, state: Any) -> str:
    """Give the name of the tensor that a record of the file holds, known by its bytes; else the record's own."""
    with open(path, "rb") as file:
        file.seek(record.header_offset)
        header = file.read(30)  # of fixed size but for a name and an extra field, whose sizes stand at its end
        file.seek(sum(struct.unpack("<HH", header[26:30])), os.SEEK_CUR)
        content = torch.frombuffer(bytearray(file.read(record.file_size)) or bytearray(1), dtype=torch.uint8)
    for name, tensor in tensors(state):
        if torch.equal(torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage()), content):
            return f"tensor {name} ({record.filename})"
    return record.filename


def tensors(state: Any, prefix: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every tensor in nested dictionaries and lists with its dotted name."""
    if isinstance(state, torch.Tensor):
        yield prefix, state
    elif isinstance(state, (dict, list, tuple)):
        for key, value in state.items() if isinstance(state, dict) else enumerate(state):
            yield from tensors(value, f"{prefix}.{key}" if prefix else str(key))


def damage(path: Path) -> str | None:
    """Return why a file cannot be used; None if it is whole."""
    try:
        load(path)
    except (ValueError, OSError) as error:
        return str(error)
    return None


def is_ours(state: object) -> bool:
    """Tell whether a loaded checkpoint has this project's format."""
    return isinstance(state, dict) and isinstance(state.get("model"), dict) and "spec" in state


def check_ours(state: dict, path: str | Path) -> None:
    """Refuse a checkpoint of ours whose network is unclear.

    Raises:
        UserError: names the file and the entry.
    """
    try:
        check_network(state)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


def load_strictly(module: torch.nn.Module, weights: dict, source: str, skip: tuple[str, ...] = ()) -> list[str]:
    """Copy `weights` into `module`; every name and shape must agree.

    Args:
        source: what an error calls the weights.
        skip: prefixes of parameters that keep their present values.

    Returns:
        The names that were skipped.

    Raises:
        UserError: lists what is missing, left over, of another shape or type, or not finite.
    """
    strange = [key for key, value in weights.items() if not isinstance(key, str) or not isinstance(value, torch.Tensor)]
    if strange:
        raise UserError(f"{source} holds what is no named tensor: {strange[0]!r}")
    own = module.state_dict()
    skipped = [k for k in own if skip and k.startswith(tuple(skip))]
    weights = {k: v for k, v in weights.items() if not (skip and k.startswith(tuple(skip)))}
    missing = [k for k in own if k not in weights and k not in skipped]
    extra = [k for k in weights if k not in own]
    shapes = [
        f"{k} {tuple(weights[k].shape)}, the network has {tuple(own[k].shape)}"
        for k in weights
        if k in own and weights[k].shape != own[k].shape
    ]
    kinds = [
        f"{k} {weights[k].dtype}".replace("torch.", "")
        for k in weights
        if k in own and own[k].is_floating_point() and not weights[k].is_floating_point()
    ]
    problems = [("missing", missing), ("left over", extra), ("of another shape", shapes), ("of another type", kinds)]
    if missing or extra or shapes or kinds:
        lines = [f"{len(names)} {what}: {', '.join(names[:6])}" for what, names in problems if names]
        raise UserError(f"{source} does not fit this network: " + "; ".join(lines))
    floats = {k: v.to(own[k].dtype) for k, v in weights.items() if v.is_floating_point()}
    endless = [k for k, v in floats.items() if not torch.isfinite(v).all()]
    if endless:
        raise UserError(f"{source}: {len(endless)} tensors hold values that are not finite: {', '.join(endless[:6])}")
    module.load_state_dict(weights, strict=not skipped)
    return skipped
