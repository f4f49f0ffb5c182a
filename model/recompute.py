"""Less memory for more time: a block's activations are dropped, and computed again when backward needs them.

Chen et al., "Training Deep Nets with Sublinear Memory Cost" (arXiv 1604.06174). The gradients are the same, bit
for bit where the operations are deterministic; a step takes up to a third longer.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def recompute_blocks(backbone: nn.Module | None) -> int:
    """Makes every block of the backbone keep its input alone while training; how many there are.

    A block is a member of an `nn.Sequential` that has layers of its own: a residual block, say.

    Raises:
        ValueError: there is none.
    """
    blocks = [] if backbone is None else list(_blocks(backbone))
    if not blocks:
        raise ValueError("train.checkpointing: this network's backbone has no blocks to compute again; leave it off")
    for block in blocks:
        block.forward = partial(_recomputed, block, block.forward)
    return len(blocks)


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(module, nn.Sequential) and type(child) is not nn.Sequential and any(child.children()):
            yield child
        else:
            yield from _blocks(child)


def _recomputed(block: nn.Module, forward, x):
    if not block.training:
        return forward(x)
    return checkpoint(forward, x, use_reentrant=False, context_fn=lambda: (nullcontext(), _without_statistics(block)))


@contextmanager
def _without_statistics(block: nn.Module):
    """Batch norms that leave their running statistics, which the first pass has updated, as they are."""
    norms = [m for m in block.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, torch.empty_like(norm.num_batches_tracked)
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
