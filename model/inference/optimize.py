"""A trained network made ready for inference: norms folded, half precision, compiled."""

import copy
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from model.inference.fold import _constant, fold_norms
from model.layer.basic import resize
from model.table import ModelError


class InferenceNetwork(nn.Module):
    """What `optimize_for_inference` returns: pictures (N,3,H,W) -> {"out": logits (N,num_classes,H,W)}, no gradients.

    `network` is the optimised copy itself; `spec` is that of the original; `summary` says in a line what was done.
    """

    network: Any  # a SegModel: nn.Module declares neither `coarse` nor `gives_coarse`
    run: Callable[..., Any]

    def __init__(self, network: nn.Module, amp: torch.dtype | None, compile: bool, summary: str):
        super().__init__()
        self.network, self.amp, self.summary = network, amp, summary
        self.spec = getattr(network, "spec", {})
        on_gpu = next(network.parameters()).device.type == "cuda"
        self.graphs, self.freeze = compile and on_gpu, compile and not on_gpu
        self.run = self.network.coarse if self.network.gives_coarse else self.network.forward
        if compile:
            # A graph is recorded for one size; of a network that has seen several, each would be kept.
            # PyTorch 2.11 takes every operation for one of several sizes, and records none, unless partitions are off.
            graphs = ("triton.cudagraphs", "triton.cudagraph_skip_dynamic_graphs")
            options: dict[str, Any] | None = (
                {**dict.fromkeys(graphs, True), "graph_partition": False} if on_gpu else None
            )
            self.run = torch.compile(self.run, options=options)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Map pictures (N,3,H,W) to logits (N,num_classes,H,W).

        Normalised, any H and W; the logits are float32 with amp too.
        """
        if not self.gives_coarse:
            return tree_map(self._own, self._call(x))
        return {"out": resize(self._call(x).float(), x.shape[-2:])}

    @property
    def gives_coarse(self) -> bool:
        """Tell whether `coarse` works, see `SegModel`."""
        return self.network.gives_coarse

    def coarse(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits (N,num_classes,h,w) before they are enlarged."""
        return self._own(self._call(x)) if self.gives_coarse else self.network.coarse(x)

    def _own(self, result: torch.Tensor) -> torch.Tensor:
        return result.clone() if self.graphs else result  # the next call of a graph writes there

    def _call(self, x: torch.Tensor) -> Any:
        x = x.contiguous(memory_format=torch.channels_last)
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            if self.amp or torch.is_autocast_enabled(x.device.type):
                # Also where the caller has another precision: the network's own is part of what it is.
                stack.enter_context(torch.autocast(x.device.type, self.amp, enabled=self.amp is not None))
            if self.freeze:  # inductor lays out constant weights once, and joins convolutions with what follows them
                from torch._inductor import config as inductor  # here: it takes as long to import as PyTorch

                stack.enter_context(inductor.patch(freezing=True))
            if self.graphs:
                stack.enter_context(_cudnn_tries())
                torch.compiler.cudagraph_mark_step_begin()
            return self.run(x)


@contextmanager
def _cudnn_tries():
    """cuDNN times its kernels for each new size, and keeps the fastest."""
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def optimize_for_inference(
    model: nn.Module, amp: torch.dtype | None = None, compile: bool = False, example: torch.Tensor | None = None
) -> InferenceNetwork:
    """Return a copy of `model` for inference.

    The original stays as it is. Every batch norm that alone receives the output of a convolution is folded into it, and
    the weights lie in channels_last order. In float32 the logits differ from the original's by rounding.

    Args:
        model: any network of `build_model`, on the device where it will run.
        amp: torch.bfloat16 or torch.float16 computes convolutions in that type, on weights stored in it. Positions
            of semantic flow stay float32 (`model.layer.flow.warp`).
        compile: torch.compile the network; the first call of each size, later the first of any new size, takes
            from seconds to minutes. On a GPU the kernels of a picture are started as one CUDA graph.
        example: pictures that the network accepts, if it does not take those of 64 x 96 pixels.

    Raises:
        ModelError: amp is another type.
    """
    if amp not in (None, torch.bfloat16, torch.float16):
        raise ModelError(f"amp must be None, torch.bfloat16 or torch.float16, not {amp}")
    network = copy.deepcopy(model).eval().requires_grad_(False)
    done = [f"{fold_norms(network, example)} batch norms folded"]
    network.to(memory_format=torch.channels_last)
    if amp is not None:
        _store_weights(network, amp)
        done.append(f"convolutions in {str(amp).removeprefix('torch.')}")
    if compile:
        done.append("compiled")
    return InferenceNetwork(network, amp, compile, ", ".join(done))


def _store_weights(network: nn.Module, dtype: torch.dtype) -> None:
    """Convolutions keep their weights in the type that autocast would cast them to in every call.

    Only layers that autocast itself handles: a subclass may compute otherwise.
    """
    for module in network.modules():
        if type(module) is nn.Conv2d:
            for name, parameter in [*module.named_parameters(recurse=False)]:
                setattr(module, name, _constant(parameter.to(dtype)))
