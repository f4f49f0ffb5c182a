"""Where the result of an evaluation goes, and what is written there."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dataset import SegDataset
from util import UserError
from util.config.load import COMMAND_LINE, Experiment, RunPaths, describe
from util.config.schema import Config
from util.record import history
from util.record.files import refuse_links, write_text
from util.record.log import log
from util.record.machine import project_commit
from util.report.compare import flat_config
from util.report.details import Measured
from util.report.html import Page, write_report
from util.report.per_image import write_per_image
from util.report.result import write_results
from util.score.evaluate import Timing
from util.score.metric import ConfusionMatrix, Scores

# Keys that make another protocol, in the order in which a folder's name tells them.
PROTOCOL_KEYS = ("scales", "flip", "window", "stride_rate", "base_size", "windows", "void")


@dataclass(frozen=True)
class Place:
    """Folders of a result.

    predictions: with gray/ and color/, of all images of the list. scores: the same, or a folder below it where a part
    of the list is scored.
    """

    predictions: Path
    scores: Path


def beside(file: str | Path) -> RunPaths:
    """Give the folder of a named checkpoint's results.

    It is FILE without suffix, and .result.

    Raises:
        UserError: a symbolic link has this name.
    """
    place = Path(file).with_suffix(".result")
    refuse_links(place, place.parent)
    return RunPaths(place, place)


def place_of(experiment: Experiment, indices: range, images: int) -> Place:
    """Choose the folder of a result.

    No other split, protocol or part of the list has it. It is result/SPLIT-PROTOCOL, and what the command line says
    otherwise; beside a checkpoint the folder itself where the command line says nothing. An older experiment may name
    its folder.
    """
    config, run = experiment.config, experiment.run
    folder = run.result
    if run.result in (run.folder, run.folder / "result"):
        told = [key for key in PROTOCOL_KEYS if COMMAND_LINE in experiment.sources.get(f"test.{key}", "")]
        if config.data.long_side is None and config.test.protocol != "whole":
            told = [key for key in told if key != "base_size"]  # which the protocol cannot do without
        changed = told or any(
            COMMAND_LINE in experiment.sources.get(f"test.{key}", "") for key in ("split", "protocol")
        )
        if run.result != run.folder or changed:
            folder = run.result / _name(config, told)
        if any(
            _is_of_another(file, config) for file in [*folder.glob("config.yaml"), *folder.glob("part-*/config.yaml")]
        ):
            chosen = getattr(config.data, f"{config.test.split}_list")
            folder = run.result / (_name(config, PROTOCOL_KEYS) + (f"-{Path(chosen).stem}" if chosen else ""))
    scores = folder if len(indices) == images else folder / f"part-{indices.start}-{indices.stop - 1}"
    return Place(folder, scores)


def _name(config: Config, keys: Sequence[str]) -> str:
    """Name a split and protocol, with the values of some keys."""
    parts = [config.test.split, config.test.protocol]
    for key in keys:
        value = getattr(config.test, key)
        text = "_".join(f"{each:g}" for each in value) if isinstance(value, tuple) else f"{value}"
        text = f"{value:.4g}" if isinstance(value, float) else text
        parts.append({"True": key, "False": f"no{key}"}.get(text, f"{key}{text}"))
    return "-".join(parts)


def _is_of_another(file: Path, config: Config) -> bool:
    """Tell whether a result is of another protocol or list than the experiment is now."""
    if not file.with_name("metrics.json").is_file():
        return False
    try:
        before = flat_config(file)
    except UserError:
        return False  # nothing that this program wrote
    now = config.model_dump(mode="json")
    keys = [("test", key) for key in PROTOCOL_KEYS] + [("data", f"{config.test.split}_list")]
    return any(before.get(f"{section}.{key}", now[section][key]) != now[section][key] for section, key in keys)


def about(experiment: Experiment) -> dict[str, Any]:
    """Say what was evaluated, and by which program, for metrics.json."""
    config, (commit, dirty) = experiment.config, project_commit()
    return {
        "experiment": experiment.name,
        "network": config.model.name,
        "backbone": config.model.backbone,
        "seed": config.seed,
        "command": list(experiment.command),
        "commit": commit,
        "dirty": dirty,
    }


def write(
    place: Place,
    experiment: Experiment,
    data: SegDataset,
    colors: np.ndarray,
    confusion: ConfusionMatrix,
    scores: Scores,
    timing: Timing,
    protocol: dict[str, Any] | None,
    checkpoint: Path | None,
    measured: Measured | None,
) -> str:
    """Write the files of a result and its report; return the table.

    Args:
        colors: of the classes of the confusion matrix, uint8.
        measured: what the report shows of single images; None for no report.
    """
    known = about(experiment)
    text = write_results(place.scores, scores, confusion, data.classes, timing, protocol, checkpoint, known)
    config = describe(experiment)
    write_text(place.scores / "config.yaml", config)
    if measured is None:
        return text
    names = (*data.classes, "void")[: len(colors)]
    counts = write_per_image(place.scores, measured.scores, names, len(data.classes))
    # The history of the training: a run's checkpoints lie in its folder model/.
    trained = None if checkpoint is None else checkpoint.resolve().parent
    lines = history.read(trained.parent / history.NAME) if trained is not None and trained.name == "model" else []
    title = f"{data.name} {experiment.config.model.name}: {experiment.config.test.split}"
    metrics = json.loads((place.scores / "metrics.json").read_text(encoding="utf-8"))
    page = Page(title, metrics, names, confusion.matrix.cpu().numpy(), colors, measured, counts, lines, config)
    log.info("report: %s", write_report(place.scores, page))
    return text
