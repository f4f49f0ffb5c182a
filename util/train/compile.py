"""Compiles a network by regions.

Each block is a graph, not the whole network. Equal blocks share their graph, so compiling takes as long as the
different ones do, and what is compiled stays the same module: names of parameters, copies, hooks and checkpoints are
those of the plain network. The idea is that of PyTorch's recipe "Reducing torch.compile cold start compilation time
with regional compilation".
"""

from collections.abc import Iterator

import torch
from torch import nn


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
