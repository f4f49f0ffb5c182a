"""One epoch of training in every option of the Semantic-Flow networks, of the losses and of the sampling."""

import math

import cv2
import numpy as np
import pytest
import yaml

from tests.conftest import make_experiment
from tests.tool.test_train import logged_losses, run, run_to_first_checkpoint, same
from tool import train
from util import checkpoint
from util.config.load import merge

DSN = {"out": 1.0, "dsn0": 0.4, "dsn1": 0.4, "dsn2": 0.4}
MIXES = {
    **{"vflip_prob": 0.5, "turn_prob": 0.5, "cutout_prob": 0.5, "cutmix_prob": 0.2, "classmix_prob": 0.2},
    **{"copy_paste_prob": 0.2, "copy_paste_classes": ["ball"]},
}
OPTIONS = {
    "plain": {"model": {"name": "semanticflow", "options": {}}},
    "deep supervision, OHEM": {
        "model": {"name": "semanticflow", "options": {"deep_supervision": True}},
        "loss": {"name": "ohem", "options": {"min_kept": 500}, "weights": DSN},
    },
    "port's warp, bf16": {
        "model": {"name": "semanticflow", "options": {"flow_align_corners": False}},
        "train": {"amp": "bf16"},
    },
    "sppm": {"model": {"name": "semanticflow", "options": {"context": "sppm"}}},
    "dfnet": {"model": {"name": "semanticflow", "backbone": "dfnet_v1", "options": {}}},
    "lite": {"model": {"name": "semanticflow_lite", "options": {}}},
    "lite, no gate": {"model": {"name": "semanticflow_lite", "options": {"gate": False}}},
    "lite, stdc": {"model": {"name": "semanticflow_lite", "backbone": "stdc1", "options": {}}},
    "all augmentation": {"augment": MIXES},
    "relaxed boundaries": {"loss": {"name": "relaxed"}},
    "dice and Lovasz beside cross entropy": {"loss": {"extra": {"dice": 0.5, "lovasz": 0.5}, "label_smoothing": 0.1}},
    "class-uniform, photometric": {"loader": {"uniform": 0.5}, "augment": {"photometric": True}},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_an_epoch(tmp_path, data, name):
    sections = {"train": {"epochs": 1, "val_every": 0, **OPTIONS[name].get("train", {})}}
    path = make_experiment(tmp_path, data)
    raw = merge(yaml.safe_load(path.read_text()), {**OPTIONS[name], **sections})
    if "model" in OPTIONS[name]:
        raw["model"]["options"] = OPTIONS[name]["model"]["options"]
    path.write_text(yaml.safe_dump(raw))
    assert train.main(["--config", str(path), "--exp", str(tmp_path / "run")]) == 0
    assert all(map(math.isfinite, logged_losses(tmp_path / "run")))
    assert checkpoint.load(tmp_path / "run" / "model" / "last.pth")["step"] == 4


def test_class_uniform_sampling_continues_in_the_same_order(tmp_path, data):
    """Killed after the first epoch, the run ends in the weights of the uninterrupted one."""
    experiment = make_experiment(tmp_path, data, loader={"uniform": 0.5}, train={"val_every": 0})
    whole = run(experiment, tmp_path / "whole")
    run_to_first_checkpoint(experiment, tmp_path / "halves")
    assert same(run(experiment, tmp_path / "halves", "loader.workers=2")["model"], whole["model"])


def test_class_weights_by_median_frequency(tmp_path, data, caplog):
    """As counted by hand: the share of a class in the labels that hold it; the median of all over its own."""
    experiment = make_experiment(tmp_path, data, train={"epochs": 1, "val_every": 0}, loss={"class_weights": "auto"})
    run = tmp_path / "run"
    assert train.main(["--config", str(experiment), "--exp", str(run)]) == 0
    pixels, around = np.zeros(3), np.zeros(3)
    for file in sorted((data / "label").glob("train_*.png")):
        counts = np.bincount(cv2.imread(str(file), cv2.IMREAD_UNCHANGED).ravel(), minlength=256)[:3]
        pixels += counts
        around += (counts > 0) * counts.sum()
    share = pixels / around
    expected = np.median(share) / share
    found = checkpoint.load(run / "model" / "last.pth")["config"]["loss"]["class_weights"]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert "class_weights: auto" in (run / "config.yaml").read_text()
    assert train.main(["--config", str(experiment), "--exp", str(run), "train.epochs=2"]) == 0  # continues
