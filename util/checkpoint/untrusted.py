"""What is looked at in a checkpoint file before, and after, PyTorch reads it.

`torch.load(weights_only=True)` executes nothing, but a file of a few bytes may still claim petabytes, or a key that
takes years to hash. `check_file` reads the directory of the file and the operations of its pickles, none of which is
carried out; `check_content` walks what was loaded, so that whoever uses it may print, compare or copy it.
"""

import pickletools
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch

# How a file of PyTorch before 1.6 begins: its magic number, pickled.
OLD_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
ZIP_START = b"PK\x03\x04"
MAX_PICKLE = 1 << 28  # bytes of structure; that of the largest published network is below one MiB
MAX_TUPLE = 1 << 20  # values in a tuple, those of its tuples counted each time they are named
MAX_INT_BYTES = 10
MAX_DEPTH = 50
MAX_VALUES = 10_000_000  # in all of the content, shared ones counted each time they are named
PLAIN = (
    str,
    bytes,
    bytearray,
    int,
    float,
    complex,
    bool,
    type(None),
    np.generic,
    np.dtype,
    torch.Size,
    torch.dtype,
    torch.device,
    torch.layout,
)
ITEM_BYTES = {
    "torch DoubleStorage": 8,
    "torch FloatStorage": 4,
    "torch HalfStorage": 2,
    "torch BFloat16Storage": 2,
    "torch LongStorage": 8,
    "torch IntStorage": 4,
    "torch ShortStorage": 2,
    "torch CharStorage": 1,
    "torch ByteStorage": 1,
    "torch BoolStorage": 1,
    "torch ComplexFloatStorage": 8,
    "torch ComplexDoubleStorage": 16,
}


def check_file(path: Path) -> None:
    """Raises ValueError, without the file's name, for a file that is no checkpoint or claims more than it holds."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(len(OLD_START))
        if start.startswith(ZIP_START):
            _check_zip(file, size)
        elif start == OLD_START:
            for _ in range(4):  # protocol, system, content, keys of the storages
                _scan(file, size, {})
        else:
            raise ValueError("it does not begin like a file of torch.save")


def _check_zip(file: BinaryIO, size: int) -> None:
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            records = {entry.filename.partition("/")[2]: entry for entry in entries}
            claimed = sum(entry.file_size for entry in entries)
            if claimed > size:
                raise ValueError(f"a compressed or forged archive: it claims {claimed:,} bytes in a file of {size:,}")
            if len(records) < len(entries) or any(entry.compress_type for entry in entries):
                raise ValueError("entries that are compressed or come twice, which torch.save never writes")
            if "data.pkl" not in records or records["data.pkl"].file_size > MAX_PICKLE:
                raise ValueError("no data.pkl of a sensible size in it")
            sizes = {
                name.removeprefix("data/"): entry.file_size
                for name, entry in records.items()
                if name.startswith("data/")
            }
            with archive.open(records["data.pkl"]) as pickled:
                _scan(pickled, size, sizes)
    except (
        zipfile.BadZipFile,
        zlib.error,
        struct.error,
        OSError,
        RuntimeError,
        LookupError,
        OverflowError,
        EOFError,
    ) as error:
        raise ValueError(f"its zip directory is damaged: {error}") from None


class _Tuple(NamedTuple):
    """A tuple of a pickle, and how many values it stands for when those of its tuples are written out."""

    count: int
    items: list


def _scan(file, size: int, records: dict[str, int]) -> None:
    """Follows the operations of one pickle as far as tuples and storages go; leaves the file behind its end.

    records: bytes of each storage where they are known beforehand. Raises ValueError for what a checkpoint never
    needs; what PyTorch refuses by itself is left to it.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    try:
        for operation, argument, _ in pickletools.genops(file):
            name = operation.name
            if name == "MARK":
                marks.append(len(stack))
            elif name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"):
                start = marks.pop() if name == "TUPLE" else len(stack) - int(name[-1])
                stack[start:] = [_tuple(stack[start:])]
            elif name in ("APPENDS", "SETITEMS"):
                del stack[marks.pop() :]
            elif name in ("APPEND", "BUILD", "SETITEM"):
                del stack[-1 - (name == "SETITEM") :]
            elif name in ("REDUCE", "NEWOBJ"):
                stack[-2:] = [None]
            elif name == "BINPERSID":
                _check_storage(stack.pop(), size, records)
                stack.append(None)
            elif name in ("BINGET", "LONG_BINGET"):
                stack.append(memo[argument])
            elif name in ("BINPUT", "LONG_BINPUT"):
                memo[argument] = stack[-1]
            elif name == "LONG1" and argument.bit_length() > 8 * MAX_INT_BYTES:
                raise ValueError(f"a whole number of {argument.bit_length()} bits")
            elif name not in ("PROTO", "STOP"):
                stack.append(argument)
    except LookupError:
        raise ValueError("its pickle is damaged") from None


