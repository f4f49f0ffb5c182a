"""From a picture to the class of each pixel: whole or in windows, at several scales, mirrored or not.

The procedure, and where it rounds, is that of semseg's evaluation (hszhao/semseg, tool/test.py), that of
Zhao et al., "Pyramid Scene Parsing Network", CVPR 2017.
Axes: C classes, H and W the picture's height and width; every map of scores is float32 (C, H, W).
"""

import math
from collections.abc import Sequence

import cv2
import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Settings of the evaluations behind published numbers; window "crop" is the size of the training crop. What
# they leave to the experiment (several scales, base_size) its configuration says.
PROTOCOLS = {
    "whole": {"scales": (1.0,), "flip": False, "window": None, "stride_rate": 2 / 3, "base_size": None},
    "semseg": {"scales": (1.0,), "flip": True, "window": "crop", "stride_rate": 2 / 3, "base_size": None},
    "sketchfill": {"scales": (1.0,), "flip": True, "window": "crop", "stride_rate": 1 / 2, "base_size": None},
}
CACHED_NUMBERS = 1 << 18  # floats of a block of rows that a CPU core keeps in its cache (1 MiB)
PLANES_AT_ONCE = 16  # class maps that an accelerator resizes together


def protocol_settings(name: str, crop: tuple[int, int], **changes) -> dict:
    """Keyword arguments of Predictor (scales, flip, window, stride_rate, base_size) for one of PROTOCOLS.

    crop: (h, w) of the training crop, which a sliding protocol takes for its window. changes: keys of the
    protocol that the experiment sets otherwise; None leaves the protocol's value, window "none" asks for
    whole pictures.
    ValueError if the protocol or a key is unknown.
    """
    if name not in PROTOCOLS:
        raise ValueError(f"unknown protocol {name!r}; there are {', '.join(PROTOCOLS)}")
    settings = dict(PROTOCOLS[name])
    unknown = sorted(set(changes) - set(settings))
    if unknown:
        raise ValueError(f"a protocol has no {', '.join(unknown)}; there are {', '.join(settings)}")
    settings |= {key: value for key, value in changes.items() if value is not None}
    named_windows = {"crop": tuple(crop), "none": None}
    if isinstance(settings["window"], str):
        settings["window"] = named_windows[settings["window"]]
    return settings


