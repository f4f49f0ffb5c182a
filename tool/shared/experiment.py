"""From the name of an experiment to its file.

Or to the file that it would have if it were not composed.
"""

import difflib
from pathlib import Path

from util import UserError


def find_experiment(dataset: str, experiment: str, root: Path = Path("config")) -> Path:
    """Find the path of an experiment, which `util.config.load` reads or composes.

    Raises:
        UserError: there is no such file, and none to compose it of; lists those that exist.
    """
    path = root / dataset / f"{dataset}_{experiment}.yaml"
    files, networks = _names(root / dataset), _names(root / "base" / "network")
    datasets = _names(root / "base" / "data")
    if path.is_file() or (dataset in datasets and experiment in networks):
        return path
    folders = sorted({*datasets, *(p.name for p in root.glob("*") if p.is_dir() and p.name != "base")})
    if dataset not in folders:
        raise UserError(f"no experiments for data set '{dataset}'{_nearest(dataset, folders)}")
    names = sorted({name.removeprefix(f"{dataset}_") for name in files} | {*(networks if dataset in datasets else [])})
    raise UserError(
        f"no experiment '{experiment}' for {dataset}{_nearest(experiment.removeprefix(f'{dataset}_'), names)}"
    )


def _names(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.yaml"))


def _nearest(name: str, names: list[str]) -> str:
    near = difflib.get_close_matches(name, names, 1)
    hint = f"; did you mean '{near[0]}'?" if near else "."
    return f"{hint} There are: {', '.join(names) or 'none'}"