def _tuple(items: list) -> _Tuple:
    count = 1 + sum(item.count if isinstance(item, _Tuple) else 1 for item in items)
    if count > MAX_TUPLE:
        raise ValueError("a tuple of tuples that stands for more than a million values")
    return _Tuple(count, items)


def _check_storage(key: Any, size: int, records: dict[str, int]) -> None:
    """`key`: what a pickle says of a storage: ("storage", kind, name, device, number of values, ...)."""
    items = key.items if isinstance(key, _Tuple) else []
    if len(items) < 5 or not isinstance(items[4], int) or not isinstance(items[2], str):
        return
    claimed = items[4] * ITEM_BYTES.get(items[1], 1)
    if claimed < 0 or claimed > records.get(items[2], size):
        raise ValueError(
            f"a tensor's storage claims {claimed:,} bytes, and the file has {records.get(items[2], size):,} for it"
        )


def check_content(content: Any, size: int) -> dict:
    """`content` itself, if it is a dictionary of tensors and plain values that is no larger than it looks.

    size: bytes of the file, which no tensor may exceed. Raises ValueError, without the file's name, otherwise.
    """
    if not isinstance(content, dict):
        raise ValueError(f"a checkpoint maps names to tensors; this is {type(content).__name__}")
    counts: dict[int, int] = {}
    _count(content, size, counts, set(), 0)
    return content


def _count(value: Any, size: int, counts: dict[int, int], above: set[int], depth: int) -> int:
    """Values in `value`, itself included. counts: those of containers that are done. above: ids of those around."""
    if isinstance(value, torch.Tensor):
        if value.numel() * value.element_size() > size:
            raise ValueError(f"a tensor of the shape {tuple(value.shape)}, larger than the file it comes from")
        return 1
    if isinstance(value, PLAIN):
        return 1
    if not isinstance(value, (dict, list, tuple, set)):
        raise ValueError(f"it holds more than tensors and plain values: {type(value).__name__}")
    if id(value) in counts:
        return counts[id(value)]
    if id(value) in above or depth > MAX_DEPTH:
        raise ValueError(
            "a container that holds itself" if id(value) in above else f"values nested deeper than {MAX_DEPTH}"
        )
    above.add(id(value))
    total = 1
    for part in (part for pair in value.items() for part in pair) if isinstance(value, dict) else value:
        total += _count(part, size, counts, above, depth + 1)
        if total > MAX_VALUES:
            raise ValueError(f"more than {MAX_VALUES:,} values, shared ones counted each time")
    above.remove(id(value))
    counts[id(value)] = total
    return total


def check_network(state: dict) -> None:
    """Raises ValueError, without the file's name, unless `state` says which network it holds, in the right types."""
    spec, classes = state["spec"], state.get("classes")
    sound = isinstance(spec, dict) and isinstance(spec.get("name"), str) and isinstance(spec.get("options"), dict)
    if not sound or not isinstance(spec.get("backbone", 0), str | None):
        raise ValueError("'spec' does not say which network it is")
    number = spec.get("num_classes")
    if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= 255:
        raise ValueError(f"'spec' says {number!r} classes, where 1 to 255 are possible")
    if not all(isinstance(name, str) for name in spec["options"]):
        raise ValueError("'spec' has options without a name")
    if classes is not None and not (_is_list(classes, number) and all(isinstance(name, str) for name in classes)):
        raise ValueError(f"'classes' are not the names of {number} classes")
    colors = state.get("colors")
    if colors is not None and not (_is_list(colors, number) and all(map(_is_color, colors))):
        raise ValueError(f"'colors' are not those of {number} classes")
    if not isinstance(state.get("config", {}), dict):
        raise ValueError("'config' is no experiment")


def _is_list(value: Any, length: int) -> bool:
    return isinstance(value, list | tuple) and len(value) == length


def _is_color(value: Any) -> bool:
    return _is_list(value, 3) and all(isinstance(part, int) and 0 <= part <= 255 for part in value)
