"""Published checkpoints of any known family: recognised from their keys, loaded strictly."""

from model.published.load import LoadReport, Recognised, load_backbone_weights, load_published, recognise_family

__all__ = ["LoadReport", "Recognised", "load_backbone_weights", "load_published", "recognise_family"]
