"""ENet: asymmetric bottlenecks and max-pooling that is undone in place."""

import torch
from torch import nn
from torch.nn import functional as F

from model.base import SegModel
from model.layer.basic import init_weights
from model.layer.light import pad_to_multiple

# Source: table 1. Stages 2 and 3 are these blocks: a dilation, or 0 for an asymmetric 5x1 and 1x5 convolution.
STAGE = (1, 2, 0, 4, 1, 8, 0, 16)
REGULAR = 4  # the one that the published code leaves out of stage 3


class Initial(nn.Module):
    """Strided convolution beside a max-pooling: (N,in,H,W) -> (N,16,H/2,W/2) (figure 2a)."""

    def __init__(self, in_channels: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 16 - in_channels, 3, 2, 1, bias=False)
        self.norm = nn.Sequential(nn.BatchNorm2d(16), nn.PReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N,in,H,W) to (N,16,H/2,W/2)."""
        return self.norm(torch.cat([self.conv(x), F.max_pool2d(x, 2)], 1))


class Bottleneck(nn.Module):
    """Bottleneck of a quarter or an eighth of the channels.

    "down" halves the size, its shortcut by max-pooling; "up" doubles it, its shortcut by putting each value back where
    the maximum was. A 1x1 convolution with norm brings the shortcuts of both to the new number of channels.

    Args:
        in_channels: channels of the input.
        width: channels between the outer convolutions.
        out_channels: channels of the output.
        kind: "same", "down" or "up".
        dilation: of the 3x3 convolution; 0 for an asymmetric one.
        dropout: probability of dropping a channel of the branch.
    """

    def __init__(self, in_channels: int, width: int, out_channels: int, kind: str, dilation: int, dropout: float):
        super().__init__()
        middle: list[nn.Module]
        if kind == "down":
            middle = [nn.Conv2d(width, width, 2, 2, bias=False)]
        elif kind == "up":
            middle = [nn.ConvTranspose2d(width, width, 2, 2, bias=False)]
        elif dilation == 0:
            middle = [
                nn.Conv2d(width, width, (5, 1), padding=(2, 0), bias=False),
                nn.Conv2d(width, width, (1, 5), padding=(0, 2), bias=False),
            ]
        else:
            middle = [nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, bias=False)]
        self.kind = kind
        self.branch = nn.Sequential(
            nn.Sequential(nn.Conv2d(in_channels, width, 1, bias=False), nn.BatchNorm2d(width), nn.PReLU()),
            nn.Sequential(*middle, nn.BatchNorm2d(width), nn.PReLU()),
            nn.Sequential(nn.Conv2d(width, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels)),
            nn.Dropout2d(dropout),
        )
        self.shortcut = None
        if kind != "same":
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels)
            )
        self.activation = nn.PReLU()

    def forward(self, x: torch.Tensor, places: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Map (N,in,H,W) to the output and the places of maxima.

        "down" returns the places where its maxima were; "up" is given these.
        """
        shortcut = x
        if self.kind == "down":
            shortcut, places = F.max_pool2d(x, 2, return_indices=True)
        if self.shortcut is not None:
            shortcut = self.shortcut(shortcut)
        if self.kind == "up":
            assert places is not None, "an enlarging block needs the places of the maxima"
            # What `max_unpool2d` does, which cannot be exported to ONNX.
            height, width = shortcut.shape[-2:]
            empty = shortcut.new_zeros(*shortcut.shape[:2], 4 * height * width)
            shortcut = empty.scatter(2, places.flatten(2), shortcut.flatten(2)).unflatten(2, (2 * height, 2 * width))
        return self.activation(self.branch(x) + shortcut), places


class ENet(SegModel):
    """ENet.

    Source: Paszke et al., "ENet: A Deep Neural Network Architecture for Real-Time Semantic Segmentation" (2016, arXiv
    1606.02147), table 1, as in Tramac/awesome-semantic-segmentation-pytorch: where the paper pads the shortcuts of the
    halving blocks by zero channels, a 1x1 convolution with norm widens them, and a PReLU has one slope for all
    channels.
    The image is extended by zeros to a multiple of 8, and the logits are cut.

    Args:
        num_classes: channels of the logits.
        in_channels: channels of the image, at most 15.
        all_blocks: whether stage 3 has the eight blocks of the paper. The published code skips the fifth.
        dropout: probability of dropping a channel of a branch, 0.01 before stage 2 in the paper.
    """

    def __init__(self, num_classes: int, in_channels: int = 3, all_blocks: bool = False, dropout: float = 0.1):
        super().__init__()
        self.initial = Initial(in_channels)
        stage3 = [dilation for place, dilation in enumerate(STAGE) if all_blocks or place != REGULAR]
        self.down1 = Bottleneck(16, 16, 64, "down", 1, dropout)
        self.stage1 = nn.ModuleList(Bottleneck(64, 16, 64, "same", 1, dropout) for _ in range(4))
        self.down2 = Bottleneck(64, 32, 128, "down", 1, dropout)
        self.stage2 = nn.ModuleList(Bottleneck(128, 32, 128, "same", d, dropout) for d in (*STAGE, *stage3))
        self.up4 = Bottleneck(128, 16, 64, "up", 1, dropout)
        self.stage4 = nn.ModuleList(Bottleneck(64, 16, 64, "same", 1, dropout) for _ in range(2))
        self.up5 = Bottleneck(64, 4, 16, "up", 1, dropout)
        self.stage5 = nn.ModuleList([Bottleneck(16, 4, 16, "same", 1, dropout)])
        self.classifier = nn.ConvTranspose2d(16, num_classes, 2, 2, bias=False)
        self.apply(init_weights)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Map images (N,in_channels,H,W) to logits (N,num_classes,H,W)."""
        height, width = x.shape[-2:]
        return {"out": super().forward(pad_to_multiple(x, 8))["out"][..., :height, :width]}

    def forward_features(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Map images to features and the places of the maxima.

        (N,in_channels,H,W) to (N,128,H/8,W/8), and the places at strides 2 and 4.
        """
        x, places1 = self.down1(self.initial(x))
        for block in self.stage1:
            x, _ = block(x)
        x, places2 = self.down2(x)
        for block in self.stage2:
            x, _ = block(x)
        return [places1, places2, x]

    def decode(self, features: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Map features and places to logits of the image's size."""
        places1, places2, x = features
        x, _ = self.up4(x, places2)
        for block in self.stage4:
            x, _ = block(x)
        x, _ = self.up5(x, places1)
        for block in self.stage5:
            x, _ = block(x)
        return {"out": self.classifier(x)}
