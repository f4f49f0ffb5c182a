"""How the keys of a published checkpoint become ours."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Layout:
    """How one published repository names what one kind of model of ours holds.

    Prefixes end at a dot or at the end of a key. Two published names may lead to the same tensor of ours,
    where the published code registers a module twice; their values must then be equal.
    """

    source: str  # whose names these are, for messages and the report
    model: str | None  # name in MODELS; None for a backbone alone
    backbones: str  # regular expression for the name of the backbone
    marker: str  # a key of this layout that the others for the same model lack
    rename: Mapping[str, str]  # published prefix -> ours; the longest one wins
    unused: tuple[str, ...] = ()  # published prefixes of what the published forward never uses
    # Heads a model may be built without, their keys being dropped then, and the option that decides.
    heads: Mapping[str, str] = field(default_factory=dict)
    # Options of ours that the checkpoint determines: how to read them off its keys and shapes.
    options: Mapping[str, Callable[[Tensors], object]] = field(default_factory=dict)
    # Options that the keys do not tell but that the published code implies.
    implied: Mapping[str, object] = field(default_factory=dict)
    zeros: str | None = None  # regular expression for parameters of ours that are zero there


def same(*names: str) -> dict[str, str]:
    """A table that leaves these prefixes as they are."""
    return {name: name for name in names}


def has(prefix: str) -> Callable[[Tensors], bool]:
    """Whether a checkpoint has keys of that prefix."""
    return lambda tensors: any(f"{key}.".startswith(f"{prefix}.") for key in tensors)


def inside(prefix: str, table: Mapping[str, str]) -> dict[str, str]:
    """The table for the same part one level down: what leads to `ours` leads to `prefix.ours`."""
    return {published: f"{prefix}.{ours}" for published, ours in table.items()}


def under(prefix: str, table: Mapping[str, str]) -> dict[str, str]:
    """The table for a part that both sides have under the same prefix."""
    return {f"{prefix}.{published}": f"{prefix}.{ours}" for published, ours in table.items()}
