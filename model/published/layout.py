"""How checkpoints of published families look and become ours."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

Tensors = Mapping[str, torch.Tensor]
COUNTER = ".num_batches_tracked"  # of a batch norm; files older than PyTorch 0.4.1 lack it


@dataclass(frozen=True)
class Preprocessing:
    """What a network expects of an image.

    (value - mean) / std of each channel, values on the scale 0..255.

    `mean` and `std` are in the order R, G, B whatever the order in which the network sees the channels.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    channel_order: str = "rgb"  # or "bgr"


# Patterns of a layout (see there) for MMSegmentation: its layers call a convolution and its norm by their names.
CONV_MODULE = (
    (r"\bdepthwise_conv\.", "0."),
    (r"\bpointwise_conv\.", "1."),
    (r"\.conv\.(weight|bias)$", r".0.\1"),
    (r"\.bn\.", ".1."),
)
DATASETS = {11: "camvid", 19: "cityscapes", 21: "voc", 24: "rugd", 150: "ade20k"}
IMAGENET = Preprocessing((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))


@dataclass(frozen=True)
class Layout:
    """How one published repository names a network of ours.

    A prefix ends at a dot or at the end of a key. Two published names may lead to the same tensor of ours, where the
    published code registers a module twice; their values must then be equal.
    """

    source: str  # whose names these are, for messages and reports
    model: str | None  # a name in MODELS; None for a backbone alone
    marker: str | tuple[str, ...]  # keys that every checkpoint of this layout has
    rename: Mapping[str, str]  # published prefix -> ours; the longest one wins
    # The backbone: a regular expression for its name (the one with exactly these shapes is taken), a function of the
    # tensors, or None for a network that has none.
    backbones: str | Callable[[Tensors], str | None] | None = None
    num_classes: str | Callable[[Tensors], int] = ""  # the published key whose first dimension it is
    unused: tuple[str, ...] = ()  # published prefixes of what the published forward never uses
    # Heads that a network may be built without, their keys being dropped then, and the option that decides.
    heads: Mapping[str, str] = field(default_factory=dict)
    # Options that the family fixes: a value, or how to read it off the tensors. A model built otherwise is refused.
    options: Mapping[str, Any] = field(default_factory=dict)
    # Options that leave no trace in the weights, with the value that the published code has by default. A model built
    # otherwise is taken, and `untold` says in which case it has to be.
    implied: Mapping[str, Any] = field(default_factory=dict)
    untold: str = ""
    zeros: str | None = None  # regular expression for parameters of ours that are zero there
    # Regular expressions and their replacements, applied to a key in this order before its prefix is looked up: for
    # what is named alike in many places, as convolution and norm in every layer of MMSegmentation.
    patterns: tuple[tuple[str, str], ...] = ()
    # Changes tensors before they are renamed: a bias folded into a norm, a fused matrix taken apart.
    convert: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]] | None = None
    preprocessing: Preprocessing = IMAGENET
    # Number of outputs -> data set whose classes these are, in its order; one more than it has: the last is void.
    datasets: Mapping[int, str] = field(default_factory=lambda: DATASETS)
    # Numbers of classes that this layout is for, where the same names with another number have another one
    # (preprocessing, classes); any where empty.
    for_classes: tuple[int, ...] = ()

    @property
    def markers(self) -> tuple[str, ...]:
        return (self.marker,) if isinstance(self.marker, str) else self.marker

    def marks(self, tensors: Tensors) -> bool:
        """Tell whether a checkpoint is of this layout.

        It has the marker keys, and a number of classes that the layout is for.
        """
        if not all(key in tensors for key in self.markers):
            return False
        return not self.for_classes or self.count_classes(tensors) in self.for_classes

    def place(self, key: str) -> str | None:
        """Our name for a published key; None if it has no place."""
        for pattern, replacement in self.patterns:
            key = re.sub(pattern, replacement, key)
        return rename(key, self.rename)

    def converted(self, tensors: Tensors) -> dict[str, torch.Tensor]:
        return dict(tensors) if self.convert is None else self.convert(dict(tensors))

    def admits(self, backbone: str | None, tensors: Tensors) -> bool:
        """Tell whether a network on this backbone may have such a checkpoint."""
        if self.backbones is None or backbone is None:
            return self.backbones is None and backbone is None
        if callable(self.backbones):
            return self.backbones(tensors) == backbone
        return re.fullmatch(self.backbones, backbone) is not None

    def read_options(self, tensors: Tensors) -> dict[str, Any]:
        """Return the options that the family fixes, for this checkpoint."""
        return {name: value(tensors) if callable(value) else value for name, value in self.options.items()}

    def count_classes(self, tensors: Tensors) -> int | None:
        """Return the number of classes, or None.

        None: the key that says it is absent.
        """
        if callable(self.num_classes):
            try:
                return self.num_classes(tensors)
            except KeyError:
                return None
        return tensors[self.num_classes].shape[0] if self.num_classes in tensors else None


def same(*names: str) -> dict[str, str]:
    """Make a table that leaves these prefixes as they are."""
    return {name: name for name in names}


def has(prefix: str) -> Callable[[Tensors], bool]:
    """Make the test for keys of a prefix in a checkpoint."""
    return lambda tensors: any(f"{key}.".startswith(f"{prefix}.") for key in tensors)


def count(prefix: str, more: int = 0) -> Callable[[Tensors], int]:
    """Make the count of parts behind a prefix, plus `more`.

    Parts are told apart by the keys of a checkpoint.
    """
    depth = prefix.count(".") + 1
    return lambda tensors: more + len({key.split(".")[depth] for key in tensors if key.startswith(f"{prefix}.")})


def inside(prefix: str, table: Mapping[str, str]) -> dict[str, str]:
    """Make the table for the same part one level down.

    What leads to `ours` leads to `prefix.ours`.
    """
    return {published: f"{prefix}.{ours}" for published, ours in table.items()}


def under(prefix: str, table: Mapping[str, str]) -> dict[str, str]:
    """Make the table for a part with one prefix on both sides."""
    return {f"{prefix}.{published}": f"{prefix}.{ours}" for published, ours in table.items()}


def rename(key: str, table: Mapping[str, str]) -> str | None:
    """Return `key` with its longest prefix in the table replaced.

    None if it has none.
    """
    parts = key.split(".")
    for length in range(len(parts), 0, -1):
        prefix = ".".join(parts[:length])
        if prefix in table:
            return table[prefix] + key[len(prefix) :]
    return None
