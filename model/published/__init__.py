"""Published checkpoints of any known family: recognised from their keys, loaded strictly."""

from model.published.imagenet import imagenet_weights
from model.published.layout import Preprocessing
from model.published.load import LoadReport, load_backbone_weights, load_published
from model.published.recognise import Recognised, layout_of, recognise_family

__all__ = [
    "LoadReport",
    "Preprocessing",
    "Recognised",
    "imagenet_weights",
    "layout_of",
    "load_backbone_weights",
    "load_published",
    "recognise_family",
]
