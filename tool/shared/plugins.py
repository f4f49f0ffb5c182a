"""Code outside the project: networks, backbones, losses, data sets, augmentations.

An experiment names it by dotted path (`model.name: mypkg.net.MyNet`), or as files that add to the tables
(`plugins: [mynet.py]`). Only what an experiment or a command names is imported: it enters the tables here, and whatever
a checkpoint asks for is looked up in the tables alone.
"""

import argparse
import difflib
import importlib
import importlib.util
import os
import re
import shlex
import sys
import traceback
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from dataset import AUGMENTATIONS, DATASETS
from dataset.load.modules import FROM_FILES
from model import BACKBONES, MODELS
from model.backbone import TIMM_PREFIX
from util import UserError
from util.config.load import COMMAND_LINE, Experiment
from util.config.load import load as read_experiment
from util.loss import JOINT_LOSSES, LOSSES, OTHER_LOSSES

DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")
TABLES: tuple[dict[str, Any], ...] = (MODELS, BACKBONES, LOSSES, DATASETS, AUGMENTATIONS)
OURS = tuple(dict(table) for table in TABLES)  # before anything is added


def load(path: str | Path, overrides: Iterable[str] = (), folder: str | Path | None = None) -> Experiment:
    """Return a checked experiment, the code that it names imported.

    As `util.config.load.load` does otherwise.

    Raises:
        ConfigError: as there.
        UserError: a plugin or a dotted path cannot be imported; names it, and who asks for it.
    """
    return read_experiment(path, overrides, folder, use_own_code)


def use_own_code(raw: dict[str, Any], sources: Mapping[str, str]) -> None:
    """Import what an experiment names, before it is checked.

    Its `plugins` become absolute paths.

    Args:
        raw: the sections, not checked yet; what is of a wrong type is left to the check.
        sources: section.key -> the file that says it.
    """
    files = raw.get("plugins")
    if isinstance(files, list) and all(isinstance(file, str) for file in files):
        source = sources.get("plugins", COMMAND_LINE)
        folder = Path() if source == COMMAND_LINE else Path(source).parent
        raw["plugins"] = [str(import_file(file, folder, f"{source}: plugins")) for file in files]
    for key, name, table in _asked(raw):
        if isinstance(name, str) and DOTTED.fullmatch(name) and name not in table:
            found = find(name, f"{sources.get(key, 'the experiment')}: {key}")
            table[name] = found if table is LOSSES else name


def _asked(raw: Mapping[str, Any]) -> list[tuple[str, Any, dict[str, Any]]]:
    """List what the sections name: key, name (of any type, not checked yet), and the table it is looked up in."""
    asked: list[tuple[str, Any, dict[str, Any]]] = []
    for section, key, table in (
        ("data", "name", DATASETS),
        ("model", "name", MODELS),
        ("model", "backbone", BACKBONES),
        ("loss", "name", LOSSES),
        ("loss", "extra", LOSSES),
        ("loss", "outputs", LOSSES),
        ("augment", "own", AUGMENTATIONS),
    ):
        content = raw.get(section)
        value = content.get(key) if isinstance(content, dict) else None
        names = list(value.values()) if key == "outputs" and isinstance(value, dict) else value
        names = names if isinstance(names, list | dict) else [names]
        asked += [(f"{section}.{key}", name, table) for name in names]
    return asked


def words(raw: Mapping[str, Any]) -> str:
    """Write --plugin before each name of an experiment's own code."""
    dotted = [name for _, name, table in _asked(raw) if isinstance(name, str) and DOTTED.fullmatch(name)]
    names = [*(raw.get("plugins") or ()), *dotted]
    return "".join(f" --plugin {shlex.quote(name)}" for name in dict.fromkeys(names))


def add_argument(parser: argparse.ArgumentParser) -> None:
    """Add --plugin, which a command with a checkpoint alone needs."""
    parser.add_argument(
        "--plugin",
        action="append",
        default=[],
        metavar="NAME",
        help="code outside the project that the checkpoint needs, FILE.py or a dotted path; may be repeated",
    )


