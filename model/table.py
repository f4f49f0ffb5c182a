"""From a name and its options to a checked class.

The name is looked up in a table, the class imported, the options compared with its signature.
"""

import difflib
import importlib
import inspect
import sys
import traceback
import typing
from collections.abc import Callable, Iterable, Mapping
from types import NoneType, UnionType

# Types of options whose values are checked here; what any other means, its network checks.
PLAIN = {bool, int, float, str, NoneType}


class ModelError(ValueError):
    """A mistake in what was asked of a network.

    The message names class, option or weight, and says what to do.
    """


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """Write the message about an unknown name, with the nearest known one."""
    known = sorted(known)
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else "."
    return f"unknown {kind} {name!r}{hint} Known: {', '.join(known) or 'none'}"


def resolve(kind: str, name: str, table: Mapping[str, str | Callable], further: tuple[str, ...] = ()) -> Callable:
    """Return the class or function that `table` names.

    A table is all that is looked in: a dotted path is imported only after whoever trusts it has added it there.
    `further` are names known beside the table, for the message.
    """
    if name not in table:
        raise ModelError(unknown(kind, name, [*table, *further]))
    return load(table[name])


def load(path: str | Callable) -> Callable:
    if not isinstance(path, str):
        return path  # a plugin may add the class itself
    module, _, member = path.rpartition(".")
    return getattr(importlib.import_module(module), member)


def complete(
    kind: str, name: str, builder: Callable, options: Mapping[str, object], reserved: tuple[str, ...] = ()
) -> dict[str, object]:
    """Check `options` against a signature; return them with all defaults."""
    parameters = {k: p for k, p in inspect.signature(builder).parameters.items() if k not in reserved}
    free = any(p.kind is p.VAR_KEYWORD for p in parameters.values())  # **options take any name
    parameters = {k: p for k, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    for option, value in options.items():
        if option not in parameters and free:
            continue
        if option not in parameters:
            raise ModelError(unknown(f"option of {kind} {name!r}:", option, parameters))
        annotation = parameters[option].annotation
        wanted = typing.get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)
        if set(wanted) <= PLAIN and not any(_fits(value, one) for one in wanted):
            types = " or ".join("None" if one is NoneType else one.__name__ for one in wanted)
            raise ModelError(f"{kind} {name!r}: {option} must be {types}, not {value!r}")
    needed = [option for option, p in parameters.items() if p.default is p.empty and option not in options]
    if needed:
        raise ModelError(f"{kind} {name!r} needs the option {needed[0]!r}, which has no default")
    return {option: parameter.default for option, parameter in parameters.items()} | dict(options)


def _fits(value: object, wanted: type) -> bool:
    """Whether `value` is of that plain type; a whole number is a float, but a bool is no number."""
    if isinstance(value, bool):
        return wanted is bool
    return isinstance(value, (int, float) if wanted is float else wanted)


def place_in(error: BaseException, builder: Callable) -> str:
    """Return " (FILE, line N)" of an error in a user's class.

    It is the last line of the builder's file that the error came through; "" for what stands in this package.
    """
    if builder.__module__.partition(".")[0] == __name__.partition(".")[0]:
        return ""
    file = getattr(sys.modules.get(builder.__module__), "__file__", None)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f" ({file}, line {frames[-1].lineno})" if frames else ""


def plain(value: object) -> object:
    """Return the value as dicts, lists and scalars, as in YAML."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value
