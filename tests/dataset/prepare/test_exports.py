"""Exports of annotation tools, written here as the tools write them, drawn and compared with the shapes."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from dataset.prepare.custom import list_images
from dataset.prepare.exports import draw, read_export
from tests.official_trees import save

pytestmark = pytest.mark.fast

SIZE = 20, 30  # height, width
SQUARE = [[2.0, 2.0], [10.0, 2.0], [10.0, 10.0], [2.0, 10.0]]  # the pixels of rows and columns 2 to 9


def expected(value: int = 1) -> np.ndarray:
    label = np.zeros(SIZE, int)
    label[2:10, 2:10] = value
    return label


def drawn(root, path) -> dict[str, np.ndarray]:
    for name in ("one", "two"):
        save(root, f"images/{name}.jpg", np.full((*SIZE, 3), 90, np.uint8))
    export = read_export(path)
    return {image: draw(task) for image, task in export.tasks(root, list_images(root, None))}


def test_coco(tmp_path):
    flat = [2, 2, 10, 2, 10, 10, 2, 10]
    runs = {"size": list(SIZE), "counts": [0, 40, 560]}  # the first two columns
    document = {
        "images": [
            {"id": 7, "file_name": "one.jpg", "height": SIZE[0], "width": SIZE[1]},
            {"id": 8, "file_name": "two.jpg", "height": SIZE[0], "width": SIZE[1]},
        ],
        "categories": [{"id": 5, "name": "leaf"}, {"id": 3, "name": "stem"}],
        "annotations": [
            {"image_id": 7, "category_id": 5, "segmentation": [flat], "area": 64},
            {"image_id": 7, "category_id": 3, "segmentation": [[0, 0, 30, 0, 30, 20, 0, 20]], "area": 600},
            {"image_id": 7, "category_id": 3, "segmentation": [], "bbox": [0, 0, 3, 3]},
            {"image_id": 8, "category_id": 5, "segmentation": runs, "iscrowd": 1, "area": 40},
        ],
    }
    (tmp_path / "coco.json").write_text(json.dumps(document))
    export = read_export(tmp_path / "coco.json")
    assert export.kind == "COCO" and export.classes == ("background", "stem", "leaf") and export.skipped == 1
    labels = drawn(tmp_path, tmp_path / "coco.json")
    assert (labels["images/one.jpg"] == np.where(expected(1), 2, 1)).all(), "the smaller one lies on the larger one"
    assert (labels["images/two.jpg"][:, :2] == 2).all() and (labels["images/two.jpg"][:, 2:] == 0).all()


def test_labelme(tmp_path):
    part = io.BytesIO()
    Image.fromarray(np.full((3, 4), 255, np.uint8)).save(part, "PNG")
    shapes = [
        {"label": "leaf", "points": SQUARE, "shape_type": "polygon"},
        {"label": "stem", "points": [[20, 5], [25, 8]], "shape_type": "rectangle"},
        {
            "label": "stem",
            "points": [[12, 4], [15, 6]],
            "shape_type": "mask",
            "mask": base64.b64encode(part.getvalue()).decode(),
        },
        {"label": "stem", "points": [[15, 15], [18, 15]], "shape_type": "circle"},
        {"label": "tip", "points": [[1, 1]], "shape_type": "point"},
    ]
    document = {"version": "5.2", "shapes": shapes, "imagePath": "..\\images\\one.jpg", "imageData": None}
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/one.json").write_text(json.dumps({**document, "imageHeight": SIZE[0], "imageWidth": SIZE[1]}))
    export = read_export(tmp_path / "labels")
    assert export.kind == "LabelMe" and export.classes == ("background", "leaf", "stem", "tip") and export.skipped == 1
    label = drawn(tmp_path, tmp_path / "labels")["images/one.jpg"]
    assert (label[2:10, 2:10] == 1).all() and (label == 1).sum() == 64
    assert (label[5:8, 20:25] == 2).all() and (label[4:7, 12:16] == 2).all()
    y, x = np.mgrid[:20, :30] + 0.5
    disc = np.hypot(x - 15, y - 15) < 3
    assert ((label[11:] == 2) == disc[11:]).mean() > 0.98, "a disc of radius 3"


def test_cvat(tmp_path):
    (tmp_path / "annotations.xml").write_text(
        """<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version><meta><task><labels>
