"""Activation checkpointing: a block is computed again in backward.

Chen et al., "Training Deep Nets with Sublinear Memory Cost" (arXiv 1604.06174). The gradients are the same, bit
for bit where the operations are deterministic; a step takes up to a third longer.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from util import UserError
from util.train.compile import blocks


def recompute_blocks(backbone: nn.Module | None) -> int:
    """Have each block keep its input alone; return their number.

    For the blocks see `util.train.compile.blocks`. To compile them as well, call this first.

    Raises:
        UserError: there is none.
    """
    found = [] if backbone is None else list(blocks(backbone))
    if not found:
        raise UserError("train.checkpointing: this network's backbone has no blocks to compute again; leave it off")
    for block in found:
        block.__class__ = _RECOMPUTING.setdefault(type(block), _recomputing(type(block)))
    return len(found)


# Each kind of block has one class that computes it again: compiled, equal blocks share their graph, and are told from
# those that keep everything.
_RECOMPUTING: dict[type[nn.Module], type[nn.Module]] = {}


def _recomputing(kind: type[nn.Module]) -> type[nn.Module]:
    return type(f"Recomputed{kind.__name__}", (_Recomputed, kind), {})


class _Recomputed(nn.Module):
    """Mixed into the class of a block, in front of it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        forward = super().forward
        if not self.training:
            return forward(x)
        if torch.compiler.is_compiling():  # what a graph computes again has no effect beside its values
            return checkpoint(forward, x, use_reentrant=False)
        return checkpoint(
            forward, x, use_reentrant=False, context_fn=lambda: (nullcontext(), _without_statistics(self))
        )


@contextmanager
def _without_statistics(block: nn.Module) -> Iterator[None]:
    """Batch norms that leave their running statistics, which the first pass has updated, as they are."""
    norms = [m for m in block.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm, (_, count) in zip(norms, before, strict=True):
        norm.momentum, norm.num_batches_tracked = 0.0, None if count is None else torch.empty_like(count)
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
