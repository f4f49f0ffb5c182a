"""Pictures with their place on the ground, read and written by windows."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tool.shared.segmenter import TILE, Segmenter
from tool.shared.tiles import finished
from util import UserError
from util.record.files import replacing

try:
    import rasterio
    from rasterio.errors import RasterioError
except ModuleNotFoundError:  # pip install -e .[geo]
    rasterio = None

SUFFIXES = (".tif", ".tiff")
MAP = ".tif"  # end of a georeferenced mask's name
BLOCK = 256  # side of the blocks of a mask's file


def is_georeferenced(path: Path) -> bool:
    """Tell whether a picture says where on the ground it lies.

    And rasterio is there to read it.
    """
    if rasterio is None or path.suffix.lower() not in SUFFIXES:
        return False
    try:
        with rasterio.open(path) as file:
            return file.crs is not None
    except RasterioError:
        return False  # whoever reads it next says what is wrong


def predict_geotiff(path: Path, target: Path, segmenter: Segmenter) -> tuple[tuple[int, int], np.ndarray]:
    """Write a georeferenced mask; return its size and pixels a class.

    Picture and mask are read and written by windows, so that memory is bounded whatever the size.

    Raises:
        UserError: it has other bands than the network, or more than 8 bits without a range; or the mask would
            overwrite it.
    """
    if target.resolve() == path.resolve():
        raise UserError(f"{path} would be overwritten by its result; choose another folder with --out")
    with rasterio.open(path) as file:
        if file.count != segmenter.channels:
            raise UserError(f"{path}: {file.count} bands, the network was trained with {segmenter.channels}")
        if file.dtypes[0] != "uint8" and segmenter.limits is None:
            raise UserError(f"{path}: values of {file.dtypes[0]}; the network was trained without data.range")
        size, counts = (file.height, file.width), np.zeros(len(segmenter.classes), np.int64)

        def predict(rows: slice, columns: slice) -> Tensor:
            bands = file.read(window=_window(rows, columns))
            image = segmenter.read(np.moveaxis(bands, 0, 2))
            return segmenter.predictor.probabilities(torch.from_numpy(image).permute(2, 0, 1)).cpu()

        place = {"crs": file.crs, "transform": file.transform, "height": size[0], "width": size[1]}
        layout = {"tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK, "compress": "deflate"}
        target.parent.mkdir(parents=True, exist_ok=True)
        side = TILE if segmenter.tile == "auto" else segmenter.tile or max(size)
        with (
            replacing(target) as temporary,
            rasterio.open(temporary, "w", driver="GTiff", count=1, dtype="uint8", **place, **layout) as mask,
        ):
            for rows, columns, part in finished(predict, size, side):
                ids = part.argmax(0).numpy().astype(np.uint8)
                counts += np.bincount(ids.ravel(), minlength=len(counts))
                mask.write(ids, 1, window=_window(rows, columns))
    return size, counts


def _window(rows: slice, columns: slice):
    return rasterio.windows.Window.from_slices((rows.start, rows.stop), (columns.start, columns.stop))
