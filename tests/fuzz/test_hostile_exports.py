"""Exports of annotation tools with one value changed: drawn, or refused by an error that names a file."""

import base64
import copy
import io
import json
import re
from collections.abc import Iterator

import numpy as np
from PIL import Image

from dataset import dataset_class
from dataset.prepare.annotations import draw_polygons
from dataset.prepare.custom import list_images
from dataset.prepare.exports import draw, read_export
from dataset.prepare.layout import Drawn
from dataset.read import DataError
from tests.dataset.prepare.test_exports import SIZE, SQUARE, brush
from tests.official_trees import save

HOSTILE = (None, True, -7, 0, 3, 10**9, 1e308, float("nan"), "", "x", "..", "a\\b.jpg", [], [[]], [1], {}, {"a": 1})
PNG = io.BytesIO()
Image.fromarray(np.full((3, 4), 255, np.uint8)).save(PNG, "PNG")
FLAT = [value for corner in SQUARE for value in corner]

COCO = {
    "images": [{"id": 7, "file_name": "one.jpg", "height": SIZE[0], "width": SIZE[1]}],
    "categories": [{"id": 5, "name": "leaf"}],
    "annotations": [
        {"image_id": 7, "category_id": 5, "segmentation": [FLAT], "area": 64},
        {"image_id": 7, "category_id": 5, "segmentation": {"size": list(SIZE), "counts": [0, 40, 560]}, "area": 40},
    ],
}
LABELME = {
    "shapes": [
        {"label": "leaf", "points": SQUARE, "shape_type": "polygon"},
        {"label": "leaf", "points": SQUARE[:2], "shape_type": "rectangle"},
        {"label": "leaf", "points": SQUARE[:2], "shape_type": "circle"},
        {
            "label": "leaf",
            "points": SQUARE[:2],
            "shape_type": "mask",
            "mask": base64.b64encode(PNG.getvalue()).decode(),
        },
    ],
    "imagePath": "one.jpg",
    "imageHeight": SIZE[0],
    "imageWidth": SIZE[1],
}
PLACE = {"original_width": SIZE[1], "original_height": SIZE[0]}
BOX = {"x": 10, "y": 10, "width": 20, "height": 20, "rotation": 5}
LABEL_STUDIO = [
    {
        "data": {"image": "one.jpg"},
        "annotations": [
            {
                "result": [
                    {"type": "polygonlabels", "value": {"points": SQUARE, "polygonlabels": ["leaf"]}, **PLACE},
                    {"type": "rectanglelabels", "value": {**BOX, "rectanglelabels": ["leaf"]}, **PLACE},
                    {
                        "type": "brushlabels",
                        "value": {"rle": brush(np.eye(*SIZE) > 0), "brushlabels": ["leaf"]},
                        **PLACE,
                    },
                ]
            }
        ],
    }
]
CVAT = """<annotations><meta><task><labels><label><name>leaf</name></label></labels></task></meta>
<image id="0" name="one.jpg" width="30" height="20">
<polygon label="leaf" points="2.0,2.0;10.0,2.0;10.0,10.0" z_order="1"/>
<box label="leaf" xtl="0.0" ytl="0.0" xbr="30.0" ybr="20.0" rotation="5" z_order="0"/>
<ellipse label="leaf" cx="9" cy="9" rx="3" ry="4"/>
<mask label="leaf" rle="1, 2, 1" left="20" top="12" width="2" height="2"/></image></annotations>"""
YOLO = "0 0.1 0.1 0.5 0.1 0.5 0.5\n"


def changed(value, change) -> Iterator:
    """The document with each value replaced, or left out, one at a time; of lists of numbers the first two alone."""
    if isinstance(value, dict | list):
        keys = (
            list(value)
            if isinstance(value, dict)
            else list(range(len(value)))[: 4 if value and isinstance(value[0], dict) else 2]
        )
        for key in keys:
            for inner in changed(value[key], change):
                out = copy.copy(value)
                out[key] = inner
                yield out
            if isinstance(value, dict):
                yield {name: each for name, each in value.items() if name != key}
    yield from change


def documents() -> Iterator[tuple[str, str]]:
    """(name of the file, its text)."""
    for name, document in (("coco.json", COCO), ("labels/one.json", LABELME), ("export.json", LABEL_STUDIO)):
        yield from ((name, json.dumps(each)) for each in changed(document, HOSTILE))
    for match in re.finditer(r'="([^"]*)"', CVAT):
        for value in ("", "x", "-7", "1000000000", "1e308", "nan", "1,1", ";", "a\\b.jpg", ".."):
            yield "annotations.xml", CVAT[: match.start(1)] + value + CVAT[match.end(1) :]
    for match in re.finditer(r"[^ \n]+", YOLO):
        for value in ("x", "-7", "1000000000", "1e308", "nan", "", "²"):
            yield "yolo/one.txt", YOLO[: match.start()] + value + YOLO[match.end() :]


def test_one_changed_value_is_drawn_or_named(tmp_path):
    save(tmp_path, "images/one.jpg", np.full((*SIZE, 3), 90, np.uint8))
    images = list_images(tmp_path, None)
    results = {True: 0, False: 0}
    for name, text in documents():
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
        path = file.parent if "/" in name else file
        try:
            for _, task in read_export(path).tasks(tmp_path, images):
                assert draw(task).dtype == np.uint8
            results[True] += 1
        except (DataError, OSError) as error:
            assert str(tmp_path) in str(error) or "images/one.jpg" in str(error), (text, error)
            results[False] += 1
        except Exception as error:
            raise AssertionError(f"{name}: {text[:400]}") from error
    assert min(results.values()) > 100


POLYGONS = {
    "imgHeight": SIZE[0],
    "imgWidth": SIZE[1],
    "objects": [{"label": "road", "polygon": SQUARE}, {"label": "cargroup", "polygon": SQUARE, "deleted": 1}],
}


def test_one_changed_value_of_official_outlines_is_drawn_or_named(tmp_path):
    """Polygons of Cityscapes and IDD, and the instances of COCO."""
    outlines, results = tmp_path / "a_polygons.json", {True: 0, False: 0}
    instances = tmp_path / "annotations/instances_train2017.json"
    instances.parent.mkdir()
    train = {**COCO, "images": [{**COCO["images"][0], "file_name": "one.jpg"}]}
    coco: Drawn = dataset_class("coco").layout.splits["train"].labels[0]

    def polygons():
        return [draw_polygons(outlines, {"road": 3, "car": 4}, 0)]

    def draw_coco():
        return [coco.decode(task) for _, task in coco.jobs(tmp_path, ["train2017/one.jpg"])]

    for file, document, read in ((outlines, POLYGONS, polygons), (instances, train, draw_coco)):
        for each in changed(document, HOSTILE):
            file.write_text(json.dumps(each))
            try:
                assert all(label.dtype == np.uint8 for label in read())
                results[True] += 1
            except (DataError, OSError) as error:
                assert str(tmp_path) in str(error) or "train2017/one.jpg" in str(error), (each, error)
                results[False] += 1
            except Exception as error:
                raise AssertionError(json.dumps(each)) from error
    assert min(results.values()) > 100
