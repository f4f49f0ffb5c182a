"""Reads list files: lines `image label` to pairs of paths.

Each pair has a name that no other has. No file of the list is looked at before it is read: see `Pairs.missing`.
"""

import os
import re
import unicodedata
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path, PurePosixPath

import numpy as np

from dataset.read import DataError
from dataset.read.files import read_bytes, require_file
from dataset.read.identity import below
from dataset.read.lazy import Lazy
from dataset.read.remote import Url, is_url, place, size_of

Pair = tuple[str, str | None]  # paths of a picture and its label

# The longest list file, ten million lines of 800 bytes, and its longest line: two of the longest paths Linux has.
MAX_LIST_BYTES = 1 << 33
MAX_LINE = 2 * 4096 + 8


# The longest name of an output without its suffix; file systems allow 255 bytes with all that is put around it.
MAX_STEM_BYTES = 180

# What is no part of a file name on some system, or leads elsewhere.
_UNSAFE = re.compile(r"[\x00-\x1f\x7f\\]|^[A-Za-z]:|^\.*$")
_FIELD = re.compile(r'"([^"]*)"(?=\s|$)|\'([^\']*)\'(?=\s|$)|(\S+)')
# A line without these is split at its spaces, and its paths are put behind the root as they are.
_MARKS: tuple[bytes, ...] = (b'"', b"'", b"\\", b"//", b"/.", b" .", b"\t.", b"\n.", b"\r.")
_MARKS += (b"\0", b"\x0b", b"\x0c", b"\x1c", b"\x1d", b"\x1e", b"\x1f")
_BOM = b"\xef\xbb\xbf"


class Samples(Lazy[Pair]):
    """Paths of images and labels, made when asked for.

    Python objects would take some 400 bytes a pair, and be copied into every loader's worker as they are read, because
    reading counts references. unlabelled: pairs without a label. digests: what `identity.facts` has found, if it has.
    """

    unlabelled: int = 0
    digests: tuple[str, str] | None = None

    def missing(self, index: int) -> FileNotFoundError | None:
        """Return the error of a missing file of one sample, if any."""
        return None

    @contextmanager
    def naming(self, index: int) -> Iterator[None]:
        """Name list and line in the error of a missing file."""
        try:
            yield
        except (DataError, FileNotFoundError) as error:
            raise self.missing(index) or error from None


class Pairs(Samples):
    """Samples of a list file, kept as its bytes.

    Files are not looked for. Only a path with backslashes or letters beyond ASCII is looked up, when it is asked for,
    since it may be there with slashes, or in another Unicode form.

    Args:
        list_file, root: for errors, and what the paths are relative to.
        text: all of the list file.
        starts: of each sample's line, in bytes.
    """

    def __init__(self, list_file: Path | Url, root: Path | Url, text: bytes, starts: np.ndarray, unlabelled: int = 0):
        self.list_file, self.root, self.text, self.starts = list_file, root, text, starts
        self.unlabelled = unlabelled
        self.prefix = _prefix(root)
        self.plain = is_plain(text)

    def __len__(self) -> int:
        return len(self.starts)

    def line(self, index: int) -> bytes:
        """Return the line of one sample."""
        start = int(self.starts[index])
        end = self.text.find(b"\n", start)
        return self.text[start : None if end < 0 else end]

    def item(self, index: int) -> Pair:
        """Return the paths of one sample."""
        line = self.line(index)
        if self.plain or is_plain(line):
            paths = [field if field[0] == "/" else self.prefix + field for field in line.decode().split()]
        else:
            paths = [_found(_joined(self.root, field)) for field in _fields(line.decode().strip(), "")]
        return paths[0], paths[1] if len(paths) == 2 else None

    def where(self, index: int) -> str:
        """Give list file and line of a sample."""
        return f"{self.list_file}:{self.text.count(10, 0, int(self.starts[index])) + 1}"

    def missing(self, index: int) -> FileNotFoundError | None:
        """Return the error of a missing file of one sample, if any."""
        for field in _fields(self.line(index).decode().strip(), ""):
            if reason := _why_missing(self.root, field):
                return FileNotFoundError(f"{self.where(index)}: {reason}")
        return None


class Images(Lazy[str]):
    """Paths of the images of pairs."""

    def __init__(self, pairs: Sequence[Pair]):
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Iterator[str]:
        return (image for image, _ in self.pairs)

    def item(self, index: int) -> str:
        """Return the path of one image."""
        return self.pairs[index][0]


