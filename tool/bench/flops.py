"""Counts parameters and multiply-accumulates without computing."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

COUNTED = "convolutions, linear layers and matrix products (attention)"
NOT_COUNTED = "biases, normalisation, activations, pooling, resizing, warping, softmax, sums of maps"


@dataclass(frozen=True)
class Part:
    """One layer group of a network: trainable parameters and MACs."""

    name: str
    parameters: int
    macs: int


@dataclass(frozen=True)
class Cost:
    """What a network costs for one picture in evaluation.

    `parameters` are all trainable ones, as constructed; `reached` those with a gradient path to the logits of
    the evaluation: heads that only training uses are left out. `parts` add up to the whole.
    """

    parameters: int
    reached: int
    macs: int
    parts: tuple[Part, ...]

    @property
    def flops(self) -> int:
        """Count one multiplication and one addition for each MAC."""
        return 2 * self.macs


def count(model: nn.Module, size: tuple[int, int]) -> Cost:
    """Return the cost of `model` for one picture of `size`.

    It maps (1,3,H,W) to {"out": logits}; size is (H, W). The forward pass runs on meta tensors, which have a shape and
    no values, so that size costs neither time nor memory. The model is put in eval mode and else left as it is. The
    MACs are those of `COUNTED`.
    """
    model.eval()
    parameters = {
        name: value.detach().to("meta").requires_grad_(value.requires_grad) for name, value in model.named_parameters()
    }
    buffers = {name: value.to("meta") for name, value in model.named_buffers()}
    counter = FlopCounterMode(display=False)
    with torch.enable_grad(), counter:
        picture = torch.empty(1, 3, *size, device="meta")
        logits = torch.func.functional_call(model, parameters | buffers, (picture,))["out"]
    leaves = _leaves(logits)
    trainable = {name: value for name, value in parameters.items() if value.requires_grad}
    return Cost(
        parameters=sum(value.numel() for value in trainable.values()),
        reached=sum(value.numel() for value in trainable.values() if id(value) in leaves),
        macs=counter.get_total_flops() // 2,
        parts=_parts(model, trainable, counter),
    )


def _leaves(output: torch.Tensor) -> set[int]:
    """Identities of the tensors that a backward pass from `output` would give a gradient."""
    seen, waiting, leaves = set(), [output.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name() == "torch::autograd::AccumulateGrad":
            leaves.add(id(node.variable))
        waiting += [following for following, _ in node.next_functions]
    return leaves


def _parts(model: nn.Module, trainable: dict[str, torch.Tensor], counter: FlopCounterMode) -> tuple[Part, ...]:
    """The model's children that cost something, and what they leave of the whole."""
    macs = {name: sum(flops.values()) // 2 for name, flops in counter.get_flop_counts().items()}
    parts = []
    for name, child in model.named_children():
        held = sum(value.numel() for key, value in trainable.items() if key.startswith(f"{name}."))
        parts.append(Part(name, held, _macs_inside(child, f"{type(model).__name__}.{name}", macs)))
    own = sum(value.numel() for value in trainable.values()) - sum(part.parameters for part in parts)
    rest = Part("(no layer)", own, counter.get_total_flops() // 2 - sum(part.macs for part in parts))
    return tuple(part for part in (*parts, rest) if part.parameters or part.macs)


def _macs_inside(module: nn.Module, name: str, macs: dict[str, int]) -> int:
    """MACs of a module; a list of modules is never called itself and has those of its members."""
    if name in macs:
        return macs[name]
    return sum(_macs_inside(child, f"{name}.{key}", macs) for key, child in module.named_children())
