"""ESPNet: spatial pyramids of dilated convolutions, and a light decoder."""

import torch
from torch import nn

from model.base import SegModel
from model.layer.basic import init_weights
from model.layer.light import BNPReLU, ConvBNPReLU, pad_to_multiple, set_norm_eps, shrink

DILATIONS = (1, 2, 4, 8, 16)


class ESP(nn.Module):
    """Efficient spatial pyramid: (N,in,H,W) -> (N,out,H/stride,W/stride).

    Source: section 3.1 and figure 2. The map is reduced to a fifth of the channels, five dilated 3x3 convolutions read
    it, and each but the first is added to the one before ("hierarchical feature fusion") against gridding.
    With as many channels as before, the input is added. Fewer than five channels have as many branches.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1):
        super().__init__()
        dilations = DILATIONS[:out_channels]
        width = out_channels // len(dilations)
        widths = [out_channels - (len(dilations) - 1) * width] + [width] * (len(dilations) - 1)
        kernel = 1 if stride == 1 else 3
        self.reduce = nn.Conv2d(in_channels, width, kernel, stride, kernel // 2, bias=False)
        self.branches = nn.ModuleList(
            nn.Conv2d(width, out, 3, padding=dilation, dilation=dilation, bias=False)
            for out, dilation in zip(widths, dilations, strict=True)
        )
        self.norm = BNPReLU(out_channels)
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N,in,H,W) to (N,out,H/stride,W/stride)."""
        reduced = self.reduce(x)
        first, *rest = (branch(reduced) for branch in self.branches)
        joined = [first]
        for result in rest:
            joined.append(result if len(joined) == 1 else joined[-1] + result)
        y = torch.cat(joined, 1)
        return self.norm(x + y if self.residual else y)


class ESPNet(SegModel):
    """ESPNet, or its encoder alone, which is ESPNet-C.

    Source: Mehta et al., "ESPNet: Efficient Spatial Pyramid of Dilated Convolutions for Semantic Segmentation" (ECCV
    2018), figure 4. The image is extended by zeros to a multiple of 8 for the decoder, and the logits are cut.

    Args:
        num_classes: channels of the logits.
        in_channels: channels of the image.
        blocks2: blocks at stride 4, alpha2 or p in the paper.
        blocks3: blocks at stride 8, alpha3 or q in the paper.
        decoder: whether logits are learned up to the size of the image; otherwise those at stride 8 are resized.
        join_input: whether the decoder's last join sees the first features with the shrunken image, or alone.
        eps: added to the variance in batch norms.
    """

    align_corners = False

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        blocks2: int = 2,
        blocks3: int = 8,
        decoder: bool = True,
        join_input: bool = False,
        eps: float = 1e-3,
    ):
        super().__init__()
        self.join_input = join_input
        self.stem = ConvBNPReLU(in_channels, 16, 3, 2)
        self.join1 = BNPReLU(16 + in_channels)
        self.down2 = ESP(16 + in_channels, 64, 2)
        self.stage2 = nn.Sequential(*(ESP(64, 64) for _ in range(blocks2)))
        self.join2 = BNPReLU(128 + in_channels)
        self.down3 = ESP(128 + in_channels, 128, 2)
        self.stage3 = nn.Sequential(*(ESP(128, 128) for _ in range(blocks3)))
        self.join3 = BNPReLU(256)
        self.classifier3 = nn.Conv2d(256, num_classes, 1, bias=False)
        self.decoder = None
        if decoder:
            first = 16 + in_channels if join_input else 16
            self.decoder = Decoder(num_classes, first, 128 + in_channels)
        self.apply(init_weights)
        set_norm_eps(self, eps)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Map images (N,in_channels,H,W) to logits (N,num_classes,H,W)."""
        if self.decoder is None:
            return super().forward(x)
        height, width = x.shape[-2:]
        return {"out": super().forward(pad_to_multiple(x, 8))["out"][..., :height, :width]}

    def forward_features(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Map (N,in_channels,H,W) to maps at strides 2, 4 and 8."""
        fine = self.stem(x)
        joined = self.join1(torch.cat([fine, shrink(x)], 1))
        first = self.down2(joined)
        middle = self.join2(torch.cat([self.stage2(first), first, shrink(x, 2)], 1))
        first = self.down3(middle)
        coarse = self.join3(torch.cat([first, self.stage3(first)], 1))
        return [joined if self.join_input else fine, middle, coarse]

    def decode(self, features: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Map features to image-sized logits, without a decoder at stride 8."""
        fine, middle, coarse = features
        logits = self.classifier3(coarse)
        return {"out": logits if self.decoder is None else self.decoder(fine, middle, logits)}


class Decoder(nn.Module):
    """Decoder of ESPNet: logits (N,C,H/8,W/8) and two finer maps -> logits (N,C,H,W).

    Three times the logits are enlarged by a learned 2x2 kernel; before the second and the third time they are joined
    with the features of their size.
    """

    def __init__(self, num_classes: int, fine_channels: int, middle_channels: int):
        super().__init__()
        self.norm3 = nn.BatchNorm2d(num_classes)
        self.up3 = nn.ConvTranspose2d(num_classes, num_classes, 2, 2, bias=False)
        self.classifier2 = nn.Conv2d(middle_channels, num_classes, 1, bias=False)
        self.join2 = nn.Sequential(BNPReLU(2 * num_classes), ESP(2 * num_classes, num_classes))
        self.up2 = nn.Sequential(nn.ConvTranspose2d(num_classes, num_classes, 2, 2, bias=False), *BNPReLU(num_classes))
        self.join1 = ConvBNPReLU(fine_channels + num_classes, num_classes)
        self.up1 = nn.ConvTranspose2d(num_classes, num_classes, 2, 2, bias=False)

    def forward(self, fine: torch.Tensor, middle: torch.Tensor, coarse: torch.Tensor) -> torch.Tensor:
        """Map features (strides 2, 4) and logits (stride 8) to logits (N,C,H,W)."""
        y = self.up3(self.norm3(coarse))
        y = self.up2(self.join2(torch.cat([self.classifier2(middle), y], 1)))
        return self.up1(self.join1(torch.cat([y, fine], 1)))