def read_list(list_file: Path | Url, root: Path | Url, needs_label: bool) -> Pairs:
    """Read the (image, label) paths of a list file in order.

    label is None where a line has only an image. That the files are there is not tested.

    Raises:
        FileNotFoundError: no such list.
        DataError: begins with `LIST:LINE:`.
    """
    _names_by.cache_clear()  # folders may have changed since the last list
    text = _text(list_file)
    starts, codes = array("q"), array("q")
    plain, prefix, fewest = is_plain(text), os.fsencode(_prefix(root)), 1 + needs_label
    start, number, unlabelled = 0, 0, 0
    while start < len(text):
        number += 1
        end = text.find(b"\n", start)
        end = len(text) if end < 0 else end
        # A line that is surely right is not looked at any closer.
        fields = text[start:end].split() if plain and end - start <= MAX_LINE else []
        count = len(fields)
        if fewest <= count <= 2:
            path = fields[0] if fields[0].startswith(b"/") else prefix + fields[0]
        else:
            checked = _checked(text[start:end], f"{list_file}:{number}", needs_label)
            count = len(checked)
            path = os.fsencode(_composed(_joined(root, checked[0]).replace("\\", "/"))) if checked else b""
        if count:
            starts.append(start)
            codes.append(hash(path))
            unlabelled += count == 1
        start = end + 1
    if not starts:
        raise DataError(f"{list_file}: the list is empty; write one line `image label` a sample")
    pairs = Pairs(list_file, root, text, np.array(starts, np.int64), unlabelled)
    _refuse_repeated(pairs, np.array(codes, np.int64))
    return pairs


def _text(list_file: Path | Url) -> bytes:
    """Read a list file; of one that holds NUL bytes only the start."""
    if is_url(list_file):
        return read_bytes(list_file, MAX_LIST_BYTES, "list file").removeprefix(_BOM)
    if os.path.isdir(list_file) or not os.path.exists(list_file):
        where = "" if os.path.isabs(list_file) else f" in {os.getcwd()}"
        raise FileNotFoundError(
            f"{list_file}: no such list file{where}; `python -m tool.prepare NAME --root DIR` writes it, where "
            "NAME is the data set's, or `custom` for pictures and masks of your own; for data elsewhere: data.root=DIR"
        )
    require_file(list_file, "list file")
    with open(list_file, "rb") as file:
        text = file.read(MAX_LINE)
    if b"\0" not in text:
        text = read_bytes(list_file, MAX_LIST_BYTES, "list file").removeprefix(_BOM)
    if text.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{list_file}: not UTF-8 text, but UTF-16; save the list file as UTF-8")
    return text


def is_plain(text: bytes) -> bool:
    """Tell whether lines can be split at their spaces.

    Their paths then go behind a root as they are.
    """
    return os.sep == "/" and text.isascii() and not text.startswith(b".") and not any(mark in text for mark in _MARKS)


def _checked(line: bytes, where: str, needs_label: bool) -> list[str]:
    """Give the fields of a line; none where it is blank."""
    if len(line) > MAX_LINE:
        raise DataError(f"{where}: a line of {len(line):,} bytes; a list file holds one line `image label` a sample")
    if b"\0" in line:
        raise DataError(f"{where}: holds a NUL byte; is this a list file, one line `image label` a sample?")
    try:
        text = line.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: not UTF-8 text ({error.reason} at byte {error.start} of the line); a list "
            "file holds one line `image label` a sample"
        ) from None
    fields = _fields(text, where)
    if len(fields) > 2 or (len(fields) == 1 and needs_label):
        raise DataError(f"{where}: {_wrong_count(text, fields, needs_label)}")
    return fields


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


def _refuse_repeated(pairs: Pairs, codes: np.ndarray) -> None:
    """Refuse a list that names an image twice; codes: a hash of each image's path, (N,)."""
    first: dict[str, int] = {}
    for index in np.flatnonzero(repeated(codes)).tolist():
        image = pairs[index][0]
        if (before := first.setdefault(image, index)) != index:
            line = pairs.where(before).rpartition(":")[2]
            field = _fields(pairs.line(index).decode().strip(), "")[0]
            raise DataError(
                f"{pairs.where(index)}: the picture {field} stands on line {line} already; remove one of the two lines"
            )


def repeated(codes: np.ndarray) -> np.ndarray:
    """Tell which whole numbers occur more than once, bool (N,)."""
    ordered = np.sort(codes)
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    if not len(twice):
        return np.zeros(len(codes), bool)
    return twice[np.searchsorted(twice, codes).clip(max=len(twice) - 1)] == codes


def _joined(root: Path | Url, field: str) -> str:
    if "://" in field or (isinstance(root, Url) and field.startswith("/")):
        return str(place(field))
    return str(root / field)


def _prefix(root: Path | Url) -> str:
    return _joined(root, "x")[:-1]


def _found(path: str) -> str:
    """Give the path of a file: as written, or with slashes, or in another Unicode form, where that one is there."""
    if (path.isascii() and "\\" not in path) or is_url(path) or os.path.exists(path):
        return path
    return _same(path.replace("\\", "/"), _composed) or path


