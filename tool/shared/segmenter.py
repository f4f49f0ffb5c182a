"""A trained network as a function from pictures to masks.

>>> segmenter = Segmenter("last.pth")
>>> mask = segmenter("photo.jpg").mask                  # uint8 (H, W), the class of each pixel
"""

import argparse
import copy
import operator
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from typing import Any, Literal, overload

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from dataset.base import distinct_palette
from dataset.read.image import read_image, to_8_bits
from tool.shared import plugins as own_code
from tool.shared.hub import SCHEME, local_file
from tool.shared.network import build_predictor, rebuild
from tool.shared.published import read_ours, without_void
from tool.shared.tiles import classes_in_tiles, id_type, probabilities_in_tiles
from util import UserError
from util.checkpoint.facts import Facts, facts_of
from util.config.check import check_protocol
from util.config.schema import TestConfig
from util.report.visual import as_rgb, colorize
from util.score.predict import Predictor
from util.score.window import first_argmax

WHOLE = 8_000_000  # pixels up to which tile="auto" predicts a picture at once
TILE = 2049  # side of the tiles of larger pictures
SMALL = 64  # side that every network takes
ROWS = 256  # that are drawn at once, so that a large picture is held in bytes only
PATHS = (str, os.PathLike)

Picture = str | os.PathLike | Image.Image | np.ndarray | Tensor


