"""Parts that several networks use.

Axes: N images, C channels, H rows, W columns.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

relu = partial(nn.ReLU, inplace=True)


def resize(x: torch.Tensor, size: Sequence[int], align_corners: bool = True) -> torch.Tensor:
    """Resize maps (N,C,h,w) bilinearly to (N,C,*size)."""
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=align_corners)


def init_weights(module: nn.Module) -> None:
    """Initialise one layer, to be used with `Module.apply`.

    Convolutions get the normal distribution of He et al., "Delving Deep into Rectifiers" (ICCV 2015), with
    the fan-out of one group; biases 0; batch norms weight 1 and bias 0.
    """
    if isinstance(module, nn.Conv2d):
        fan_out = module.out_channels // module.groups * module.kernel_size[0] * module.kernel_size[1]
        nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)


class _Float32Gradient(torch.autograd.Function):
    """A convolution in the precision of `x`, whose gradients are computed in float32."""

    @staticmethod
    def forward(ctx, x, weight, bias, *geometry):
        ctx.save_for_backward(x, weight)
        ctx.geometry, ctx.biases = geometry, None if bias is None else [bias.numel()]
        return F.conv2d(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype), *geometry)

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.geometry
        gradients = torch.ops.aten.convolution_backward(
            gradient.float(),
            x.float(),
            weight.float(),
            ctx.biases,
            stride,
            padding,
            dilation,
            False,
            [0, 0],
            groups,
            ctx.needs_input_grad[:3],
        )
        return *gradients, None, None, None, None


class GroupedConv2d(nn.Conv2d):
    """Convolution in groups with a stride or a dilation, (N,in,H,W) -> (N,out,H/stride,W/stride).

    On the CPU its bfloat16 gradients are computed in float32. In PyTorch 2.15 (oneDNN) the weight gradient of a
    dilated one reads memory that was never written: it is wrong, and now and then NaN. The input gradient of a
    strided one takes ten times as long as in float32.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N,in,H,W) to (N,out,H/stride,W/stride)."""
        low = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        if x.device.type != "cpu" or not torch.is_grad_enabled() or low != torch.bfloat16:
            return super().forward(x)
        geometry = (self.stride, self.padding, self.dilation, self.groups)
        return _Float32Gradient.apply(x.to(low), self.weight, self.bias, *geometry)


class ConvBNReLU(nn.Sequential):
    """Convolution, batch norm, activation: (N,in,H,W) -> (N,out,H/stride,W/stride).

    The default padding keeps the size at stride 1. `activation` makes the activation; None for none.
    The norm makes a bias of the convolution redundant; it is there for published networks that have one.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        padding: int | None = None,
        activation: Callable[[], nn.Module] | None = relu,
        bias: bool = False,
    ):
        if padding is None:
            padding = dilation * (kernel_size - 1) // 2
        kind = GroupedConv2d if groups > 1 and max(stride, dilation) > 1 else nn.Conv2d
        conv = kind(in_channels, out_channels, kernel_size, stride, padding, dilation, groups=groups, bias=bias)
        super().__init__(conv, nn.BatchNorm2d(out_channels), *([] if activation is None else [activation()]))
        self.apply(init_weights)


def classifier(in_channels: int, num_classes: int, bias: bool = True, std: float = 0.01) -> nn.Conv2d:
    """Build a 1x1 convolution to logits, (N,in,H,W) -> (N,num_classes,H,W).

    It starts near the uniform prediction: no norm follows, so the fan-out rule would start from logits of ten.
    """
    conv = nn.Conv2d(in_channels, num_classes, 1, bias=bias)
    nn.init.normal_(conv.weight, std=std)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


class Classifier(nn.Sequential):
    """Channel dropout and a 1x1 convolution: (N,in,H,W) -> logits (N,num_classes,H,W)."""

    def __init__(self, in_channels: int, num_classes: int, dropout: float = 0.1):
        super().__init__(nn.Dropout2d(dropout), classifier(in_channels, num_classes))


class FCNHead(nn.Sequential):
    """Classifier of a feature map.

    3x3 convolution with norm and ReLU, channel dropout, 1x1 convolution. (N,in,H,W) -> logits (N,num_classes,H,W).
    Source: the heads of Zhao et al., PSPNet (CVPR 2017). `bias` is that of the 3x3 convolution.
    """

    def __init__(self, in_channels: int, width: int, num_classes: int, dropout: float = 0.1, bias: bool = False):
        super().__init__(*ConvBNReLU(in_channels, width, bias=bias), *Classifier(width, num_classes, dropout))


class FCNConcatHead(nn.Module):
    """Two 3x3 convolutions whose result is joined with the input.

    Maps (N,in,H,W) to (N,num_classes,H,W).

    Source: the FCN of MMSegmentation.
    """

    def __init__(self, in_channels: int, width: int, num_classes: int, dropout: float = 0.1):
        super().__init__()
        self.convs = nn.Sequential(ConvBNReLU(in_channels, width), ConvBNReLU(width, width))
        self.join = FCNHead(in_channels + width, width, num_classes, dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N,in,H,W) to logits (N,num_classes,H,W)."""
        return self.join(torch.cat([x, self.convs(x)], 1))
