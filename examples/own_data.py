"""Draws photos and masks as somebody's own data might look, for the tutorial in docs/learn/own_data.md.

    python -m examples.own_data dataset/mine

`photos/` holds IMG_0001.jpg and so on, `masks/` a PNG for each but the last, with the ids that an annotation tool
chose: 0 other, 10 road, 20 pavement, 30 plants, 40 car, 50 bicycle, 60 person.
"""

import argparse
from pathlib import Path

import cv2
import numpy as np

from dataset.scene import CLASSES, draw_scene

IDS = {"road": 10, "lane marking": 10, "pavement": 20, "vegetation": 30, "car": 40, "bicycle": 50, "person": 60}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.own_data", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=80, metavar="N", help="photos (default: 80)")
    parser.add_argument("--size", type=int, nargs=2, default=(144, 192), metavar=("H", "W"))
    args = parser.parse_args(argv)
    ids = np.zeros(256, np.uint8)  # 0 for void, 255, too
    for name, value in IDS.items():
        ids[CLASSES.index(name)] = value
    for name in ("photos", "masks"):
        (args.folder / name).mkdir(parents=True, exist_ok=True)
    for number in range(1, args.count + 1):
        picture, label = draw_scene(np.random.default_rng([2024, number]), *args.size)
        cv2.imwrite(str(args.folder / "photos" / f"IMG_{number:04}.jpg"), picture[..., ::-1])
        if number < args.count:  # a photo that nobody has labelled yet
            cv2.imwrite(str(args.folder / "masks" / f"IMG_{number:04}.png"), ids[label])
    print(f"{args.count} photos and {args.count - 1} masks in {args.folder}")


if __name__ == "__main__":
    main()
