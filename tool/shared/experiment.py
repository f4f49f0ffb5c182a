"""From the name of an experiment to its file.

Or to the file that it would have if it were not composed.
"""

import difflib
from collections.abc import Iterable
from pathlib import Path

from util import UserError

INSTALLED = Path(__file__).resolve().parents[2] / "config"


def config_folders() -> list[Path]:
    """List the folders of experiments: config/ here, then the project's."""
    here = Path("config")
    return [here] if here.resolve() == INSTALLED else [folder for folder in (here, INSTALLED) if folder.is_dir()]


def find_experiment(dataset: str, experiment: str) -> Path:
    """Find the path of an experiment, which `util.config.load` reads or composes.

    Raises:
        UserError: there is no such file, and none to compose it of; lists those that exist.
    """
    datasets: set[str] = set()
    experiments: set[str] = set()
    for root in config_folders():
        composed, networks = _names(root / "base" / "data"), _names(root / "base" / "network")
        path = root / dataset / f"{dataset}_{experiment}.yaml"
        if path.is_file() or (dataset in composed and experiment in networks):
            return path
        datasets |= composed | {folder.name for folder in root.glob("*") if folder.is_dir() and folder.name != "base"}
        experiments |= {name.removeprefix(f"{dataset}_") for name in _names(root / dataset)}
        experiments |= networks if dataset in composed else set()
    if dataset not in datasets:
        raise UserError(f"no experiments for data set '{dataset}'{_nearest(dataset, datasets)}")
    nearest = _nearest(experiment.removeprefix(f"{dataset}_"), experiments)
    raise UserError(f"no experiment '{experiment}' for {dataset}{nearest}")


def first_experiment(dataset: str) -> Path:
    """Find an experiment of a data set, whichever network it has.

    Raises:
        UserError: the data set has none.
    """
    for root in config_folders():
        own = sorted((root / dataset).glob(f"{dataset}_*.yaml"))
        if own and dataset not in _names(root / "base" / "data"):
            return own[0]
    return find_experiment(dataset, "fcn18")


def _names(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("*.yaml")}


def _nearest(name: str, names: Iterable[str]) -> str:
    known = sorted(names)
    near = difflib.get_close_matches(name, known, 1)
    hint = f"; did you mean '{near[0]}'?" if near else "."
    return f"{hint} There are: {', '.join(known) or 'none'}"
