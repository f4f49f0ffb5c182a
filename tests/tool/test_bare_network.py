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
    assert (tmp_path / "run" / "result" / "val-whole" / "metrics.json").is_file()


@pytest.mark.parametrize(
    ("name", "backbone", "weights", "extra"),
    [
        ("pidnet", None, {"out": 1.0, "aux": 0.4, "boundary": 20.0}, {"boundary_aware": 1.0}),
        ("icnet", "resnet18_v1s", {"out": 0.0, "quarter": 1.0, "eighth": 0.4, "sixteenth": 0.4}, {}),
        ("stdc", "stdc1", {"out": 1.0, "aux0": 1.0, "aux1": 1.0, "detail": 1.0}, {}),
    ],
)
def test_outputs_with_losses_of_their_own_are_trained(tmp_path, data, name, backbone, weights, extra):
    experiment = make_experiment(
        tmp_path,
        data,
        model={"name": name, "backbone": backbone},
        loss={"name": "ohem", "options": {"min_kept": 500}, "weights": weights, "extra": extra},
        train={"epochs": 1, "log_every": 1},
    )
    run = tmp_path / "run"
    assert train.main(["--config", str(experiment), "--exp", str(run)]) == 0
    log = (run / "train.log").read_text()
    for term in (*weights, *extra):
        assert f" {term} " in log, term
