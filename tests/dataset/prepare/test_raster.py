"""Masks from outlines and run lengths, against the official tools' results and by hand."""

import hashlib
import json

import numpy as np
import pytest

from dataset.prepare.raster import coco_mask, compressed_counts, draw_outlines, run_length_mask
from tests.paths import SHARED

pytestmark = pytest.mark.fast

INSTANCES = SHARED / "real/data/coco/annotations/instances_val2017.json"


def test_run_lengths_go_down_the_columns():
    mask = run_length_mask([1, 2, 3], (3, 2))
    assert mask.tolist() == [[False, False], [True, False], [True, False]]
    for counts in ([1, 2], [7], [-1, 7], "61", [[6]], [1.5, 4.5]):
        with pytest.raises(ValueError, match="do not add up to the 3 x 2 pixels"):
            run_length_mask(counts, (3, 2))


def test_compressed_run_lengths():
    """The text that pycocotools 2.0.11 writes for a mask of 40 x 30 pixels: a block with a hole, and a corner."""
    mask = np.zeros((40, 30), bool)
    mask[3:30, 4:20], mask[10:12, 6:9], mask[39, 29] = True, False, True
    text = r"S5k0=00\OE;;EE;;EE;;900000000000000000000\<VO"
    assert (coco_mask({"size": [40, 30], "counts": text}, (40, 30)) == mask).all()
    assert (coco_mask({"size": [40, 30], "counts": text.encode()}, (40, 30)) == mask).all()
    with pytest.raises(ValueError, match="characters that the format does not have"):
        compressed_counts("PP~")
    with pytest.raises(ValueError, match=r"for the size \[40, 30\], but the picture has \[30, 40\]"):
        coco_mask({"size": [40, 30], "counts": text}, (30, 40))


def test_outlines_count_pixels_whose_middle_is_inside():
    square = [1.0, 1.0, 4.0, 1.0, 4.0, 3.0, 1.0, 3.0]
    expected = np.zeros((6, 6), bool)
    expected[1:3, 1:4] = True
    assert (coco_mask([square], (6, 6)) == expected).all()
    expected[4:6, 1:4] = True
    assert (coco_mask([square, [1, 4, 4, 4, 4, 9, 1, 9]], (6, 6)) == expected).all(), "a union, cut at the border"
    with pytest.raises(ValueError, match="no list of numbers"):
        coco_mask([[1, 2, 3]], (6, 6))
    with pytest.raises(ValueError, match="lies 1000000 pixels away, or nowhere"):
        coco_mask([[1, 2, 3, 4, float("nan"), 5]], (6, 6))
    assert not coco_mask([[2.0, 2.0, 2.0, 2.0, 2.0, 2.0]], (6, 6)).any(), "no area"


@pytest.mark.skipif(not INSTANCES.is_file(), reason=f"{INSTANCES} is not there")
def test_masks_are_those_of_the_official_tools_to_the_pixel():
    """All 136 masks of a real file, as pycocotools 2.0.11 decodes them: `decode(frPyObjects(...))`, any part."""
    document = json.loads(INSTANCES.read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in document["images"]}
    digest, areas = hashlib.sha256(), []
    for item in document["annotations"]:
        mask = coco_mask(item["segmentation"], sizes[item["image_id"]])
        digest.update(np.packbits(mask).tobytes())
        areas.append(int(mask.sum()))
    assert areas[:6] == [20184, 484, 3543, 426, 17781, 4866] and sum(areas) == 1144236
    assert digest.hexdigest().startswith("d5f39602c3cd8c5e0d3ba015b1e157a5")


def test_later_outlines_lie_on_top():
    label = draw_outlines((4, 6), [([(0, 0), (5, 0), (5, 3), (0, 3)], 7), ([(2, 1), (3, 1), (3, 2), (2, 2)], 9)], 255)
    assert (label[1:3, 2:4] == 9).all() and (label == 7).sum() == 20
    assert (draw_outlines((2, 2), [([(0, 0), (1, 1)], 3)], 255) == 255).all(), "two corners enclose nothing"
