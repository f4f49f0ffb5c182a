"""The machine of a run: packages, versions, memory and cores."""

import os
import platform
import shutil
import subprocess
import sys
from importlib import metadata

import torch

from util import dist

try:
    import resource
except ModuleNotFoundError:  # Windows
    resource = None  # type: ignore[assignment]  # asked for before each use

PACKAGES = ("torch", "torchvision", "numpy", "pydantic", "timm", "opencv-python-headless", "opencv-python")


def versions() -> dict[str, str]:
    """Return the versions of Python and packages that can move numbers."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def environment(device: torch.device) -> dict:
    """Say where a number comes from: versions, hardware, commit, command."""
    git = shutil.which("git")  # a container may have none
    commit = (
        git and subprocess.run([git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    )
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "CPU"
    return {
        "versions": versions(),
        "device": hardware,
        "processes": dist.world_size(),
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "commit": commit or None,
        "command": sys.argv,
    }


def peak_memory(device: torch.device) -> str:
    """Write this process's peak memory, the GPU's if there is one."""
    if device.type == "cuda":
        return f"{torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB GPU"
    return f"{peak_resident() / 2**30:.1f} GiB"


def peak_resident() -> int:
    """Return this process's peak memory in bytes; 0 if unknown."""
    if resource is None:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def cores() -> int:
    """Count the processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