<label><name>stem</name><color>#ff0000</color></label><label><name>leaf</name></label></labels></task></meta>
<image id="0" name="one.jpg" width="30" height="20">
<polygon label="leaf" source="manual" points="2.0,2.0;10.0,2.0;10.0,10.0;2.0,10.0" z_order="1"/>
<box label="stem" xtl="0.0" ytl="0.0" xbr="30.0" ybr="20.0" z_order="0"/>
<mask label="leaf" rle="1, 2, 1" left="20" top="12" width="2" height="2" z_order="2"/>
<points label="leaf" points="1,1"/></image>
<image id="1" name="two.jpg" width="30" height="20"/></annotations>"""
    )
    export = read_export(tmp_path / "annotations.xml")
    assert export.kind == "CVAT" and export.classes == ("background", "stem", "leaf") and export.skipped == 1
    labels = drawn(tmp_path, tmp_path / "annotations.xml")
    wanted = np.where(expected(1), 2, 1)
    wanted[12, 21] = wanted[13, 20] = 2
    assert (labels["images/one.jpg"] == wanted).all() and not labels["images/two.jpg"].any()


def brush(mask: np.ndarray) -> list[int]:
    """Label Studio's compression, written by its description: one run of one value, or of single values."""
    values = np.zeros((*mask.shape, 4), np.uint8)
    values[mask] = 255
    flat = values.ravel()
    bits = f"{flat.size:032b}{7:05b}{2:04b}{4:04b}{7:04b}{11:04b}"
    at = 0
    while at < flat.size:
        end = at
        while end < flat.size and flat[end] == flat[at]:
            end += 1
        if end - at > 2:
            bits += f"1{3:02b}{end - at - 1:012b}{flat[at]:08b}"
        else:
            bits += f"0{0:02b}{end - at - 1:03b}" + "".join(f"{v:08b}" for v in flat[at:end])
        at = end
    bits += "0" * (-len(bits) % 8)
    return [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]


def test_label_studio(tmp_path):
    share = [[100 * x / SIZE[1], 100 * y / SIZE[0]] for x, y in SQUARE]
    mask = np.zeros(SIZE, bool)
    mask[12:15, 3], mask[16, 20:25] = True, True
    sizes = {"original_width": SIZE[1], "original_height": SIZE[0]}
    result = [
        {"type": "polygonlabels", "value": {"points": share, "polygonlabels": ["leaf"]}, **sizes},
        {"type": "brushlabels", "value": {"format": "rle", "rle": brush(mask), "brushlabels": ["stem"]}, **sizes},
        {"type": "choices", "value": {"choices": ["good"]}},
    ]
    tasks = [
        {"data": {"image": "/data/upload/1/0a1b2c3d-one.jpg"}, "annotations": [{"result": result}]},
        {"data": {"image": "/data/local-files/?d=x/two.jpg"}, "annotations": [{"result": [], "was_cancelled": True}]},
    ]
    (tmp_path / "export.json").write_text(json.dumps(tasks))
    export = read_export(tmp_path / "export.json")
    assert export.kind == "Label Studio" and export.classes == ("background", "leaf", "stem")
    labels = drawn(tmp_path, tmp_path / "export.json")
    assert list(labels) == ["images/one.jpg"], "the other one was never finished"
    assert (labels["images/one.jpg"] == np.where(mask, 2, expected(1))).all()


def test_yolo(tmp_path):
    flat = " ".join(f"{x / SIZE[1]:.6f} {y / SIZE[0]:.6f}" for x, y in SQUARE)
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/one.txt").write_text(f"1 {flat}\n0 0.5 0.5 0.1 0.1\n")
    (tmp_path / "labels/two.txt").write_text("")
    (tmp_path / "data.yaml").write_text("train: images\nnames: {0: stem, 1: leaf}\n")
    export = read_export(tmp_path / "labels")
    assert export.kind == "YOLO" and export.classes == ("background", "stem", "leaf") and export.skipped == 1
    labels = drawn(tmp_path, tmp_path / "labels")
    assert (labels["images/one.jpg"] == expected(2)).all() and not labels["images/two.jpg"].any()
    (tmp_path / "labels/one.txt").write_text("1 2 2 10 2 10 10\n")
    with pytest.raises(ValueError, match="annotations of images/one.jpg: .* 0 to 1, with 10; are these pixels"):
        drawn(tmp_path, tmp_path / "labels")
    (tmp_path / "labels/one.txt").write_text("-1 0.1 0.1 0.2 0.1 0.2 0.2\n")
    with pytest.raises(ValueError, match="one.txt:1: a line is a class's number"):
        read_export(tmp_path / "labels")
    (tmp_path / "labels/one.txt").write_text("1 0.1 x\n")
    with pytest.raises(ValueError, match="one.txt:1: a line is a class's number and the corners"):
        read_export(tmp_path / "labels")


def test_a_shape_that_cannot_be_drawn_is_named_by_its_picture(tmp_path):
    (tmp_path / "a.xml").write_text(
        """<annotations><image name="one.jpg" width="30" height="20">
<mask label="leaf" rle="1, 2" left="0" top="0" width="2" height="2"/></image></annotations>"""
    )
    with pytest.raises(ValueError, match="the annotations of images/one.jpg: run lengths .* 2 x 2 pixels of their box"):
        drawn(tmp_path, tmp_path / "a.xml")


def test_what_is_no_export(tmp_path):
    for name, text, message in (
        ("a.json", "{", "not a readable JSON object"),
        ("b.json", "[1]", "not a valid Label Studio export"),
        ("c.xml", "<annotations><image>", "not a readable XML file"),
        ("d.txt", "hello", "no export of COCO"),
        ("e.json", '{"images": [], "annotations": [], "categories": []}', "export of 0 classes"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=message):
            read_export(tmp_path / name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="neither JSON files of LabelMe nor text files of YOLO"):
        read_export(tmp_path / "empty")
