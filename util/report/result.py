"""What an evaluation leaves in its result folder.

Also the scoring of predictions that are already there. metrics.json, metrics.csv, table.txt        the scores (IoU,
accuracy, pixels of each class; means) confusion.csv, confusion.png                the confusion matrix as numbers and
as a picture gray/NAME.png, color/NAME.png               predictions: train ids, one byte a pixel; the classes' colours
"""

import json
import math
import re
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath

import cv2
import numpy as np
import torch

from util import UserError
from util.record.files import replacing, sha256, write_bytes, write_text
from util.record.machine import versions
from util.record.table import columns, csv_bytes
from util.report.visual import colorize, confusion_picture, png
from util.score.evaluate import Timing
from util.score.metric import ConfusionMatrix, Scores
from util.score.void import VoidConfusion

NAMED = 12  # classes that a line of the table names
# How a network with an output for what no label says was scored: the table's last line, by test.void.
VOID = {
    "ignore": "void: ignore: the network's output for it has no part",
    "class": "void: class: ignored pixels are one more class, without part in the mean",
}


class PredictionWriter:
    """`on_prediction` of evaluate(): writes gray/NAME.png and color/NAME.png under the folder.

    A name may contain sub folders. A file appears complete or not at all. colors: uint8 (C, 3) RGB.
    """

    def __init__(self, folder: str | Path, colors: np.ndarray, gray: bool = True, color: bool = True):
        self.folder = Path(folder)
        self.colors = colors
        self.gray = gray
        self.color = color

    def __call__(self, sample: dict, prediction: np.ndarray) -> None:
        name = sample["name"]
        if self.gray:
            write_bytes(output_path(self.folder / "gray", name), png(prediction), parents=True)
        if self.color:
            picture = png(colorize(prediction, self.colors))
            write_bytes(output_path(self.folder / "color", name), picture, parents=True)


def score_predictions(
    folder: str | Path,
    samples: Iterable[dict],
    confusion: ConfusionMatrix,
    on_prediction: Callable[[dict, np.ndarray], None] | None = None,
) -> int:
    """Count predictions that are already there; return their number.

    samples: with name and label (H, W); the prediction is folder/gray/NAME.png. on_prediction: called with each and
    its prediction. FileNotFoundError naming the file that is missing. UserError naming the file that cannot be read, is
    not one byte a pixel, is of another size than its label,
    or holds a value that is no class.
    """
    number = 0
    for number, sample in enumerate(samples, start=1):  # noqa: B007
        name, label = sample["name"], sample["label"]
        path = output_path(Path(folder) / "gray", name)
        prediction = _read_prediction(path)
        if prediction.shape != tuple(label.shape):
            sizes = [f"{height} x {width}" for height, width in (prediction.shape, label.shape)]
            raise UserError(f"{path} is {sizes[0]}, its label {sizes[1]} (height x width)")
        try:
            confusion.update(torch.from_numpy(prediction), label)
        except ValueError as error:
            raise UserError(f"{path}: {error}") from None
        if on_prediction is not None:
            on_prediction(sample, prediction)
    return number


