"""Images and predictions of results, for the pictures of a comparison."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from dataset import SegDataset
from dataset.read import DataError
from model.table import ModelError
from tool.shared.data import files_of
from tool.shared.published import BLACK
from util import UserError
from util.config.load import saved_config
from util.report.compare import Result, read_config
from util.report.disagreement import pictures
from util.report.result import output_path

SHOWN = 8  # images of which pictures are drawn


@dataclass(frozen=True)
class Drawn:
    """Pictures of the images on which results disagree most.

    pictures: data URIs by image and title. problem: why there are none, or fewer than asked for. classes: name and
    color of each class.
    """

    pictures: dict[str, dict[str, str]] = field(default_factory=dict)
    problem: str = ""
    classes: list[dict[str, Any]] = field(default_factory=list)


def drawn(results: Sequence[Result], names: Sequence[str], root: str | None) -> Drawn:
    """Draw the images on which results disagree most.

    Predictions are those that the evaluations have kept in gray/, images and labels those of the data set.

    Args:
        names: of images, in the order in which they are drawn.
        root: the data's folder, where it is another now.
    """
    without = [result.name for result in results if not gray_of(result).is_dir()]
    if without:
        return Drawn(problem=f"no predictions in {', '.join(without)} (gray/); evaluate with test.save_gray=true")
    try:
        data = data_of(results[0], root)
    except (UserError, DataError, ModelError, OSError) as error:
        told = f"the data of {results[0].name} cannot be read ({error}); --root says where they are now"
        return Drawn(problem=told)
    found, problem = {}, ""
    colors = np.vstack([data.colors, [BLACK]]).astype(np.uint8)  # void, where a result has it
    for name, each in _read(results, data, names[:SHOWN]):
        if isinstance(each, str):
            problem = problem or each
        else:
            found[name] = pictures(*each, colors=colors)
    classes = [{"name": name, "color": color} for name, color in zip(data.classes, data.colors.tolist(), strict=True)]
    return Drawn(found, problem, classes)


def gray_of(result: Result) -> Path:
    """Return the folder of a result's predictions."""
    own = result.folder / "gray"
    return own if own.is_dir() or not result.folder.name.startswith("part-") else result.folder.parent / "gray"


def data_of(result: Result, root: str | None) -> SegDataset:
    """Build the data set that a result is of.

    Raises:
        UserError, DataError, OSError: its experiment is missing or wrong, or the data are not there.
    """
    file = result.folder / "config.yaml"
    config = saved_config(read_config(file), str(file), [f"data.root={root}"] if root else [])
    return files_of(config, config.test.split)


def _read(results: Sequence[Result], data: SegDataset, names: Sequence[str]) -> Iterator[tuple[str, tuple | str]]:
    """Yield for each image its arrays, or what is wrong."""
    place = {data.sample_name(index): index for index in range(len(data))}
    for name in names:
        if name not in place:
            yield name, f"{name} is not in {data.list_file}"
            continue
        try:
            sample = data[place[name]]
            image, truth = sample["image"].permute(1, 2, 0).numpy(), sample["label"].numpy()
            files = [output_path(gray_of(result), name) for result in results]
            found = [cv2.imread(str(file), cv2.IMREAD_UNCHANGED) for file in files]
        except (UserError, DataError, OSError) as error:
            yield name, str(error)
            continue
        wrong = [
            file
            for file, each in zip(files, found, strict=True)
            if each is None or each.shape != truth.shape or each.dtype != np.uint8 or each.max() > len(data.colors)
        ]
        yield name, f"{wrong[0]} is no prediction of {name}" if wrong else (image, truth, found)
