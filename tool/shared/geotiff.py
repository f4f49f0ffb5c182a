"""Pictures with their place on the ground, read and written by windows."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from torch import Tensor

from dataset.read.header import UNREADABLE
from dataset.read.image import Limits, limits_of, to_8_bits
from tool.shared.segmenter import TILE, Segmentation, Segmenter, count_ids
from tool.shared.tiles import finished, id_type
from util import UserError
from util.record.files import replacing
from util.score.window import first_argmax

try:
    import rasterio
    from rasterio.enums import ColorInterp, MaskFlags
    from rasterio.errors import RasterioError
except ModuleNotFoundError:  # pip install -e .[geo]
    rasterio = None

SUFFIXES = (".tif", ".tiff")
MAP = ".tif"  # end of a georeferenced mask's name
WORLD_FILE = ".tfw"
# OGC GeoTIFF 1.1, section 7: pixel scale, tie points, transformation, keys. rasterio warns of files without.
GEOTIFF = (33550, 33922, 34264, 34735)
BLOCK = 256  # side of the blocks of a mask's file
NODATA = 255  # class id of pixels that the picture says nothing of, where no class has it
SAMPLE = 2048  # side to which a map is reduced to find the percentiles of its values
DRAWN = 1 << 27  # pixels of a map that is drawn and outlined as a whole


def is_georeferenced(path: Path) -> bool:
    """Tell whether a picture says where on the ground it lies.

    And rasterio is there to read it.
    """
    if rasterio is None or path.suffix.lower() not in SUFFIXES:
        return False
    try:
        with tifffile.TiffFile(path) as file:
            found = any(tag in file.pages.first.tags for tag in GEOTIFF)
    except UNREADABLE:
        return False  # whoever reads it next says what is wrong
    return found or path.with_suffix(WORLD_FILE).is_file()


def predict_geotiff(path: Path, target: Path, segmenter: Segmenter) -> tuple[tuple[int, int], np.ndarray]:
    """Write a georeferenced mask; return its size and pixels a class.

    Picture and mask are read and written by windows, so that memory is bounded whatever the size. Pixels that the
    picture says nothing of (nodata, or a transparent band) are nodata in the mask, too, 255.

    Raises:
        UserError: it has other bands than the network, or more than 16 bits without a range; or the mask would
            overwrite it.
        OSError: it cannot be read, or the mask not be written.
    """
    if target.resolve() == path.resolve():
        raise UserError(f"{path} would be overwritten by its result; choose another folder with --out")
    with _naming(path), rasterio.open(path) as file:
        bands, limits = _bands(file, path, segmenter), _limits(file, segmenter)
        size, counts = (file.height, file.width), np.zeros(len(segmenter.classes), np.int64)
        predict_part = segmenter.at_scale(size)

        def predict(rows: slice, columns: slice) -> Tensor:
            image = np.moveaxis(file.read(bands, window=_window(rows, columns)), 0, 2)
            return predict_part(to_8_bits(image, limits)).cpu()

        kind = id_type(len(segmenter.classes))
        masked = any(MaskFlags.all_valid not in flags for flags in file.mask_flag_enums)
        masked = masked and len(segmenter.classes) <= NODATA
        profile: dict[str, Any] = {"height": size[0], "width": size[1], "count": 1}
        profile |= {"crs": file.crs} | ({} if file.transform.is_identity else {"transform": file.transform})
        profile |= {
            "tiled": True,
            "blockxsize": BLOCK,
            "blockysize": BLOCK,
            "compress": "deflate",
            "BIGTIFF": "IF_SAFER",
        }
        profile |= {"dtype": kind.__name__, "nodata": NODATA if masked else None}
        target.parent.mkdir(parents=True, exist_ok=True)
        side = TILE if segmenter.tile == "auto" else segmenter.tile or max(size)
        with replacing(target) as temporary:
            with _naming(target), rasterio.open(temporary, "w", driver="GTiff", **profile) as mask:
                if file.gcps[0]:
                    mask.gcps = file.gcps
                for rows, columns, part in finished(predict, size, side):
                    ids, window = first_argmax(part).numpy(), _window(rows, columns)
                    if masked:
                        ids[file.dataset_mask(window=window) == 0] = NODATA
                    counts += count_ids(ids, len(counts))
                    mask.write(ids, 1, window=window)
            _check_written(temporary, target)
    return size, counts


def read_result(path: Path, target: Path, segmenter: Segmenter) -> Segmentation | None:
    """Return picture and mask of a map, unless it is too large."""
    with _naming(path), rasterio.open(path) as file, rasterio.open(target) as mask:
        if file.height * file.width > DRAWN:
            return None
        image = np.moveaxis(file.read(_bands(file, path, segmenter)), 0, 2)
        return Segmentation(to_8_bits(image, _limits(file, segmenter)), mask.read(1), segmenter)


def _bands(file: Any, path: Path, segmenter: Segmenter) -> list[int]:
    """The bands that the network takes: all, or all but transparency."""
    bands = list(file.indexes)
    if len(bands) != segmenter.channels:
        bands = [band for band in bands if file.colorinterp[band - 1] != ColorInterp.alpha]
    if len(bands) != segmenter.channels:
        raise UserError(f"{path}: {file.count} bands, the network was trained with {segmenter.channels}")
    if segmenter.limits is None and file.dtypes[0] not in ("uint8", "uint16"):
        raise UserError(f"{path}: values of {file.dtypes[0]}; the network was trained without data.range")
    return bands


def _limits(file: Any, segmenter: Segmenter) -> Limits | None:
    """The values that become 0 and 255: percentiles are those of all of the picture, from a sample of large ones."""
    if segmenter.limits is None or not isinstance(segmenter.limits[0], str):
        return segmenter.limits
    factor = min(SAMPLE / max(file.height, file.width), 1)
    shape = (max(round(file.height * factor), 1), max(round(file.width * factor), 1))
    bands = [band for band in file.indexes if file.colorinterp[band - 1] != ColorInterp.alpha][: segmenter.channels]
    return limits_of(np.moveaxis(file.read(bands, out_shape=(len(bands), *shape)), 0, 2), segmenter.limits)


def _check_written(file: Path, target: Path) -> None:
    """Refuse a mask that cannot be read again: GDAL does not always tell of a full disk."""
    try:
        with rasterio.open(file) as mask:
            mask.checksum(1)
    except RasterioError:
        raise OSError(f"{target}: cannot be read again after it was written; is the disk full?") from None


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Name the file in what rasterio raises."""
    try:
        yield
    except RasterioError as error:
        raise OSError(f"{path}: {str(error.__cause__ or error).splitlines()[0]}") from None


def _window(rows: slice, columns: slice) -> Any:
    return rasterio.windows.Window.from_slices((rows.start, rows.stop), (columns.start, columns.stop))
