"""Draws whole scenes, or a share of a data set.

python -m dataset.scene.draw FOLDER HEIGHT WIDTH TRAIN VAL SEED SHARE OF
"""

import os
import stat
import sys
import threading
from pathlib import Path

import cv2
import numpy as np

from dataset.read import DataError
from dataset.scene.canvas import SUPERSAMPLING, Camera, Canvas, Rng, draw_light
from dataset.scene.finish import develop, paint_bonnet
from dataset.scene.furnish import furnish
from dataset.scene.ground import paint_ground, paint_sky, paint_skyline
from dataset.scene.plan import Plan


def draw_scene(rng: Rng, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw one scene; return picture and label.

    Picture (height, width, 3) uint8 RGB, label (height, width) uint8: indices into CLASSES, or 255. The generator's
    state alone decides every byte. DataError: below 32 x 32 pixels.
    """
    if height < 32 or width < 32:
        raise DataError(f"a street scene needs at least 32 x 32 pixels, got {height} x {width}")
    light = draw_light(rng)
    camera = Camera(rng, height * SUPERSAMPLING, width * SUPERSAMPLING)
    canvas = Canvas(camera, light, rng)
    plan = Plan(rng)
    things = sorted(furnish(rng, plan, camera), key=lambda thing: -thing.depth)

    paint_sky(canvas)
    paint_skyline(canvas)
    for thing in things:
        thing.shade(canvas)
    paint_ground(canvas, plan)
    for thing in things:
        thing.paint(canvas)
    if rng.random() < 0.25:
        paint_bonnet(canvas)
    return develop(canvas)


def draw_share(folder: str, height: int, width: int, train: int, val: int, seed: int, share: int, of: int):
    """Draw every `of`-th scene into a folder's PNG files.

    From number `share` on, into folder/image and folder/label. Scene i of a split depends on (seed, split, i) alone.
    Raises OSError where a file cannot be written.
    """
    scenes = [(split, i) for split, count in enumerate((train, val)) for i in range(count)]
    for split, i in scenes[share::of]:
        image, label = draw_scene(np.random.default_rng([seed, split, i]), height, width)
        name = f"{('train', 'val')[split]}_{i:05}.png"
        for kind, pixels in (("image", image[..., ::-1]), ("label", label)):
            path = Path(folder, kind, name)
            if not cv2.imwrite(str(path), pixels):
                raise OSError(f"{path}: could not be written (is the disk full?)")


def _end_with_parent():
    os.read(0, 1)  # nothing comes until the process at the other end is gone
    os._exit(1)


if __name__ == "__main__":
    cv2.setNumThreads(1)
    if stat.S_ISFIFO(os.fstat(0).st_mode):
        threading.Thread(target=_end_with_parent, daemon=True).start()
    draw_share(sys.argv[1], *map(int, sys.argv[2:]))
