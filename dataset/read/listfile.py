"""Reads list files: lines `image label` to pairs of paths.

Each pair has a name that no other has.
"""

import io
import os
import re
import unicodedata
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import overload

import numpy as np

from dataset.read import DataError
from dataset.read.files import read_bytes

Pair = tuple[str, str | None]  # paths of a picture and its label

# The longest list file, about two million samples, and its longest line: two of the longest paths Linux has.
MAX_LIST_BYTES = 1 << 27
MAX_LINE = 2 * 4096 + 8


# The longest name of an output without its suffix; file systems allow 255 bytes with all that is put around it.
MAX_STEM_BYTES = 180

# What is no part of a file name on some system, or leads elsewhere.
_UNSAFE = re.compile(r"[\x00-\x1f\x7f\\]|^[A-Za-z]:|^\.*$")
_FIELD = re.compile(r'"([^"]*)"(?=\s|$)|\'([^\']*)\'(?=\s|$)|(\S+)')


class Pairs(Sequence[Pair]):
    """Paths of images and labels, kept in one buffer.

    Python objects would take some 400 bytes a pair, and be copied into every loader's worker as they are read, because
    reading counts references.
    """

    def __init__(self, pairs: Iterable[Pair], root: Path):
        self.prefix = os.path.join(os.fsencode(root), b"")
        text, ends = bytearray(), array("q", [0])
        for image, label in pairs:
            text += self._short(image)
            if label is not None:
                text += b"\0" + self._short(label)
            ends.append(len(text))
        self.text, self.ends = bytes(text), np.array(ends, np.int64)

    def _short(self, path: str) -> bytes:
        """Encode a path, without the root where it is below it; the first byte tells."""
        code = os.fsencode(path)
        return b"+" + code[len(self.prefix) :] if code.startswith(self.prefix) else b"=" + code

    def _long(self, code: bytes) -> str:
        return os.fsdecode((self.prefix if code[:1] == b"+" else b"") + code[1:])

    def __len__(self) -> int:
        return len(self.ends) - 1

    @overload
    def __getitem__(self, index: int) -> Pair: ...
    @overload
    def __getitem__(self, index: slice) -> list[Pair]: ...
    def __getitem__(self, index: int | slice) -> Pair | list[Pair]:
        """Return the paths of one sample, or of several."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        count = len(self)
        if not -count <= index < count:
            raise IndexError(f"sample {index} of {count}")
        index %= count
        image, mark, label = self.text[self.ends[index] : self.ends[index + 1]].partition(b"\0")
        return self._long(image), self._long(label) if mark else None


class Images(Sequence[str]):
    """Paths of the images of pairs."""

    def __init__(self, pairs: Sequence[Pair]):
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        """Return the path of one image, or of several."""
        return [image for image, _ in self.pairs[index]] if isinstance(index, slice) else self.pairs[index][0]


def read_list(list_file: Path, root: Path, needs_label: bool) -> Pairs:
    """Read the (image, label) paths of a list file in order.

    label is None where a line has only an image.

    Raises:
        FileNotFoundError, DataError: begins with `LIST:LINE:`.
    """
    _names_by.cache_clear()  # folders may have changed since the last list
    samples = Pairs(_pairs(list_file, root, needs_label), root)
    if not samples:
        raise DataError(f"{list_file}: the list is empty; write one line `image label` a sample")
    return samples


def _pairs(list_file: Path, root: Path, needs_label: bool) -> Iterator[Pair]:
    """Read the pairs of a list file, each once."""
    first_line: dict[bytes, int] = {}  # by a digest: half the memory of paths
    for number, line in _lines(list_file):
        where = f"{list_file}:{number}"
        fields = _fields(line, where)
        if len(fields) > 2 or (len(fields) == 1 and needs_label):
            raise DataError(f"{where}: {_wrong_count(line, fields, needs_label)}")
        paths = [_existing(root, field, where) for field in fields]
        first = first_line.setdefault(blake2b(os.fsencode(paths[0]), digest_size=16).digest(), number)
        if first != number:
            raise DataError(
                f"{where}: the picture {fields[0]} stands on line {first} already; remove one of the two lines"
            )
        yield paths[0], paths[1] if len(paths) == 2 else None


def _existing(root: Path, field: str, where: str) -> str:
    """Give the path of a file that a list names: as written, or with slashes, or in another Unicode form.

    Raises:
        FileNotFoundError: begins with `where`, and names the file that differs in case alone.
    """
    path = str(root / field)
    if os.path.isfile(path):
        return path
    if os.path.exists(path):
        raise FileNotFoundError(f"{where}: {field} is no ordinary file; correct the line")
    slashed = str(root / field.replace("\\", "/"))
    if (found := _same(slashed, _composed)) is not None and os.path.isfile(found):
        return found
    if (near := _same(slashed, _caseless)) is not None:
        raise FileNotFoundError(f"{where}: {field} does not exist, but {near} does; write it with the same capitals")
    hint = "; a backslash separates no folders here, and with slashes it does not exist either" if "\\" in field else ""
    raise FileNotFoundError(
        f"{where}: {field} does not exist (looked for {path}){hint}; correct the "
        "line, or the data root that relative paths start from"
    )


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _caseless(name: str) -> str:
    return _composed(name).casefold()


def _same(path: str, form: Callable[[str], str]) -> str | None:
    """Give the one path that is there and has the same `form` as `path`; None where there is none, or several."""
    if os.path.exists(path):
        return path
    folder, name = os.path.split(path)
    parent = None if folder in ("", path) else _same(folder, form)
    if parent is None or not os.path.isdir(parent):
        return None
    names = _names_by(parent, form).get(form(name), [])
    return os.path.join(parent, names[0]) if len(names) == 1 else None


@lru_cache(maxsize=64)
def _names_by(folder: str, form: Callable[[str], str]) -> dict[str, list[str]]:
    """Give the names in a folder by their form."""
    names: dict[str, list[str]] = {}
    for name in os.listdir(folder):
        names.setdefault(form(name), []).append(name)
    return names


def _lines(list_file: Path) -> Iterator[tuple[int, str]]:
    """Give the numbers and the text of lines that are not blank."""
    if os.path.isdir(list_file) or not os.path.exists(list_file):
        where = "" if os.path.isabs(list_file) else f" in {os.getcwd()}"
        raise FileNotFoundError(
            f"{list_file}: no such list file{where}; write it, or for a known data set let "
            "`python -m tool.prepare <dataset> --root DIR` write it"
        )
    data = read_bytes(list_file, MAX_LIST_BYTES, "list file").removeprefix(b"\xef\xbb\xbf")
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{list_file}: not UTF-8 text, but UTF-16; save the list file as UTF-8")
    for number, line in enumerate(io.BytesIO(data), start=1):
        where = f"{list_file}:{number}"
        if len(line) > MAX_LINE:
            raise DataError(
                f"{where}: a line of {len(line):,} bytes; a list file holds one line `image label` a sample"
            )
        if b"\0" in line:
            raise DataError(f"{where}: holds a NUL byte; is this a list file, one line `image label` a sample?")
        try:
            text = line.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise DataError(
                f"{where}: not UTF-8 text ({error.reason} at byte {error.start} of the line); a list "
                "file holds one line `image label` a sample"
            ) from None
        if text:
            yield number, text


def _fields(line: str, where: str) -> list[str]:
    fields = []
    for match in _FIELD.finditer(line):
        double, single, plain = match.groups()
        if plain is not None and plain[0] in "\"'":
            raise DataError(f'{where}: the quote of {plain} is not closed; quote a whole path: "a b.png"')
        fields.append(next(text for text in (double, single, plain) if text is not None))
    if "" in fields:
        raise DataError(f"{where}: an empty path in quotes; write `image label`")
    return fields


def _wrong_count(line: str, fields: list[str], needs_label: bool) -> str:
    if len(fields) == 1:
        hint = (
            "separate the two by white space, not by a comma"
            if "," in line
            else 'write `image label` (only the split "test" may leave the label out)'
        )
        return f"1 field ({fields[0]}), where a picture and its label are wanted; {hint}"
    wanted = "`image label`" if needs_label else "`image label` or `image`"
    return f"{len(fields)} fields, where {wanted} is wanted; put a path with spaces in double quotes"


class Names(Sequence[str]):
    """Names of images that no other image of the list has.

    A name is the image's stem; where stems collide, its path below `root` without suffix; where these collide too, its
    number in the list is added. Each is a relative path that stays in the folder it is written to, on any system: a
    part that is no file name (dots alone, control characters, a backslash, a drive letter, too long) is written in
    other letters and numbered. Names are made when asked for; kept is which images need a longer one, a byte or two
    each.
    """

    def __init__(self, paths: Sequence[str], root: Path):
        self.paths, self.root = paths, root
        self.long: list[np.ndarray] = []  # bool (N,): whose path below the root is taken, whose number is added, ...
        self.long.append(_repeated(map(_stem, paths)))
        while (again := _repeated(self)).any():
            self.long.append(again)

    def __len__(self) -> int:
        return len(self.paths)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        """Return the name of one image, or of several."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        path = self.paths[index]
        index %= len(self)
        name = _below(path, self.root).with_suffix("").as_posix() if self.long[0][index] else _stem(path)
        return _harmless(name, index) + f"_{index}" * sum(bool(mask[index]) for mask in self.long[1:])