class Segmenter:
    """Predicts pictures with a checkpoint alone.

    Network, preprocessing, classes and test protocol are the checkpoint's.

    Args:
        file: a checkpoint of ours, or a published one of a known family; hf://owner/name is fetched from the Hub.
        device: "cpu", "cuda", "mps", ...; None for the NVIDIA GPU where there is one, else the CPU.
        half: compute in half precision: float16 on a GPU, bfloat16 on a CPU.
        tile: "auto" predicts pictures of more than 8 megapixels in tiles of 2049 pixels, so that memory is bounded;
            a number is the tiles' side for every larger picture; None predicts each picture at once.
        plugins: code outside the project that the checkpoint needs: files, or dotted paths.

    Raises:
        FileNotFoundError, UserError: the file is missing, damaged, or of no known family; or there is no such device.
    """

    def __init__(
        self,
        file: str | os.PathLike,
        device: str | torch.device | None = None,
        half: bool = False,
        tile: int | Literal["auto"] | None = "auto",
        plugins: Sequence[str] = (),
    ):
        if tile is not None and not isinstance(tile, str) and not isinstance(tile, bool) and hasattr(tile, "__index__"):
            tile = operator.index(tile)  # NumPy's integers, too
        elif tile is not None and tile != "auto":
            raise UserError(f"tile must be 'auto', None, or a side of at least 2 pixels, not {tile!r}")
        if isinstance(tile, int) and tile < 2:
            raise UserError(f"tile must be 'auto', None, or a side of at least 2 pixels, not {tile}")
        self.file, self.tile, self.device = local_file(file), tile, _device(device)
        own_code.use(plugins)
        state = read_ours(self.file)
        facts, network = facts_of(state), rebuild(state, self.file)
        protocol = {key: value for key, value in (facts.protocol or {}).items() if value is not None}
        given = protocol | {"amp": _half(self.device) if half else "off"}
        test = check_protocol(given, f"{self.file}: protocol").resolved((1, 1), None)
        self.predictor = predictor_of(network, facts, test, self.device)
        count = self.predictor.num_classes
        self.classes = tuple((facts.classes or [f"class {index}" for index in range(count)])[:count])
        self.colors = np.array(facts.colors[:count], np.uint8) if facts.colors else palette(count)
        self.channels, self.limits = len(self.predictor.mean), facts.limits
        self.dataset, self.network = facts.dataset, network.spec["name"]

    @classmethod
    def from_pretrained(cls, name: str, revision: str | None = None, **options: Any) -> "Segmenter":
        """Fetch a network from the Hugging Face Hub; return its segmenter.

        The same as `Segmenter("hf://owner/name@revision", ...)`.

        Args:
            name: "owner/name".
            revision: a commit, tag or branch; None for the newest.
            options: those of the class.
        """
        return cls(f"{SCHEME}{name}" + (f"@{revision}" if revision else ""), **options)

    @overload
    def __call__(self, picture: Picture) -> "Segmentation": ...

    @overload
    def __call__(self, picture: Iterable[Picture]) -> "list[Segmentation]": ...

    def __call__(self, picture: Picture | Iterable[Picture]) -> "Segmentation | list[Segmentation]":
        """Predict a picture, or each of a list.

        Args:
            picture: a path; a PIL image, which is turned upright; an array uint8 (H, W, 3), RGB; a tensor uint8
                (3, H, W). Of a network for other channels, as many as it was trained with. Of several, a list, or what
                yields them; map(segmenter, pictures) holds only one of them at a time.

        Raises:
            UserError, OSError: it cannot be read, or is of another kind.
        """
        one = isinstance(picture, PATHS + (Image.Image, np.ndarray, Tensor, bytes, bytearray, Mapping))
        if not one and isinstance(picture, Iterable) and not hasattr(picture, "read"):
            return [self(each) for each in picture]
        image = self.read(picture)
        return Segmentation(image, self.mask(image), self)

    def __repr__(self) -> str:
        return f"Segmenter({os.fspath(self.file)!r}: {self.network}, {len(self.classes)} classes, {self.device})"

    def read(self, picture: Any) -> np.ndarray:
        """Return a picture as uint8 (H, W, C)."""
        if isinstance(picture, PATHS):
            return read_image(picture, None, self.channels, self.limits)
        if isinstance(picture, Image.Image):
            return self._read_opened(picture)
        if isinstance(picture, Tensor):
            if picture.is_meta:
                raise UserError("the tensor holds no values (it is on the meta device)")
            picture = picture.detach().cpu().permute(1, 2, 0).numpy() if picture.ndim == 3 else picture.cpu().numpy()
        if not isinstance(picture, np.ndarray):
            opened = "; open it with PIL.Image.open" if isinstance(picture, bytes) or hasattr(picture, "read") else ""
            kind = type(picture).__name__
            raise UserError(f"a picture is a path, a PIL image, an array or a tensor, not {kind}{opened}")
        if self.limits is not None and picture.ndim == 3:
            picture = to_8_bits(picture, self.limits)
        if picture.ndim != 3 or picture.shape[2] != self.channels or picture.dtype != np.uint8 or not picture.size:
            wanted = f"uint8 (H, W, {self.channels}), or a tensor uint8 ({self.channels}, H, W)"
            raise UserError(f"an array must be {wanted}, not {picture.dtype} {picture.shape}")
        return np.require(picture, requirements="CW")  # PyTorch warns of memory that cannot be written

    def _read_opened(self, picture: Image.Image) -> np.ndarray:
        """A PIL image as the same file is read: upright, without transparency, and of 16 bits the upper byte."""
        picture = ImageOps.exif_transpose(picture)
        if picture.mode not in ("L", "LA", "RGB", "RGBA", "F", "I", "I;16", "I;16L", "I;16B", "I;16N"):
            picture = picture.convert("L" if picture.mode == "1" else "RGB")
        if self.limits is None and picture.mode in ("F", "I"):
            raise UserError(f"the picture has values beyond 8 bits (mode {picture.mode}); scale them to 0..255")
        image = np.asarray(picture)
        bands = 1 if image.ndim == 2 else image.shape[2]
        image = to_8_bits(image.astype(image.dtype.newbyteorder("="), copy=False), self.limits)
        image = image.reshape(*image.shape[:2], bands)
        if bands in (1, 2) and self.channels in (1, 3):
            image = np.repeat(image[:, :, :1], self.channels, axis=2)
        elif bands == 4 and self.channels == 3:
            image = image[:, :, :3]
        if image.shape[2] != self.channels or not image.size:
            raise UserError(f"the picture is {picture.mode} {picture.size}, the network takes {self.channels} channels")
        return np.require(image, requirements="CW")

    def side_of(self, height: int, width: int) -> int | None:
        """Return the side of a picture's tiles; None: predicted at once."""
        if self.tile == "auto":
            return TILE if height * width > WHOLE else None
        return self.tile if self.tile is not None and max(height, width) > self.tile else None

    def mask(self, image: np.ndarray) -> np.ndarray:
        """Return the class of each pixel, uint8 (H, W).

        uint16 where there are more than 256 classes. image: uint8 (H, W, C).
        """
        side = self.side_of(*image.shape[:2])
        if side is None:
            return first_argmax(self.at_scale(None)(image)).cpu().numpy()
        return classes_in_tiles(self._part(image), image.shape[:2], side, id_type(len(self.classes)))

    def probabilities(self, image: np.ndarray) -> np.ndarray:
        """Return the probability of each class, float32 (classes, H, W).

        image: uint8 (H, W, C).
        """
        side = self.side_of(*image.shape[:2])
        if side is None:
            return self.at_scale(None)(image).cpu().numpy()
        return probabilities_in_tiles(self._part(image), image.shape[:2], side, len(self.classes))

    def at_scale(self, whole: tuple[int, int] | None) -> Callable[[np.ndarray], Tensor]:
        """Return what predicts a picture, or the parts of one.

        It gives float32 (classes, h, w) of uint8 (h, w, C). A picture that is too small for the network stands in a
        field of the mean colour.

        Args:
            whole: height and width of the picture whose parts are predicted: a protocol that resizes pictures to one
                length resizes them by the same factor.
        """
        predictor, size = self.predictor, whole
        if size is not None and predictor.base_size is not None:
            factor = predictor.base_size / max(size)
            predictor = copy.copy(predictor)
            predictor.scales, predictor.base_size = tuple(scale * factor for scale in predictor.scales), None

        def predict(image: np.ndarray) -> Tensor:
            try:
                return predictor.probabilities(_tensor(image))
            except RuntimeError:
                height, width = image.shape[:2]
                if min(height, width) >= SMALL:
                    raise
                field = np.empty((max(height, SMALL), max(width, SMALL), self.channels), np.uint8)
                field[:] = np.clip(predictor.mean.cpu().view(-1).numpy().round(), 0, 255)
                top, left = (field.shape[0] - height) // 2, (field.shape[1] - width) // 2
                field[top : top + height, left : left + width] = image
                found = predictor.probabilities(_tensor(field))
                return found[:, top : top + height, left : left + width].contiguous()

        return predict

    def _part(self, image: np.ndarray) -> Callable[[slice, slice], Tensor]:
        predict = self.at_scale(image.shape[:2])
        return lambda rows, columns: predict(image[rows, columns]).cpu()


