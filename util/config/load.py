"""Reads, composes and checks experiments, and names their folders.

`load` is the one way in. An experiment is made of layers, the lowest first: the files of its `base:`, the file itself,
and the `section.key=value` overrides of the command line. A mistake names the layer in which it stands.
"""

import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from util.config import legacy
from util.config.check import check_config, renewed
from util.config.schema import PROTOCOLS, Config
from util.config.yamltext import ConfigError, parse_yaml
from util.record.files import read_text

MAX_BYTES = 1 << 19
DEPTH = 2  # levels of `base:`, as from an experiment to its network and on to the network's recipe
COMMAND_LINE = "command line"


@dataclass(frozen=True)
class RunPaths:
    """Where a run's files are.

    They are derived from the experiment's own path, or from what an older file says.
    """

    folder: Path
    result: Path
    checkpoint: Path | None = None

    @property
    def last(self) -> Path:
        return self.folder / "model" / "last.pth"

    @property
    def best(self) -> Path:
        return self.folder / "model" / "best.pth"


@dataclass(frozen=True)
class Experiment:
    """A checked config and what is to be known of it beside.

    Args:
        config: every section with its keys, such as `config.optim.lr`.
        run: folders of the run and of its results.
        notes: lines for the log.
        sources: section.key -> files, or "command line"; a key that is missing has its default.
        command: what the user has typed.
        name: of its file; None for what a checkpoint knows.
    """

    config: Config
    run: RunPaths
    notes: tuple[str, ...]
    sources: dict[str, str]
    command: tuple[str, ...]
    name: str | None = None


def load(
    path: str | Path,
    overrides: Iterable[str] = (),
    folder: str | Path | None = None,
    before_check: Callable[[dict, dict[str, str]], None] | None = None,
) -> Experiment:
    """Return a checked experiment, of today's or the older form.

    Args:
        path: the YAML file. Where config/DATASET/DATASET_NETWORK.yaml does not exist, the experiment is composed of
            config/base/data/DATASET.yaml and config/base/network/NETWORK.yaml.
        overrides: `section.key=value`; an older file also takes its own KEY VALUE pairs.
        folder: of the run; by default derived from the path.
        before_check: is given the sections and where each key comes from, to import what they name.

    Raises:
        ConfigError: one line for each mistake, with file, key and the nearest valid key.
    """
    path, overrides, notes = Path(path), list(overrides), []

    # The layers, the lowest first.
    layers = _composed(path)
    if layers:
        notes.append("composed of " + ", ".join(name for name, _ in layers))
    else:
        layers = _layers(path)
    top = layers[-1][1]
    handed_over = top.pop("resolved", None)
    older = None
    if legacy.is_legacy(top):
        pairs, overrides = legacy.split_overrides(overrides)
        translated, older, dropped = legacy.translate(top, pairs, str(path))
        notes += [f"{path}: {note}" for note in dropped]
        layers = [(f"{path} with overrides" if pairs else str(path), translated)]
    layers.append((COMMAND_LINE, _parse_overrides(overrides)))

    # One mapping of them, checked.
    raw, sources = _stack(layers)
    if before_check is not None:
        before_check(raw, sources)
    config = check_config(raw, str(path), sources)
    if handed_over:
        place, result, checkpoint = handed_over["run"]
        run = RunPaths(Path(place), Path(result), Path(checkpoint) if checkpoint else None)
        notes, sources, command = (handed_over[key] for key in ("notes", "sources", "command"))
        return Experiment(config, run, tuple(notes), sources, tuple(command), path.stem)
    for key in PROTOCOLS[config.test.protocol]:
        sources.setdefault(f"test.{key}", f"protocol {config.test.protocol}")

    # The folders of the run.
    if folder:
        run = RunPaths(Path(folder), Path(folder) / "result")
    elif older:
        run = RunPaths(older.folder, older.result or older.folder / "result", older.checkpoint)
    else:
        derived = _run_folder(path, config.data.name)
        run = RunPaths(derived, derived / "result")
    return Experiment(config, run, tuple(notes), sources, tuple(sys.argv), path.stem)


def saved_config(raw: dict, name: str, overrides: Iterable[str] = ()) -> Config:
    """Check the config of a checkpoint or record; return it.

    It may be one of an earlier version.

    Raises:
        ConfigError: as `check_config` does.
    """
    return check_config(merge(renewed(raw), _parse_overrides([*overrides])), name)


def hand_over(experiment: Experiment, path: str | Path) -> None:
    """Write a resolved experiment as one file that `load` reads."""
    run = experiment.run
    places = [place and str(place) for place in (run.folder, run.result, run.checkpoint)]
    resolved = {
        "run": places,
        "notes": list(experiment.notes),
        "sources": experiment.sources,
        "command": list(experiment.command),
    }
    raw = experiment.config.model_dump(mode="json") | {"resolved": resolved}
    Path(path).write_text(yaml.safe_dump(raw, sort_keys=False), encoding="utf-8")