def use(names: Iterable[str]) -> None:
    """Import code that the user names, for checkpoints that ask for it.

    names: files, and dotted paths of a network, backbone, loss, data set or augmentation.

    Raises:
        UserError: it cannot be imported.
    """
    for name in names:
        if name.endswith(".py"):
            import_file(name, Path(), "--plugin")
            continue
        if not DOTTED.fullmatch(name):
            raise UserError(f"--plugin {name}: write a file, FILE.py, or a dotted path, mypkg.net.MyNet")
        found = find(name, "--plugin")
        for table in TABLES:
            table.setdefault(name, found if table is LOSSES else name)


def is_own(spec: Mapping[str, Any]) -> bool:
    """Tell whether a network or its backbone is code outside the project."""
    return bool(_foreign(spec))


def _foreign(spec: Mapping[str, Any]) -> list[str]:
    """List which of a network and its backbone are not of this project."""
    networks, backbones, *_ = OURS
    named = ((spec["name"], networks), (spec["backbone"], backbones))
    return [name for name, ours in named if name and name not in ours and not name.startswith(TIMM_PREFIX)]


def own_code(state: Mapping[str, Any]) -> list[str]:
    """List the code outside the project that a checkpoint's network needs.

    Plugins are named without their folder.
    """
    config = state.get("config")
    files = config.get("plugins") if isinstance(config, dict) else None
    named = [Path(each).name for each in files or () if isinstance(each, str)]
    return named + [name for name in _foreign(state["spec"]) if DOTTED.fullmatch(name)]


def refuse_unnamed(state: Mapping[str, Any], file: str | Path) -> None:
    """Refuse a checkpoint whose network needs code which nobody has named.

    Raises:
        UserError: names the code, and says how to name it.
    """
    _refuse(state.get("config"), file, _network_of(state))


def refuse_unnamed_data(state: Mapping[str, Any], file: str | Path, overridden: Iterable[str] = ()) -> None:
    """Refuse a checkpoint whose data set or loss nobody has named.

    A dotted loss may be missing: nothing but a training computes it.

    Args:
        overridden: keys, section.key, that somebody else says.

    Raises:
        UserError: as `refuse_unnamed`.
    """
    keys = {"data.name", "loss.name"} - set(overridden)
    named = [(key, name, table) for key, name, table in _asked(state["config"]) if key in keys]
    named = [entry for entry in named if not (entry[0] == "loss.name" and DOTTED.fullmatch(str(entry[1])))]
    if any(_is_missing(*entry) for entry in named):
        _refuse(state["config"], file, [*named, *_network_of(state)])


def refuse_unnamed_code(config: Mapping[str, Any], file: str | Path) -> None:
    """Refuse an experiment that needs code which nobody has named.

    Raises:
        UserError: as `refuse_unnamed`.
    """
    _refuse(config, file, _asked(config))


def _network_of(state: Mapping[str, Any]) -> list[tuple[str, Any, dict[str, Any]]]:
    """List network and backbone of a checkpoint; none of an exported file, which needs no class."""
    spec = {} if "export" in state else state["spec"]
    return _asked({"model": {key: spec.get(key) for key in ("name", "backbone")}})


def _is_missing(key: str, name: Any, table: Mapping[str, Any]) -> bool:
    known = table | OTHER_LOSSES | JOINT_LOSSES if table is LOSSES else table
    return isinstance(name, str) and name not in known and not (table is BACKBONES and name.startswith(TIMM_PREFIX))


def _refuse(config: object, file: str | Path, named: Iterable[tuple[str, Any, dict[str, Any]]]) -> None:
    """Raise the error for the first name that is missing, but for a plain one without plugins.

    Whoever looks that up says which there are.
    """
    missing = [(key, name) for key, name, table in named if _is_missing(key, name, table)]
    known = config.get("plugins") if isinstance(config, dict) else None
    files = [each for each in known if isinstance(each, str)] if isinstance(known, list) else []
    dotted = [name for _, name in missing if DOTTED.fullmatch(name)]
    if not missing or not (files or dotted):
        return
    key, name = missing[0]
    what = {"data": "data set", "loss": "loss", "augment": "augmentation"}.get(key.partition(".")[0], "network")
    imported = {Path(path).name for module, path in FROM_FILES.items() if module in sys.modules}
    if not DOTTED.fullmatch(name) and all(Path(each).name in imported for each in files):
        raise UserError(
            f"{file}: its {what} needs {name!r}, which {' nor '.join(files)} does not add to the tables; has the file "
            "changed since?"
        )
    wanted = " ".join(f"--plugin {each}" for each in dict.fromkeys([*files, *dotted]))
    raise UserError(
        f"{file}: its {what} needs {name!r}, code outside the project, which a checkpoint alone never imports. If "
        f"you trust that code, write {wanted}; in Python Segmenter(file, plugins=[...])"
    )


