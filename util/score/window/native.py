"""Our C++ of evaluation on a CPU: compiled when it is first used."""

import ctypes
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

FLAGS = ("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC")


@cache
def compiled(source: Path) -> ctypes.CDLL:
    """The functions of a source file, by the compiler that torch.compile uses too ($CXX, else g++).

    Raises:
        ValueError: there is no such compiler, or it fails; says what it printed.
    """
    if not sys.platform.startswith("linux"):
        raise ValueError(f"{source.name} is compiled on Linux only, not on {sys.platform}")
    compiler = os.environ.get("CXX", "g++")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, source.stem).with_suffix(".so")
        try:
            made = subprocess.run([compiler, *FLAGS, str(source), "-o", str(library)], capture_output=True, text=True)
        except OSError as error:
            raise ValueError(f"cannot run the compiler {compiler} (variable CXX): {error.strerror}") from error
        if made.returncode:
            raise ValueError(f"{compiler} cannot compile {source.name}: {made.stderr.strip()}")
        return ctypes.CDLL(str(library))
