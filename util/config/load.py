"""Experiments: YAML -> the frozen, typed sections of `util.config.schema`.

`load_config(path, overrides)` reads one experiment, merges the file named by its `base:` first, applies
`section.key=value` overrides and checks everything before anything is built. A mistake raises `ConfigError`, a
`ValueError` that names the file, the key and the nearest valid key.
"""

import difflib
import json
import os
from pathlib import Path

import yaml
from pydantic import BaseModel, ValidationError

from util.config.schema import Config
from util.config.yamltext import MAX_BYTES, ConfigError, parse_yaml
from util.record.files import read_text

MAX_BASES = 10  # files in a chain of `base:`
MAX_KEY = 200  # letters of an override's key
AUGMENT = ("crop", "scale", "rotate", "rotate_prob", "blur_prob", "flip_prob", "jitter", "photometric")
LOADER = ("workers", "packed", "cache", "uniform", "uniform_tile")
# Key of an earlier version -> key of today. A checkpoint may still hold the earlier one.
MOVED = {
    f"data.{key}": f"{section}.{key}" for section, keys in (("augment", AUGMENT), ("loader", LOADER)) for key in keys
}
# Key of an earlier version that is no more -> how it is now.
GONE = {
    "data.on_error": "an unreadable sample always stops a run",
    "data.max_errors": "an unreadable sample always stops a run",
    "data.loader": "loader workers are always processes",
    "data.augment": "augmentation is always made by the loader workers",
}
SHOWN_ERRORS = 20
SHOWN_LETTERS = 200  # of a value in an error


def read_yaml(path: str | Path) -> dict:
    """The mapping in a YAML file.

    Raises:
        ConfigError: the file is missing, is not YAML, or is no mapping.
    """
    try:
        text = read_text(path, MAX_BYTES)
    except (ValueError, OSError) as error:
        raise ConfigError(str(error)) from None
    value = parse_yaml(text, str(path))
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: expected sections (data, model, train, ...), found {type(value).__name__}")
    return value


def merge(low: dict, high: dict) -> dict:
    """`low` with the entries of `high` over it, section by section."""
    out = dict(low)
    for key, value in high.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = merge(out[key], value) if both else value
    return out


def read_experiment(path: str | Path, _chain: tuple[str, ...] = ()) -> dict:
    """The mapping of an experiment, its `base:` merged in; `base` is relative to the file that names it."""
    path = Path(path)
    if os.path.realpath(path) in _chain:
        raise ConfigError(f"{path}: 'base' leads back to this file")
    if len(_chain) > MAX_BASES:
        raise ConfigError(f"{path}: the chain of 'base' is longer than {MAX_BASES} files")
    raw = read_yaml(path)
    base = raw.pop("base", None)
    if base is None:
        return raw
    if not isinstance(base, str):
        raise ConfigError(f"{path}: base: expected the path of a YAML file, found {base!r}")
    try:
        low = read_experiment(path.parent / base, (*_chain, os.path.realpath(path)))
    except ConfigError as error:
        raise ConfigError(f"{error} (base of {path})") from None
    return merge(low, raw)


def apply_overrides(raw: dict, overrides: list[str]) -> dict:
    """`raw` with `section.key=value` pairs over it; values are read as YAML."""
    for pair in overrides:
        key, equals, text = pair.partition("=")
        if not equals or not key or len(key) > MAX_KEY:
            raise ConfigError(f"override '{pair}': expected section.key=value, for example train.epochs=2")
        value = parse_yaml(text, f"override '{pair}'") if text else None
        for part in reversed(key.split(".")):
            value = {part: value}
        raw = merge(raw, value)
    return raw


def valid_keys(section: type[BaseModel] = Config, prefix: str = "") -> list[str]:
    """Every key of the schema as a dotted path."""
    keys = []
    for name, field in section.model_fields.items():
        nested = isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        keys += valid_keys(field.annotation, f"{prefix}{name}.") if nested else [prefix + name]
    return keys


def _explain(error: dict) -> str:
    """One pydantic error as `key: what is wrong, and what to write instead`."""
    path = [str(part) for part in error["loc"]]
    key = ".".join(path)
    if key in GONE:
        return f"key '{key}' is no more: {GONE[key]}; remove it"
    if key in MOVED:
        return f"key '{key}' has a new name; write '{MOVED[key]}'"
    if error["type"] == "extra_forbidden":
        parent = ".".join(path[:-1])
        siblings = [k for k in valid_keys() if k.rpartition(".")[0] == parent] if parent else [*Config.model_fields]
        last = [k.rpartition(".")[2] for k in siblings]
        near = difflib.get_close_matches(path[-1], last, 1, cutoff=0.5)
        elsewhere = [k for k in valid_keys() if k.rpartition(".")[2] == path[-1]]
        if elsewhere:
            hint = f"did you mean '{elsewhere[0]}'?"
        elif near:
            hint = f"did you mean '{'.'.join([*path[:-1], near[0]])}'?"
        else:
            hint = "valid here: " + ", ".join(last)
        return f"unknown key '{key}'; {hint}"
    if error["type"] == "missing":
        return f"missing key '{key}'"
    if error["type"] == "value_error":
        message = str(error["ctx"]["error"])
        return f"{key}.{message}" if key else message
    found = repr(error["input"])
    found = found if len(found) <= SHOWN_LETTERS else f"{found[:SHOWN_LETTERS]}..."
    return f"{key}: {error['msg'].lower()}, found {found}"


def check_config(raw: dict, name: str) -> Config:
    """`raw` as a checked `Config`; `name` is the file that an error names.

    Raises:
        ConfigError: lists every mistake, one a line.
    """
    try:
        # Strict JSON rules: a list is a tuple and 1 is a float, but neither true nor "1" is an integer.
        return Config.model_validate_json(json.dumps(raw, default=str), strict=True)
    except ValidationError as error:
        lines = list(dict.fromkeys(_explain(e) for e in error.errors()))
        if len(lines) > SHOWN_ERRORS:
            lines[SHOWN_ERRORS:] = [f"and {len(lines) - SHOWN_ERRORS} more mistakes"]
        raise ConfigError("\n".join(f"{name}: {line}" for line in lines)) from None


def renewed(raw: dict) -> dict:
    """Give the mapping of an earlier version its keys of today.

    Args:
        raw: sections as a checkpoint holds them; an experiment of the user's is refused instead, by `check_config`.
    """
    out = {name: dict(value) if isinstance(value, dict) else value for name, value in raw.items()}
    for before, after in MOVED.items():
        (section, key), (new_section, new_key) = before.split("."), after.split(".")
        if key in out.get(section, {}):
            out.setdefault(new_section, {})[new_key] = out[section].pop(key)
    for section, key in (name.split(".") for name in GONE):
        out.get(section, {}).pop(key, None)
    return out


def load_config(path: str | Path, overrides: list[str] | None = None) -> Config:
    """The experiment in the YAML file `path`, with `section.key=value` overrides.

    Raises:
        ConfigError: the file is missing or not YAML, or a key, type, value or combination is wrong.
    """
    return check_config(apply_overrides(read_experiment(path), overrides or []), str(path))


def dump_config(config: Config) -> str:
    """YAML of the resolved config, every key written out; `load_config` reads it back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)
