"""Predictions that are killed at any moment, and continued by more or fewer processes: every picture once."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter

import cv2
import pytest

from tests.paths import ROOT
from tests.prediction import write_checkpoint, write_image
from tool.shared.predictions import INDEX

pytestmark = pytest.mark.faults
PICTURES = 120
PROGRAM = """
import sys, model
model.MODELS["toy"] = "tests.faults.toy.Toy"
from tool import predict
from tool.shared import cli
cli.command(lambda: predict.main(sys.argv[1:]))
"""


@pytest.fixture
def start(tmp_path, monkeypatch):
    """start(world): one command of so many processes."""
    import model

    monkeypatch.setitem(model.MODELS, "toy", "tests.faults.toy.Toy")
    weights = write_checkpoint(tmp_path / "toy.pth")
    for number in range(PICTURES):
        write_image(tmp_path / "in" / ("sub" if number % 3 else "") / f"{number:03}.png", number, (180, 240))
    words = [str(weights), str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--save", "color,rle"]

    def run(world: int) -> list[subprocess.Popen]:
        environments = [
            os.environ | {"RANK": str(rank), "WORLD_SIZE": str(world), "OMP_NUM_THREADS": "1"} for rank in range(world)
        ]
        command = [sys.executable, "-c", PROGRAM, *words]
        return [subprocess.Popen(command, cwd=ROOT, env=each, stdout=subprocess.DEVNULL) for each in environments]

    return run


def lines(out):
    return (out / INDEX).read_text().splitlines() if (out / INDEX).is_file() else []


@pytest.mark.parametrize("seed", range(2))
def test_every_picture_is_noted_once(tmp_path, start, record_fault, seed):
    rng, out = random.Random(seed), tmp_path / "out"
    kills = 0
    for world in (3, 1, 2):
        processes, wanted = start(world), len(lines(out)) + rng.randint(1, 20)
        end = time.monotonic() + 60
        while len(lines(out)) < wanted and time.monotonic() < end and any(each.poll() is None for each in processes):
            time.sleep(0.002)
        for process in processes:
            kills += process.poll() is None
            process.send_signal(signal.SIGKILL)
            process.wait()
    both = start(3) + start(2)  # two commands at once
    assert [process.wait() for process in both] == [0] * 5
    masks = Counter(json.loads(line).get("mask") for line in lines(out)[1:] if line.endswith("}"))
    assert len(masks) == PICTURES and set(masks.values()) == {1}
    assert all(cv2.imread(str(out / mask), cv2.IMREAD_UNCHANGED).shape == (180, 240) for mask in masks)
    assert len(list((out / "rle").rglob("*.json"))) == len(list((out / "color").rglob("*.png"))) == PICTURES
    assert not [path for path in out.rglob("*") if path.name.startswith(".")]
    record_fault("predictions are killed, and continued by another number of processes", kills, "every picture once")
