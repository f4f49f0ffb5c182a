"""Reads annotation files: JSON of any size, and polygons.

The polygons are those of Cityscapes and IDD.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dataset.prepare.raster import FAR, draw_outlines, is_size
from dataset.read import DataError

WHITE = " \t\r\n"


def read_json(path: str | Path) -> Any:
    """Read a JSON file."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{path}: not a readable JSON file ({error})") from None


def stream_json(path: str | Path, keys: Collection[str]) -> Iterator[tuple[str, Any]]:
    """Yield (key, element) for the elements of a JSON object's arrays.

    Only those of `keys` are given, one at a time. The annotations of COCO would take several GiB as one Python object;
    read this way only the file's text is held.

    Raises:
        DataError: naming the file, where it is no JSON object.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        yield from _elements(text, keys)
    except (ValueError, RecursionError, IndexError) as error:
        raise DataError(f"{path}: not a readable JSON object ({error})") from None


def _elements(text: str, keys: Collection[str]) -> Iterator[tuple[str, Any]]:
    decode = json.JSONDecoder().raw_decode
    at = _expect(text, 0, "{")
    while text[at] != "}":
        key, at = decode(text, at)
        at = _expect(text, at, ":")
        if key in keys and text[at] == "[":
            at = _skip(text, at + 1)
            while text[at] != "]":
                value, at = decode(text, at)
                yield key, value
                at = _after_comma(text, at, "]")
            at += 1
        else:
            _, at = decode(text, at)
        at = _after_comma(text, at, "}")


def _skip(text: str, at: int) -> int:
    while text[at] in WHITE:
        at += 1
    return at


def _expect(text: str, at: int, sign: str) -> int:
    at = _skip(text, at)
    if text[at] != sign:
        raise DataError(f"character {at} should be {sign}")
    return _skip(text, at + 1)


def _after_comma(text: str, at: int, end: str) -> int:
    at = _skip(text, at)
    return at if text[at] == end else _expect(text, at, ",")


def draw_polygons(path: str | Path, ids: Mapping[str, int], background: int, skip_unknown: bool = False) -> np.ndarray:
    """Draw a `*_polygons.json` of Cityscapes or IDD; return its ids.

    As the official scripts do; ids uint8 (H, W). The outlines lie one over the other in the order of the file. A
    deleted object is not drawn, and a group ("cargroup") is drawn as its class.

    Args:
        ids: class name -> id; a negative one is not drawn.
        background: the id where nothing is drawn.
        skip_unknown: leave out objects of other classes.

    Raises:
        DataError: naming the file, where it is none of these or holds a class that is not in `ids`.
    """
    annotation = read_json(path)
    try:
        size = annotation["imgHeight"], annotation["imgWidth"]
        objects = [(str(item["label"]), item["polygon"]) for item in annotation["objects"] if not item.get("deleted")]
    except (KeyError, TypeError, AttributeError):
        raise DataError(f"{path}: not the outlines of a picture (imgHeight, imgWidth, objects)") from None
    if not is_size(size):
        raise DataError(f"{path}: imgHeight {size[0]!r} and imgWidth {size[1]!r} are no size of a picture")
    drawn = []
    for name, corners in objects:
        name = name if name in ids else name.removesuffix("group")
        if not _are_corners(corners):
            raise DataError(f"{path}: an outline of {name!r} that is no list of corners [x, y] within {FAR} pixels")
        if name in ids and ids[name] >= 0:
            drawn.append((corners, ids[name]))
        elif name not in ids and not skip_unknown:
            raise DataError(f"{path}: {name!r} is no class of this data set")
    return draw_outlines(size, drawn, background)


def _are_corners(corners: Any) -> bool:
    try:
        values = np.array(corners, float)
    except (ValueError, TypeError):
        return False
    return values.size == 0 or (values.ndim == 2 and values.shape[1] == 2 and bool((np.abs(values) < FAR).all()))
