"""The machine of a run: packages, versions, memory and cores."""

import os
import platform
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
    """Return the versions that can move a number.

    Of Python and of the packages.
    """
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def environment(device: torch.device) -> dict:
    """Say where a number comes from: versions, hardware, commit, command."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "CPU"
    return {
        "versions": versions(),
        "device": hardware,
        "processes": dist.world_size(),
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "commit": commit.stdout.strip() or None,
        "command": sys.argv,
    }


def peak_memory(device: torch.device) -> str:
    """Return the peak memory of this process as text.

    Of the GPU where there is one, else resident.
    """
    if device.type == "cuda":
        return f"{torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB GPU"
    return f"{peak_resident() / 2**30:.1f} GiB"


def peak_resident() -> int:
    """Return the peak of this process's memory in bytes.

    0 where the system does not say.
    """
    if resource is None:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def cores() -> int:
    """Count the processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
