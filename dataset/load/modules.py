"""Modules that were imported from a file, for other processes.

A worker that is not forked (macOS, Windows, Python 3.14 on Linux) imports by its name whatever it unpickles. A module
from a file has no name that can be found, so it is imported again from there, before.
"""

import importlib.util
import sys
from collections.abc import Mapping
from typing import Any

FROM_FILES: dict[str, str] = {}  # name in sys.modules -> path, in the order of their import


def import_modules(files: Mapping[str, str]) -> None:
    """Import modules from their files, but for those that are there."""
    for name, path in files.items():
        if name in sys.modules:
            continue
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None, "it was imported before"
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])


class Modules:
    """Stands for `FROM_FILES`; where it is unpickled, they are imported."""

    def __reduce__(self) -> tuple[Any, ...]:
        return import_modules, (dict(FROM_FILES),)
