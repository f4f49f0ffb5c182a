"""SBU: photographs with marked shadows, 2 classes, 4,085 / 638 pictures.

Vicente et al., "Large-Scale Training of Shadow Detectors with Noisily-Annotated Shadow Examples", ECCV 2016. The
labels of the training pictures are those that the paper's method has recovered. On disk 0 is no shadow, and
everything else is shadow. Published results are on SBU-Test, which is val here.
"""

import numpy as np

from dataset.base import SegDataset
from dataset.prepare.layout import Archive, Files, Layout, renamed


def _files(folder: str, count: int) -> Files:
    return Files((f"{folder}/ShadowImages/*.jpg",), (renamed("ShadowImages", "ShadowMasks", ".png"),), count)


class SBU(SegDataset):
    name = "sbu"
    classes = ("no shadow", "shadow")
    colors = np.array([(128, 128, 128), (255, 255, 255)], np.uint8)
    label_map = {0: 0, **dict.fromkeys(range(1, 256), 1)}
    disk_ids = (0, 255)
    layout = Layout(
        source="https://www3.cs.stonybrook.edu/~cvl/projects/shadow_noisy_label/index.html",
        licence="non-commercial research, no redistribution",
        splits={"train": _files("SBUTrain4KRecoveredSmall", 4085), "val": _files("SBU-Test", 638)},
        downloads=(
            Archive(
                "http://www3.cs.stonybrook.edu/~cvl/content/datasets/shadow_db/SBU-shadow.zip", folder="SBU-shadow"
            ),
        ),
    )
