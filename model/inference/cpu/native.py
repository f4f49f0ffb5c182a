"""Our own C++ of inference on a CPU: compiled for this processor, its memory, and its place in a network."""

import ctypes
import math
import os
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import nn

from model.table import ModelError

FLAGS = ("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC")
LINE = 16  # numbers of float32
Limits = Sequence[float]  # between which an activation cuts off: none, the lower one, or both
LIMITS: dict[type[nn.Module], Limits] = {nn.ReLU: (0.0,), nn.ReLU6: (0.0, 6.0)}


@cache
def compiled(source: Path) -> ctypes.CDLL:
    """The functions of a source file, by the compiler that torch.compile uses too ($CXX, else g++).

    Raises:
        ValueError: there is no such compiler, or it fails; says what it printed.
    """
    if not sys.platform.startswith("linux"):
        raise ModelError(f"{source.name} is compiled on Linux only, not on {sys.platform}")
    compiler = os.environ.get("CXX", "g++")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, source.stem).with_suffix(".so")
        try:
            made = subprocess.run([compiler, *FLAGS, str(source), "-o", str(library)], capture_output=True, text=True)
        except OSError as error:
            raise ModelError(f"cannot run the compiler {compiler} (variable CXX): {error.strerror}") from error
        if made.returncode:
            raise ModelError(f"{compiler} cannot compile {source.name}: {made.stderr.strip()}")
        return ctypes.CDLL(str(library))


def new_maps(pictures: int, channels: int, height: int, width: int) -> torch.Tensor:
    """Maps (pictures,channels,height,width), float32, channels_last, not filled.

    NumPy asks the system for large memory in huge pages, PyTorch does not: every page of a large tensor is new in every
    call, and 512 times as few of them are.
    """
    return _as_maps(_new_memory(pictures * height * width * channels), pictures, channels, height, width)


class Results:
    """Maps as `new_maps` gives, in the memory of the last ones of that size where nothing refers to these any more."""

    def __init__(self):
        self.free: dict[int, np.ndarray] = {}  # by size, one at most; no two threads can pop the same

    def take(self, pictures: int, channels: int, height: int, width: int) -> torch.Tensor:
        """Not filled: (pictures,channels,height,width)."""
        size = pictures * height * width * channels
        memory = self.free.pop(size, None)
        if memory is None:
            memory = _new_memory(size)
        lent = memory[:]  # PyTorch holds this view, and nothing but it, as long as any tensor has the memory
        weakref.finalize(lent, self._take_back, memory).atexit = False
        return _as_maps(lent, pictures, channels, height, width)

    def _take_back(self, memory: np.ndarray) -> None:
        self.free.clear()
        self.free[len(memory)] = memory


def _new_memory(size: int) -> np.ndarray:
    memory = np.empty(size + LINE, np.float32)
    start = -memory.ctypes.data // memory.itemsize % LINE  # the first number that begins a line of the cache
    return memory[start : start + size]


def _as_maps(memory: np.ndarray, pictures: int, channels: int, height: int, width: int) -> torch.Tensor:
    return torch.from_numpy(memory).view(pictures, height, width, channels).permute(0, 3, 1, 2)


def bounds(limits: Limits) -> tuple[float, float]:
    """The lower and the upper limit, infinite where there is none."""
    return (*limits, *(-math.inf, math.inf)[len(limits) :])


def replace_convolutions(
    network: nn.Module, gains: Callable[[nn.Conv2d], bool], make: Callable[[nn.Conv2d, Limits], nn.Module]
) -> int:
    """Puts make(conv, limits) in the place of every convolution that `gains` by it; how many.

    Asked about are those in float32 on a CPU without groups, with a border of zeros of a given width. An activation
    right after one goes into the limits.
    """
    replaced = 0
    for parent in [*network.modules()]:
        for name, conv in [*parent.named_children()]:
            if not _is_plain(conv) or not gains(conv):
                continue
            after = _activation_after(parent, name)
            limits = () if after is None else LIMITS[type(parent.get_submodule(after))]
            setattr(parent, name, make(conv, limits))
            if after is not None:
                setattr(parent, after, nn.Identity())
            replaced += 1
    return replaced


def _is_plain(conv: nn.Module) -> bool:
    """Exact type: a subclass may compute something else."""
    if type(conv) is not nn.Conv2d or conv.weight.dtype != torch.float32 or conv.weight.device.type != "cpu":
        return False
    return conv.groups == 1 and conv.padding_mode == "zeros" and not isinstance(conv.padding, str)


def _activation_after(parent: nn.Module, name: str) -> str | None:
    """The name of the activation that receives a child's output, if nothing but identities lies between."""
    if not isinstance(parent, nn.Sequential) or type(parent).forward is not nn.Sequential.forward:
        return None
    layers = list(parent._modules.items())
    place = list(parent._modules).index(name)
    for later, layer in layers[place + 1 :]:
        if type(layer) is not nn.Identity:
            return later if type(layer) in LIMITS else None
    return None
