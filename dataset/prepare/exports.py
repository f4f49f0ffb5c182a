"""Exports of annotation tools, drawn as masks of ids.

COCO, LabelMe, CVAT, Label Studio and YOLO outlines. Whatever the tool, the masks hold 0 for background and 1, 2, ...
for the tool's classes. Later shapes lie on earlier ones, as the tools show them; of COCO, whose order says nothing,
smaller ones lie on larger ones.
"""

import base64
import io
import math
import posixpath
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree import ElementTree

import cv2
import numpy as np
import yaml

from dataset.prepare.annotations import read_json, stream_json
from dataset.prepare.raster import coco_mask, is_size
from dataset.read import DataError
from dataset.read.header import parse_header
from dataset.read.image import read_header, upright_size
from dataset.read.labelmap import MAX_CLASSES

BACKGROUND = ("background", "_background_", "__background__")
# Label Studio puts eight hexadecimal digits before the names of uploaded pictures.
_UPLOADED = re.compile(r"^[0-9a-f]{8}-")
CORNERS_OF_A_CIRCLE = 64

# What a value of another kind than expected leads to.
_WRONG = (KeyError, TypeError, AttributeError, IndexError, ValueError, OverflowError)

Size = tuple[int, int]
Shape = tuple[str, str, Any]  # class, kind (a key of `_MASKS`, or "nothing"), contents


@dataclass(frozen=True)
class Item:
    """One picture of an export: its name, size and shapes.

    size: (height, width) where the export says so.
    """

    image: str
    size: Size | None
    shapes: list[Shape]


@dataclass(frozen=True)
class Export:
    """An export: its tool, its classes, its shapes that enclose nothing.

    The classes stand in the order of their ids.
    """

    path: Path
    kind: str
    classes: tuple[str, ...]
    skipped: int

    def items(self) -> Iterator[Item]:
        """Yield its pictures, one at a time."""
        return _read(self.path, self.kind)

    def tasks(self, root: Path, images: dict[str, str]) -> Iterator[tuple[str, tuple[str, Size, list]]]:
        """Yield (picture, argument of `draw`) for the pictures that are there.

        Args:
            images: paths below `root` -> names without folder and suffix, as `custom.list_images` gives them.
        """
        names = _Names(images)
        ids = {**dict.fromkeys(BACKGROUND, 0), **{name: i for i, name in enumerate(self.classes)}}
        for item in self.items():
            path = names.find(item.image)
            if path is None:
                continue
            stored, orientation = read_header(root / path) if item.size is None else (item.size, 1)
            size = upright_size(stored, orientation)
            yield path, (path, size, [(ids[name], kind, data) for name, kind, data in item.shapes if kind != "nothing"])


def read_export(path: Path) -> Export:
    """Tell which tool wrote an export, and read its classes.

    Args:
        path: a file (COCO and Label Studio: JSON; CVAT: XML) or a folder (LabelMe: JSON files; YOLO: text files).

    Raises:
        DataError: none of these, or damaged.
    """
    kind = _kind(path)
    try:
        names: dict[str, None] = dict.fromkeys(_declared(path, kind))
    except _WRONG as error:
        raise _invalid(path, kind, error) from None
    skipped = 0
    for item in _read(path, kind):
        names.update(dict.fromkeys(name for name, _, _ in item.shapes))
        skipped += sum(shape == "nothing" for _, shape, _ in item.shapes)
    classes = [name for name in names if name not in BACKGROUND]
    if not 0 < len(classes) < MAX_CLASSES:
        raise DataError(f"{path}: a {kind} export of {len(classes)} classes; 1 to {MAX_CLASSES - 1} are possible")
    # LabelMe and Label Studio declare none: the order of the names does not depend on that of the files.
    return Export(
        path, kind, ("background", *(classes if kind in ("COCO", "CVAT", "YOLO") else sorted(classes))), skipped
    )


