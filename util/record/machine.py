"""The machine of a run: packages, versions, memory and cores."""

import os
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import torch

from util import dist

try:
    import resource
except ModuleNotFoundError:  # Windows
    resource = None  # type: ignore[assignment]  # asked for before each use

ROOT = Path(__file__).resolve().parents[2]
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
    commit, dirty = project_commit()
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "CPU"
    hardware += " (mps)" if device.type == "mps" else ""
    return {
        "versions": versions(),
        "device": hardware,
        "processes": dist.world_size(),
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "commit": commit,
        "dirty": dirty,
        "command": sys.argv,
    }


def project_commit() -> tuple[str | None, bool | None]:
    """Return the commit of this project, and whether its files differ.

    Of this project, not of the folder one stands in; None each where it is no clone.
    """
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        return None, None
    words = (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
    commit, changes = (
        subprocess.run(["git", "-C", str(ROOT), *each], capture_output=True, text=True, check=False) for each in words
    )
    if commit.returncode or changes.returncode:  # of another user, whom git does not trust
        return None, None
    return commit.stdout.strip(), bool(changes.stdout.strip())


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
