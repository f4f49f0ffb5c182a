"""Checks an experiment against the schema.

What is wrong is said in the user's terms.
"""

import difflib
import json
import math
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from util.config.schema import Config, TestConfig
from util.config.yamltext import ConfigError
from util.record.log import printable

AUGMENT = ("crop", "scale", "rotate", "rotate_prob", "blur_prob", "flip_prob", "jitter", "photometric")
LOADER = ("workers", "packed", "cache", "uniform", "uniform_tile")
# Key of an earlier version -> key of today. A checkpoint may still hold the earlier one.
MOVED = {f"data.{key}": f"augment.{key}" for key in AUGMENT} | {f"data.{key}": f"loader.{key}" for key in LOADER}
# Key of an earlier version that is no more -> how it is now.
GONE = {
    "data.on_error": "an unreadable sample always stops a run",
    "data.max_errors": "an unreadable sample always stops a run",
    "data.loader": "loader workers are always processes",
    "data.augment": "augmentation is always made by the loader workers",
}
LONGEST = 4096  # letters of a text: no path is longer
SHOWN_ERRORS = 20
SHOWN_LETTERS = 200  # of a value in an error


def check_config(raw: dict, name: str, sources: dict[str, str] | None = None) -> Config:
    """Check a mapping of sections against the schema.

    Args:
        name: what an error calls the mapping, for example the file's path.
        sources: for each section.key the name of the file that says it, where that is another one.

    Raises:
        ConfigError: lists every mistake, one a line.
    """
    strange = _strange(raw, "")
    if strange:
        key, text = strange
        raise ConfigError(f"{_source(key, sources, name)}: {key}: {text}")
    try:
        # Strict JSON rules: a list is a tuple and 1 is a float, but neither true nor "1" is an integer.
        return Config.model_validate_json(json.dumps(raw), strict=True)
    except ValidationError as error:
        lines = []
        for each in error.errors():
            key, text = _explain(each)
            lines.append(f"{_source(key, sources, name)}: {text}")
        lines = list(dict.fromkeys(lines))
        if len(lines) > SHOWN_ERRORS:
            lines[SHOWN_ERRORS:] = [f"{name}: and {len(lines) - SHOWN_ERRORS} more mistakes"]
        raise ConfigError("\n".join(lines)) from None


def _source(key: str, sources: dict[str, str] | None, name: str) -> str:
    """Return which layer says a key, or a section that there is not; `name` if none does."""
    known = sources or {}
    inside = [layer for said, layer in known.items() if said.startswith(f"{key}.")]
    return known.get(".".join(key.split(".")[:2]), inside[-1] if inside else name)


def check_protocol(raw: dict, name: str) -> TestConfig:
    """Check the protocol of a test that a checkpoint says.

    Args:
        name: what an error calls it.

    Raises:
        ConfigError: names the first mistake.
    """
    if strange := _strange(raw, ""):
        raise ConfigError(f"{name}: {': '.join(strange)}")
    try:
        return TestConfig.model_validate_json(json.dumps(raw), strict=True)
    except ValidationError as error:
        raise ConfigError(f"{name}: {_explain(error.errors()[0])[1]}") from None
    except TypeError as error:  # bytes, or another value that no experiment has
        raise ConfigError(f"{name}: {error}") from None


def _strange(value: Any, key: str) -> tuple[str, str] | None:
    """Find what no key can hold: its dotted place, and what it is; None where all is well.

    `options` of a network or a loss take any value, so that the types of the schema do not see all of them.
    """
    if isinstance(value, str):
        if len(value) > LONGEST:
            return key, f"a text of {len(value):,} letters; at most {LONGEST:,} are possible"
        if printable(value) != value or "\n" in value or "\t" in value:
            return key, f"holds a control character: {value!r}"
    elif isinstance(value, int) and abs(value) >= 2**63:
        return key, f"a number of {value.bit_length()} bits; at most 63 are possible"
    elif isinstance(value, float) and not math.isfinite(value):
        return key, f"a finite number is needed, found {value}"
    elif isinstance(value, dict | list | tuple):
        pairs = value.items() if isinstance(value, dict) else ((None, each) for each in value)
        for name, each in pairs:
            inner = key if name is None else f"{key}.{name}".lstrip(".")
            found = _strange(str(name), key or inner) if isinstance(name, str) else None
            found = found or _strange(each, inner)
            if found:
                return found
    return None


def renewed(raw: dict) -> dict:
    """Give the config of an earlier version the keys of today."""
    out = {name: dict(value) if isinstance(value, dict) else value for name, value in raw.items()}
    for before, after in MOVED.items():
        (section, key), (new_section, new_key) = before.split("."), after.split(".")
        if key in out.get(section, {}):
            out.setdefault(new_section, {})[new_key] = out[section].pop(key)
    for section, key in (name.split(".") for name in GONE):
        out.get(section, {}).pop(key, None)
    return out


def valid_keys(section: type[BaseModel] = Config, prefix: str = "") -> list[str]:
    """List every key of the schema as a dotted path."""
    keys = []
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            keys += valid_keys(kind, f"{prefix}{name}.")
        else:
            keys.append(prefix + name)
    return keys


def _explain(error: ErrorDetails) -> tuple[str, str]:
    """Say in one line what pydantic found wrong, and what to write instead; the key, and the line."""
    path = [str(part) for part in error["loc"]]
    key = ".".join(path)
    if key in GONE:
        return key, f"key '{key}' was removed: {GONE[key]}; delete it"
    if key in MOVED:
        return key, f"key '{key}' has a new name; write '{MOVED[key]}'"
    if error["type"] == "extra_forbidden":
        return key, f"unknown key '{key}'; {_nearest(path)}"
    if error["type"] == "missing" and isinstance(error["loc"][-1], int):
        key = ".".join(path[:-1])
        return key, f"{key}: too few values, found {error['input']}"
    if error["type"] == "missing":
        return key, f"missing key '{key}'"
    if error["type"] == "value_error":
        message = str(error["ctx"]["error"])
        above = path[:-1] if path and message.startswith(f"{path[-1]}: ") else path
        message = ".".join([*above, message])
        return message.partition(":")[0], message
    found = repr(error["input"])
    found = found if len(found) <= SHOWN_LETTERS else f"{found[:SHOWN_LETTERS]}..."
    return key, f"{key}: {error['msg'].lower()}, found {found}"


def _nearest(path: list[str]) -> str:
    """Hint at the valid key that an unknown one probably means."""
    *parents, last = path
    siblings = [key for key in valid_keys() if key.rpartition(".")[0] == ".".join(parents)]
    names = [key.rpartition(".")[2] for key in siblings] if parents else [*Config.model_fields]
    elsewhere = [key for key in valid_keys() if key.rpartition(".")[2] == last]
    near = difflib.get_close_matches(last, names, 1, cutoff=0.5)
    if elsewhere:
        return f"did you mean '{elsewhere[0]}'?"
    if near:
        return f"did you mean '{'.'.join([*parents, near[0]])}'?"
    return "valid here: " + ", ".join(names)