def _read(path: Path, kind: str) -> Iterator[Item]:
    """Yield the pictures of an export.

    Raises:
        DataError: something in it is missing, or of another kind than the tool writes.
    """
    try:
        for item in _READERS[kind](path):
            if not isinstance(item.image, str) or not item.image:
                raise DataError(f"{path}: a picture whose name is {item.image!r}")
            if item.size is not None and not is_size(item.size):
                raise DataError(f"{path}: {item.image} has the size {item.size} (height, width), which is none")
            wrong = next((name for name, _, _ in item.shapes if not isinstance(name, str)), None)
            if wrong is not None or any(name is None for name, _, _ in item.shapes):
                raise DataError(f"{path}: {item.image} has a shape of the class {wrong!r}, which is no name")
            yield item
    except DataError:
        raise
    except _WRONG as error:
        raise _invalid(path, kind, error) from None


def _invalid(path: Path, kind: str, error: Exception) -> DataError:
    return DataError(f"{path}: not a valid {kind} export ({type(error).__name__}: {error})")


def draw(task: tuple[str, Size, list[tuple[int, str, Any]]]) -> np.ndarray:
    """Draw the shapes of one picture; return ids uint8 (H, W)."""
    image, size, shapes = task
    label = np.zeros(size, np.uint8)
    for value, kind, data in shapes:
        try:
            label[_MASKS[kind](data, size)] = value
        except DataError as error:
            raise DataError(f"the annotations of {image}: {error}") from None
        except _WRONG as error:
            raise DataError(f"the annotations of {image}: a shape that cannot be drawn ({error})") from None
    return label


def _kind(path: Path) -> str:
    if path.is_dir():
        if any(path.rglob("*.json")):
            return "LabelMe"
        if any(path.rglob("*.txt")):
            return "YOLO"
        raise DataError(f"{path}: neither JSON files of LabelMe nor text files of YOLO are in this folder")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such export")
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        first = file.read(64).lstrip()[:1]
    kind = {"{": "COCO", "[": "Label Studio", "<": "CVAT"}.get(first)
    if kind is None:
        raise DataError(
            f"{path}: no export of COCO, Label Studio (JSON) or CVAT (XML); of LabelMe and YOLO, name the folder"
        )
    return kind


def _declared(path: Path, kind: str) -> list[str]:
    """The classes that an export lists, in its order."""
    if kind == "COCO":
        found = [(item["id"], item["name"]) for _, item in stream_json(path, ("categories",))]
        return [str(name) for _, name in sorted(found)]
    if kind == "CVAT":
        return [
            label.text or "" for _, node in _xml(path) if node.tag == "labels" for label in node.iterfind("label/name")
        ]
    return _yolo_names(path) if kind == "YOLO" else []


def _coco(path: Path) -> Iterator[Item]:
    images: dict[Any, tuple[str, Size]] = {}
    names: dict[Any, str] = {}
    shapes: dict[Any, list[tuple]] = {}  # image -> (what they are sorted by, class, outline or None)
    for key, item in stream_json(path, ("images", "categories", "annotations")):
        if key == "images":
            images[item["id"]] = item["file_name"], (item["height"], item["width"])
        elif key == "categories":
            names[item["id"]] = str(item["name"])
        elif item.get("segmentation"):
            shapes.setdefault(item["image_id"], []).append(
                (-item.get("area", 0), item["category_id"], item["segmentation"])
            )
        else:
            shapes.setdefault(item["image_id"], []).append((0, item["category_id"], None))  # a box alone
    for number, (name, size) in images.items():
        found = sorted(shapes.pop(number, ()), key=lambda shape: shape[0])
        yield Item(name, size, [(names[c], "coco" if data else "nothing", data) for _, c, data in found])


def _visible(folder: Path, pattern: str) -> list[Path]:
    """Give the sorted files below a folder that match, without the hidden ones that systems leave behind."""
    found = (file for file in folder.rglob(pattern) if file.is_file())
    return sorted(file for file in found if not any(part.startswith(".") for part in file.relative_to(folder).parts))


