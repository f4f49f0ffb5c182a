"""A picture of 96 megapixels in bounded memory."""

import subprocess
import sys

import cv2
import numpy as np
import pytest

from tests.paths import ROOT
from tests.prediction import image_of, plain

pytestmark = pytest.mark.slow
HEIGHT, WIDTH = 8000, 12000
MEMORY = 2.2e9  # bytes: PyTorch's own, the picture (288 MB), what is drawn of it, a tile (some 0.6 GB)
PROGRAM = """
import resource, sys, model
model.MODELS["toy"] = "tests.faults.toy.Toy"
from tool import predict
status = predict.main(sys.argv[1:])
print(status, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def test_it_is_predicted_in_bounded_memory_as_untiled_inside_tiles(tmp_path, toy_weights):
    pytest.importorskip("resource")
    image = np.tile(cv2.resize(image_of(size=(20, 30)), (1500, 1000)), (8, 8, 1))
    cv2.imwrite(str(tmp_path / "large.png"), image[:, :, ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 1])
    words = [str(toy_weights), str(tmp_path / "large.png"), "--out", str(tmp_path / "out"), "--save", "overlay,rle"]
    done = subprocess.run([sys.executable, "-c", PROGRAM, *words], cwd=ROOT, capture_output=True, text=True, check=True)
    status, memory = done.stdout.split()[-2:]
    assert status == "0" and int(memory) < MEMORY, memory
    mask = cv2.imread(str(tmp_path / "out" / "large.png"), cv2.IMREAD_UNCHANGED)
    assert mask.shape == (HEIGHT, WIDTH) and mask.dtype == np.uint8
    part = plain(toy_weights, image[:1537, :1537])  # of a size at which its grid is the tile's
    assert np.array_equal(mask[:1400, :1400], part[:1400, :1400])
