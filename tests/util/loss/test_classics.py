"""Losses against the values of the published classics on seeded inputs (losses_classics.json)."""

import json
import re

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.paths import SHARED
from util.loss import SegLoss

pytestmark = pytest.mark.fast

FILE = SHARED / "parity" / "losses_classics.json"
# Weights of Cityscapes's classes that the published OHEM loss has built in.
WEIGHTS = (0.8373, 0.918, 0.866, 1.0345, 1.0166, 0.9969, 0.9754, 1.0489, 0.8786, 1.0023)
WEIGHTS += (0.9539, 0.9843, 1.1116, 0.9037, 1.0865, 1.0955, 1.0865, 1.1529, 1.0507)
INPUTS = {"out": "p0", "aux": "p1", "second": "p2", "se": "se"}
CASCADE = {"quarter": "icnet_sub4", "eighth": "icnet_sub8", "sixteenth": "icnet_sub16"}
LABELS = {
    "noise": np.random.RandomState(100).randint(-1, 19, (2, 32, 48)),
    "block": np.kron(np.random.RandomState(101).randint(-1, 19, (2, 8, 12)), np.ones((1, 4, 4), np.int64)),
}


@pytest.fixture(scope="module")
def recorded() -> dict:
    if not FILE.is_file():
        pytest.skip(f"reference values not present: no {FILE}")
    return json.loads(FILE.read_text())


def made(recorded: dict, name: str) -> torch.Tensor:
    number, shape = recorded["inputs"][name]
    return torch.from_numpy(2 * np.random.RandomState(number).randn(*shape)).float()


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize(
    ("value", "weights"),
    [
        ("mix/aux_off", {"out": 1.0}),
        ("mix/aux0.2_1aux", {"out": 1.0, "aux": 0.2}),
        ("mix/aux0.4_2aux", {"out": 1.0, "aux": 0.4, "second": 0.4}),
        ("enc/se_noaux", {"out": 1.0, "se": 0.2}),
        ("enc/nose_aux", {"out": 1.0, "aux": 0.4}),
        ("enc/se_aux", {"out": 1.0, "se": 0.2, "aux": 0.4}),
        *(
            (f"ohem/min_kept{kept}/{kind}", {"out": 1.0})
            for kept in (0, 1000, 2000, 100000)
            for kind in ("weighted", "unweighted")
        ),
        ("ohem/thresh0.0001_min_kept100/unweighted", {"out": 1.0}),
        ("mixohem/aux0.4", {"out": 1.0, "aux": 0.4}),
    ],
)
def test_the_weighted_sum_is_that_of_the_published_code(recorded, value, weights, label):
    options, name, classes = {}, "cross_entropy", None
    if "ohem" in value:
        name, kept, threshold = "ohem", re.search(r"kept(\d+)", value), re.search(r"thresh([\d.]+)_", value)
        options = {
            "min_kept": int(kept[1]) if kept else 100_000,
            "threshold": float(threshold[1]) if threshold else 0.7,
        }
        classes = None if "unweighted" in value else WEIGHTS
    criterion = SegLoss(weights, 19, -1, classes, name=name, options=options)
    outputs = {output: made(recorded, INPUTS[output]) for output in weights}
    total, _ = criterion(outputs, torch.from_numpy(LABELS[label]).long())
    assert float(total) == pytest.approx(recorded["values"][f"{value}/{label}"], rel=1e-6)


@pytest.mark.parametrize("label", LABELS)
def test_the_cascade_loss_is_that_of_the_published_code(recorded, label):
    """ICNet's total, given the labels that the published code reads.

    It resizes class indices bilinearly and cuts the fraction off, which mixes classes; these labels are made here.
    """
    criterion = SegLoss({"out": 0.0, "quarter": 1.0, "eighth": 0.4, "sixteenth": 0.4}, 19, ignore_label=-1)
    total, indices = 0.0, torch.from_numpy(LABELS[label])[None].float()
    for output, name in CASCADE.items():
        logits = made(recorded, name)
        mixed = F.interpolate(indices, logits.shape[-2:], mode="bilinear", align_corners=True)[0].long()
        total += float(criterion({output: logits}, mixed)[0])
    assert total == pytest.approx(recorded["values"][f"icnet/aux0.4/{label}"], rel=1e-6)
