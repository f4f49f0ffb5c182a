"""Large synthetic street pictures for measurements.

Their PNGs take about as long to decode as real photographs.
"""

from pathlib import Path

import cv2
import numpy as np

from dataset.scene import CLASSES, draw_scene

DATASET = "cityscapes"
# A class of the drawn scenes -> a Cityscapes label id, so that the labels are mapped as real ones are.
LABEL_IDS = (23, 11, 7, 7, 8, 21, 17, 20, 26, 24, 33, 13)
NOISE = 3.5  # grey levels; gives PNGs of about 2.3 MB at 1024 x 2048


def write(folder: Path, count: int, size: tuple[int, int] = (1024, 2048), seed: int = 0) -> Path:
    """Write `count` pictures, labels and their train.txt; return the folder."""
    assert len(LABEL_IDS) == len(CLASSES)
    folder.mkdir(parents=True, exist_ok=True)
    table = np.zeros(256, np.uint8)
    table[: len(LABEL_IDS)] = LABEL_IDS
    rng = np.random.default_rng(seed)
    lines = []
    for index in range(count):
        image, label = draw_scene(rng, *(max(32, side // 4) for side in size))
        grain = cv2.GaussianBlur(rng.normal(0, NOISE, (*size, 3)).astype(np.float32), (0, 0), 0.8)
        large = cv2.resize(image, size[::-1], interpolation=cv2.INTER_CUBIC) + grain
        ids = table[cv2.resize(label, size[::-1], interpolation=cv2.INTER_NEAREST)]
        cv2.imwrite(str(folder / f"{index:03}.png"), np.clip(large, 0, 255).astype(np.uint8)[:, :, ::-1])
        cv2.imwrite(str(folder / f"{index:03}_labelIds.png"), ids)
        lines.append(f"{index:03}.png {index:03}_labelIds.png\n")
    (folder / "train.txt").write_text("".join(lines), encoding="utf-8")
    return folder
