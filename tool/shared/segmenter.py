"""A trained network as a function from pictures to masks.

>>> segmenter = Segmenter("last.pth")
>>> mask = segmenter("photo.jpg").mask                  # uint8 (H, W), the class of each pixel
"""

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, overload

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from dataset.read.image import read_image, to_8_bits
from tool.shared import plugins as own_code
from tool.shared.hub import SCHEME, local_file
from tool.shared.network import build_predictor, rebuild
from tool.shared.published import read_ours, without_void
from tool.shared.tiles import classes_in_tiles, probabilities_in_tiles
from util import UserError
from util.checkpoint.facts import Facts, facts_of
from util.config.check import check_protocol
from util.config.schema import TestConfig
from util.report.visual import as_rgb, colorize
from util.score.predict import Predictor

WHOLE = 8_000_000  # pixels up to which tile="auto" predicts a picture at once
TILE = 2049  # side of the tiles of larger pictures
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
        if tile != "auto" and tile is not None and (isinstance(tile, bool) or not isinstance(tile, int) or tile < 2):
            raise UserError(f"tile must be 'auto', None, or a side of at least 2 pixels, not {tile!r}")
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
        self.colors = None if facts.colors is None else np.array(facts.colors[:count], np.uint8)
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
    def __call__(self, picture: Sequence[Picture]) -> "list[Segmentation]": ...

    def __call__(self, picture: Picture | Sequence[Picture]) -> "Segmentation | list[Segmentation]":
        """Predict a picture, or each of a list.

        Args:
            picture: a path; a PIL image, which is turned upright; an array uint8 (H, W, 3), RGB; a tensor uint8
                (3, H, W). Of a network for other channels, as many as it was trained with.

        Raises:
            UserError, OSError: it cannot be read, or is of another kind.
        """
        if isinstance(picture, list | tuple):
            return [self(each) for each in picture]
        image = self.read(picture)
        return Segmentation(image, self._mask(image), self)

    def read(self, picture: Any) -> np.ndarray:
        """Return a picture as uint8 (H, W, C)."""
        if isinstance(picture, PATHS):
            return read_image(picture, None, self.channels, self.limits)
        if isinstance(picture, Image.Image):
            return _array_of(picture)
        if isinstance(picture, Tensor):
            picture = picture.detach().cpu().permute(1, 2, 0).numpy() if picture.ndim == 3 else picture.cpu().numpy()
        if not isinstance(picture, np.ndarray):
            raise UserError(f"a picture is a path, a PIL image, an array or a tensor, not {type(picture).__name__}")
        if self.limits is not None and picture.dtype != np.uint8:
            picture = to_8_bits(picture, self.limits)
        if picture.ndim != 3 or picture.shape[2] != self.channels or picture.dtype != np.uint8 or not picture.size:
            wanted = f"uint8 (H, W, {self.channels}), or a tensor uint8 ({self.channels}, H, W)"
            raise UserError(f"an array must be {wanted}, not {picture.dtype} {picture.shape}")
        return np.ascontiguousarray(picture)

    def side_of(self, height: int, width: int) -> int | None:
        """Return the side of a picture's tiles; None: predicted at once."""
        if self.tile == "auto":
            return TILE if height * width > WHOLE else None
        return self.tile if self.tile is not None and max(height, width) > self.tile else None

    def _mask(self, image: np.ndarray) -> np.ndarray:
        side = self.side_of(*image.shape[:2])
        if side is None:
            return self.predictor(_tensor(image)).cpu().numpy()
        return classes_in_tiles(self._part(image), image.shape[:2], side)

    def probabilities(self, image: np.ndarray) -> np.ndarray:
        """Return the probability of each class, float32 (classes, H, W).

        image: uint8 (H, W, C).
        """
        side = self.side_of(*image.shape[:2])
        if side is None:
            return self.predictor.probabilities(_tensor(image)).cpu().numpy()
        return probabilities_in_tiles(self._part(image), image.shape[:2], side, len(self.classes))

    def _part(self, image: np.ndarray) -> Callable[[slice, slice], Tensor]:
        def predict(rows: slice, columns: slice) -> Tensor:
            return self.predictor.probabilities(_tensor(image[rows, columns])).cpu()

        return predict


@dataclass(frozen=True)
class Segmentation:
    """A predicted picture.

    Args:
        image: the picture, uint8 (H, W, C).
        mask: class ids, uint8 (H, W).
        segmenter: what predicted it.
    """

    image: np.ndarray
    mask: np.ndarray
    segmenter: Segmenter

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
        if self.segmenter.colors is None:
            raise UserError(f"{self.segmenter.file}: holds no colours of its classes")
        return colorize(self.mask, self.segmenter.colors)

    def overlay(self, opacity: float = 0.5) -> np.ndarray:
        """Draw the mask over the picture, uint8 (H, W, 3).

        opacity: of the mask, 0 to 1.
        """
        if not 0 <= opacity <= 1:
            raise UserError(f"opacity must be 0 to 1, not {opacity}")
        mixed = (1 - opacity) * as_rgb(self.image) + opacity * self.color()
        return np.round(mixed).astype(np.uint8)

    def counts(self) -> np.ndarray:
        """Count the pixels of each class, int64 (classes,)."""
        return np.bincount(self.mask.ravel(), minlength=len(self.classes))


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
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {str(device)!r} cannot be used: {str(error).splitlines()[0]}") from None
    return device


def _half(device: torch.device) -> Any:
    return "bf16" if device.type == "cpu" else "fp16"


def _array_of(picture: Image.Image) -> np.ndarray:
    """A PIL image upright, as uint8 (H, W, 3)."""
    picture = ImageOps.exif_transpose(picture)
    if picture.mode in ("RGBA", "LA", "PA") and picture.getchannel("A").getextrema()[0] < 255:
        raise UserError(f"the picture has a transparent band ({picture.mode}); say what lies behind it: convert to RGB")
    if picture.mode in ("F", "I") or picture.mode.startswith("I;"):
        raise UserError(f"the picture has values beyond 8 bits (mode {picture.mode}); scale them to 0..255")
    return np.array(picture.convert("RGB"))


def _tensor(image: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
