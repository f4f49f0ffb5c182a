"""Georeferenced pictures: their bands, depths, and pixels that they say nothing of."""

import json

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.prediction import image_of, plain, run, write_checkpoint
from tool.shared.geotiff import is_georeferenced
from tool.shared.predictions import INDEX
from tool.shared.segmenter import Segmenter

rasterio = pytest.importorskip("rasterio")
pytestmark = pytest.mark.fast
SIZE = (100, 150)
PLACE = {"crs": "EPSG:25832", "transform": rasterio.Affine(0.2, 0, 500000, 0, -0.2, 5700000)}


def write_map(path, image, **more):
    """image: (H, W, bands)."""
    height, width, count = image.shape
    shape = {"height": height, "width": width, "count": count, "dtype": image.dtype.name}
    with rasterio.open(path, "w", driver="GTiff", **(shape | PLACE | more)) as file:
        file.write(np.moveaxis(image, 2, 0))
    return path


def predicted(toy_weights, path, *more):
    """The mask's file, open."""
    assert run(toy_weights, path, "--out", path.parent / "out", *more) == 0
    return rasterio.open(path.parent / "out" / f"{path.stem}.tif")


def test_pixels_without_data_are_without_a_class(tmp_path, toy_weights):
    image = np.maximum(image_of(size=SIZE), 1)
    image[20:40, 30:90] = 0
    with predicted(toy_weights, write_map(tmp_path / "a.tif", image, nodata=0)) as mask:
        expected = plain(toy_weights, image)
        expected[20:40, 30:90] = 255
        assert mask.nodata == 255 and np.array_equal(mask.read(1), expected)
        assert mask.crs == PLACE["crs"] and mask.transform == PLACE["transform"]
    entry = json.loads((tmp_path / "out" / INDEX).read_text().splitlines()[1])
    assert sum(entry["shares"].values()) == pytest.approx(1)


def test_a_transparent_band_is_what_lies_outside(tmp_path, toy_weights):
    image, alpha = image_of(size=SIZE), np.full(SIZE, 255, np.uint8)
    alpha[:, :40] = 0
    path = write_map(tmp_path / "a.tif", np.dstack([image, alpha]), photometric="RGB", alpha="YES")
    with predicted(toy_weights, path) as mask:
        expected = plain(toy_weights, image)
        expected[:, :40] = 255
        assert np.array_equal(mask.read(1), expected)


def test_a_map_of_other_bands_is_refused(tmp_path, toy_weights, capsys):
    path = write_map(tmp_path / "a.tif", np.dstack([image_of(size=SIZE)] * 2))
    assert run(toy_weights, path, "--out", tmp_path / "out") == 1
    assert "6 bands, the network was trained with 3" in "".join(capsys.readouterr())


@pytest.mark.parametrize("limits", [None, [300, 40000], ["2%", "98%"]])
def test_16_bits_are_read_as_without_a_place(tmp_path, toy_weights, limits):
    preprocessing = {"mean": [10.0, 20.0, 30.0], "std": [50.0, 60.0, 70.0], "channel_order": "rgb"}
    more = {} if limits is None else {"preprocessing": preprocessing | {"range": limits}}
    weights = write_checkpoint(tmp_path / "deep.pth", **more)
    image = image_of(size=SIZE).astype(np.uint16) * 200 + 77
    bare = tmp_path / "bare.png"
    cv2.imwrite(str(bare), image[:, :, ::-1])
    with predicted(weights, write_map(tmp_path / "a.tif", image), "--tile", "65") as mask:
        assert np.array_equal(mask.read(1), Segmenter(weights, tile=65)(bare).mask)


def test_what_is_drawn_of_a_map(tmp_path, toy_weights):
    image = np.maximum(image_of(size=SIZE), 1)
    image[20:40, 30:90] = 0
    path = write_map(tmp_path / "a.tif", image, nodata=0)
    with predicted(toy_weights, path, "--save", "color,overlay,rle") as file:
        mask = file.read(1)
    color = cv2.imread(str(tmp_path / "out" / "color" / "a.png"))
    assert color.shape == (*SIZE, 3) and not color[mask == 255].any()
    assert (tmp_path / "out" / "overlay" / "a.png").is_file()
    found = json.loads((tmp_path / "out" / "rle" / "a.json").read_text())["annotations"]
    assert sum(each["area"] for each in found) == (mask != 255).sum()


def test_a_tiff_without_a_place_is_a_picture(tmp_path, toy_weights, recwarn):
    Image.fromarray(image_of()).save(tmp_path / "a.tif")
    assert not is_georeferenced(tmp_path / "a.tif") and not is_georeferenced(tmp_path / "gone.tif")
    assert run(toy_weights, tmp_path / "a.tif", "--out", tmp_path / "bare") == 0
    assert (tmp_path / "bare" / "a.png").is_file()
    assert not [warning for warning in recwarn if "geotransform" in str(warning.message)]
    (tmp_path / "a.tfw").write_text("0.2\n0\n0\n-0.2\n500000.1\n5699999.9\n")
    with predicted(toy_weights, tmp_path / "a.tif") as mask:
        assert mask.transform.almost_equals(PLACE["transform"], 1e-3)


def test_a_damaged_map_stops_nothing(tmp_path, toy_weights, capsys):
    path = write_map(tmp_path / "a.tif", image_of(size=SIZE))
    path.write_bytes(path.read_bytes()[:20000])
    write_map(tmp_path / "b.tif", image_of(size=SIZE))
    assert run(toy_weights, path, tmp_path / "b.tif", "--out", tmp_path / "out") == 1
    assert "a.tif" in "".join(capsys.readouterr())
    assert [file.name for file in sorted((tmp_path / "out").iterdir())] == ["b.tif", INDEX]