class Predictor:
    """Callable that gives the class of each pixel of a picture.

    model: returns {"out": logits (N, num_classes, H, W)} for a normalised batch (N, 3, H, W); it is moved to
        `device`, put in eval mode by each prediction and left there.
    mean, std: of the channels R, G, B on the scale 0..255.
    scales, base_size: the picture is resized, for each scale, until its longer side has scale * base_size
        pixels; without base_size each side is multiplied by the scale.
    window (h, w): the network sees windows of this size, stride_rate of a window apart, and the probabilities
        of overlapping windows are averaged; a smaller picture is padded with the mean colour. None: the whole
        picture.
    flip: average with the prediction of the mirrored picture.
    window_batch: windows in one forward pass (with flip each counts twice).
    amp: torch.bfloat16 or torch.float16 for autocast; softmax and averages are float32 in any case.
    device: None for the one that holds the model's parameters.
    The working memory is kept from picture to picture: not for use by several threads at once.
    """

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
        window_batch: int = 4,
        amp: torch.dtype | None = None,
        device: torch.device | str | None = None,
        channels_last: bool = False,
    ):
        _check_settings(num_classes, scales, window, stride_rate, base_size, window_batch, amp)
        if device is None:
            device = next((parameter.device for parameter in model.parameters()), "cpu")
        self.device = torch.device(device)
        self.model = model.to(self.device)
        self.num_classes = num_classes
        self.mean = torch.tensor(mean, dtype=torch.float32, device=self.device).view(3, 1, 1)
        self.std = torch.tensor(std, dtype=torch.float32, device=self.device).view(3, 1, 1)
        self.scales = tuple(scales)
        self.flip = flip
        self.window = None if window is None else tuple(window)
        self.stride_rate = stride_rate
        self.base_size = base_size
        self.window_batch = window_batch
        self.amp = amp
        self.channels_last = channels_last
        self._memory: dict[str, Tensor] = {}

    def __call__(self, image: Tensor) -> Tensor:
        """Class of each pixel, the first of equal ones: uint8 (3, H, W), RGB -> uint8 (H, W).

        The result is on the predictor's device. ValueError if the picture is of another kind, or the
        network's output is of another shape or not finite.
        """
        with torch.inference_mode():
            prediction = first_argmax(self._scores(image, divide=False))
        return prediction.clone()  # outside inference mode: an ordinary tensor, that may be written to

    def probabilities(self, image: Tensor) -> Tensor:
        """Probability of each class: uint8 (3, H, W), RGB -> float32 (C, H, W); device, errors as above."""
        with torch.inference_mode():
            scores = self._scores(image, divide=True)
        return scores.clone()

    def describe(self) -> dict:
        """The protocol in plain types, for metrics.json."""
        return {
            "scales": list(self.scales),
            "flip": self.flip,
            "window": None if self.window is None else list(self.window),
            "stride_rate": None if self.window is None else self.stride_rate,
            "base_size": self.base_size,
            "amp": None if self.amp is None else str(self.amp).removeprefix("torch."),
        }

    def _scores(self, image: Tensor, divide: bool) -> Tensor:
        """Probabilities (C, H, W), in memory that the next picture overwrites.

        Where only the largest class is asked for (divide=False), a pixel's values may be a multiple of them.
        """
        if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
            raise ValueError(f"a picture must be uint8 (3, H, W), not {image.dtype} {tuple(image.shape)}")
        self.model.eval()
        height, width = image.shape[1:]
        picture = image.to(self.device).float()
        sizes = [self._scaled_size(height, width, scale) for scale in self.scales]
        if sizes == [(height, width)]:
            scores = self._window_scores(picture, divide)
        else:
            scores = self._zeros("scales", (self.num_classes, height, width))
            for size in sizes:
                _add_resized_(scores, self._window_scores(resize(picture, size), divide=True))
            if divide:
                scores /= len(sizes)
        # softmax spreads a NaN over all classes of its pixel, so that one class tells
        if not torch.isfinite(scores[0].sum()):
            raise ValueError("the network's output is not finite; check its weights, or try without amp")
        return scores

    def _scaled_size(self, height: int, width: int, scale: float) -> tuple[int, int]:
        if self.base_size is None:
            return max(round(scale * height), 1), max(round(scale * width), 1)
        longer = max(round(scale * self.base_size), 1)
        if height > width:
            return longer, max(round(longer / float(height) * width), 1)
        return max(round(longer / float(width) * height), 1), longer

    def _window_scores(self, picture: Tensor, divide: bool) -> Tensor:
        """The sum, or the mean, of the windows' probabilities: float32 (3, h, w), 0..255 -> (C, h, w)."""
        height, width = picture.shape[1:]
        window_h, window_w = self.window or (height, width)
        pad_h, pad_w = max(window_h - height, 0), max(window_w - width, 0)
        top, left = pad_h // 2, pad_w // 2
        # zero is the mean colour once the mean is subtracted
        picture = F.pad((picture - self.mean).div_(self.std), (left, pad_w - left, top, pad_h - top))
        rows = _window_starts(picture.shape[1], window_h, self.stride_rate)
        columns = _window_starts(picture.shape[2], window_w, self.stride_rate)
        scores = self._zeros("windows", (self.num_classes, *picture.shape[1:]))
        corners = [(y, x) for y in rows for x in columns]
        self._add_windows_(scores, picture, corners, (window_h, window_w))
        if divide:
            over_rows = _coverage(rows, window_h, scores.shape[1]).to(self.device)
            over_columns = _coverage(columns, window_w, scores.shape[2]).to(self.device)
            scores /= torch.outer(over_rows, over_columns) * (2 if self.flip else 1)
        return scores[:, top : top + height, left : left + width]

    def _add_windows_(
        self, scores: Tensor, picture: Tensor, corners: list[tuple[int, int]], window: tuple[int, int]
    ) -> None:
        """Adds the probabilities of the windows with these upper left corners (y, x) to scores (C, h, w)."""
        window_h, window_w = window
        width = picture.shape[2]
        mirrored = picture.flip(2) if self.flip else picture
        for start in range(0, len(corners), self.window_batch):
            chunk = corners[start : start + self.window_batch]
            crops = [picture[:, y : y + window_h, x : x + window_w] for y, x in chunk]
            if self.flip:
                ends = [(y, width - x) for y, x in chunk]
                crops += [mirrored[:, y : y + window_h, x - window_w : x] for y, x in ends]
            logits = self._forward(torch.stack(crops))
            for index, (y, x) in enumerate(chunk):
                target = scores[:, y : y + window_h, x : x + window_w]
                _add_softmax_(target, logits[index])
                if self.flip:
                    _add_softmax_(target, logits[index + len(chunk)], mirrored=True)

    def _forward(self, batch: Tensor) -> Tensor:
        """batch: (N, 3, h, w). Returns logits (N, C, h, w)."""
        if self.channels_last:
            batch = batch.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, dtype=self.amp, enabled=self.amp is not None):
            logits = self.model(batch)["out"]
        expected = (len(batch), self.num_classes, *batch.shape[2:])
        if tuple(logits.shape) != expected:
            raise ValueError(f"the network's output is {tuple(logits.shape)}, expected {expected}")
        return logits

    def _zeros(self, name: str, shape: tuple[int, int, int]) -> Tensor:
        """Zeros in memory kept under that name: on a CPU fresh pages would cost as much as the sums."""
        size = math.prod(shape)
        if name not in self._memory or self._memory[name].numel() < size:
            self._memory[name] = torch.empty(size, device=self.device)
        return self._memory[name][:size].view(shape).zero_()


