"""Compiles a network by regions.

Each block is a graph, not the whole network. Equal blocks share their graph, so compiling takes as long as the
different ones do, and what is compiled stays the same module: names of parameters, copies, hooks and checkpoints are
those of the plain network. The idea is that of PyTorch's recipe "Reducing torch.compile cold start compilation time
with regional compilation".
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

COMPILERS = ("g++", "clang++", "c++")


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the residual blocks of a network.

    They are the members of each `nn.Sequential` that have layers of their own.
    """
    for child in module.children():
        if isinstance(module, nn.Sequential) and type(child) is not nn.Sequential and any(child.children()):
            yield child
        else:
            yield from blocks(child)


def regions(module: nn.Module) -> Iterator[nn.Module]:
    """Yield blocks, and the largest parts with parameters and no block."""
    inside = set(blocks(module))
    for child in module.children():
        if child not in inside and (isinstance(child, (nn.ModuleList, nn.ModuleDict)) or any(blocks(child))):
            yield from regions(child)
        elif any(True for _ in child.parameters()):
            yield child


def obstacle(device: torch.device) -> str | None:
    """Say why this machine cannot compile, and what to set.

    PyTorch's Inductor compiles into TORCHINDUCTOR_CACHE_DIR, by default a folder of the temporary one, and loads that
    as a library. None: nothing is in the way.
    """
    place = Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR") or tempfile.gettempdir()).absolute()
    place = next((folder for folder in (place, *place.parents) if folder.exists()), place)
    setting = "set TORCHINDUCTOR_CACHE_DIR to a folder whose files can be run"
    if hasattr(os, "statvfs") and os.statvfs(place).f_flag & getattr(os, "ST_NOEXEC", 0):
        return f"{place} is mounted noexec; {setting}"
    if not os.access(place, os.W_OK | os.X_OK):
        return f"{place} cannot be written; {setting}"
    if device.type == "cpu" and not any(map(shutil.which, (os.environ.get("CXX") or "c++", *COMPILERS))):
        return "there is no C++ compiler; install g++, or name one with CXX"
    return None


def compile_regions(network: nn.Module, backend: str = "inductor") -> int:
    """Have each region compiled at its first call; return their number.

    Each is one graph for one size of its maps, in training: another size compiles again, and a region that is no
    single graph raises PyTorch's error. So whole pictures of any size are better scored under
    `torch.compiler.set_stance("force_eager")`. What lies between the regions, where maps are resized and joined,
    stays as it is.
    """
    parts = list(regions(network))
    # All regions are entries of one table, that of nn.Module.__call__; at its limit PyTorch would raise.
    limit = torch._dynamo.config.recompile_limit
    torch._dynamo.config.recompile_limit = max(limit, 2 * len(parts))
    for part in parts:
        # PyTorch 2.11 never compiles a module whose forward is its own, nn.Sequential's say, unless a frame is around.
        with torch._dynamo.config.patch(wrap_top_frame=type(part).forward.__module__.startswith("torch.")):
            part.compile(fullgraph=True, dynamic=False, backend=backend)
    return len(parts)
