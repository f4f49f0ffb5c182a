"""A network without a backbone, with an output that is no map: through training, evaluation and its checkpoint."""

import pytest
import torch
from torch import nn

import model as models
from model import build_model
from model.base import SegModel
from tests.conftest import make_experiment
from tool import test, train


class Bare(SegModel):
    """Two convolutions; "masks" are four-dimensional, but no logits of classes."""

    raw_outputs = ("masks",)

    def __init__(self, num_classes: int, dropout: float = 0.0):
        super().__init__()
        self.body = nn.Conv2d(3, 8, 3, 4, 1)
        self.classifier = nn.Conv2d(8, num_classes, 1)

    def forward_features(self, x):
        return [self.body(x)]

    def decode(self, features):
        return {"out": self.classifier(features[-1]), "masks": features[-1]}


class Plain(Bare):
    raw_outputs = ()

    def decode(self, features):
        return {"out": super().decode(features)["out"]}


@pytest.fixture(autouse=True)
def listed(monkeypatch):
    for kind in (Bare, Plain):
        monkeypatch.setitem(models.MODELS, kind.__name__.lower(), f"{__name__}.{kind.__name__}")


def test_an_output_that_is_no_map_stays_as_it_is():
    outputs = build_model("bare", 3)(torch.zeros(1, 3, 33, 40))
    assert outputs["out"].shape == (1, 3, 33, 40)
    assert outputs["masks"].shape == (1, 8, 9, 10)


def test_a_network_without_backbone_trains_and_is_scored(tmp_path, data):
    experiment = make_experiment(
        tmp_path, data, model={"name": "plain", "backbone": None}, train={"epochs": 1, "log_every": 1}
    )
    arguments = ["--config", str(experiment), "--exp", str(tmp_path / "run")]
    assert train.main(arguments) == 0
    assert test.main(arguments) == 0
    assert (tmp_path / "run" / "result" / "metrics.json").is_file()
