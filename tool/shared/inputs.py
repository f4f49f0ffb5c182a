"""Reads what a command line names.

Pictures, films and cameras, in folders, lists and the standard input.
"""

import codecs
import os
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from io import BufferedReader
from pathlib import Path

from dataset.read.remote import is_url
from tool.shared.film import SUFFIXES as FILMS
from tool.shared.pictures import SUFFIXES, Found, files_in

LIST = ".txt"
PICTURES = {  # what pictures on the standard input begin with, and the suffix of their files
    b"\x89PNG\r\n\x1a\n": ".png",
    b"\xff\xd8\xff": ".jpg",
    b"II*\0": ".tif",
    b"MM\0*": ".tif",
    b"RIFF": ".webp",
    b"GIF8": ".gif",
}
_FIRST_FIELD = re.compile(r'"([^"]+)"|\'([^\']+)\'|(\S+)')


class Inputs:
    """Pictures, films and cameras that a command line names.

    Pictures and films have their path in the folder that was given. A word that leads nowhere is a failure, which
    stops nothing.

    Args:
        words: of the command line.
        out: folder of the results, which is left aside in the folders that are searched.
    """

    def __init__(self, words: list[str], out: Path):
        self.pictures: list[Found] = []
        self.films: list[Found] = []
        self.cameras: list[str] = []
        self.failures: list[str] = []
        self.stream: BufferedReader | None = None  # pictures, one after the other
        self._out = out.resolve()
        for word in words:
            if word == "-":
                self._add_standard_input()
            elif word.isdecimal() and not os.path.exists(word):
                self.cameras.append(word)
            elif word.lower().endswith(LIST) and not os.path.isdir(word):
                self._add_list(Path(word))
            else:
                self._add(word)

    def _add(self, word: str, base: str | None = None) -> None:
        """Add a picture, a film, or all of a folder.

        base: what the paths of a list begin at.
        """
        if is_url(word):
            self.failures.append(f"{word}: a URL; fetch the file first, or give a picture's URL to Segmenter in Python")
            return
        path = word if base is None else os.path.join(base, word)
        suffix = os.path.splitext(path)[1].lower()
        kind = self.films if suffix in FILMS else self.pictures
        # A list may have a million lines: what is named as a picture is looked at when it is predicted.
        if base is not None and suffix in (*SUFFIXES, *FILMS):
            kind.append((path, os.path.basename(path)))
        elif os.path.isdir(path):
            self._add_folder(path)
        elif not os.path.exists(path):
            self.failures.append(f"{path}: no such picture or folder")
        else:
            kind.append((path, os.path.basename(path)))  # of any suffix: whoever reads it says what it is

    def _add_folder(self, folder: str) -> None:
        def failed(error: OSError) -> None:
            self.failures.append(f"{error.filename}: {error.strerror}")

        before = len(self.failures)
        files = files_in(Path(folder), (*SUFFIXES, *FILMS), self._out, failed)
        if not files and len(self.failures) == before:
            self.failures.append(f"{folder}: no picture in it; pictures end in {', '.join(SUFFIXES)}")
        start = len(os.path.join(Path(folder), ""))
        for path in files:
            kind = self.films if path.lower().endswith(FILMS) else self.pictures
            kind.append((path, path[start:]))

    def _add_list(self, file: Path) -> None:
        try:
            data = file.read_bytes()
        except OSError as error:
            self.failures.append(f"{file}: {(error.strerror or 'cannot be read').lower()}")
            return
        self._add_lines(data, str(file.parent), str(file))

    def _add_standard_input(self) -> None:
        stream = getattr(sys.stdin, "buffer", None)
        if stream is not None and stream.peek(8).startswith(tuple(PICTURES)):
            self.stream = stream
        elif stream is not None:
            self._add_lines(stream.read(), "", "the standard input")
        else:  # somebody has put a text there
            self._add_lines("" if sys.stdin is None else os.fsencode(sys.stdin.read()), "", "the standard input")

    def _add_lines(self, data: bytes, base: str, name: str) -> None:
        """Add the paths of a list, which begin at `base`."""
        lines = _lines(data)
        if not lines:
            self.failures.append(f"{name}: names no picture")
        for line in lines:
            # A list of a data set has the label behind each picture.
            if any(map(str.isspace, line)) and not os.path.exists(os.path.join(base, line)):
                match = _FIRST_FIELD.match(line)
                field = "" if match is None else match[match.lastindex or 0]
                line = field if os.path.exists(os.path.join(base, field)) else line
            self._add(line, base)


def _lines(data: bytes) -> list[str]:
    """Split a list into its lines, or at NUL bytes, as `find -print0` writes them."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # as PowerShell redirects
        data = os.fsencode(data.decode("utf-16", "replace"))
    data = data.removeprefix(codecs.BOM_UTF8)
    lines = map(os.fsdecode, data.split(b"\0" if b"\0" in data else b"\n"))
    return [line.strip() for line in lines if line.strip()]


def pictures_of(stream: BufferedReader) -> Iterator[tuple[bytes, str]]:
    """Yield the pictures of a stream: file and suffix.

    PNG and JPEG files follow each other, as `ffmpeg -f image2pipe` writes them; another is all that comes. What stands
    behind the last one and is no picture is left, as the film that some phones put there. A picture that is cut short
    is given as far as it comes.
    """
    while len(start := stream.read(4)) == 4:
        end = next((end for magic, end in PICTURES.items() if start.startswith(magic[:4])), None)
        if end is None:
            return
        data = bytearray(start)
        with suppress(EOFError):
            {".png": _read_png, ".jpg": _read_jpeg}.get(end, _read_all)(stream, data)
        yield bytes(data), end


def _read_all(stream: BufferedReader, data: bytearray) -> None:
    data += stream.read()


def _read_png(stream: BufferedReader, data: bytearray) -> None:
    """PNG (third edition), section 5: a signature of 8 bytes, then chunks, the last one IEND."""
    _take(stream, 4, data)
    while True:
        head = _take(stream, 8, data)
        _take(stream, int.from_bytes(head[:4], "big") + 4, data)
        if head[4:] == b"IEND":
            return


def _read_jpeg(stream: BufferedReader, data: bytearray) -> None:
    """ITU-T T.81, B.1.1: segments with their lengths, coded data in which 0xFF is followed by 0 or RSTn, and EOI."""
    code = bytes(data[3:])  # of the marker behind the first one, FF D8
    while True:
        while code == b"\xff":
            code = _take(stream, 1, data)
        if code == b"\xd9":
            return
        if code[0] not in (0x00, 0x01, *range(0xD0, 0xD9)):
            length = int.from_bytes(_take(stream, 2, data), "big")
            segment = _take(stream, length - 2, data)
            if code == b"\xe2" and segment.startswith(b"MPF\0"):  # CIPA DC-007: more pictures belong to this one
                _read_all(stream, data)
                return
        while (place := (waiting := stream.peek()).find(b"\xff")) < 0:
            _take(stream, len(waiting) or 1, data)
        _take(stream, place + 1, data)
        code = _take(stream, 1, data)


def _take(stream: BufferedReader, count: int, data: bytearray) -> bytes:
    """Read so many bytes, and add them to the data; EOFError where there are fewer."""
    taken = stream.read(max(count, 0))
    data += taken
    if len(taken) < count:
        raise EOFError
    return taken