def _labelme(path: Path) -> Iterator[Item]:
    for file in _visible(path, "*.json"):
        document = read_json(file)
        if not isinstance(document, dict) or "shapes" not in document:
            continue  # a settings file beside the labels
        shapes = [_labelme_shape(shape) for shape in document["shapes"]]
        relative = file.relative_to(path).parent / PurePosixPath(document["imagePath"].replace("\\", "/")).name
        yield Item(relative.as_posix(), (document["imageHeight"], document["imageWidth"]), shapes)


def _labelme_shape(shape: dict) -> Shape:
    kind, points = shape.get("shape_type") or "polygon", shape["points"]
    if kind == "rectangle":
        (x0, y0), (x1, y1) = points
        return shape["label"], "outline", [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
    if kind == "circle":
        (x, y), (x1, y1) = points
        return shape["label"], "outline", _ellipse(x, y, math.hypot(x1 - x, y1 - y), math.hypot(x1 - x, y1 - y))
    if kind == "mask":
        return shape["label"], "png", (*points[0], shape["mask"])
    return shape["label"], "outline" if kind == "polygon" else "nothing", points


def _xml(path: Path) -> Iterator[tuple[str, ElementTree.Element]]:
    try:
        yield from ElementTree.iterparse(path)
    except ElementTree.ParseError as error:
        raise DataError(f"{path}: not a readable XML file ({error})") from None


def _cvat(path: Path) -> Iterator[Item]:
    for _, node in _xml(path):
        if node.tag != "image":
            continue
        size = int(node.attrib["height"]), int(node.attrib["width"])
        shapes = sorted(
            (child for child in node if child.get("label")), key=lambda child: int(child.get("z_order") or 0)
        )
        yield Item(node.attrib["name"], size, [_cvat_shape(shape) for shape in shapes])
        node.clear()  # a file may hold hundreds of thousands


def _cvat_shape(node: ElementTree.Element) -> Shape:
    name = node.attrib["label"]
    if node.tag == "polygon":
        return name, "outline", [tuple(map(float, point.split(","))) for point in node.attrib["points"].split(";")]
    if node.tag == "box":
        x0, y0, x1, y1 = (float(node.attrib[key]) for key in ("xtl", "ytl", "xbr", "ybr"))
        corners = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
        return name, "outline", _rotated(corners, (x0 + x1) / 2, (y0 + y1) / 2, float(node.get("rotation") or 0))
    if node.tag == "ellipse":
        x, y, rx, ry = (float(node.attrib[key]) for key in ("cx", "cy", "rx", "ry"))
        return name, "outline", _rotated(_ellipse(x, y, rx, ry), x, y, float(node.get("rotation") or 0))
    if node.tag == "mask":
        place = [int(node.attrib[key]) for key in ("left", "top", "width", "height")]
        return name, "runs", (*place, [int(count) for count in node.attrib["rle"].split(",")])
    return name, "nothing", None


def _label_studio(path: Path) -> Iterator[Item]:
    for task in read_json(path):
        done = [each for each in task.get("annotations", ()) if not each.get("was_cancelled")]
        if not done:
            continue
        source = next((value for value in task["data"].values() if isinstance(value, str) and _is_picture(value)), None)
        if source is None:
            raise DataError(f"{path}: a task whose data name no picture")
        size, shapes = None, []
        for result in done[0]["result"]:
            if "original_width" in result:
                size = result["original_height"], result["original_width"]
                shapes += _label_studio_shapes(result["type"], result["value"], size)
        yield Item(re.split(r"[/?=]", source)[-1], size, shapes)


def _label_studio_shapes(kind: str, value: dict, size: Size) -> list[Shape]:
    names = value.get(kind) or []
    x, y = (value.get(key, 0) * length / 100 for key, length in (("x", size[1]), ("y", size[0])))
    shape: tuple[str, Any]
    if kind == "polygonlabels":
        shape = "outline", [(px * size[1] / 100, py * size[0] / 100) for px, py in value["points"]]
    elif kind == "rectanglelabels":
        w, h = value["width"] * size[1] / 100, value["height"] * size[0] / 100
        shape = "outline", _rotated([(x, y), (x + w, y), (x + w, y + h), (x, y + h)], x, y, value.get("rotation", 0))
    elif kind == "ellipselabels":
        rx, ry = value["radiusX"] * size[1] / 100, value["radiusY"] * size[0] / 100
        shape = "outline", _rotated(_ellipse(x, y, rx, ry), x, y, value.get("rotation", 0))
    elif kind == "brushlabels":
        shape = "brush", bytes([*value["rle"]])  # of a number, `bytes` would take as many zeros
    else:
        shape = "nothing", None
    return [(str(name), *shape) for name in names]


def _is_picture(source: str) -> bool:
    return bool(re.search(r"\.(jpe?g|png|tiff?|bmp|webp|gif)$", source, re.IGNORECASE))


def _yolo(path: Path) -> Iterator[Item]:
    names = _yolo_names(path)
    for file in _visible(path, "*.txt"):
        if file.name in ("classes.txt", "obj.names", "train.txt", "val.txt", "test.txt"):
            continue
        shapes = []
        for number, line in enumerate(file.read_text(encoding="utf-8-sig").splitlines(), 1):
            try:
                index, *numbers = line.split()
                points = [float(value) for value in numbers]
                if int(index) < 0:
                    raise ValueError("counted from 0")
                name = names[int(index)] if names else f"class_{int(index)}"
            except (ValueError, IndexError):
                if line.strip():
                    raise DataError(
                        f"{file}:{number}: a line is a class's number and the corners `x y` of its outline"
                    ) from None
                continue
            # Four numbers are a box, of detection: the outline inside it is not known.
            outline = len(points) >= 6 and len(points) % 2 == 0
            shapes.append((name, "share" if outline else "nothing", points))
        yield Item(file.relative_to(path).as_posix(), None, shapes)


def _yolo_names(path: Path) -> list[str]:
    """The names of classes.txt or data.yaml, in the folder of the labels or above it; none where there is neither."""
    for folder in (path, path.parent):
        if (folder / "classes.txt").is_file():
            return [
                line.strip()
                for line in (folder / "classes.txt").read_text(encoding="utf-8-sig").splitlines()
                if line.strip()
            ]
        if (folder / "data.yaml").is_file():
            try:
                names = yaml.safe_load((folder / "data.yaml").read_text(encoding="utf-8-sig"))["names"]
                return [str(names[i]) for i in range(len(names))]
            except (yaml.YAMLError, *_WRONG):
                raise DataError(f"{folder / 'data.yaml'}: no `names` of the classes 0, 1, ...") from None
    return []


def _ellipse(x: float, y: float, rx: float, ry: float) -> list[tuple[float, float]]:
    angles = [2 * math.pi * i / CORNERS_OF_A_CIRCLE for i in range(CORNERS_OF_A_CIRCLE)]
    return [(x + rx * math.cos(a), y + ry * math.sin(a)) for a in angles]


def _rotated(corners: list[tuple[float, float]], x: float, y: float, degrees: float) -> list[tuple[float, float]]:
    """Corners turned clockwise, as on a screen, about (x, y)."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return [(x + (px - x) * c - (py - y) * s, y + (px - x) * s + (py - y) * c) for px, py in corners]


def _outline_mask(corners: list | np.ndarray, size: Size) -> np.ndarray:
    """An outline [(x, y), ...]: the pixels whose middle it encloses."""
    return coco_mask([np.ravel(corners)], size)


def _share_mask(points: list[float], size: Size) -> np.ndarray:
    """An outline in shares of width and height."""
    shares = np.array(points).reshape(-1, 2)
    if not (np.abs(shares) < 2).all():
        raise DataError(
            f"an outline in shares of the picture, 0 to 1, with {np.abs(shares).max():g}; are these pixels?"
        )
    return _outline_mask(shares * [size[1], size[0]], size)


def _png_mask(data: tuple[float, float, str], size: Size) -> np.ndarray:
    """A mask as a PNG in base64, at (x, y) of the picture."""
    x, y, text = data
    content = base64.b64decode(text)
    parse_header("a mask", io.BytesIO(content))  # its size, before it is decoded
    part = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_GRAYSCALE)
    if part is None:
        raise DataError("a mask whose PNG cannot be read")
    return _pasted(np.asarray(part) > 0, int(y), int(x), size)


def _runs_mask(data: tuple[int, int, int, int, list[int]], size: Size) -> np.ndarray:
    """Run lengths along the rows of a box, beginning with pixels outside."""
    left, top, width, height, counts = data
    if min(counts) < 0 or sum(counts) != width * height or not is_size((height, width)):
        raise DataError(f"run lengths that do not add up to the {width} x {height} pixels of their box")
    flat = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return _pasted(flat.reshape(height, width), top, left, size)


def _pasted(part: np.ndarray, top: int, left: int, size: Size) -> np.ndarray:
    """A part of a picture at its place; what lies outside of the picture is left out."""
    mask = np.zeros(size, bool)
    inside = part[max(0, -top) : max(0, size[0] - top), max(0, -left) : max(0, size[1] - left)]
    top, left = max(0, top), max(0, left)
    mask[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
    return mask


def _brush_mask(data: bytes, size: Size) -> np.ndarray:
    """Label Studio's compressed brush: RGBA bytes in runs of a bit stream; what is not transparent counts.

    32 bits: how many bytes follow. 5 bits: the bits of a value, less 1. Four times 4 bits: the lengths that the
    number of a run may have, less 1. Then, for each run: whether it repeats one value, 2 bits for which of the four
    lengths, the length less 1, and the value or the values.
    """
    bits = "".join(f"{byte:08b}" for byte in data)
    at = 0

    def read(count: int) -> int:
        nonlocal at
        at += count
        return int(bits[at - count : at], 2)

    total, word = read(32), read(5) + 1
    lengths = [read(4) + 1 for _ in range(4)]
    if total != 4 * size[0] * size[1]:
        raise DataError(f"a brush of {total} bytes, but the picture has {size[1]} x {size[0]} pixels")
    values = np.empty(total, np.uint8)
    done = 0
    while done < total:
        repeated = read(1)
        count = read(lengths[read(2)]) + 1
        values[done : done + count] = read(word) if repeated else [read(word) for _ in range(count)]
        done += count
    return values.reshape(*size, 4)[:, :, 3] > 0


_MASKS: dict[str, Callable[[Any, Size], np.ndarray]] = {
    "outline": _outline_mask,
    "coco": coco_mask,
    "share": _share_mask,
    "png": _png_mask,
    "runs": _runs_mask,
    "brush": _brush_mask,
}
_READERS: dict[str, Callable[[Path], Iterator[Item]]] = {
    "COCO": _coco,
    "LabelMe": _labelme,
    "CVAT": _cvat,
    "Label Studio": _label_studio,
    "YOLO": _yolo,
}


class _Names:
    """Finds the picture that an export means: by its path, by the path without folder of pictures and suffix, or by
    its own name alone, where only one picture has it."""

    def __init__(self, images: dict[str, str]):
        self.paths = images
        self.short = {short: path for path, short in images.items()}
        stems = Counter(PurePosixPath(path).stem for path in images)
        self.stems = {PurePosixPath(path).stem: path for path in images if stems[PurePosixPath(path).stem] == 1}

    def find(self, name: str) -> str | None:
        name = name if name in self.paths else name.replace("\\", "/")
        if name in self.paths:
            return name
        bare = posixpath.splitext(name)[0]
        stem = posixpath.basename(bare)
        return self.short.get(bare) or self.stems.get(stem) or self.stems.get(_UPLOADED.sub("", stem))
