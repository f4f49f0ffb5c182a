"""Batch norms folded into the convolutions before them."""

from collections import Counter
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WATCHED_SIZE = (64, 96)  # of the picture that shows which convolution feeds which norm


def input_channels(network: nn.Module) -> int:
    """Return the number of input channels of a network."""
    spec: dict = getattr(network, "spec", {})
    return spec.get("options", {}).get("in_channels", 3)


def fold_norms(network: nn.Module, example: torch.Tensor | None = None) -> int:
    """Fold batch norms into their convolutions, in place; return how many.

    The network must be in eval mode. Which convolution feeds a norm is seen in one forward pass on `example`
    (N,3,H,W), by the tensors themselves, so that neither names nor the order of layers matter. A norm stays where
    anything else reads the convolution's output too, where either layer runs more than once, or where the norm has
    no running statistics.
    """
    assert not network.training
    from timm.layers import BatchNormAct2d  # here: timm takes a second to import

    if example is None:
        parameter = next(network.parameters())
        example = torch.zeros(1, input_channels(network), *WATCHED_SIZE, device=parameter.device, dtype=parameter.dtype)
    norms, watch = _watch(network, (nn.BatchNorm2d, nn.SyncBatchNorm, BatchNormAct2d), example)
    places = {module: name for name, module in network.named_modules()}
    convolutions = {id(m.weight): m for m in network.modules() if isinstance(m, nn.Conv2d)}
    folded = 0
    for norm, inputs in norms.items():
        conv = convolutions.get(watch.weight_of.get(id(inputs[0]), -1))
        if conv is None or len(inputs) > 1 or norm.running_mean is None:
            continue
        if watch.uses[id(conv.weight)] > 1 or watch.uses[id(inputs[0])] > 1:
            continue
        _fold(conv, norm)
        parent, _, name = places[norm].rpartition(".")
        activation = nn.Sequential(norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else nn.Identity()
        setattr(network.get_submodule(parent), name, activation)
        folded += 1
    return folded


class _Watch(TorchDispatchMode):
    """Counts how many operations read each tensor, and notes the weight behind each convolution's output."""

    def __init__(self):
        super().__init__()
        self.uses: Counter[int] = Counter()
        self.weight_of: dict[int, int] = {}
        self.alive: list[torch.Tensor] = []  # an id names a tensor only while the tensor lives

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = {id(t): t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        self.uses.update(given.keys())
        result = function(*args, **kwargs)
        if function is torch.ops.aten.convolution.default:
            self.weight_of[id(result)] = id(args[1])
        self.alive += [*given.values(), *(t for t in tree_leaves(result) if isinstance(t, torch.Tensor))]
        return result


def _watch(
    network: nn.Module, kinds: tuple[type, ...], example: torch.Tensor
) -> tuple[dict[nn.Module, list[torch.Tensor]], _Watch]:
    """What each norm of these kinds receives in a forward pass, and how often each tensor is read.

    A subclass may compute something else, so that the kinds are exact. An output of the network counts as read.
    """
    inputs: dict[nn.Module, list[torch.Tensor]] = {}

    def note(module: nn.Module, args: tuple) -> None:
        inputs.setdefault(module, []).append(args[0])

    hooks = [m.register_forward_pre_hook(note) for m in network.modules() if type(m) in kinds]
    try:
        with torch.no_grad(), _Watch() as watch:
            outputs = network(example)
    finally:
        for hook in hooks:
            hook.remove()
    watch.uses.update(id(t) for t in tree_leaves(outputs))
    return inputs, watch


def _fold(conv: nn.Conv2d, norm: Any) -> None:
    """conv becomes norm(conv(x)); the factors are computed in float64, so that only one rounding is added."""

    def wide(value: torch.Tensor) -> torch.Tensor:
        return (value.cpu() if value.device.type == "mps" else value).double()  # Apple's GPUs have no float64

    scale = torch.rsqrt(wide(norm.running_var) + norm.eps)
    scale = scale if norm.weight is None else scale * wide(norm.weight)
    bias = -wide(norm.running_mean) if conv.bias is None else wide(conv.bias) - wide(norm.running_mean)
    bias = bias * scale if norm.bias is None else bias * scale + wide(norm.bias)
    weight = wide(conv.weight) * scale.view(-1, 1, 1, 1)
    conv.weight, conv.bias = (_constant(value.to(conv.weight)) for value in (weight, bias))


def _constant(value: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(value, requires_grad=False)
