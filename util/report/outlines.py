"""Masks as COCO writes them: polygons or run lengths."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np


def run_lengths(mask: np.ndarray) -> dict[str, list[int]]:
    """Encode a mask, bool (H, W), as COCO's uncompressed run lengths.

    {"size": [H, W], "counts": lengths of the runs of 0 and 1 in turn, column by column, those of 0 first}.
    """
    pixels = np.concatenate([[False], mask.ravel(order="F").astype(bool)])
    changes = np.flatnonzero(pixels[1:] != pixels[:-1])
    counts = np.diff(np.concatenate([[0], changes, [mask.size]]))
    return {"size": list(mask.shape), "counts": [int(count) for count in counts]}


def polygons(mask: np.ndarray) -> list[list[float]]:
    """Outline each region of a mask, bool (H, W).

    Each as [x1, y1, x2, y2, ...] through the middles of its outer pixels. Holes are filled, and regions of a line or a
    pixel left out, since COCO's polygons cannot hold them: run lengths are exact.
    """
    rings, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return [(ring.reshape(-1) + 0.5).tolist() for ring in rings if len(ring) > 2]


def annotations(mask: np.ndarray, names: Sequence[str], kind: str) -> list[dict[str, Any]]:
    """List the classes that occur, as annotations of COCO.

    mask: class ids (H, W), those beyond the classes being no class. kind: "polygons" or "rle".
    """
    found = []
    for index in np.unique(mask):
        if index >= len(names):
            break
        region = mask == index
        rows, columns = np.flatnonzero(region.any(1)), np.flatnonzero(region.any(0))
        box = [columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0]]
        found.append(
            {
                "category_id": int(index),
                "category": names[index],
                "segmentation": polygons(region) if kind == "polygons" else run_lengths(region),
                "area": int(region.sum()),
                "bbox": [int(value) for value in box],
                "iscrowd": int(kind != "polygons"),
            }
        )
    return found
