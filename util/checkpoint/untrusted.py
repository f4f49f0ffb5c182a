"""Refuses what a downloaded checkpoint must not hold.

`torch.load(weights_only=True)` executes nothing of it. PyTorch itself refuses calls of any function and storages that
are larger than their records.
"""

import math
from typing import Any

import numpy as np
import torch

from util import UserError
from util.checkpoint.facts import check_facts

MAX_DEPTH = 50
MOST_CLASSES = 65_535  # that a prediction of 16 bits tells apart; labels have at most 255
MAX_VALUES = 1_000_000  # shared ones counted each time they are named
PLAIN: tuple[type, ...] = (str, bytes, bytearray, int, float, complex, bool, type(None), np.generic, np.dtype)
PLAIN += (torch.Size, torch.dtype, torch.device, torch.layout)


def check_content(content: Any, size: int) -> dict:
    """Return `content`, if it is a dictionary of tensors and plain values.

    Args:
        content: what `torch.load` returned.
        size: bytes of the file, which no tensor may exceed: an expanded one claims memory when it is copied.

    Raises:
        UserError: it is something else, or would never end when it is printed or compared; without the file's name.
    """
    if not isinstance(content, dict):
        raise UserError(f"a checkpoint maps names to tensors; this is {type(content).__name__}")
    waiting: list[tuple[Any, int]] = [(content, 0)]
    seen = 0
    while waiting:
        value, depth = waiting.pop()
        seen += 1
        if isinstance(value, torch.Tensor):
            if value.layout is not torch.strided or value.is_quantized or value.is_meta or value.is_nested:
                raise UserError("a tensor that is sparse, quantised, nested or without values")
            if value.numel() * value.element_size() > size:
                raise UserError(f"a tensor of the shape {tuple(value.shape)}, larger than the file it comes from")
        elif isinstance(value, dict):
            waiting += ((part, depth + 1) for pair in value.items() for part in pair)
        elif isinstance(value, (list, tuple, set)) and not isinstance(value, torch.Size):
            waiting += ((part, depth + 1) for part in value)
        elif not isinstance(value, PLAIN):
            raise UserError(f"it holds more than tensors and plain values: {type(value).__name__}")
        if depth > MAX_DEPTH or seen + len(waiting) > MAX_VALUES:
            raise UserError(f"values nested deeper than {MAX_DEPTH}, or more than {MAX_VALUES:,} of them")
    return content


def check_network(state: dict) -> None:
    """Refuse a checkpoint of ours whose network is unclear.

    Raises:
        UserError: names the entry, without the file's name.
    """
    spec, classes, colors = state["spec"], state.get("classes"), state.get("colors")
    sound = isinstance(spec, dict) and isinstance(spec.get("name"), str) and isinstance(spec.get("options"), dict)
    if not sound or not isinstance(spec.get("backbone", 0), str | None):
        raise UserError("'spec' does not say which network it is")
    number = spec.get("num_classes")
    if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= MOST_CLASSES:
        raise UserError(f"'spec' says {number!r} classes, where 1 to {MOST_CLASSES:,} are possible")
    if not all(isinstance(name, str) for name in spec["options"]):
        raise UserError("'spec' has options without a name")
    endless = [name for name, value in spec["options"].items() if isinstance(value, float) and not math.isfinite(value)]
    if endless:
        raise UserError(f"'spec' has the option {endless[0]}, which is not finite")
    if classes is not None and not (_is_list(classes, number) and all(isinstance(name, str) for name in classes)):
        raise UserError(f"'classes' are not the names of {number} classes")
    if colors is not None and not (_is_list(colors, number) and all(map(_is_color, colors))):
        raise UserError(f"'colors' are not those of {number} classes")
    config = state.get("config", {})
    if not isinstance(config, dict) or not all(isinstance(config.get(name, {}), dict) for name in ("data", "test")):
        raise UserError("'config' is no experiment")
    check_facts(state)
    channels = spec["options"].get("in_channels", 3)
    given = state.get("preprocessing") or config.get("data", {})
    if "mean" in given and len(given["mean"]) != channels:
        raise UserError(f"mean and std of {len(given['mean'])} channels, where the network sees {channels}")


def _is_list(value: Any, length: int) -> bool:
    return isinstance(value, list | tuple) and len(value) == length


def _is_color(value: Any) -> bool:
    return _is_list(value, 3) and all(isinstance(part, int) and 0 <= part <= 255 for part in value)
