"""DFANet: a light Xception and two further encoders, aggregated."""

import torch
from torch import nn
from torch.nn import functional as F

from model.base import SegModel
from model.layer.basic import ConvBNReLU, GroupedConv2d, classifier, init_weights, relu, resize


class Block(nn.Module):
    """Residual block of three separable convolutions: (N,in,H,W) -> (N,out,H/stride,W/stride).

    A ReLU comes before each of them, and the shortcut sees the input behind the first. There is a norm between the
    depthwise and the pointwise half, and one behind.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        width = out_channels // 4
        layers = []
        for a, b, s in ((in_channels, width, 1), (width, width, 1), (width, out_channels, stride)):
            layers += [
                nn.Sequential(
                    GroupedConv2d(a, a, 3, s, 1, groups=a, bias=False),
                    nn.BatchNorm2d(a),
                    nn.Conv2d(a, b, 1, bias=False),
                    nn.BatchNorm2d(b),
                ),
                relu(),
            ]
        self.branch = nn.Sequential(*layers[:-1])
        self.shortcut = None
        if stride > 1 or in_channels != out_channels:
            self.shortcut = ConvBNReLU(in_channels, out_channels, 1, stride, activation=None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N,in,H,W), already rectified or not, to (N,out,H/stride,W/stride)."""
        x = F.relu(x)
        return self.branch(x) + (x if self.shortcut is None else self.shortcut(x))


class ChannelAttention(nn.Module):
    """Attention through 1000 hidden values: (N,C,H,W) -> (N,C,H,W).

    The hidden values are the ImageNet classes of the encoder.

    Source: figure 4. The mean of the map weights its channels; there is no sigmoid in the published code.
    """

    smallest_train_batch = 2

    def __init__(self, channels: int):
        super().__init__()
        self.hidden = nn.Linear(channels, 1000)
        self.weight = ConvBNReLU(1000, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N,C,H,W) to the same size."""
        return x * self.weight(self.hidden(x.mean((2, 3)))[..., None, None])


class Encoder(nn.Module):
    """Three stages of blocks with attention.

    Maps (N,in,H,W) to maps of 48, 96, 192 and 192 channels. `joined` gives the channels of a map that is joined to the
    input of each stage, 0 for none.
    """

    def __init__(self, in_channels: int, joined: tuple[int, int, int] = (0, 0, 0)):
        super().__init__()
        stages = []
        for width, blocks, more in zip((48, 96, 192), (4, 6, 4), joined, strict=True):
            first = Block(in_channels + more, width, 2)
            stages.append(nn.Sequential(first, *(Block(width, width, 1) for _ in range(1, blocks))))
            in_channels = width
        self.stages = nn.ModuleList(stages)
        self.attention = ChannelAttention(in_channels)

    def forward(self, x: torch.Tensor, joined: tuple[torch.Tensor | None, ...] = (None,) * 3) -> list[torch.Tensor]:
        """Map (N,in,H,W) to three stages' maps and the weighted last.

        Each stage halves the size.
        """
        maps = []
        for stage, other in zip(self.stages, joined, strict=True):
            x = stage(x if other is None else torch.cat([other, x], 1))
            maps.append(x)
        return [*maps, self.attention(x)]


class DFANet(SegModel):
    """Deep Feature Aggregation network on XceptionA.

    Source: Li et al., "DFANet: Deep Feature Aggregation for Real-Time Semantic Segmentation" (CVPR 2019), figures 3 and
    4, as in Tramac/awesome-semantic-segmentation-pytorch. Each encoder but the first sees the enlarged output of the
    one before; the decoder sums the finest and the last maps of all three.

    Args:
        num_classes: channels of the logits.
        in_channels: channels of the image.
    """

    def __init__(self, num_classes: int, in_channels: int = 3):
        super().__init__()
        self.stem = ConvBNReLU(in_channels, 8, 3, 2)
        self.encoder1 = Encoder(8)
        self.encoder2 = Encoder(192, (48, 96, 192))
        self.encoder3 = Encoder(192, (48, 96, 192))
        self.reduce_fine = nn.ModuleList(ConvBNReLU(48, 32, 1) for _ in range(3))
        self.fuse = ConvBNReLU(32, 32, 1)
        self.reduce_last = nn.ModuleList(ConvBNReLU(192, 32, 1) for _ in range(3))
        self.apply(init_weights)
        # Each block starts near the identity: the attentions would square what three times fourteen of them add up to.
        for block in (part for part in self.modules() if isinstance(part, Block)):
            *_, last_norm = (part for part in block.branch.modules() if isinstance(part, nn.BatchNorm2d))
            nn.init.constant_(last_norm.weight, 0.2)
        self.classifier = classifier(32, num_classes)

    def forward_features(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Map images to the finest and the last map of each encoder.

        Of (N,in_channels,H,W), first all the finest, then all the last.
        """
        *maps1, last1 = self.encoder1(self.stem(x))
        # The ReLU of the stages that follow works in place in the published code, so what else reads these two maps
        # sees them rectified.
        maps1[:2] = [F.relu(part) for part in maps1[:2]]
        *maps2, last2 = self.encoder2(resize(last1, maps1[0].shape[-2:]), maps1)
        *maps3, last3 = self.encoder3(resize(last2, maps2[0].shape[-2:]), maps2)
        return [maps1[0], maps2[0], maps3[0], last1, last2, last3]

    def decode(self, features: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Map the encoders' maps to logits (N,num_classes,H/4,W/4)."""
        fine, coarse, size = features[:3], features[3:], features[0].shape[-2:]
        fused = self.fuse(sum(resize(reduce(x), size) for reduce, x in zip(self.reduce_fine, fine, strict=True)))
        fused = fused + sum(resize(reduce(x), size) for reduce, x in zip(self.reduce_last, coarse, strict=True))
        return {"out": self.classifier(fused)}
