"""From a picture to the class of each pixel.

Whole or in windows, at several scales, mirrored or not. The procedure, and where it rounds, is that of semseg's
evaluation (hszhao/semseg, tool/test.py), that of Zhao et al., "Pyramid Scene Parsing Network", CVPR 2017. Axes: C
classes, H and W the picture's height and width; every map of scores is float32 (C, H, W).
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from util import UserError
from util.score.window import WindowSums, first_argmax, resize, snap, window_starts

NOT_FINITE = "the network's output is not finite; check its weights, or try without amp"
PLANES_AT_ONCE = 4  # class maps that are resized together: what lies between is as large


class Predictor:
    """Callable that gives the class of each pixel of a picture.

    Args:
        model: returns {"out": logits (N, num_classes, H, W)} for a normalised batch (N, 3, H, W); it is moved to
            `device`, put in eval mode by each prediction and left there. Where model.gives_coarse, model.coarse(batch)
            are the logits that it enlarges bilinearly with aligned corners (SegModel has both).
        num_classes: channels of the logits.
        mean: of the channels (R, G, B) on the scale 0..255; their number is that of the picture's channels.
        std: deviation of the channels, on the same scale.
        scales: factors at which the picture is seen; the probabilities are averaged.
        flip: average with the prediction of the mirrored picture.
        window: (height, width) of the windows that the network sees; the probabilities of overlapping ones are
            averaged, and a smaller picture is padded with the mean colour. None: the whole picture.
        stride_rate: step from one window to the next, as a share of the window.
        base_size: length of the longer side at scale 1; None: the picture's own.
        window_batch: windows in one forward pass (with flip each counts twice); default 4, on a CPU, where more only
            take more memory, 2.
        amp: torch.bfloat16 or torch.float16 for autocast; softmax and averages are float32 in any case.
        device: None for the one that holds the model's parameters.
        channels_last: memory format of the batches.
    """

    windows = "exact"  # what metrics.json calls this way to average; util/score/coarse.py has the other

    def __init__(
        self,
        model: nn.Module,
        num_classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        window: tuple[int, int] | None = None,
        stride_rate: float = 2 / 3,
        base_size: int | None = None,
        window_batch: int | None = None,
        amp: torch.dtype | None = None,
        device: torch.device | str | None = None,
        channels_last: bool = False,
    ):
        _check_settings(num_classes, scales, window, stride_rate, base_size, window_batch, amp)
        if device is None:
            device = next((parameter.device for parameter in model.parameters()), "cpu")
        self.device = torch.device(device)
        self.model: Any = model.to(self.device)  # a Module that may have `coarse`
        self.num_classes = num_classes
        self.mean = torch.tensor(mean, dtype=torch.float32, device=self.device).view(-1, 1, 1)
        self.std = torch.tensor(std, dtype=torch.float32, device=self.device).view(-1, 1, 1)
        self.scales = tuple(scales)
        self.flip = flip
        self.window = None if window is None else tuple(window)
        self.stride_rate = stride_rate
        self.base_size = base_size
        self.window_batch = window_batch or (2 if self.device.type == "cpu" else 4)
        self.amp = amp
        self.channels_last = channels_last
        # There the windows' sums enlarge the logits band by band, in half the time, with the same result.
        self._coarse = self.device.type == "cpu" and getattr(model, "gives_coarse", False)

    def __call__(self, image: Tensor) -> Tensor:
        """Predict the class of each pixel, the first of equal ones.

        Args:
            image: uint8 (3, H, W), RGB.

        Returns:
            The classes, uint8 (H, W), of more than 256 uint16, on the predictor's device.

        Raises:
            UserError: the picture is of another kind, or the network's output of another shape or not finite.
        """
        return first_argmax(self.probabilities(image))

    @torch.no_grad()
    def probabilities(self, image: Tensor) -> Tensor:
        """Return the probability of each class, float32 (C, H, W).

        image: uint8 (3, H, W), RGB; device and errors as above.
        """
        picture, sizes = self._prepared(image)
        height, width = picture.shape[1:]
        total = resize(self._windows_mean(picture, sizes[0]), (height, width))
        for size in sizes[1:]:
            mean = self._windows_mean(picture, size)
            for planes, more in zip(total.split(PLANES_AT_ONCE), mean.split(PLANES_AT_ONCE), strict=True):
                planes += resize(more, (height, width))
        # softmax spreads a NaN over all classes of its pixel, so that one class tells
        if not torch.isfinite(total[0].sum()):
            raise UserError(NOT_FINITE)
        return total if len(sizes) == 1 else total.div_(len(sizes))

    def describe(self) -> dict:
        """Return the protocol in plain types, for metrics.json."""
        return {
            "windows": self.windows,
            "scales": list(self.scales),
            "flip": self.flip,
            "window": None if self.window is None else list(self.window),
            "stride_rate": None if self.window is None else self.stride_rate,
            "base_size": self.base_size,
            "amp": None if self.amp is None else str(self.amp).removeprefix("torch."),
        }

    def __str__(self) -> str:
        """Say the protocol in a line, for the log."""
        parts = [("scales " if len(self.scales) > 1 else "scale ") + ", ".join(f"{scale:g}" for scale in self.scales)]
        parts += [f"of a long side of {self.base_size}"] if self.base_size is not None else []
        parts += ["mirrored too"] if self.flip else []
        if self.window is None:
            parts.append("whole pictures")
        else:
            parts.append(f"windows {self.window[0]}x{self.window[1]}, {self.stride_rate:.3g} of one apart")
        parts += [f"averaged the {self.windows} way"] if self.windows != "exact" else []
        parts += [str(self.amp).removeprefix("torch.")] if self.amp is not None else []
        return ", ".join(parts)

    def _prepared(self, image: Tensor) -> tuple[Tensor, list[tuple[int, int]]]:
        """The picture as float32 on the device, and its size (h, w) at each scale."""
        if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != len(self.mean):
            wanted = f"uint8 ({len(self.mean)}, H, W)"
            raise UserError(f"a picture must be {wanted}, not {image.dtype} {tuple(image.shape)}")
        self.model.eval()
        height, width = image.shape[1:]
        return image.to(self.device).float(), [self._scaled_size(height, width, scale) for scale in self.scales]

    def _scaled_size(self, height: int, width: int, scale: float) -> tuple[int, int]:
        if self.base_size is None:
            return max(round(scale * height), 1), max(round(scale * width), 1)
        longer = max(round(scale * self.base_size), 1)
        if height > width:
            return longer, max(round(longer / float(height) * width), 1)
        return max(round(longer / float(width) * height), 1), longer

    def _windows_mean(self, picture: Tensor, size: tuple[int, int]) -> Tensor:
        """Mean probabilities (C, h, w) of all windows of the picture (3, H, W), resized to `size`."""
        window = self.window or size
        canvas, inside = self._canvas(picture, size, window)
        rows, columns = (window_starts(canvas.shape[i + 1], window[i], self.stride_rate) for i in (0, 1))
        corners = [(y, x) for y in rows for x in columns]
        sums = WindowSums(self.num_classes, canvas.shape[1:], window, self.device)
        for start in range(0, len(corners), self.window_batch):
            chunk = corners[start : start + self.window_batch]
            logits = self._forward(self._batch(canvas, chunk, window), self._coarse, None if self._coarse else window)
            sums.add(chunk, logits.unflatten(0, (-1, len(chunk))))
        return sums.mean()[(slice(None), *inside)]

    def _canvas(
        self, picture: Tensor, size: tuple[int, int], least: Sequence[int], stride: int = 1
    ) -> tuple[Tensor, tuple[slice, slice]]:
        """The picture at one scale, normalised and padded with the mean colour, and its rows and columns there.

        A picture smaller than `least` stands in its middle; what is missing to k * stride + 1 pixels is added at the
        far edge.
        """
        height, width = size
        full = [max(side, smallest) for side, smallest in zip(size, least, strict=True)]
        top, left = (full[0] - height) // 2, (full[1] - width) // 2
        below, right = (snap(side, stride) for side in full)
        normalised = (resize(picture, size) - self.mean).div_(self.std)
        canvas = F.pad(normalised, (left, right - width - left, top, below - height - top))
        return canvas, (slice(top, top + height), slice(left, left + width))

    def _batch(self, canvas: Tensor, corners: Sequence[tuple[int, int]], window: Sequence[int]) -> Tensor:
        """The windows at these corners (y, x), with flip also mirrored, behind them: (N, 3, h, w)."""
        crops = [canvas[:, y : y + window[0], x : x + window[1]] for y, x in corners]
        return torch.stack([*crops, *(crop.flip(-1) for crop in crops)] if self.flip else crops)

    def _forward(self, batch: Tensor, coarse: bool, sides: Sequence[int] | None) -> Tensor:
        """Logits (N, C, h, w) of a batch (N, 3, H, W), on the network's own grid if `coarse`; sides: h, w expected."""
        if self.channels_last:
            batch = batch.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, dtype=self.amp, enabled=self.amp is not None):
            logits: Tensor = self.model.coarse(batch) if coarse else self.model(batch)["out"]
        if tuple(logits.shape) != (expected := (len(batch), self.num_classes, *(sides or logits.shape[2:]))):
            raise UserError(f"the network's output is {tuple(logits.shape)}, expected {expected}")
        return logits


def _check_settings(num_classes, scales, window, stride_rate, base_size, window_batch, amp) -> None:
    if not 1 <= num_classes <= 65536:
        raise UserError(f"num_classes must be 1 to 65536, not {num_classes}: predictions are of 16 bits")
    if not scales or min(scales) <= 0:
        raise UserError(f"scales must be one or more numbers above 0, not {scales}")
    if window is not None and (len(window) != 2 or min(window) < 1):
        raise UserError(f"window must be (height, width) in pixels, not {window}")
    if not 0 < stride_rate <= 1:
        raise UserError(f"stride_rate must be above 0 and at most 1 (windows that touch), not {stride_rate}")
    if base_size is not None and base_size < 1:
        raise UserError(f"base_size must be a number of pixels, not {base_size}")
    if window_batch is not None and window_batch < 1:
        raise UserError(f"window_batch must be at least 1, not {window_batch}")
    if amp not in (None, torch.bfloat16, torch.float16):
        raise UserError(f"amp must be None, torch.bfloat16 or torch.float16, not {amp}")
