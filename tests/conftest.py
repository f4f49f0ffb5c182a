"""A small data set and experiment that several tests share."""

import socket
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml

from dataset.load.modules import FROM_FILES
from tests import reliability
from tests.three_pictures import make_three_pictures
from util.config.load import merge

CLASSES = ("sky", "grass", "ball")
COLORS = ((120, 170, 230), (60, 140, 50), (220, 60, 40))


def draw(folder: Path, name: str, seed: int, size=(64, 96)) -> str:
    """One picture and its label: sky over grass, a ball, a strip of void; the line of the list file."""
    rng = np.random.default_rng(seed)
    label = np.zeros(size, np.uint8)
    label[int(rng.integers(20, 44)) :] = 1
    centre = (int(rng.integers(15, size[1] - 15)), int(rng.integers(20, size[0] - 12)))
    cv2.circle(label, centre, int(rng.integers(8, 13)), 2, cv2.FILLED)
    image = np.array(COLORS, np.int16)[label] + rng.integers(-20, 21, (*size, 3))
    label[:, :2] = 255
    for sub in ("image", "label"):
        (folder / sub).mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(folder / "image" / f"{name}.png"), np.clip(image, 0, 255).astype(np.uint8)[..., ::-1])
    cv2.imwrite(str(folder / "label" / f"{name}.png"), label)
    return f"image/{name}.png label/{name}.png"


def make_data(folder: Path, train: int = 16, val: int = 5) -> Path:
    """A data set in `folder` with train.txt, val.txt and test.txt (without labels)."""
    for split, count, first in (("train", train, 0), ("val", val, 1000)):
        lines = [draw(folder, f"{split}_{i:03}", first + i) for i in range(count)]
        (folder / f"{split}.txt").write_text("\n".join(lines) + "\n")
    lines = [line.split()[0] for line in (folder / "val.txt").read_text().splitlines()]
    (folder / "test.txt").write_text("\n".join(lines) + "\n")
    return folder


def make_experiment(folder: Path, data: Path, /, **sections) -> Path:
    """An experiment on it: FCN on ResNet-18, two epochs, seconds."""
    raw = {
        "data": {"name": "custom", "root": str(data), "classes": list(CLASSES), "colors": [list(c) for c in COLORS]},
        "augment": {"crop": [48, 64], "scale": [0.8, 1.25]},
        "loader": {"workers": 0},
        "model": {"name": "fcn", "backbone": "resnet18", "options": {"dropout": 0.0}},
        "optim": {"lr": 0.01, "head_factor": 1.0},
        "train": {"epochs": 2, "batch_size": 4, "log_every": 2},
        "test": {"pictures": 2},
    }
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(merge(raw, sections)))
    return path


def newest_metrics(folder: Path) -> Path:
    """The metrics.json below a folder that was written last."""
    return max(folder.rglob("metrics.json"), key=lambda file: file.stat().st_mtime_ns)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def failure(capsys, run, *arguments) -> str:
    """The message of a command, run(*arguments), that fails as a user's mistake does."""
    from tool.shared import cli

    with pytest.raises(SystemExit) as status:
        cli.command(lambda: run(*arguments))
    assert status.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


@pytest.fixture(autouse=True)
def whole_float32(request):
    """On a GPU, where there is one, a test computes float32 in full, as the CPU does that it is compared with."""
    flags = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [flag.allow_tf32 for flag in flags]
    if request.node.get_closest_marker("gpu"):
        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")
        for flag in flags:
            flag.allow_tf32 = False
    yield
    for flag, allowed in zip(flags, before, strict=True):
        flag.allow_tf32 = allowed


@pytest.fixture(autouse=True)
def plugins_of_this_test_alone():
    """Worker processes import the plugins of a process, whose files are gone after the test that wrote them."""
    before = dict(FROM_FILES)
    yield
    FROM_FILES.clear()
    FROM_FILES.update(before)


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def experiment(tmp_path, data) -> Path:
    return make_experiment(tmp_path, data)


@pytest.fixture
def tree(tmp_path) -> Path:
    """A folder with three pictures, their labels of ids 0 to 2, and the list train.txt."""
    return make_three_pictures(tmp_path)


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (2,4,5,6) and labels (2,5,6) of any classes, for losses; two rows are ignored."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 4, 5, 6, generator=generator)
    label = torch.randint(0, 4, (2, 5, 6), generator=generator).to(torch.uint8)
    label[0, :2] = 255
    return logits, label


@pytest.fixture
def regions() -> tuple[torch.Tensor, torch.Tensor]:
    """The same with labels of regions with an ignored strip; class 3 nowhere, class 2 in the second picture alone."""
    logits = torch.randn(2, 4, 7, 8, generator=torch.Generator().manual_seed(8))
    label = torch.zeros(2, 7, 8, dtype=torch.uint8)
    label[:, 3:] = 1
    label[1, 1:4, 5:] = 2
    label[:, 2:4, :2] = 255
    return logits, label


def pytest_addoption(parser):
    parser.addoption("--reliability", metavar="FILE", help="JSON file that takes what the fault tests record")


@pytest.fixture
def record_fault(request):
    """record_fault(fault, repetitions, outcome): a row of the reliability table, once all repetitions are good."""

    def record(fault: str, repetitions: int, outcome: str) -> None:
        file = request.config.getoption("--reliability")
        if file:
            reliability.write(Path(file), [reliability.Row(fault, repetitions, outcome)])

    return record
