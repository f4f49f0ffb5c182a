"""Batch norm over all processes, whole in a compiled graph."""

import torch
from torch import nn

from util.dist.collective import all_reduce_sum_
from util.dist.group import world_size

# Operators of their own, so that a compiled graph takes them as they are. Inductor would join the arithmetic in double
# with the sums over a map, and Triton 3.6 cannot compile such a kernel ("operand does not dominate this use").


@torch.library.custom_op("segmentation::sum_over_processes", mutates_args=())
def _summed(tensor: torch.Tensor) -> torch.Tensor:
    return all_reduce_sum_(tensor.clone())


@_summed.register_fake
def _(tensor):
    return torch.empty_like(tensor)


@torch.library.custom_op("segmentation::moments_over_processes", mutates_args=())
def _moments(mean: torch.Tensor, var: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return mean (C,), variance (C,) and number () of all processes' values.

    Computed from those of this process's `count` values.
    """
    own = mean.double()
    sums = torch.cat([own.new_full((1,), count), count * own, count * (var.double() + own.square())])
    total, first, second = all_reduce_sum_(sums).split([1, len(own), len(own)])
    common = first / total
    spread = second / total - common.square()  # in double, where the difference keeps its digits
    return common.to(mean.dtype), spread.to(mean.dtype), total[0].to(mean.dtype)


@_moments.register_fake
def _(mean, var, count):
    return torch.empty_like(mean), torch.empty_like(mean), mean.new_empty(())


def _keep_moments(ctx, inputs, output) -> None:
    own, _, ctx.count = inputs
    common, _, total = output
    ctx.save_for_backward(own, common, total)


def _moments_backward(ctx, of_mean, of_var, _):
    own, common, total = ctx.saved_tensors
    of_mean, of_var = _summed(torch.stack([of_mean, of_var]))  # every process's values move the common ones
    share = ctx.count / total
    return share * (of_mean + 2 * (own - common) * of_var), share * of_var, None


_moments.register_autograd(_moments_backward, setup_context=_keep_moments)


class _SyncBatchNorm(nn.BatchNorm2d):
    """Batch norm with mean and variance of all processes' batches; x is (N, C, H, W).

    The same numbers as `nn.SyncBatchNorm`, which refuses CPU tensors, and which torch.compile cannot take into a
    graph, so that it would split one at every norm. Here a pass is one exchange of 2C + 1 numbers, and of 2C back.
    """

    @classmethod
    def like(cls, norm: nn.BatchNorm2d) -> "_SyncBatchNorm":
        """Build one with the parameters and buffers of `norm` themselves."""
        out = cls(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        out._parameters, out._buffers, out.training = norm._parameters, norm._buffers, norm.training
        return out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not (self.training and world_size() > 1):
            return super().forward(x)
        # A CPU has the width, and rounding is what two processes differ by.
        wide = x.double() if x.device.type == "cpu" else x.float()
        var, mean = torch.var_mean(wide, (0, 2, 3), correction=0)
        mean, var, count = _moments(mean, var, x.numel() // x.shape[1])
        assert self.num_batches_tracked is not None and self.momentum is not None  # what our networks have
        assert self.running_mean is not None and self.running_var is not None
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean.float(), self.momentum)
            self.running_var.lerp_((var * count / (count - 1)).float(), self.momentum)
        scale = self.weight * (var + self.eps).rsqrt()
        return ((wide - mean[:, None, None]) * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


def convert_sync_batchnorm(module: nn.Module, device: torch.device, compiled: bool = False) -> nn.Module:
    """Return `module` with batch norm over all processes; unchanged on one process.

    compiled: it will be; on a GPU a norm of its own kernels is the fastest of those that are not.
    """
    if world_size() == 1:
        return module
    if device.type == "cuda" and not compiled:
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    if type(module) is nn.BatchNorm2d:
        return _SyncBatchNorm.like(module)
    for name, child in module.named_children():
        setattr(module, name, convert_sync_batchnorm(child, device, compiled))
    return module
