"""A doctor that is killed goes on with what it has not seen."""

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from dataset.prepare import doctor
from dataset.prepare.doctor import examine
from tests.conftest import CLASSES, make_data
from tests.paths import ROOT
from tests.three_pictures import build

KILLED = """
import os, signal, sys
from dataset import build_dataset
from dataset.prepare import doctor as doctor_module
from dataset.prepare.doctor import examine
from pathlib import Path
seen = []
def progress():
    seen.append(1)
    if len(seen) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
examine(build_dataset("custom", sys.argv[1], classes=["sky", "grass", "ball"]), 1, Path(sys.argv[2]), progress)
"""


def test_a_killed_doctor_goes_on_where_it_was(tmp_path, monkeypatch):
    clean, cache = make_data(tmp_path / "data", train=8), tmp_path / "train.records"
    killed = subprocess.run([sys.executable, "-c", KILLED, clean, cache], cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL
    names: list[str] = []
    look = doctor.look
    monkeypatch.setattr(doctor, "look", lambda paths, **how: names.append(Path(paths[0]).stem) or look(paths, **how))
    found = examine(build(clean, classes=list(CLASSES)), cache=cache)
    assert names == [f"train_{i:03}" for i in range(4, 8)]
    assert found == replace(examine(build(clean, classes=list(CLASSES))), digests=found.digests, thumbs=found.thumbs)