@dataclass(frozen=True, eq=False, repr=False)
class Segmentation:
    """A predicted picture.

    Args:
        image: the picture, uint8 (H, W, C).
        mask: class ids, uint8 (H, W), or uint16 where there are more than 256 classes.
        segmenter: what predicted it.
    """

    image: np.ndarray
    mask: np.ndarray
    segmenter: Segmenter

    def __repr__(self) -> str:
        height, width = self.mask.shape
        found = [self.classes[index] for index in np.flatnonzero(self.counts())]
        return f"Segmentation({height}x{width} pixels: {', '.join(found)})"

    @property
    def classes(self) -> tuple[str, ...]:
        """Name the classes, in the order of their ids."""
        return self.segmenter.classes

    @cached_property
    def probabilities(self) -> np.ndarray:
        """Predict the probability of each class, float32 (classes, H, W).

        They are computed when first asked for, since they take classes * 4 bytes a pixel.
        """
        return self.segmenter.probabilities(self.image)

    def color(self) -> np.ndarray:
        """Draw the mask in the classes' colours, uint8 (H, W, 3)."""
        return self._drawn(1)

    def overlay(self, opacity: float = 0.5) -> np.ndarray:
        """Draw the mask over the picture, uint8 (H, W, 3).

        opacity: of the mask, 0 to 1.
        """
        if not isinstance(opacity, Real) or not 0 <= opacity <= 1:
            raise UserError(f"opacity must be 0 to 1, not {opacity}")
        return self._drawn(opacity)

    def _drawn(self, opacity: float) -> np.ndarray:
        out, colors = np.empty((*self.mask.shape, 3), np.uint8), self.segmenter.colors
        for first in range(0, len(out), ROWS):
            rows = slice(first, first + ROWS)
            ids = self.mask[rows]
            drawn = colorize(ids, colors) if ids.dtype == np.uint8 else colors[ids]
            mixed = drawn if opacity == 1 else (1 - opacity) * as_rgb(self.image[rows]) + opacity * drawn
            out[rows] = np.round(mixed)
        return out

    def counts(self) -> np.ndarray:
        """Count the pixels of each class, int64 (classes,)."""
        return count_ids(self.mask, len(self.classes))


