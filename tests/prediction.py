"""What the tests of tool.predict share: a toy's checkpoint, random pictures, and their masks."""

import numpy as np
import torch
from PIL import Image

from model import build_model
from tests.conftest import CLASSES, COLORS
from tool import predict
from util import checkpoint
from util.score.predict import Predictor

MEAN, STD = (10.0, 20.0, 30.0), (50.0, 60.0, 70.0)


def write_checkpoint(file, seed=0, classes=CLASSES, **more):
    """A toy's checkpoint; its network is known where the fixture `toy_weights` is."""
    torch.manual_seed(seed)
    network = build_model("toy", len(classes))
    facts = {"classes": list(classes), "colors": [list(COLORS[i % 3]) for i in range(len(classes))]}
    facts |= {"preprocessing": {"mean": list(MEAN), "std": list(STD), "channel_order": "rgb"}}
    checkpoint.save(file, {"model": network.state_dict(), "spec": network.spec, **facts, **more})
    return file


def image_of(seed=0, size=(48, 64)):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


def write_image(path, seed=0, size=(48, 64)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image_of(seed, size)).save(path)
    return path


def plain(weights, image, **settings):
    """The mask that the predictor of tests/util/score gives, without a Segmenter."""
    network = build_model("toy", len(CLASSES))
    network.load_state_dict(checkpoint.load(weights)["model"])
    return Predictor(network, len(CLASSES), MEAN, STD, **settings)(torch.from_numpy(image).permute(2, 0, 1)).numpy()


def run(*arguments) -> int:
    """The exit status of tool.predict."""
    return predict.main([str(argument) for argument in arguments])
