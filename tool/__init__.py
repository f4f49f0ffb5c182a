"""The commands: each module is run as `python -m tool.NAME`."""

import importlib.util
import sys
from pathlib import Path


def refuse_hidden(root: Path, command: bool) -> None:
    """Refuse to go on where a package of the project is hidden.

    By a `model.py` of the user's, say, which Python finds first.

    Args:
        root: the folder that holds the packages.
        command: whether `python -m` starts one, which ends with one line and status 2.

    Raises:
        ImportError: names the package and the file that hides it.
    """
    for name in ("model", "dataset", "util"):
        spec = importlib.util.find_spec(name)
        origin = None if spec is None else spec.origin or [*(spec.submodule_search_locations or ("",))][0]
        if origin is None or Path(origin).resolve() != (root / name / "__init__.py").resolve():
            text = (
                f"{origin or 'nothing'} hides {root / name}, a package of this framework: Python finds it first. Start "
                f"in another folder with that one behind {root} on PYTHONPATH, or put your code into a package of its "
                "own, which is imported as mypkg.model (docs/own_code.md)"
            )
            if command:
                print(f"error: {text}", file=sys.stderr)
                sys.exit(2)
            raise ImportError(text)


refuse_hidden(Path(__file__).parents[1], sys.argv[:1] == ["-m"])