def describe(experiment: Experiment) -> str:
    """Return the resolved config as YAML with each value's source."""
    lines = []

    def add(indent: str, dotted: str, value: Any) -> None:
        text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, sort_keys=False, width=1 << 20)
        entry = f"{indent}{dotted.rpartition('.')[2]}: " + text.removesuffix("...\n").strip()
        lines.append(f"{entry:<48}  # {experiment.sources.get(dotted, 'default')}\n")

    for section, content in experiment.config.model_dump(mode="json").items():
        if not isinstance(content, dict):
            add("", section, content)
            continue
        lines.append(f"{section}:\n")
        for key, value in content.items():
            add("  ", f"{section}.{key}", value)
    return "".join(lines)


def merge(low: dict, high: dict) -> dict:
    """Put `high` over `low`, key by key; return the result.

    `options` belong to a section's `name` and go with it.
    """
    out = dict(low)
    for key, value in high.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = merge(_inherited(out[key], value), value) if both else value
    return out


def _inherited(low: dict, high: dict) -> dict:
    """Leave out of a section what the section over it does not inherit."""
    renamed = "name" in low and high.get("name", low["name"]) != low["name"]
    return {key: value for key, value in low.items() if not (renamed and key == "options")}


def _stack(layers: list[tuple[str, dict]]) -> tuple[dict, dict[str, str]]:
    """Merge the layers; the mapping, and for each section.key the names of the layers that it comes from."""
    raw: dict = {}
    sources: dict[str, str] = {}
    for name, layer in layers:
        for section, content in layer.items():
            if not isinstance(content, dict):
                sources[section] = name
                continue
            below = raw.get(section)
            below = below if isinstance(below, dict) else {}
            kept = _inherited(below, content)
            for key in below.keys() - kept.keys():
                del sources[f"{section}.{key}"]
            for key, value in content.items():
                joined = isinstance(value, dict) and isinstance(kept.get(key), dict) and kept[key]
                dotted = f"{section}.{key}"
                sources[dotted] = f"{sources[dotted]}, {name}" if joined else name
        raw = merge(raw, layer)
    return raw, sources


def _layers(path: Path, depth: int = 0) -> list[tuple[str, dict]]:
    """Read an experiment and the files of its `base:`; their names and mappings, the lowest first."""
    raw = _read(path)
    bases = raw.pop("base", None) or []
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ConfigError(f"{path}: base: expected the path of a YAML file or a list of paths, found {bases!r}")
    if bases and depth == DEPTH:
        raise ConfigError(f"{path}: base: more than {DEPTH} levels; name {bases[0]} in the experiment itself")
    layers = []
    for base in bases:
        try:
            layers += _layers(Path(os.path.normpath(path.parent / base)), depth + 1)
        except ConfigError as error:
            raise ConfigError(f"{error} (base of {path})") from None
    return [*layers, (str(path), raw)]


def _composed(path: Path) -> list[tuple[str, dict]]:
    """Read the layers of an experiment that has no file of its own; none if it has one, or cannot be composed."""
    dataset, base = path.parent.name, path.parent.parent / "base"
    network = path.stem.removeprefix(f"{dataset}_")
    files = [base / "data" / f"{dataset}.yaml", base / "network" / f"{network}.yaml"]
    if path.exists() or network == path.stem or not all(file.is_file() for file in files):
        return []
    return [layer for file in files for layer in _layers(file, 1)]


def _read(path: Path) -> dict:
    """Read the mapping in a YAML file."""
    try:
        text = read_text(path, MAX_BYTES)
    except (ValueError, OSError) as error:
        where = "" if path.is_absolute() or path.exists() else f" in {os.getcwd()}"
        raise ConfigError(f"{error}{where}") from None
    value = parse_yaml(text, str(path))
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: expected sections (data, model, train, ...), found {type(value).__name__}")
    return value


def _parse_overrides(overrides: list[str]) -> dict:
    """Read `section.key=value` pairs, the values as YAML, into one mapping."""
    out: dict = {}
    for pair in overrides:
        key, equals, text = pair.partition("=")
        if not equals or not key or key.count(".") > 3:
            raise ConfigError(f"'{pair}': expected section.key=value, for example train.epochs=2")
        if key != key.strip():
            raise ConfigError(f"'{pair}': write it without blanks around '=': {key.strip()}={text.strip()}")
        if text.count("[") != text.count("]") or text.count("{") != text.count("}"):
            raise ConfigError(f"'{pair}': the list is cut off; write it without blanks or in quotes: '{key}=[1, 2]'")
        nested: Any = parse_yaml(text, f"'{pair}'") if text else None
        for name in reversed(key.split(".")):
            nested = {name: nested}
        out = merge(out, nested)
    return out


def _run_folder(path: Path, dataset: str) -> Path:
    """Derive exp/cityscapes/sfnet101 from config/cityscapes/cityscapes_sfnet101.yaml."""
    group = path.resolve().parent.name
    if path.stem.startswith(f"{group}_"):
        return Path("exp") / group / path.stem.removeprefix(f"{group}_")
    return Path("exp") / dataset / path.stem.removeprefix(f"{dataset}_")
