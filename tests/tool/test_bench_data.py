"""The measurement of the training data: its baselines do what ours do, and the command prints and writes its tables."""

import json

import cv2
import numpy as np
import pytest

from dataset.cityscapes import Cityscapes
from tests.conftest import make_experiment
from tool.bench import data, data_train, main, synthetic
from tool.bench.plain import data_pil, data_semseg, data_sfsegnets
from util.config.load import load
from util.record.machine import cores

MAPPING = dict(Cityscapes.label_map)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return synthetic.write(tmp_path_factory.mktemp("bench") / "pictures", 3, (128, 256))


def test_synthetic_pictures_are_a_cityscapes_list(pictures):
    lines = (pictures / "train.txt").read_text().splitlines()
    assert len(lines) == 3
    image, label = (cv2.imread(str(pictures / name), cv2.IMREAD_UNCHANGED) for name in lines[0].split())
    assert image.shape == (128, 256, 3) and label.shape == (128, 256)
    assert set(np.unique(label)) <= set(MAPPING)


@pytest.mark.parametrize(
    "module, options", [(data_semseg, {}), (data_pil, {"mapping": MAPPING}), (data_sfsegnets, {"mapping": MAPPING})]
)
def test_baselines_give_normalised_crops_of_the_picture(pictures, module, options):
    """At scale 1 and a crop of the whole picture, without the random colours, they are the picture itself."""
    paths = [str(pictures / name) for name in (pictures / "train.txt").read_text().split()[:2]]
    truth = cv2.imread(paths[0])[:, :, ::-1].astype(np.float32)
    ids = cv2.imread(paths[1], cv2.IMREAD_UNCHANGED)
    target = ids if module is data_semseg else np.vectorize(MAPPING.get)(ids)
    if module is data_semseg:
        options = {"rotate": (0.0, 1e-9)}
    elif module is data_sfsegnets:
        options = {**options, "jitter": 0.0}
    for seed in range(4):
        image, label = module.load_sample(*paths, (128, 256), np.random.default_rng(seed), scale=(1.0, 1.0), **options)
        assert image.shape == (3, 128, 256) and label.shape == (128, 256) and label.dtype.is_floating_point is False
        pixels = image.permute(1, 2, 0).numpy() * data_semseg.STD + data_semseg.MEAN
        best = min(
            (np.abs(pixels - side).mean(), np.mean(label.numpy() == known))
            for side, known in ((truth, target), (truth[:, ::-1], target[:, ::-1]))
        )
        assert best[0] < 8 and best[1] > 0.98
    small, _ = module.load_sample(*paths, (200, 300), np.random.default_rng(0), scale=(0.5, 0.6), **options)
    assert small.shape == (3, 200, 300)


@pytest.mark.parametrize(
    "keys, expected", [({}, "semseg"), ({"rotate_prob": 0.0}, "pil"), ({"jitter": [0.2, 0.2, 0.2, 0.1]}, "sfsegnets")]
)
def test_the_baseline_is_the_nearest_recipe(tmp_path, keys, expected):
    path = make_experiment(tmp_path, tmp_path, augment=keys)
    assert data.nearest_baseline(load(path).config) == expected


def test_the_command_prints_and_writes_its_tables(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(data_train, "WARM_STEPS", 1)
    file = tmp_path / "data.json"
    assert (
        main(
            [
                "data",
                "cityscapes",
                "sfnet_mobile",
                "--size",
                "64",
                "96",
                "--count",
                "3",
                "--batch",
                "2",
                "--rounds",
                "1",
                "--train",
                "1",
                "--json",
                str(file),
                "augment.crop=[65,65]",
            ]
        )
        == 0
    )
    shown, written = capsys.readouterr().out, json.loads(file.read_text())
    assert "synthetic street pictures, 64 x 96" in shown and "packed" in shown
    assert [len(table["rows"]) >= 3 for table in written["tables"]] == [True] * 4
    fed = written["tables"][-1]
    assert {row["name"] for row in fed["rows"]} >= {"packed"}
    assert all(0 <= fact["waiting, %"] <= 100 for fact in fed["facts"].values())


@pytest.mark.gpu
@pytest.mark.skipif(cores() < 8, reason="needs 8 cores")
def test_no_step_on_a_gpu_waits_for_its_pictures(tmp_path):
    """Cityscapes' size and recipe, 8 workers: from PNG files, and packed."""
    file = tmp_path / "data.json"
    assert (
        main(
            [
                "data",
                "cityscapes",
                "sfnet101",
                "--count",
                "16",
                "--batch",
                "8",
                "--workers",
                "8",
                "--rounds",
                "1",
                "--train",
                "40",
                "--json",
                str(file),
            ]
        )
        == 0
    )
    fed = json.loads(file.read_text())["tables"][-1]
    assert {name: fact["waiting, %"] for name, fact in fed["facts"].items() if fact["waiting, %"] >= 2} == {}


def test_real_pictures_are_measured_as_their_experiment_reads_them(tmp_path, monkeypatch, capsys):
    pictures = synthetic.write(tmp_path / "mine", 2, (64, 96))
    for name in ("loader_table", "stage_table"):
        monkeypatch.setattr(data, name, data.sample_table)
    assert (
        main(
            [
                "data",
                "cityscapes",
                "sfnet_mobile",
                "--pictures",
                str(pictures),
                "--batch",
                "2",
                "--rounds",
                "1",
                "augment.crop=[32,40]",
            ]
        )
        == 0
    )
    assert str(pictures) in capsys.readouterr().out
