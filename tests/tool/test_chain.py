"""Each data set by commands alone: official tree, prepare, doctor, a training step, metrics, the labels of a server."""

import json
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

import model
from dataset import build_dataset
from dataset.read import DataError
from tests.conftest import newest_metrics
from tests.official_trees import TREES
from tests.paths import ROOT
from tool import doctor, prepare, test, train


def experiment(folder: Path, name: str, root: Path) -> Path:
    """The data set as config/base/data has it, with network, crop and length of a test."""
    raw = {
        "base": [f"{ROOT}/config/base/data/{name}.yaml", f"{ROOT}/config/base/recipe/scratch.yaml"],
        "data": {"root": str(root)},
        "augment": {"crop": [8, 12]},
        "loader": {"workers": 0},
        "model": {"name": "toy"},
        "optim": {"warmup_iters": 0},
        "train": {"epochs": 1, "batch_size": 1, "amp": "off", "val_every": 1},
        "test": {"pictures": 1},
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


@pytest.mark.parametrize("name", TREES)
def test_from_the_official_tree_to_a_score(tmp_path, capsys, monkeypatch, name):
    monkeypatch.setitem(model.MODELS, "toy", "tests.faults.toy.Toy")
    root, run = tmp_path / "data", tmp_path / "run"
    tree, counts, _ = TREES[name]
    tree(root)
    assert prepare.main([name, "--root", str(root)]) == 0
    assert doctor.main([name, "fcn18", f"data.root={root}", "--workers", "1", "--cache", str(tmp_path / "doctor")]) == 0
    assert "0 errors" in capsys.readouterr().out
    arguments = ["--config", str(experiment(tmp_path, name, root)), "--exp", str(run)]
    assert train.main(arguments) == 0
    assert test.main([*arguments, "test.split=val"]) == 0
    metrics = json.loads(newest_metrics(run).read_text())
    val = build_dataset(name, root, split="val")
    labels = [val[i]["label"] for i in range(len(val))]
    assert metrics["num_images"] == counts["val"]
    pixels = [each["pixels"] for each in metrics["classes"]]
    assert pixels == [sum(int((label == i).sum()) for label in labels) for i in range(len(val.classes))]

    # What a test server gets is read by the data set's own map to what was predicted.
    if name == "camvid_full":  # 32 colours are 11 classes
        with pytest.raises(DataError, match=r"gives class 'building' the values .* on disk"):
            test.main([*arguments, "test.split=val", "test.submission=true"])
        return
    assert test.main([*arguments, "test.split=val", "test.submission=true"]) == 0
    result = newest_metrics(run).parent
    with zipfile.ZipFile(result / "submission.zip") as archive:
        for file in archive.namelist():
            (tmp_path / "sent.png").write_bytes(archive.read(file))
            sent = cv2.imread(str(tmp_path / "sent.png"), cv2.IMREAD_UNCHANGED)
            sent = sent[:, :, ::-1] if sent.ndim == 3 else sent
            predicted = cv2.imread(str(result / "gray" / file), cv2.IMREAD_UNCHANGED)
            assert np.array_equal(val.map_for("sent.png").apply(np.ascontiguousarray(sent)), predicted)