def _stem(path: str) -> str:
    """`Path(path).stem`, in a fifth of its time, and without its table of all parts."""
    name = os.path.basename(path)
    dot = name.rfind(".")
    return name[:dot] if 0 < dot < len(name) - 1 else name


def _harmless(name: str, index: int) -> str:
    parts = name.split("/")
    if all(_UNSAFE.search(part) is None and len(os.fsencode(part)) <= MAX_STEM_BYTES for part in parts):
        return name
    cut = [
        _UNSAFE.sub("_", part).encode("utf-8", "replace")[:MAX_STEM_BYTES].decode("utf-8", "ignore") or "_"
        for part in parts
    ]
    return f"{'/'.join(cut)}_{index}"


def _repeated(names: Iterable[str]) -> np.ndarray:
    """Tell of each name whether it occurs more than once, bool (N,), by 8 byte digests that are sorted."""
    codes = (blake2b(os.fsencode(name), digest_size=8).digest() for name in names)
    digests = np.frombuffer(b"".join(codes), np.uint64)
    _, where, counts = np.unique(digests, return_inverse=True, return_counts=True)
    return counts[where] > 1


def _below(path: str, root: Path) -> Path:
    """`path` relative to `root`; a picture outside of it keeps its path without anchor and without `..`."""
    relative = Path(os.path.relpath(path, root))
    if ".." in relative.parts:
        absolute = Path(os.path.abspath(path))
        relative = absolute.relative_to(absolute.anchor)
    return relative
