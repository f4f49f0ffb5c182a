"""The random streams of a process, as a checkpoint holds them."""

import random

import numpy as np
import torch


def seed(value: int) -> None:
    """Start every stream of this process anew."""
    random.seed(value)
    np.random.seed(value % 2**32)
    torch.manual_seed(value)  # of the GPUs too


def state(device: torch.device) -> dict:
    """Return the state of Python's, NumPy's, PyTorch's and this process's GPU's streams."""
    version, words, gauss = random.getstate()
    name, keys, *numpy_rest = np.random.get_state(legacy=True)
    found = {
        "cpu": torch.get_rng_state(),
        "python": [version, torch.tensor(words), gauss],
        "numpy": [name, torch.from_numpy(np.asarray(keys, np.int64)), *numpy_rest],
    }
    if device.type == "cuda":
        found["cuda"] = torch.cuda.get_rng_state(device)
    return found


def restore(found: dict, device: torch.device) -> None:
    """Put the streams back to where `state` has found them."""
    torch.set_rng_state(found["cpu"])
    version, words, gauss = found["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    name, keys, *numpy_rest = found["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *numpy_rest))
    if "cuda" in found and device.type == "cuda":
        torch.cuda.set_rng_state(found["cuda"], device)
