"""The facts in a checkpoint beside its weights: classes, preprocessing, data, protocol."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from util import UserError

# Preprocessing of checkpoints that do not say theirs, which is that of ImageNet: R, G, B on the scale 0..255.
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class Facts:
    """Facts of a training that every later use needs.

    None: the checkpoint does not say.

    Args:
        dataset: name of the data set.
        classes: names, in the order of the network's outputs.
        colors: RGB, one a class.
        label_map: value on disk ("7", or a colour "r,g,b") -> class index, or 255 for ignored.
        mean: of R, G, B on the scale 0..255.
        std: the same.
        limits: values of an image that become 0 and 255 (data.range), two numbers or two percentages.
        channel_order: "rgb" or "bgr", as the network sees the channels.
        protocol: scales, flip, window, stride_rate and base_size of its test.
    """

    dataset: str | None = None
    classes: tuple[str, ...] | None = None
    colors: tuple[tuple[int, int, int], ...] | None = None
    label_map: dict[str, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    channel_order: str = "rgb"
    protocol: dict[str, Any] | None = None
    limits: tuple[float, float] | tuple[str, str] | None = None

    @property
    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Give mean and std, or those of ImageNet."""
        return self.mean or MEAN, self.std or STD

    def entries(self) -> dict[str, Any]:
        """Return the checkpoint's entries that hold the facts.

        In plain types.
        """
        entries: dict[str, Any] = {
            "dataset": self.dataset,
            "classes": None if self.classes is None else list(self.classes),
            "colors": None if self.colors is None else [list(color) for color in self.colors],
            "label_map": self.label_map,
            "protocol": self.protocol,
        }
        if self.mean is not None and self.std is not None:
            entries["preprocessing"] = {
                "mean": list(self.mean),
                "std": list(self.std),
                "channel_order": self.channel_order,
                **({} if self.limits is None else {"range": list(self.limits)}),
            }
        return {name: value for name, value in entries.items() if value is not None}


def facts_of(state: Mapping[str, Any]) -> Facts:
    """Read the facts of a checkpoint of ours.

    One of an earlier version has them in its experiment alone.
    """
    config = state.get("config", {})
    data, test = config.get("data", {}), config.get("test", {})
    given = state.get("preprocessing") or data
    protocol = {key: test[key] for key in ("scales", "flip", "window", "stride_rate", "base_size") if key in test}
    classes, colors = state.get("classes"), state.get("colors")
    return Facts(
        state.get("dataset", data.get("name")),
        None if classes is None else tuple(classes),
        None if colors is None else tuple(tuple(color) for color in colors),
        state.get("label_map"),
        tuple(given["mean"]) if "mean" in given else None,
        tuple(given["std"]) if "std" in given else None,
        given.get("channel_order", "rgb"),
        state.get("protocol", protocol or None),
        tuple(given["range"]) if given.get("range") else None,
    )


def check_facts(state: Mapping[str, Any]) -> None:
    """Refuse facts that are none.

    Raises:
        UserError: names the entry, without the file's name.
    """
    if not isinstance(state.get("dataset", ""), str):
        raise UserError("'dataset' is no name of a data set")
    label_map = state.get("label_map", {})
    if not isinstance(label_map, dict):
        raise UserError("'label_map' does not map values of a label file to classes")
    count = len(state.get("classes") or range(255))
    for key, value in label_map.items():
        sound = isinstance(key, str) and re.fullmatch(r"-?\d{1,5}|\d{1,3},\d{1,3},\d{1,3}", key)
        if (
            not sound
            or not isinstance(value, int)
            or isinstance(value, bool)
            or not (0 <= value < count or value == 255)
        ):
            raise UserError(f"'label_map' maps {key!r:.80} to {value!r:.80}, which is none of {count} classes, nor 255")
    if not isinstance(state.get("protocol", {}), dict):
        raise UserError("'protocol' is no test protocol")
    data = state.get("config", {}).get("data", {})
    for source, given in (("preprocessing", state.get("preprocessing", {})), ("config.data", data)):
        if not isinstance(given, dict):
            raise UserError(f"'{source}' does not say mean and std")
        mean, std = given.get("mean", MEAN), given.get("std", STD)
        if not (_numbers(mean) and _numbers(std) and len(mean) == len(std) and min(std) > 0):
            raise UserError(f"'{source}' has no sound mean and std of the channels: {mean!r:.80}, {std!r:.80}")
        limits = given.get("range") or (0, 255)
        if not (_numbers(limits) or all(isinstance(v, str) and re.fullmatch(r"[\d.]+%", v) for v in limits)):
            raise UserError(f"'{source}' has no sound range of values: {limits!r:.80}")
        if given.get("channel_order", "rgb") not in ("rgb", "bgr"):
            raise UserError(f"'{source}' has the channel order {given['channel_order']!r:.80}, not rgb or bgr")


def _numbers(values: Any) -> bool:
    return (
        isinstance(values, Sequence)
        and not isinstance(values, str)
        and len(values) > 0
        and all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in values)
    )