def count_ids(mask: np.ndarray, classes: int) -> np.ndarray:
    """Count the pixels of each class, int64 (classes,).

    Ids beyond are left out.
    """
    parts = (mask[first : first + ROWS].ravel() for first in range(0, len(mask), ROWS))
    return sum((np.bincount(part, minlength=classes)[:classes] for part in parts), np.zeros(classes, np.int64))


def palette(classes: int) -> np.ndarray:
    """Return colours for classes without, uint8 (classes, 3).

    After 255 they begin anew.
    """
    return np.resize(distinct_palette(min(classes, 255)), (classes, 3))


def predictor_of(network: nn.Module, facts: Facts, test: TestConfig, device: torch.device) -> Predictor:
    """Build the predictor of a checkpoint's network, as it was trained."""
    number = network.spec["num_classes"]
    outputs = without_void(facts, number)
    seen = len(outputs or range(number))
    return build_predictor(network, seen, *facts.normalisation, facts.channel_order, test, device, outputs=outputs)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments from which `from_arguments` builds a segmenter."""
    parser.add_argument("checkpoint", help="of ours, or a published one of a known family; hf://OWNER/NAME")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps, ... (default: the NVIDIA GPU where there is one)")
    parser.add_argument("--half", action="store_true", help="compute in half precision")
    parser.add_argument("--tile", default="auto", help="side of the tiles of large pictures, none, or auto")
    own_code.add_argument(parser)


def from_arguments(args: argparse.Namespace) -> Segmenter:
    """Build the segmenter that a command line asks for.

    Raises:
        FileNotFoundError, UserError: as `Segmenter`; or --tile is no side of a tile.
    """
    return Segmenter(args.checkpoint, args.device, args.half, tile_of(args.tile), args.plugin)


def tile_of(text: str) -> int | Literal["auto"] | None:
    """Read --tile.

    Raises:
        UserError: it is no side of a tile.
    """
    if text in ("auto", "none"):
        return None if text == "none" else "auto"
    if not text.isdecimal():
        raise UserError(f"--tile {text}: write a number of pixels, none, or auto")
    return int(text)


def _device(device: str | torch.device | None) -> torch.device:
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(device)
        if device.type == "meta":
            raise RuntimeError("it holds no values")
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", _gpu())
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {str(device)!r} cannot be used: {str(error).splitlines()[0]}") from None
    return device


def _gpu() -> int:
    """Return the GPU of this process: of torchrun's, each has its own, unless the program has chosen one."""
    chosen = torch.cuda.current_device()
    local = os.environ.get("LOCAL_RANK", "")
    return chosen or (int(local) % torch.cuda.device_count() if local.isdecimal() else 0)


def _half(device: torch.device) -> Any:
    return "bf16" if device.type == "cpu" else "fp16"


def _tensor(image: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
