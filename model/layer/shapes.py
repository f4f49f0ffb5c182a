"""Networks built for their shapes alone."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode

# What initialisers call; on a tensor without values they would change nothing, and take most of the time.
IN_PLACE = {
    "normal_",
    "uniform_",
    "trunc_normal_",
    "erfinv_",
    "kaiming_normal_",
    "kaiming_uniform_",
    "xavier_normal_",
    "xavier_uniform_",
    "orthogonal_",
    "constant_",
    "fill_",
    "zero_",
    "zeros_",
    "ones_",
    "mul_",
    "add_",
    "clamp_",
}


class _WithoutValues(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in IN_PLACE:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


@contextmanager
def shapes_only() -> Iterator[None]:
    """Have what is built inside on the meta device, without values."""
    with torch.device("meta"), _WithoutValues():
        yield