def _on_cpu(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu"


def first_argmax(scores: Tensor) -> Tensor:
    """Class of the largest score, the first of equal ones: (C, H, W), C at most 256 -> uint8 (H, W)."""
    if not _on_cpu(scores):
        return scores.argmax(0).to(torch.uint8)
    # torch.argmax over the first axis takes ten times as long on a CPU
    last = scores.shape[0] - 1
    descending = torch.arange(last, -1, -1, dtype=torch.uint8).view(-1, 1, 1)
    result = torch.empty(scores.shape[1:], dtype=torch.uint8)
    for rows in _row_blocks(scores):
        block = scores[:, rows]
        result[rows] = last - ((block == block.amax(0)) * descending).amax(0)
    return result


def resize(planes: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear, half-pixel centres, no low-pass filter, as cv2.resize: float32 (n, h, w) -> (n, *size)."""
    if tuple(planes.shape[1:]) == size:
        return planes
    if not _on_cpu(planes):
        return F.interpolate(planes[None], size, mode="bilinear", align_corners=False)[0]
    # plane by plane: OpenCV 5 refuses more than 128 channels; F.interpolate takes six times as long on a CPU
    resized = torch.empty((len(planes), *size))
    for source, target in zip(planes, resized, strict=True):
        cv2.resize(source.numpy(), size[::-1], dst=target.numpy(), interpolation=cv2.INTER_LINEAR)
    return resized


def _add_resized_(total: Tensor, planes: Tensor) -> None:
    """total (C, H, W) += planes (C, h, w) resized to (H, W)."""
    step = 1 if _on_cpu(total) else PLANES_AT_ONCE
    for some, target in zip(planes.split(step), total.split(step), strict=True):
        target += resize(some, tuple(total.shape[1:]))


def _add_softmax_(total: Tensor, logits: Tensor, mirrored: bool = False) -> None:
    """total (C, h, w) += softmax of logits (C, h, w) over the classes, turned left to right if mirrored."""
    for rows in _row_blocks(total):
        probabilities = logits[:, rows].softmax(0, dtype=torch.float32)
        total[:, rows] += _mirror(probabilities) if mirrored else probabilities


def _mirror(block: Tensor) -> Tensor:
    """Contiguous (C, h, w) turned left to right."""
    if not _on_cpu(block):
        return block.flip(2)
    # Tensor.flip moves single numbers on a CPU, OpenCV vectors
    return torch.from_numpy(cv2.flip(block.view(-1, block.shape[2]).numpy(), 1)).view(block.shape)


def _row_blocks(scores: Tensor) -> list[slice]:
    """Slices over the rows of scores (C, h, w): on a CPU blocks that fit in the cache, elsewhere all rows."""
    classes, height, width = scores.shape
    step = max(CACHED_NUMBERS // (classes * width), 1) if _on_cpu(scores) else height
    return [slice(top, top + step) for top in range(0, height, step)]


def _window_starts(length: int, window: int, stride_rate: float) -> list[int]:
    """First pixels of the windows along one side; the last window is flush with the far edge."""
    stride = math.ceil(window * stride_rate)
    count = math.ceil((length - window) / stride) + 1
    return [min(index * stride, length - window) for index in range(count)]


def _coverage(starts: list[int], window: int, length: int) -> Tensor:
    """float32 (length,): the number of windows over each pixel of a side."""
    count = torch.zeros(length)
    for start in starts:
        count[start : start + window] += 1
    return count


def _check_settings(num_classes, scales, window, stride_rate, base_size, window_batch, amp) -> None:
    if not 1 <= num_classes <= 256:
        raise ValueError(f"num_classes must be 1 to 256, not {num_classes}: predictions are bytes")
    if not scales or min(scales) <= 0:
        raise ValueError(f"scales must be one or more numbers above 0, not {scales}")
    if window is not None and (len(window) != 2 or min(window) < 1):
        raise ValueError(f"window must be (height, width) in pixels, not {window}")
    if not 0 < stride_rate <= 1:
        raise ValueError(f"stride_rate must be above 0 and at most 1 (windows that touch), not {stride_rate}")
    if base_size is not None and base_size < 1:
        raise ValueError(f"base_size must be a number of pixels, not {base_size}")
    if window_batch < 1:
        raise ValueError(f"window_batch must be at least 1, not {window_batch}")
    if amp not in (None, torch.bfloat16, torch.float16):
        raise ValueError(f"amp must be None, torch.bfloat16 or torch.float16, not {amp}")
