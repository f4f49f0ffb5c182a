"""Text files that may be anything: what is opened at all, how much of it is read, and errors that name it."""

import stat
from pathlib import Path


def read_text(path: str | Path, limit: int) -> str:
    """The UTF-8 text of an ordinary file of at most `limit` bytes; a pipe without a writer cannot block it.

    Raises FileNotFoundError for a missing file, OSError for one the system refuses, ValueError for any other.
    """
    path = Path(path)
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{path}: no such file") from None
    except ValueError:  # a NUL byte, or half a surrogate pair
        raise ValueError(f"{str(path)!r}: no possible file name") from None
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{path}: not a file, but a folder, pipe or device")
    if status.st_size > limit:
        raise ValueError(f"{path}: {status.st_size:,} bytes; more than {limit:,} are not read here")
    try:
        with open(path, "rb") as file:
            return file.read(status.st_size).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
