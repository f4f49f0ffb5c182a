"""A picture in every form gives the same mask; of any size, number of classes and protocol."""

import pickle

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import model
from model import build_model
from model.base import SegModel
from tests.conftest import COLORS
from tests.prediction import MEAN, STD, image_of, plain, write_checkpoint
from tool.shared import segmenter as module
from tool.shared.segmenter import Segmenter
from util import checkpoint
from util.score.predict import Predictor

pytestmark = pytest.mark.fast
GREY = image_of()[:, :, 0]
OPENED = {
    "RGBA": Image.fromarray(np.dstack([image_of(), GREY])),
    "L": Image.fromarray(GREY),
    "LA": Image.fromarray(np.dstack([GREY, GREY // 2])),
    "P": Image.fromarray(image_of()).convert("P"),
    "1": Image.fromarray(GREY).convert("1"),
    "I;16": Image.fromarray(GREY.astype(np.uint16) * 256 + 7),
}


@pytest.mark.parametrize("mode", OPENED)
def test_an_opened_picture_is_read_as_its_file(tmp_path, toy_weights, mode):
    assert OPENED[mode].mode == mode
    OPENED[mode].save(tmp_path / "a.png")
    segmenter = Segmenter(toy_weights)
    expected = segmenter.read(tmp_path / "a.png")
    assert np.array_equal(segmenter.read(OPENED[mode]), expected)
    assert np.array_equal(segmenter(Image.open(tmp_path / "a.png")).mask, segmenter(expected).mask)


class Line(SegModel):
    """A network for pictures of one channel, or with many classes."""

    def __init__(self, num_classes: int, backbone: str | None = None, in_channels: int = 3, field: int = 1):
        super().__init__(torch.nn.Conv2d(in_channels, 4, field, 1, 0))
        self.head = torch.nn.Conv2d(4, num_classes, 1)

    def forward_features(self, x):
        return [self.backbone(x)]

    def decode(self, features):
        return {"out": self.head(features[-1])}


def write_line(file, classes, channels=3, field=1, **more):
    torch.manual_seed(0)
    network = build_model("line", classes, in_channels=channels, field=field)
    facts = {"preprocessing": {"mean": [9.0] * channels, "std": [8.0] * channels, "channel_order": "rgb"} | more}
    checkpoint.save(file, {"model": network.state_dict(), "spec": network.spec, **facts})
    return file


@pytest.fixture
def line(monkeypatch):
    monkeypatch.setitem(model.MODELS, "line", f"{__name__}.Line")


def test_grey_pictures_of_a_network_for_one_channel(tmp_path, line):
    segmenter = Segmenter(write_line(tmp_path / "grey.pth", 4, channels=1))
    Image.fromarray(GREY).save(tmp_path / "a.png")
    masks = [segmenter(each).mask for each in (tmp_path / "a.png", Image.fromarray(GREY), GREY[:, :, None])]
    assert masks[0].shape == GREY.shape and all(np.array_equal(mask, masks[0]) for mask in masks)
    with pytest.raises(ValueError, match="1 channels"):
        segmenter(Image.fromarray(image_of()))


@pytest.mark.parametrize("limits", [[50, 200], ["2%", "98%"]])
def test_a_range_of_values_holds_for_files_and_arrays(tmp_path, line, limits):
    """An array of 8 bits holds what its file holds."""
    segmenter = Segmenter(write_line(tmp_path / "range.pth", 4, range=limits))
    Image.fromarray(image_of()).save(tmp_path / "a.png")
    expected = segmenter.read(tmp_path / "a.png")
    assert not np.array_equal(expected, image_of())
    for picture in (image_of(), Image.fromarray(image_of()), torch.from_numpy(image_of()).permute(2, 0, 1)):
        assert np.array_equal(segmenter.read(picture), expected)


@pytest.mark.parametrize("tile", [None, 33])
def test_ids_of_more_than_256_classes_have_16_bits(tmp_path, line, tile):
    segmenter = Segmenter(write_line(tmp_path / "many.pth", 300), tile=tile)
    result = segmenter(image_of())
    assert result.mask.dtype == np.uint16 and result.mask.max() > 255
    assert np.array_equal(result.mask, result.probabilities.argmax(0))
    assert np.array_equal(result.color(), segmenter.colors[result.mask])
    assert result.counts().sum() == result.mask.size and len(result.classes) == 300


def test_a_checkpoint_without_colours_is_drawn(tmp_path, line):
    result = Segmenter(write_line(tmp_path / "plain.pth", 4))(image_of())
    assert result.overlay().shape == (48, 64, 3) and len(np.unique(result.color().reshape(-1, 3), axis=0)) > 1


@pytest.mark.parametrize("size", [(1, 1), (3, 90), (40, 5)])
def test_a_picture_smaller_than_the_network_takes_stands_in_the_mean_colour(tmp_path, line, size):
    """The network looks at 9 x 9 pixels without padding."""
    file = write_line(tmp_path / "wide.pth", 4, field=9)
    image = image_of(size=size)
    field = np.full((max(size[0], 64), max(size[1], 64), 3), 9, np.uint8)
    top, left = (field.shape[0] - size[0]) // 2, (field.shape[1] - size[1]) // 2
    field[top : top + size[0], left : left + size[1]] = image
    segmenter = Segmenter(file)
    assert np.array_equal(segmenter(image).mask, segmenter(field).mask[top : top + size[0], left : left + size[1]])


def test_tiles_are_resized_as_the_whole_picture_is(tmp_path, toy_weights):
    """A protocol that resizes each picture to one length; the tiles of one are resized by its factor, not theirs."""
    protocol = {"scales": [1.0], "flip": False, "window": None, "stride_rate": 0.5, "base_size": 320}
    weights = write_checkpoint(tmp_path / "sized.pth", protocol=protocol)
    image = cv2.resize(image_of(size=(10, 40)), (640, 160))
    whole, tiled = (Segmenter(weights, tile=tile)(image) for tile in (None, 257))
    assert np.array_equal(whole.mask, plain(weights, image, base_size=320))
    assert np.mean(whole.mask == tiled.mask) > 0.9


def test_what_yields_pictures_is_a_list(toy_weights):
    segmenter = Segmenter(toy_weights)
    results = segmenter(image_of(seed) for seed in range(2))
    assert len(results) == 2 and np.array_equal(results[1].mask, segmenter(image_of(1)).mask)
    assert segmenter([]) == []


def test_memory_that_cannot_be_written_is_read_without_a_warning(toy_weights, recwarn):
    image = image_of()
    image.flags.writeable = False
    segmenter = Segmenter(toy_weights)
    for picture in (image, np.asfortranarray(image), image[::-1][::-1]):
        assert np.array_equal(segmenter(picture).mask, plain(toy_weights, image_of()))
    assert not [warning for warning in recwarn if "writable" in str(warning.message)]


def test_a_result_says_what_it_holds(toy_weights):
    segmenter = Segmenter(toy_weights)
    result = segmenter(image_of())
    assert repr(result).startswith("Segmentation(48x64 pixels: ") and "3 classes" in repr(segmenter)
    again = pickle.loads(pickle.dumps(segmenter))(image_of())
    assert np.array_equal(again.mask, result.mask) and again != result


def test_an_overlay_mixes_in_the_given_part(toy_weights):
    result = Segmenter(toy_weights)(image_of(size=(600, 40)))
    colors = np.array(COLORS, float)[result.mask]
    for opacity in (0, 0.3, 1):
        assert np.abs(result.overlay(opacity) - ((1 - opacity) * result.image + opacity * colors)).max() <= 0.5
    for wrong in (2, float("nan"), "half"):
        with pytest.raises(ValueError, match="opacity"):
            result.overlay(wrong)


def test_processes_of_torchrun_have_a_gpu_each(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    for chosen, local, expected in ((0, "", 0), (0, "2", 2), (0, "5", 1), (3, "1", 3)):
        monkeypatch.setattr(torch.cuda, "current_device", lambda chosen=chosen: chosen)
        monkeypatch.setenv("LOCAL_RANK", local)
        assert module._gpu() == expected


def test_the_ids_of_256_classes_still_are_bytes(line):
    network = build_model("line", 256)
    mask = Predictor(network, 256, MEAN, STD)(torch.from_numpy(image_of()).permute(2, 0, 1))
    assert mask.dtype == torch.uint8
