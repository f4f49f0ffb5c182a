"""Masks as COCO writes them: polygons or run lengths."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

NEAREST = 10_000_000  # points times holes of an outline up to which each hole is joined at the nearest point


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

    A region is connected by sides. Its outline, [x1, y1, x2, y2, ...], runs along the edges of its pixels, the first
    pixel from 0 to 1; a hole is joined to it by a line there and back. So COCO's tools, which fill by parity, decode
    exactly the mask.
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return []
    mask = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    starts, following, inside = _edges(mask)
    labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)[1]
    region_of = labels[inside[:, 0], inside[:, 1]].tolist()
    outer: dict[int, np.ndarray] = {}
    holes: dict[int, list[np.ndarray]] = {}
    left = bytearray(b"\1") * len(starts)
    links = following.tolist()
    for first in range(len(links)):
        ring, at = [], first
        while left[at]:
            left[at] = 0
            ring.append(at)
            at = links[at]
        if ring:
            points = starts[ring]
            x, y = points[:, 0], points[:, 1]
            if np.dot(x, np.roll(y, -1)) > np.dot(y, np.roll(x, -1)):  # the shoelace formula: clockwise, y downwards
                outer[region_of[first]] = points
            else:
                holes.setdefault(region_of[first], []).append(points)
    rings = [_joined(points, holes.get(region, [])) for region, points in outer.items()]
    corner = np.array([columns[0], rows[0]])
    return [(ring + corner).reshape(-1).astype(float).tolist() for ring in rings]


def _edges(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Trace the straight edges of a mask, each with its region to the right.

    Returns:
        Where each begins, int64 (n, 2) as x, y; the edge that follows it, int64 (n,); and a pixel of its region, int64
        (n, 2) as row, column.
    """
    height, width = mask.shape
    padded = np.pad(mask.astype(bool), 1)
    here = padded[1:-1, 1:-1]
    kinds = []  # to the right, down, to the left, up: start and end as x, y, and a pixel of the region
    for turned, other, forward in (
        (False, padded[:-2, 1:-1], True),
        (True, padded[1:-1, 2:], True),
        (False, padded[2:, 1:-1], False),
        (True, padded[1:-1, :-2], False),
    ):
        edge = here & ~other
        edge = edge.T if turned else edge
        steps = np.diff(np.pad(edge, ((0, 0), (1, 1))).astype(np.int8), axis=1)
        (lines, firsts), ends = np.nonzero(steps > 0), np.nonzero(steps < 0)[1]
        # The edges above and to the left of a line of pixels have its number, those below and to the right the next.
        place = lines + (turned == forward)
        one, two = (np.stack([firsts, place], 1), np.stack([ends, place], 1))
        pixel = np.stack([lines, firsts], 1)
        if turned:
            one, two, pixel = one[:, ::-1], two[:, ::-1], pixel[:, ::-1]
        kinds.append((one, two, pixel) if forward else (two, one, pixel))
    offsets = np.cumsum([0] + [len(kind[0]) for kind in kinds])
    following = np.empty(offsets[-1], np.int64)
    # At its end an edge turns right, around its pixel, where it can: regions that share a corner alone are two.
    for number, (_, ends, _) in enumerate(kinds):
        target = ends[:, 1] * (width + 1) + ends[:, 0]
        found = np.full(len(target), -1)
        for turn in (number + 3) % 4, (number + 1) % 4:
            begin = kinds[turn][0]
            keys = begin[:, 1] * (width + 1) + begin[:, 0]
            order = np.argsort(keys)
            at = np.searchsorted(keys, target, sorter=order).clip(max=max(len(keys) - 1, 0))
            match = keys[order[at]] == target if len(keys) else np.zeros(len(target), bool)
            found[match] = offsets[turn] + order[at[match]]
        following[offsets[number] : offsets[number + 1]] = found
    return np.concatenate([kind[0] for kind in kinds]), following, np.concatenate([kind[2] for kind in kinds])


def _joined(outline: np.ndarray, holes: list[np.ndarray]) -> np.ndarray:
    """Join holes to an outline, all int64 (n, 2), each from its first point to the nearest one."""
    parts: dict[int, list[np.ndarray]] = {}
    near = len(outline) * len(holes) <= NEAREST
    for hole in holes:
        place = int(np.abs(outline - hole[0]).sum(1).argmin()) if near else 0
        parts.setdefault(place, []).append(np.concatenate([hole, hole[:1], outline[place : place + 1]]))
    pieces, before = [], 0
    for place in sorted(parts):
        pieces += [outline[before : place + 1], *parts[place]]
        before = place + 1
    return np.concatenate([*pieces, outline[before:]])


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