def write_results(
    folder: str | Path,
    scores: Scores,
    confusion: ConfusionMatrix,
    class_names: Sequence[str],
    timing: Timing,
    protocol: dict | None,
    checkpoint: str | Path | None,
    about: dict | None = None,
) -> str:
    """Write the files of a result; return the table.

    They are metrics.json, metrics.csv, table.txt, confusion.csv and confusion.png. protocol: Predictor.describe().
    checkpoint: the file that was scored. Both are None where predictions that were already on disk are scored.
    about: further entries of metrics.json. Undefined values are null in JSON and empty in CSV. For one process only.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    names = [str(name) for name in class_names]
    content = metrics(scores, names, timing, protocol, checkpoint) | (about or {})
    lines = [table(scores, names)]
    if void := (protocol or {}).get("void"):
        lines.append(VOID[void])
    if isinstance(confusion, VoidConfusion):
        labelled = confusion.labelled()
        means = {name: _defined(getattr(labelled, name)) for name in ("mIoU", "mAcc", "allAcc")}
        content["labelled_pixels"] = means | {"iou": [_defined(iou) for iou in labelled.iou]}
        numbers = f"mIoU {_percent(labelled.mIoU).strip()}, pixel accuracy {_percent(labelled.allAcc).strip()}"
        lines.append(f"over the labelled pixels alone: {numbers}")
    text = "\n".join(lines)
    matrix = confusion.matrix.cpu().numpy()
    counted = [*names, "void"][: len(matrix)]  # of a network with an output for what no label says
    rows = [[entry["name"], entry["iou"], entry["acc"], entry["pixels"]] for entry in content["classes"]]
    counts = [[name, *row] for name, row in zip(counted, matrix.tolist(), strict=True)]
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "table.txt", text + "\n")
    write_bytes(folder / "metrics.csv", csv_bytes(["name", "iou", "acc", "pixels"], rows))
    write_bytes(folder / "confusion.csv", csv_bytes(["truth \\ prediction", *counted], counts))
    write_bytes(folder / "confusion.png", png(confusion_picture(matrix, counted)))
    write_text(folder / "metrics.json", json.dumps(content, indent=2, allow_nan=False) + "\n")
    return text


def metrics(
    scores: Scores, class_names: Sequence[str], timing: Timing, protocol: dict | None, checkpoint: str | Path | None
) -> dict:
    """Return the content of metrics.json; scores are fractions of 1."""
    per_class = zip(class_names, scores.iou, scores.acc, scores.pixels, strict=True)
    return {
        "mIoU": _defined(scores.mIoU),
        "mAcc": _defined(scores.mAcc),
        "allAcc": _defined(scores.allAcc),
        "classes": [
            {"name": name, "iou": _defined(iou), "acc": _defined(acc), "pixels": pixels}
            for name, iou, acc, pixels in per_class
        ],
        "absent": [class_names[index] for index in scores.absent],
        "never_labelled": [class_names[index] for index in never_labelled(scores)],
        "num_images": timing.num_images,
        "protocol": protocol,
        "checkpoint": None if checkpoint is None else {"path": str(checkpoint), "sha256": sha256(checkpoint)},
        "seconds_per_image": _defined(timing.seconds_per_image),
        "versions": versions(),
    }


def never_labelled(scores: Scores) -> list[int]:
    """Give the classes that are predicted but never labelled."""
    return [index for index, pixels in enumerate(scores.pixels) if not pixels and index not in scores.absent]


def table(scores: Scores, class_names: Sequence[str]) -> str:
    """Return the scores as text, in percent, one line a class."""
    width = max(len("class"), *(columns(name) for name in class_names))
    lines = [f"{'class':<{width}}  {'IoU':>6}  {'acc':>6}  {'pixels':>13}"]
    lines.append("-" * len(lines[0]))
    for name, iou, acc, pixels in zip(class_names, scores.iou, scores.acc, scores.pixels, strict=True):
        space = " " * (width - columns(name))
        lines.append(f"{name}{space}  {_percent(iou)}  {_percent(acc)}  {pixels:>13,}")
    lines.append(lines[1])
    means = f"{_percent(scores.mIoU)}  {_percent(scores.mAcc)}"
    lines.append(f"{'mean':<{width}}  {means}  {sum(scores.pixels):>13,}")
    lines.append(f"pixel accuracy {_percent(scores.allAcc).strip()}")
    if never_labelled(scores):
        wrong = _listed([class_names[index] for index in never_labelled(scores)])
        lines.append(f"predicted but never labelled, with an IoU of 0 in the mean: {wrong}")
    if scores.absent:
        absent = _listed([class_names[index] for index in scores.absent])
        lines.append(f"neither labelled nor predicted, left out of the means: {absent}")
    return "\n".join(lines)


def _listed(names: Sequence[str]) -> str:
    """Name classes; of many the first, as metrics.json names all."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def write_submission(path: str | Path, items: Iterable[tuple[str, np.ndarray]]) -> int:
    """Zip ids for a test server; return their number.

    items: (name, ids uint8 or uint16 (H, W), or colours uint8 (H, W, 3)), written as NAME.png. The ids are the server's
    (SegDataset.to_label_ids). The zip appears complete or not at all, and equal predictions give an equal file.
    UserError if a name comes twice or the ids are of another type.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    written: set[str] = set()
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for name, ids in items:
            if (
                ids.dtype not in (np.uint8, np.uint16)
                or ids.ndim != 2
                and (ids.dtype, ids.shape[2:]) != (np.uint8, (3,))
            ):
                raise UserError(f"{name}: ids must be uint8 or uint16 (H, W), not {ids.dtype} {ids.shape}")
            if name in written:
                raise UserError(f"{name} comes twice in the submission {path}")
            written.add(name)
            entry = zipfile.ZipInfo(f"{_checked_name(name)}.png")  # of a fixed date
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, png(ids))
    return len(written)


def _read_prediction(path: Path) -> np.ndarray:
    if not path.is_file():
        raise FileNotFoundError(f"no prediction {path}; run the evaluation without has_prediction first")
    prediction = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if prediction is None:
        raise UserError(f"{path} is no readable picture; predict it again")
    if prediction.dtype != np.uint8 or prediction.ndim != 2:
        raise UserError(
            f"{path} is {prediction.dtype} {prediction.shape}: expected one channel of train ids, one byte a "
            f"pixel (a colour or palette picture holds colours, not ids)"
        )
    return prediction


def _checked_name(name: str) -> str:
    parts = PurePosixPath(name.replace("\\", "/")).parts  # a zip may be unpacked where both separate folders
    if not parts or ".." in parts or parts[0] == "/" or re.match("[A-Za-z]:/", name.replace("\\", "/")) or "\0" in name:
        raise UserError(f"sample name {name!r} leads out of the result folder")
    return name


def output_path(folder: Path, name: str) -> Path:
    """Give the file of a sample's picture, FOLDER/NAME.png.

    Raises:
        UserError: the name leads out of the folder.
    """
    return folder / f"{_checked_name(name)}.png"


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else value


def _percent(value: float) -> str:
    return f"{'-':>6}" if math.isnan(value) else f"{100 * value:>6.2f}"