def find(name: str, asker: str) -> Callable[..., Any]:
    """Import what a dotted path names: a class or a function.

    Raises:
        UserError: no such module or member, or its import fails.
    """
    module, _, member = name.rpartition(".")
    content = vars(_imported(lambda: importlib.import_module(module), f"{asker}: {name}"))
    if member not in content:
        known = [each for each, value in content.items() if callable(value) and not each.startswith("_")]
        near = difflib.get_close_matches(member, known, 1) or [each for each in known if each.lower() == member.lower()]
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"{asker}: {name}: module {module} has no class or function {member!r}{hint}")
    if not callable(content[member]):
        raise UserError(f"{asker}: {name}: is of type {type(content[member]).__name__}, no class or function")
    return content[member]


def import_file(file: str, folder: Path, asker: str) -> Path:
    """Import a plugin once; return its absolute path.

    A relative path starts at `folder`, or else here.

    Raises:
        UserError: there is no such file, or its import fails.
    """
    places = list(dict.fromkeys(Path(os.path.abspath(start / Path(file).expanduser())) for start in (folder, Path())))
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        if any(place.is_dir() for place in places):
            raise UserError(f"{asker}: {file}: is a folder; a plugin is a Python file, FILE.py")
        where = "" if places == [Path(file)] else f": {' nor '.join(map(str, places))}"
        raise UserError(f"{asker}: {file}: there is no such file{where}")
    name = f"plugin_{re.sub(r'[^0-9a-zA-Z_]', '_', path.stem)}_{zlib.crc32(os.fsencode(path)):08x}"
    if name in sys.modules:
        return path
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"{asker}: {file}: a plugin is a Python file, FILE.py")
    module, loader = importlib.util.module_from_spec(spec), spec.loader
    sys.modules[name] = module  # before it runs, so that its classes can be found by its own name
    done = False
    try:
        _imported(lambda: loader.exec_module(module), f"{asker}: {path}")
        _keep_ours(f"{asker}: {path}")
        FROM_FILES[name] = str(path)  # which loader workers that are not forked import first
        done = True
    finally:
        if not done:
            del sys.modules[name]
    return path


def _keep_ours(what: str) -> None:
    """Put back the entries of the tables that a plugin has replaced.

    Raises:
        UserError: there is one.
    """
    for table, ours in zip(TABLES, OURS, strict=True):
        replaced = [name for name in ours if table.get(name) is not ours[name]]
        table.update(ours)
        if replaced:
            raise UserError(
                f"{what}: replaces {replaced[0]!r}, which is a name of this project; give yours another one"
            )


def _imported(action: Callable[[], Any], what: str) -> Any:
    """Import by `action`; one that fails is the user's mistake."""
    try:
        return action()
    except ModuleNotFoundError as error:
        places = os.environ.get("PYTHONPATH") or "not set"
        hint = f"no module {error.name!r}{_line_of(error)}; looked for in {os.getcwd()}, on PYTHONPATH ({places})"
        raise UserError(f"{what}: {hint} and among the installed ones") from error
    except SyntaxError as error:
        file = "" if what.endswith(f": {error.filename}") else f"{error.filename}, "
        raise UserError(f"{what}: cannot be imported ({error.msg}, {file}line {error.lineno})") from error
    except ImportError as error:
        raise UserError(f"{what}: cannot be imported ({error}{_line_of(error)})") from error


def _line_of(error: ImportError) -> str:
    """Return ", asked for by FILE, line N"; "" where no file of the user's does."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
    frames = [frame for frame in frames if frame.filename != __file__]
    return f", asked for by {frames[-1].filename}, line {frames[-1].lineno}" if frames else ""
