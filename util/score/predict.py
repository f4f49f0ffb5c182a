"""From a picture to the class of each pixel: whole or in windows, at several scales, mirrored or not.

The procedure, and where it rounds, is that of semseg's evaluation (hszhao/semseg, tool/test.py), that of
Zhao et al., "Pyramid Scene Parsing Network", CVPR 2017.
Axes: C classes, H and W the picture's height and width; every map of scores is float32 (C, H, W).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from util.score.window.coarse import GridSums, enlarged, snap, window_starts
from util.score.window.kernel import first_argmax
from util.score.window.maps import Memory, mirror, on_cpu, resize
from util.score.window.sums import DeviceScores, Grid, HostScores, Use

# Settings of the evaluations behind published numbers; window "crop" is the size of the training crop. What
# they leave to the experiment (several scales, base_size) its configuration says.
PROTOCOLS = {
    "whole": {"scales": (1.0,), "flip": False, "window": None, "stride_rate": 2 / 3, "base_size": None},
    "semseg": {"scales": (1.0,), "flip": True, "window": "crop", "stride_rate": 2 / 3, "base_size": None},
    "sketchfill": {"scales": (1.0,), "flip": True, "window": "crop", "stride_rate": 1 / 2, "base_size": None},
}
WINDOWS = ("exact", "fast")
LARGEST_STRIDE = 64  # of a network's coarse grid; every usual stride divides it
NOT_FINITE = "the network's output is not finite; check its weights, or try without amp"


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
        `device`, put in eval mode by each prediction and left there. Where model.gives_coarse, model.coarse(batch)
        are the logits that model(batch) enlarges bilinearly with aligned corners (SegModel has both): on a CPU they
        are enlarged here, with the same result, in a third of the time.
    mean, std: of the channels R, G, B on the scale 0..255.
    scales, base_size: the picture is resized, for each scale, until its longer side has scale * base_size
        pixels; without base_size each side is multiplied by the scale.
    window (h, w): the network sees windows of this size, stride_rate of a window apart, and the probabilities
        of overlapping windows are averaged; a smaller picture is padded with the mean colour. None: the whole
        picture.
    flip: average with the prediction of the mirrored picture.
    window_batch: windows in one forward pass (with flip each counts twice); default 4, on a CPU, where more only take
        more memory, 2.
    amp: torch.bfloat16 or torch.float16 for autocast; softmax and averages are float32 in any case.
    windows: "fast" averages logits on the network's coarse grid and enlarges them once (window/coarse.py), near to
        the "exact" result and several times as fast outside the network; it needs a model with coarse logits.
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
        window_batch: int | None = None,
        amp: torch.dtype | None = None,
        device: torch.device | str | None = None,
        channels_last: bool = False,
        windows: str = "exact",
    ):
        if windows not in WINDOWS:
            raise ValueError(f"windows must be {' or '.join(WINDOWS)}, not {windows!r}")
        self._gives_coarse = getattr(model, "gives_coarse", False)
        if windows == "fast" and not self._gives_coarse:
            raise ValueError(f"windows fast needs coarse logits, which {type(model).__name__} does not give; use exact")
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
        self.window_batch = window_batch or (2 if self.device.type == "cpu" else 4)
        self.amp = amp
        self.channels_last = channels_last
        self.windows = windows
        self._output_stride: int | None = None  # of the coarse grid, in pixels; known after the first picture
        self._memory = Memory(self.device)

    def __call__(self, image: Tensor) -> Tensor:
        """Class of each pixel, the first of equal ones: uint8 (3, H, W), RGB -> uint8 (H, W).

        The result is on the predictor's device. ValueError if the picture is of another kind, or the
        network's output is of another shape or not finite.
        """
        prediction = torch.empty(image.shape[1:], dtype=torch.uint8, device=self.device)
        self._each_block(image, lambda rows, scores: first_argmax(scores, out=prediction[rows]))
        return prediction

    def probabilities(self, image: Tensor) -> Tensor:
        """Probability of each class: uint8 (3, H, W), RGB -> float32 (C, H, W); device, errors as above."""
        result = torch.empty((self.num_classes, *image.shape[1:]), device=self.device)

        def keep(rows: slice, scores: Tensor) -> None:
            result[:, rows] = (scores / len(self.scales)).softmax(0) if self.windows == "fast" else scores

        self._each_block(image, keep)
        return result

    def describe(self) -> dict:
        """The protocol in plain types, for metrics.json."""
        return {
            "windows": self.windows,
            "scales": list(self.scales),
            "flip": self.flip,
            "window": None if self.window is None else list(self.window),
            "stride_rate": None if self.window is None else self.stride_rate,
            "base_size": self.base_size,
            "amp": None if self.amp is None else str(self.amp).removeprefix("torch."),
        }

    @torch.inference_mode()
    def _each_block(self, image: Tensor, use: Use) -> None:
        """Calls `use` with blocks of rows and their scores (C, n, W), which the next block overwrites.

        The scores are probabilities, or with windows fast the sum of the scales' logits.
        """
        self._check(image)
        self.model.eval()
        height, width = image.shape[1:]
        sizes = [self._scaled_size(height, width, scale) for scale in self.scales]
        picture = image.to(self.device)
        if any(size != (height, width) for size in sizes):
            picture = self._memory("picture", 3, height, width).copy_(picture)

        def checked(rows: slice, scores: Tensor) -> None:
            # softmax spreads a NaN over all classes of its pixel, so that one class tells
            if not torch.isfinite(scores[0].sum()):
                raise ValueError(NOT_FINITE)
            use(rows, scores)

        if self.windows == "fast":
            scales = [self._coarse_scale(f"scale {index}", picture, size) for index, size in enumerate(sizes)]
            if not torch.isfinite(sum(scale.sums.sum() for scale in scales)):
                raise ValueError(NOT_FINITE)
            for rows, logits in enlarged(self._memory, scales, (height, width)):
                use(rows, logits)
            return
        kind = HostScores if on_cpu(picture) else DeviceScores
        scores = kind(self._memory, self.num_classes, (height, width), self.flip, len(sizes), checked)
        for size in sizes:
            self._add_scale(scores, picture, size)
        scores.close()

    def _check(self, image: Tensor) -> None:
        if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
            raise ValueError(f"a picture must be uint8 (3, H, W), not {image.dtype} {tuple(image.shape)}")

    def _coarse_scale(self, name: str, picture: Tensor, size: tuple[int, int]) -> GridSums:
        """The logits of all windows of the picture (3, H, W) in 0..255, resized to (h, w)."""
        stride = self._stride(self.window or size)
        window = tuple(snap(side, stride) for side in self.window or size)
        canvas, inside = self._canvas(picture, size, tuple(map(max, size, window)), stride)
        rows, columns = (window_starts(canvas.shape[i + 1], window[i], self.stride_rate, stride) for i in (0, 1))
        sums = GridSums(self._memory, name, self.num_classes, canvas.shape[1:], inside, stride)
        corners = [(y, x) for y in rows for x in columns]
        for start in range(0, len(corners), self.window_batch):
            chunk = corners[start : start + self.window_batch]
            logits = self._forward(self._batch(canvas, chunk, window), stride)
            sums.add(chunk, logits.unflatten(0, (-1, len(chunk))))
        return sums

    def _stride(self, window: tuple[int, int]) -> int:
        """Pixels between two points of the network's coarse grid, found by a first forward pass."""
        if self._output_stride is None:
            sides = [snap(side, LARGEST_STRIDE) for side in window]
            points = self._coarse(torch.zeros((1, 3, *sides), device=self.device)).shape[2:]
            strides = {(side - 1) / max(count - 1, 1) for side, count in zip(sides, points, strict=True) if side > 1}
            if len(strides) != 1 or not (stride := strides.pop()).is_integer():
                raise ValueError(
                    f"the coarse logits of {type(self.model).__name__}, {tuple(points)} for windows of {tuple(sides)}, "
                    "do not lie on every n-th pixel from edge to edge; use windows exact"
                )
            self._output_stride = int(stride)
        return self._output_stride

    def _scaled_size(self, height: int, width: int, scale: float) -> tuple[int, int]:
        if self.base_size is None:
            return max(round(scale * height), 1), max(round(scale * width), 1)
        longer = max(round(scale * self.base_size), 1)
        if height > width:
            return longer, max(round(longer / float(height) * width), 1)
        return max(round(longer / float(width) * height), 1), longer

    def _add_scale(self, scores: HostScores | DeviceScores, picture: Tensor, size: tuple[int, int]) -> None:
        """Adds the windows of the picture (3, H, W) in 0..255, resized to (h, w)."""
        window = self.window or size
        canvas, inside = self._canvas(picture, size, window)
        rows, columns = (_window_starts(canvas.shape[i + 1], window[i], self.stride_rate) for i in (0, 1))
        grid = Grid(rows, columns, canvas.shape[1:], window, inside)
        sums = scores.scale(grid)
        for start in range(0, len(grid.corners), self.window_batch):
            corners = grid.corners[start : start + self.window_batch]
            logits = self._forward(self._batch(canvas, corners, window))
            sums.add(corners, logits.unflatten(0, (-1, len(corners))))
            del logits  # before the next forward pass makes others
        sums.close()

    def _canvas(
        self, picture: Tensor, size: tuple[int, int], least: tuple[int, int], stride: int = 1
    ) -> tuple[Tensor, tuple[slice, slice]]:
        """The picture at one scale, padded with the mean colour, and its rows and columns there.

        A picture smaller than `least` stands in its middle; what is missing to k * stride + 1 pixels is added at the
        far edge.
        """
        (height, width), (full_h, full_w) = size, map(max, size, least)
        sides = snap(full_h, stride), snap(full_w, stride)
        top, left = (full_h - height) // 2, (full_w - width) // 2
        inside = slice(top, top + height), slice(left, left + width)
        if tuple(picture.shape[1:]) == size == sides:
            return picture, inside
        canvas = self._memory("canvas", 3, *sides)
        if sides != size:
            canvas.copy_(self.mean)
        resize(picture, size, out=canvas[:, inside[0], inside[1]])
        return canvas, inside

    def _batch(self, canvas: Tensor, corners: list[tuple[int, int]], window: tuple[int, int]) -> Tensor:
        """The windows at these corners (y, x), normalised, with flip also mirrored, behind them: (N, 3, h, w)."""
        count = len(corners)
        batch = self._memory("batch", (2 if self.flip else 1) * count, 3, *window)
        for index, (y, x) in enumerate(corners):
            crop = canvas[:, y : y + window[0], x : x + window[1]]
            plain = batch[index].copy_(crop).sub_(self.mean).div_(self.std)
            if self.flip:
                mirror(plain, out=batch[count + index])
        return batch

    def _forward(self, batch: Tensor, stride: int | None = None) -> Tensor:
        """batch: (N, 3, h, w). Returns logits (N, C, h, w), or with a stride those of the coarse grid.

        Without a stride they may be coarse too, of any size, where HostScores enlarges them.
        """
        coarse = stride or (self._gives_coarse and on_cpu(batch))
        logits = self._coarse(batch) if coarse else self._full(batch)
        sides = [(side - 1) // stride + 1 for side in batch.shape[2:]] if stride else batch.shape[2:]
        expected = (len(batch), self.num_classes, *(logits.shape[2:] if coarse and not stride else sides))
        if tuple(logits.shape) != expected:
            grid = f" for windows of {tuple(batch.shape[2:])} at stride {stride}; use windows exact" if stride else ""
            raise ValueError(f"the network's output is {tuple(logits.shape)}, expected {expected}{grid}")
        return logits

    def _full(self, batch: Tensor) -> Tensor:
        with self._precision():
            return self.model(self._laid_out(batch))["out"]

    def _coarse(self, batch: Tensor) -> Tensor:
        with self._precision():
            return self.model.coarse(self._laid_out(batch))

    def _laid_out(self, batch: Tensor) -> Tensor:
        return batch.contiguous(memory_format=torch.channels_last) if self.channels_last else batch

    def _precision(self):
        return torch.autocast(self.device.type, dtype=self.amp, enabled=self.amp is not None)


def _window_starts(length: int, window: int, stride_rate: float) -> list[int]:
    """First pixels of the windows along one side; the last window is flush with the far edge."""
    stride = math.ceil(window * stride_rate)
    count = math.ceil((length - window) / stride) + 1
    return [min(index * stride, length - window) for index in range(count)]


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
    if window_batch is not None and window_batch < 1:
        raise ValueError(f"window_batch must be at least 1, not {window_batch}")
    if amp not in (None, torch.bfloat16, torch.float16):
        raise ValueError(f"amp must be None, torch.bfloat16 or torch.float16, not {amp}")
