"""From the name of an experiment to its checked config and the folders of its run."""

import difflib
from dataclasses import dataclass
from pathlib import Path

from util.config import legacy
from util.config.load import apply_overrides, check_config, read_experiment
from util.config.schema import Config
from util.record.log import log


@dataclass(frozen=True)
class RunPaths:
    """Where a run's files are: derived from the experiment's own path, never written in YAML."""

    folder: Path
    result: Path
    checkpoint: Path | None = None

    @property
    def last(self) -> Path:
        return self.folder / "model" / "last.pth"

    @property
    def best(self) -> Path:
        return self.folder / "model" / "best.pth"


def load_experiment(path: str, overrides: list[str], folder: str | None = None) -> tuple[Config, RunPaths]:
    """The checked config and the folders of the experiment in the YAML file `path`, old style or new.

    Raises:
        ConfigError: see `util.config.load_config`.
    """
    raw = read_experiment(path)
    if legacy.is_legacy(raw):
        pairs, overrides = legacy.split_overrides(overrides)
        raw, old, notes = legacy.translate(raw, pairs, path)
        for note in notes:
            log.info("%s: %s", path, note)
        config = check_config(apply_overrides(raw, overrides), path)
        run = Path(folder) if folder else old.folder
        result = run / "result" if folder or old.result is None else old.result
        return config, RunPaths(run, result, None if folder else old.checkpoint)
    config = check_config(apply_overrides(raw, overrides), path)
    run = Path(folder) if folder else run_folder(Path(path), config.data.name)
    return config, RunPaths(run, run / "result")


def run_folder(path: Path, dataset: str) -> Path:
    """exp/cityscapes/sfnet101 for config/cityscapes/cityscapes_sfnet101.yaml."""
    group = path.resolve().parent.name
    prefix = f"{group}_"
    if path.stem.startswith(prefix):
        return Path("exp") / group / path.stem[len(prefix) :]
    return Path("exp") / dataset / path.stem.removeprefix(f"{dataset}_")


def find_experiment(dataset: str, experiment: str, root: Path = Path("config")) -> Path:
    """The YAML file of an experiment.

    Raises:
        ValueError: there is none; lists those that exist.
    """
    path = root / dataset / f"{dataset}_{experiment}.yaml"
    if path.is_file():
        return path
    folders = sorted(p.name for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
    if dataset not in folders:
        near = difflib.get_close_matches(dataset, folders, 1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise ValueError(f"no experiments for data set '{dataset}'{hint} There are: {', '.join(folders) or 'none'}")
    names = sorted(p.stem.removeprefix(f"{dataset}_") for p in (root / dataset).glob("*.yaml"))
    near = difflib.get_close_matches(experiment, names, 1)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    raise ValueError(f"no experiment '{experiment}' for {dataset}{hint} There are: {', '.join(names)}")