def _why_missing(root: Path | Url, field: str) -> str:
    """Say why there is no such file, and name the one that differs in case alone; nothing where it is there."""
    path = _joined(root, field)
    if _is_there(path):
        return ""
    if not is_url(path) and os.path.exists(path):
        return f"{field} is no ordinary file; correct the line"
    if not is_url(path) and (near := _same(path.replace("\\", "/"), _caseless)) is not None:
        return f"{field} does not exist, but {near} does; write it with the same capitals"
    hint = "; a backslash separates no folders here, and with slashes it does not exist either" if "\\" in field else ""
    return (
        f"{field} does not exist (looked for {path}){hint}; correct the line, or the data root that relative paths "
        "start from"
    )


def _is_there(path: str) -> bool:
    try:
        return size_of(path) >= 0 if is_url(path) else os.path.isfile(_found(path))
    except FileNotFoundError:
        return False
    except (DataError, OSError):
        return True  # it is not reached, which is another error


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


class Names(Lazy[str]):
    """Names of images that no other image of the list has.

    A name is the image's stem; where stems collide, its path below `root` without suffix; where these collide too, its
    number in the list is added. Each is a relative path that stays in the folder it is written to, on any system: a
    part that is no file name (dots alone, control characters, a backslash, a drive letter, too long) is written in
    other letters and numbered. Names are made when asked for; kept is which images need a longer one, a byte or two
    each.
    """

    def __init__(self, paths: Sequence[str], root: Path | Url):
        self.paths, self.root = paths, root
        self.long: list[np.ndarray] = []  # bool (N,): whose path below the root is taken, whose number is added, ...
        codes = np.empty(len(paths), np.int64)
        changed = np.zeros(len(paths), bool)  # whose name is not the stem, or may not be
        for index, stem in enumerate(map(_stem, paths)):
            codes[index] = hash(stem)
            if not _is_harmless(stem):
                changed[index] = True
        self.long.append(self._collide(codes, lambda index: _stem(paths[index])))
        changed |= self.long[0]
        while changed.any():
            for index in np.flatnonzero(changed).tolist():
                codes[index] = hash(self.item(index))
            changed = self._collide(codes, self.item)
            if changed.any():
                self.long.append(changed)

    @staticmethod
    def _collide(codes: np.ndarray, name: Callable[[int], str]) -> np.ndarray:
        """Tell whose name occurs more than once, bool (N,); codes: of Python's hash, which differs in each process."""
        again = repeated(codes)
        suspects = np.flatnonzero(again).tolist()
        digests = (blake2b(os.fsencode(name(index)), digest_size=8).digest() for index in suspects)
        again[again] = repeated(np.frombuffer(b"".join(digests), np.int64))
        return again

    def __len__(self) -> int:
        return len(self.paths)

    def item(self, index: int) -> str:
        """Return the name of one image."""
        path = self.paths[index]
        name = _below(path, self.root) if self.long[0][index] else _stem(path)
        return _harmless(name, index) + f"_{index}" * sum(bool(mask[index]) for mask in self.long[1:])


def _stem(path: str) -> str:
    """`Path(path).stem`, in a fifth of its time, and without its table of all parts."""
    name = os.path.basename(path)
    dot = name.rfind(".")
    return name[:dot] if 0 < dot < len(name) - 1 else name


def _is_harmless(name: str) -> bool:
    """Tell of most names that `_harmless` keeps them, in a tenth of its time."""
    letters = name.replace("_", "").replace("-", "").replace("/", "")
    return len(name) <= MAX_STEM_BYTES // 4 and letters.isalnum() and "//" not in name


def _harmless(name: str, index: int) -> str:
    if _is_harmless(name):
        return name
    parts = name.split("/")
    if all(_UNSAFE.search(part) is None and len(os.fsencode(part)) <= MAX_STEM_BYTES for part in parts):
        return name
    cut = [
        _UNSAFE.sub("_", part).encode("utf-8", "replace")[:MAX_STEM_BYTES].decode("utf-8", "ignore") or "_"
        for part in parts
    ]
    return f"{'/'.join(cut)}_{index}"


def _below(path: str, root: Path | Url) -> str:
    """`path` relative to `root`, without suffix; one outside of it keeps its path without anchor and without `..`."""
    short = below(path, root)
    if short is None and is_url(path):
        inside = PurePosixPath(path.partition("://")[2])
        short = "/".join(part for part in inside.parts if part not in ("/", ".."))
    if short is None:
        relative = Path(os.path.relpath(path, root))
        if ".." in relative.parts:
            absolute = Path(os.path.abspath(path))
            relative = absolute.relative_to(absolute.anchor)
        short = relative.as_posix()
    return short.removesuffix(os.path.basename(short)) + _stem(short)
