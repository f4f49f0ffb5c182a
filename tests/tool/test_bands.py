"""Images of other bands and depths than RGB, from files to a training, a score and a prediction."""

import json

import cv2
import numpy as np
import pytest
import tifffile
import yaml

from tests.conftest import CLASSES, failure, make_experiment
from tests.three_pictures import save
from tool import demo, prepare, test, train
from util import checkpoint

BANDS = 5


def write_bands(folder, suffix, count=6):
    """Images of five bands of 12 bits, each class bright in a band of its own, in numbers up to 2,400."""
    rng = np.random.default_rng(0)
    for i in range(count):
        label = np.repeat(rng.permutation(3), 16)[:, None].repeat(64, 1).astype(np.uint8)
        image = rng.integers(0, 400, (48, 64, BANDS)).astype(np.uint16)
        image[label[..., None] == np.array([0, 9, 1, 9, 2])] += 2000
        path = folder / f"images/{i}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if suffix == "npy":
            np.save(path, image)
        else:
            tifffile.imwrite(path, image, photometric="minisblack", planarconfig="contig")
        save(folder / f"masks/{i}.png", label)


@pytest.mark.parametrize("suffix", ["tif", "npy"])
def test_five_bands_from_files_to_a_prediction(tmp_path, capsys, suffix):
    write_bands(tmp_path, suffix)
    config = tmp_path / "config"
    options = ["--channels", str(BANDS), "--range", "0", "2400", "--classes", ",".join(CLASSES)]
    assert prepare.main(["custom", "--root", str(tmp_path), "--config", str(config), "--workers", "1", *options]) == 0
    made = yaml.safe_load((config / "mine_fcn18.yaml").read_text())["data"]
    assert made["channels"] == BANDS and made["range"] == [0, 2400]
    assert len(made["mean"]) == len(made["std"]) == BANDS and min(made["std"]) > 10

    data = {key: made[key] for key in ("channels", "range", "mean", "std")}
    augment = {"crop": [48, 64], "rotate_prob": 1.0}
    file = make_experiment(
        tmp_path,
        tmp_path,
        data=data,
        augment=augment,
        train={"epochs": 1, "batch_size": 2},
        model={"backbone": "resnet18"},
    )
    assert train.main(["--config", str(file), "--exp", str(tmp_path / "files"), "loader.cache=memory"]) == 0
    assert test.main(["--config", str(file), "--exp", str(tmp_path / "files"), "test.optimize=fold"]) == 0
    assert json.loads(next((tmp_path / "files").rglob("metrics.json")).read_text())["num_images"] == 1
    last = tmp_path / "files/model/last.pth"
    state = checkpoint.load(last)
    assert state["spec"]["options"]["in_channels"] == BANDS
    assert state["preprocessing"]["range"] == [0, 2400]
    for changed in ("data.range=[0, 9]", "data.range=null"):
        test.main(["--config", str(file), "--exp", str(tmp_path / "files"), changed])
        result = json.loads(next((tmp_path / "files").rglob("metrics.json")).read_text())
        assert "data.range" in result["protocol"]["overridden"][0]
    assert test.main(["--exp", str(tmp_path / "files"), "--checkpoint", str(last)]) == 0
    silent = make_experiment(tmp_path, tmp_path, data={key: data[key] for key in ("channels", "mean", "std")})
    assert test.main(["--config", str(silent), "--exp", str(tmp_path / "silent"), "--checkpoint", str(last)]) == 0
    ours, theirs = (next((tmp_path / name).rglob("gray/*.png")).read_bytes() for name in ("files", "silent"))
    assert ours == theirs
    data["range"] = [0, 65535]
    other = make_experiment(tmp_path, tmp_path, data=data)
    arguments = ["--config", str(other), "--exp", str(tmp_path / "other"), "--checkpoint", str(last)]
    assert "data.range is [0,65535]" in failure(capsys, test.main, arguments)
    photo = tmp_path / f"images/0.{suffix}"
    assert demo.main([str(photo), "--checkpoint", str(last), "--out", str(tmp_path / "out")]) == 0
    assert cv2.imread(str(tmp_path / "out/0.png")).shape[0] > 48
    rgb = save(tmp_path / "rgb.png", np.zeros((48, 64, 3), np.uint8))
    told = failure(capsys, demo.main, [str(rgb), "--checkpoint", str(last), "--out", str(tmp_path / "out")])
    assert "rgb.png: a PNG of 3 bands of uint8, where 5 bands are wanted" in told


@pytest.mark.parametrize(
    "changes, message",
    [
        (["data.channels=4"], "mean: 3 values for the 4 channels"),
        (["data.range=[5, 5]"], "range"),
        (["data.range=['98%', '2%']"], "range"),
        (["data.channels=1", "data.mean=[9]", "data.std=[9]", "augment.jitter=[0.1, 0, 0, 0]"], "jitter"),
        (["augment.cutmix_prob=0.6", "augment.classmix_prob=0.6"], "together at most 1"),
        (["augment.copy_paste_prob=0.5"], "copy_paste_classes: names of classes"),
        (["model.options.in_channels=4"], "in_channels 4, but data.channels is 3"),
    ],
)
def test_contradictions_are_named(tmp_path, capsys, changes, message):
    file = make_experiment(tmp_path, tmp_path)
    assert message in failure(capsys, train.main, ["--config", str(file), *changes])
